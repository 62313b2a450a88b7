"""Scores of a group of answers to one question, by name. Pure and time-bounded: the same texts give the same scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psychecore.data.records import Question
from psychecore.reward.answer import parse_answer
from psychecore.reward.correctness import Credit, credit
from psychecore.reward.format import format_score


@dataclass(frozen=True)
class RewardConfig:
    """Weights of the two terms, and the credit for questions with several right options.

    The paper names the terms and publishes neither weights nor credit; these defaults are our choice. A correct answer
    counts only if the format is kept where `require_format`.
    """

    format_weight: float = 0.2
    correct_weight: float = 1.0
    multiple: Credit = "strict"
    require_format: bool = False

    def __post_init__(self) -> None:
        if self.format_weight < 0 or self.correct_weight < 0 or self.format_weight + self.correct_weight <= 0:
            raise ValueError(
                f"format_weight {self.format_weight} and correct_weight {self.correct_weight} must be at least 0, "
                "and not both 0"
            )


def score_group(texts: Sequence[str], question: Question, config: RewardConfig) -> list[dict[str, float]]:
    """For each text {"format", "correct", "total"}; total is the weighted sum."""
    return [score(text, question, config) for text in texts]


def score(text: str, question: Question, config: RewardConfig) -> dict[str, float]:
    """The scores of one text. Never raises, whatever the text."""
    kept = format_score(text)
    letters = parse_answer(text, "".join(question.options)).letters
    kind: Credit = "strict" if question.kind == "single" else config.multiple
    correct = credit(letters, question.answer, kind) if letters else 0.0
    if config.require_format:
        correct *= kept
    return {
        "format": kept,
        "correct": correct,
        "total": config.format_weight * kept + config.correct_weight * correct,
    }
