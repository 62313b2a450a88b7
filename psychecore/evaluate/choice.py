"""Accuracy on multiple-choice questions from generated answers, with what it takes to believe the number."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from psychecore.data.records import Question
from psychecore.reward.answer import parse_answer
from psychecore.reward.correctness import credit
from psychecore.reward.format import format_score


@dataclass(frozen=True)
class ChoiceReport:
    """Scores of n answers, all shares of 1.

    accuracy: exact set match. interval: its 95 % Wilson interval. elastic: elastic accuracy (partial credit on
    questions with several right options). format_rate: answers in the think format. unparsable: answers without
    option letters. constant: the best score that one fixed answer reaches on these questions, the floor.
    """

    n: int
    accuracy: float
    interval: tuple[float, float]
    elastic: float
    format_rate: float
    unparsable: float
    constant: float

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"accuracy {self.accuracy:6.1%} [{low:.1%}, {high:.1%}]  format {self.format_rate:6.1%}  "
            f"unparsable {self.unparsable:5.1%}  best constant {self.constant:.1%}  n {self.n}"
        )

    def to_row(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return asdict(self)


def score_choice(questions: Sequence[Question], texts: Sequence[str]) -> ChoiceReport:
    """Score one answer text per question. Raises ValueError where their numbers differ or there are none."""
    if not questions or len(questions) != len(texts):
        raise ValueError(f"{len(questions)} questions and {len(texts)} answers: need one answer per question")
    chosen = [parse_answer(text, "".join(q.options)).letters for q, text in zip(questions, texts, strict=True)]
    right = sum(letters == q.answer for q, letters in zip(questions, chosen, strict=True))
    elastic = sum(
        credit(letters, q.answer, "elastic") for q, letters in zip(questions, chosen, strict=True) if letters
    )
    n = len(questions)
    return ChoiceReport(
        n=n,
        accuracy=right / n,
        interval=wilson_interval(right, n),
        elastic=elastic / n,
        format_rate=sum(map(format_score, texts)) / n,
        unparsable=sum(letters is None for letters in chosen) / n,
        constant=max(Counter(q.answer for q in questions).values()) / n,
    )


def wilson_interval(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927); unlike mean +- 2 standard errors it stays inside [0, 1]."""
    share = successes / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max((centre - spread) / scale, 0.0), min((centre + spread) / scale, 1.0)
