"""Figures from answers: samples, groups, and the paired difference of two models, by hand."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tests_replies import Scripted, said

from psychecore.curate.cache import Cache, CachedGenerator
from psychecore.curate.progress import Progress
from psychecore.data.records import Question
from psychecore.evaluate.answers import (
    AnswerConfig,
    Counted,
    choice_requests,
    essay_requests,
    read_essays,
    read_predictions,
    read_replies,
    read_scores,
    write_predictions,
)
from psychecore.evaluate.item import Essay, Item
from psychecore.evaluate.scores import by_group, choice_scores, macro_difference, tally


def item(name: str, answer: str = "A", group: str = "x") -> Item:
    kind = "single" if len(answer) == 1 else "multiple"
    return Item(Question(name, "Which?", dict.fromkeys("ABC", "t"), answer, kind), {"g": group})  # type: ignore[arg-type]


ITEMS = [item("one"), item("two", "AB", "y")]
SAMPLED = ["<think>t</think>A", "A", "B", "", "AB", "A", "A, B", "none"]


def test_an_item_with_several_samples_counts_once() -> None:
    answers = read_replies(ITEMS, said(SAMPLED), 4)
    assert [answer.parsed for answer in answers] == ["A", "A", "B", None, "AB", "A", "AB", None]
    scores = choice_scores(tally(answers), pass_k=(1, 2, 4))
    assert (scores.accuracy.n, scores.accuracy.value) == (2, 0.5)
    assert scores.elastic is not None
    assert scores.elastic.value == pytest.approx((0.5 + 2.5 / 4) / 2)
    assert (scores.unparsable, scores.empty, scores.format) == (0.25, 0.125, 0.125)
    assert scores.pass_k[1].value == pytest.approx(0.5)
    assert scores.pass_k[2].value == pytest.approx(5 / 6)  # of 6 pairs one holds no right answer
    assert scores.pass_k[4].value == 1
    assert scores.majority is not None
    assert scores.majority.value == 1
    assert (scores.accuracy.constant, scores.accuracy.constant_answer) == (0.5, "A")
    assert list(by_group(tally(answers), "g")) == ["x", "y"]


def test_predictions_come_back_from_their_file(tmp_path: Path) -> None:
    answers = read_replies(ITEMS, said(SAMPLED), 4)
    write_predictions(tmp_path / "new" / "p.jsonl", answers)
    assert read_predictions(tmp_path / "new" / "p.jsonl") == answers
    (tmp_path / "x.jsonl").write_text('{"id": "x"}\n')
    with pytest.raises(ValueError, match=r"x\.jsonl line 1: no prediction"):
        read_predictions(tmp_path / "x.jsonl")


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"credit": "1.0"}, "credit is '1.0', but must be float or int or NoneType"),
        ({"elastic": True}, "elastic is True"),
        ({"id": 3}, "id is 3, but must be str"),
        ({"groups": {"column": ["x"]}}, "must hold texts"),
        ({"sample": 0}, "sample 0 of 'one' already stands on line 1"),
        ({"score": 1}, "unexpected keyword"),
    ],
)
def test_a_damaged_prediction_is_an_error_with_file_and_line(changed: Any, match: str, tmp_path: Path) -> None:
    first, second = map(asdict, read_replies(ITEMS[:1], said(["A", "B"]), 2))
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (first, second | changed)))
    with pytest.raises(ValueError, match=rf"p\.jsonl line 2: no prediction \(.*{match}"):
        read_predictions(tmp_path / "p.jsonl")


def test_the_difference_is_over_the_items_of_both() -> None:
    items = [item(str(n), "A", "xy"[n % 2]) for n in range(6)]
    one = tally(read_replies(items, said(["A", "A", "A", "B", "A", "B"]), 1))
    other = tally(read_replies(items[1:], said(["B", "A", "A", "B", "B"]), 1))
    plain = macro_difference(one, other)
    assert (plain.n, plain.value) == (5, pytest.approx((1 + 0 - 1 + 1 + 0) / 5))
    assert plain.low < plain.value < plain.high
    halves = macro_difference(one, other, "g", {"x": 0.5, "y": 0.5})
    assert halves.value == pytest.approx((0 + 1) / 2 / 2 + (1 - 1 + 0) / 3 / 2)
    with pytest.raises(ValueError, match="'0' has the key A here and B there"):
        macro_difference(one, tally(read_replies([item("0", "B")], said(["A"]), 1)))
    with pytest.raises(ValueError, match="no items"):
        macro_difference(one, tally(read_replies([item("z")], said(["A"]), 1)))


def test_the_likeliest_candidate_is_the_answer() -> None:
    answer = read_scores(ITEMS[1], [], {"A": -3.0, "AB": -1.0, "B": -2.0})
    assert (answer.parsed, answer.credit, answer.text) == ("AB", 1.0, '{"A": -3.0, "AB": -1.0, "B": -2.0}')
    missing = read_scores(ITEMS[0], [], None)
    assert (missing.parsed, missing.credit) == (None, 0.0)
    assert "max_length" in missing.reason


def test_requests_carry_the_sampling_of_the_config() -> None:
    asked = choice_requests(ITEMS, AnswerConfig(samples=2, max_new_tokens=7, seed=3))
    assert [(one.sample, one.temperature, one.top_p, one.max_new_tokens, one.seed) for one in asked] == [
        (sample, 0.7, 0.9, 7, 3) for sample in (0, 1, 0, 1)
    ]


@pytest.mark.parametrize(
    "wrong",
    [{"samples": 2, "temperature": 0.0}, {"samples": 2, "mode": "likelihood"}, {"pass_k": (2,)}, {"top_p": 0.0}],
)
def test_a_config_that_means_nothing_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"samples|pass_k|top_p"):
        AnswerConfig(**wrong)  # type: ignore[arg-type]


def test_open_answers_are_scored_without_their_thinking() -> None:
    pytest.importorskip("rouge_chinese")
    essays = [Essay(str(n), "案例", "诊断？", "一般心理问题") for n in range(2)]
    assert len(essay_requests(essays, AnswerConfig())) == 2
    one, other = read_essays(essays, said(["<think>焦虑</think>⼀般心理问题", "<think>一般心理问题"]))
    assert (one.answer, other.answer) == ("一般心理问题", "")
    assert one.rouge_1 == pytest.approx(100, abs=1e-4)
    assert (other.rouge_1, other.bleu_4) == (0, 0)


def test_what_the_cache_holds_is_neither_asked_nor_counted_again(tmp_path: Path) -> None:
    requests = choice_requests(ITEMS, AnswerConfig())
    cache = Cache(tmp_path / "cache.jsonl")
    model = Scripted(lambda request: "A")
    for known in (0, 2):
        with Progress("x", 2, known) as progress:
            CachedGenerator(Counted(model, progress), cache).generate(requests)
            assert progress.done == 2
    assert len(model.asked) == 2
    cache.close()
