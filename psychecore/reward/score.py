"""The reward of a group: pure scores by name, and their weighted total.

The paper names the two terms, format and correctness, but not their weights nor the credit for questions with several
right answers; the defaults are our choice. To add a reward, write a pure function of a text and a question, give it a
weight in `RewardConfig` and a name in `score_group`: the name then appears in metrics.jsonl and samples.jsonl.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

from psychecore.data.records import Question
from psychecore.reward.correctness import MultipleCredit, correctness_score
from psychecore.reward.format import format_score


@dataclass(frozen=True)
class RewardConfig:
    """Weights of the terms. With weights that add up to 1, a perfect sample has the total 1."""

    format_weight: float = field(default=0.1, metadata={"help": "weight of the format score, 0 or 1"})
    correct_weight: float = field(default=0.9, metadata={"help": "weight of the correctness score, 0 to 1"})
    multiple_credit: MultipleCredit = field(
        default="elastic",
        metadata={"help": "credit where several options are right: all or nothing, partial if none is wrong, overlap"},
    )

    def __post_init__(self) -> None:
        for name, weight in (("format_weight", self.format_weight), ("correct_weight", self.correct_weight)):
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name} is {weight}, but must be a finite number of at least 0")
        if self.format_weight == self.correct_weight == 0:
            raise ValueError("format_weight and correct_weight are both 0, so every sample would score the same")
        if self.multiple_credit not in get_args(MultipleCredit):
            allowed = ", ".join(get_args(MultipleCredit))
            raise ValueError(f"multiple_credit is {self.multiple_credit!r}, but must be one of {allowed}")


def score_group(texts: Sequence[str], question: Question, config: RewardConfig) -> list[dict[str, float]]:
    """Score each sample of a group: {"format": 0 or 1, "correct": 0 to 1, "total": their weighted sum}.

    Pure and deterministic; a sample's scores do not depend on its siblings. Never raises on any text.
    """
    return [_score(text, question, config) for text in texts]


def _score(text: str, question: Question, config: RewardConfig) -> dict[str, float]:
    form = format_score(text)
    correct = correctness_score(text, question, config.multiple_credit)
    return {"format": form, "correct": correct, "total": config.format_weight * form + config.correct_weight * correct}
