"""The correctness reward: the option letters of an answer against the question's right ones."""

from __future__ import annotations

from typing import Literal

from psychecore.data.records import Question
from psychecore.reward.answer import parse_answer

MultipleCredit = Literal["strict", "elastic", "jaccard"]


def correctness_score(text: str, question: Question, multiple: MultipleCredit = "strict") -> float:
    """Credit in [0, 1] for the answer in `text`; 0.0 where no answer can be read. Never raises on any text.

    A single-choice question wants exactly its letter; `multiple` is the rule for the others, see `credit`.
    """
    chosen = parse_answer(text, question.options).letters
    return credit(chosen, question.answer, multiple if question.kind == "multiple" else "strict")


def credit(chosen: str | None, gold: str, rule: MultipleCredit) -> float:
    """Credit for choosing the letters `chosen` where `gold` are right; each letter stands once. None earns 0.

    strict: 1 if the sets are equal. elastic: |chosen| / |gold| if every chosen letter is right, 0 as soon as one is
    wrong (PCEB's elastic accuracy, as inferred from the published figures). jaccard: |both| / |either|.

    >>> [credit(chosen, "ACD", "elastic") for chosen in ("A", "AC", "ACD", "AB", "ABCD")]
    [0.3333333333333333, 0.6666666666666666, 1.0, 0.0, 0.0]
    """
    if chosen is None:
        return 0.0
    mine, right = set(chosen), set(gold)
    if rule == "elastic":
        return len(mine) / len(right) if mine <= right else 0.0
    if rule == "jaccard":
        return len(mine & right) / len(mine | right)
    return float(mine == right)
