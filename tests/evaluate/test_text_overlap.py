"""ROUGE and BLEU against the packages as PCEB's users call them."""

from __future__ import annotations

import sys

import pytest

from psychecore.evaluate import text_overlap as module
from psychecore.evaluate.text_overlap import Overlap, text_overlap

GOLD = "（1）诊断可能为焦虑神经症。\n（2）诊断依据：该求助者的主客观世界是统一的，有自知力，并且能够主动求医。"
ANSWERS = [
    GOLD,
    "该求助者可能患有焦虑神经症，因为她有自知力并主动求医。",
    "主动求医。有自知力！诊断依据如下：\n\n1. 焦虑",
    "completely different",
    "症",
]


@pytest.mark.parametrize("answer", ANSWERS)
def test_scores_are_those_of_the_packages(answer: str) -> None:
    jieba, rouge_chinese = pytest.importorskip("jieba"), pytest.importorskip("rouge_chinese")
    bleu = pytest.importorskip("nltk.translate.bleu_score")
    rouge = rouge_chinese.Rouge().get_scores(" ".join(jieba.cut(answer)), " ".join(jieba.cut(GOLD)))[0]
    smooth = bleu.SmoothingFunction().method3
    expected = 100 * bleu.sentence_bleu([list(GOLD)], list(answer), smoothing_function=smooth)
    found = text_overlap(answer, GOLD)
    assert found == pytest.approx((100 * rouge["rouge-1"]["f"], 100 * rouge["rouge-l"]["f"], expected))


def test_an_empty_answer_scores_nothing_and_an_empty_gold_is_an_error() -> None:
    pytest.importorskip("rouge_chinese")
    assert text_overlap(" \n", GOLD) == Overlap(0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="gold text is empty"):
        text_overlap("x", " ")


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jieba", None)
    module._load.cache_clear()
    with pytest.raises(ImportError, match=r"jieba is missing: .*pip install -e '\.\[eval\]'"):
        text_overlap("x", "y")
    module._load.cache_clear()
