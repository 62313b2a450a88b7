"""The reward of a group: pure scores by name, and their weighted total.

The paper names the two terms, format and correctness, but not their weights nor the credit for questions with several
right answers; the defaults are our choice. To add a reward, write a pure function of a text and a question, give it a
weight in `RewardConfig` and a name in `_score`: the name then appears in metrics.jsonl and samples.jsonl. A reward that
raises, hangs or returns NaN ends the run with the question and sample it did so on.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn, get_args

from psychecore.data.records import Question
from psychecore.reward.correctness import MultipleCredit, correctness_score
from psychecore.reward.format import format_score


class RewardError(RuntimeError):
    """A reward function raised, took too long, or returned what is no finite number."""


@dataclass(frozen=True)
class RewardConfig:
    """Weights of the terms. With weights that add up to 1, a perfect sample has the total 1."""

    format_weight: float = field(default=0.1, metadata={"help": "weight of the format score, 0 or 1"})
    correct_weight: float = field(default=0.9, metadata={"help": "weight of the correctness score, 0 to 1"})
    multiple_credit: MultipleCredit = field(
        default="elastic",
        metadata={"help": "credit where several options are right: all or nothing, partial if none is wrong, overlap"},
    )

    timeout_seconds: float = field(default=60.0, metadata={"help": "longest time that a group's scores may take"})

    def __post_init__(self) -> None:
        if not 0 < self.timeout_seconds <= 1e6:  # the system's timer ends somewhere beyond
            raise ValueError(f"timeout_seconds is {self.timeout_seconds}, but must be above 0 and at most 1e6")
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

    Pure and deterministic; a sample's scores do not depend on its siblings. Raises RewardError naming question, sample
    and score where a reward function raises, takes longer than `timeout_seconds`, or returns NaN or infinity.
    """
    scored: list[dict[str, float]] = []
    place = f"question {question.id!r}, sample"
    try:
        with _time_limit(config.timeout_seconds):
            for text in texts:
                scored.append(_score(text, question, config))
    except Exception as error:
        raise RewardError(f"{place} {len(scored)}: the reward failed with {type(error).__name__}: {error}") from error
    for number, scores in enumerate(scored):
        for name, value in scores.items():
            if not math.isfinite(value):
                raise RewardError(f"{place} {number}: the score {name!r} is {value}, but must be finite")
    return scored


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in a block that lasts longer; the alarm exists on Unix, in the main thread only.

    A caller's own alarm rings afterwards.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: Any) -> NoReturn:
        raise TimeoutError(f"no result after reward.timeout_seconds {seconds:g}")

    before, start = signal.signal(signal.SIGALRM, ring), time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - start), 1e-3), interval)


def _score(text: str, question: Question, config: RewardConfig) -> dict[str, float]:
    form = format_score(text)
    correct = correctness_score(text, question, config.multiple_credit)
    return {"format": form, "correct": correct, "total": config.format_weight * form + config.correct_weight * correct}
