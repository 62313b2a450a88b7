"""ROUGE and BLEU of an open Chinese answer, as the case questions of PCEB are scored: by the field's own packages.

ROUGE-1 and ROUGE-L are rouge-chinese's F over jieba's words; BLEU-4 is nltk's over characters, smoothed by its method 3
(Chen and Cherry 2014). All times 100. Figures over words and over characters, or of other packages, don't compare.
"""

from __future__ import annotations

import logging
import tempfile
from functools import cache
from typing import Any, NamedTuple

MAX_WORDS = 4096  # of an answer; rouge-chinese keeps a table of answer x gold words in memory


class Overlap(NamedTuple):
    """Scores from 0 to 100."""

    rouge_1: float
    rouge_l: float
    bleu_4: float


def text_overlap(answer: str, gold: str) -> Overlap:
    """How much of the gold text the answer has; 0 for an empty answer. Of the answer the first MAX_WORDS words count.

    Raises ValueError for an empty gold text, ImportError where the packages are absent.
    """
    if not gold.strip():
        raise ValueError("the gold text is empty, so nothing can be compared with it")
    tools = _load()
    if not answer.strip():
        return Overlap(0.0, 0.0, 0.0)
    words = list(tools.cut(answer))
    if len(words) > MAX_WORDS:
        words = words[:MAX_WORDS]
        answer = "".join(words)
    # white space counts as a word to rouge-chinese, so it is left to it
    rouge = tools.rouge.get_scores(" ".join(words), " ".join(tools.cut(gold)))[0]
    bleu = tools.bleu([list(gold)], list(answer))
    return Overlap(100 * rouge["rouge-1"]["f"], 100 * rouge["rouge-l"]["f"], 100 * bleu)


class _Tools(NamedTuple):
    cut: Any
    rouge: Any
    bleu: Any


@cache
def _load() -> _Tools:
    """The packages, loaded with the first score: jieba's dictionary takes seconds."""
    try:
        import jieba
        from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
        from rouge_chinese import Rouge
    except ImportError as error:
        raise ImportError(
            f"{error.name} is missing: open answers are scored with jieba, rouge-chinese and nltk, "
            "pip install -e '.[eval]' in psychecore's folder"
        ) from None
    jieba.setLogLevel(logging.WARNING)
    words = jieba.Tokenizer()
    # jieba unmarshals /tmp/jieba.cache, whoever wrote it; a private folder costs a second, once a process
    with tempfile.TemporaryDirectory() as private:
        words.tmp_dir = private
        words.initialize()
    smooth = SmoothingFunction().method3

    def bleu(golds: list[list[str]], answer: list[str]) -> float:
        return float(sentence_bleu(golds, answer, smoothing_function=smooth))

    return _Tools(words.cut, Rouge(), bleu)
