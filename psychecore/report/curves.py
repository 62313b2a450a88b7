"""The numbers of a run by name and step, from metrics.jsonl and timings.jsonl, thinned for drawing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from psychecore.report.tail import Tail, number

LOGS = ("metrics.jsonl", "timings.jsonl")
POINTS = 240  # of a drawn curve: two thirds of a chart's width
NOT_DRAWN = ("step", "phase")
MAX_STEP = 2**53  # what a browser counts exactly

# Sections and names in the order of the page; a name that ends in "_" stands for all that begin so.
SECTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Reward", ("reward", "reward_", "informative")),
    ("Policy", ("loss", "kl", "entropy", "clip_fraction", "ratio", "mismatch", "mismatch_", "gradient_norm", "lr")),
    ("Samples", ("length", "truncated", "new_tokens", "tokens", "labels", "total_tokens", "epoch")),
    ("Speed and memory", ("rollout_tokens_per_s", "update_tokens_per_s", "tokens_per_s", "memory_gib", "mfu")),
)
ELSEWHERE = ("Speed and memory", "Other")  # what only timings.jsonl has, and what only metrics.jsonl has
ABOUT = {
    "reward": "mean total of the samples",
    "informative": "share of groups whose rewards differ: only they teach",
    "kl": "to the reference, nats a token",
    "entropy": "of the policy, nats a token",
    "clip_fraction": "share of tokens whose ratio was clipped",
    "ratio": "policy over old policy, mean",
    "mismatch": "sampler's log-prob against the trainer's, mean |difference|",
    "mismatch_kl": "of the sampler from the trainer",
    "length": "tokens of an answer, mean",
    "truncated": "share of answers cut at max_new_tokens",
    "memory_gib": "peak so far, GiB",
    "mfu": "share of the matrix products' peak in the update",
    "occupancy": "share of sampler slots in use while samples wait",
    "slot_use": "share of sampler slots in use in the whole rollout",
    "seconds": "of a whole step",
}


class Curves:
    """Every numeric metric of a run folder, as columns of (step, value); `look` takes up what is new."""

    def __init__(self, folder: Path):
        self._tails = {name: Tail(folder / name) for name in LOGS}
        self._columns: dict[str, dict[str, tuple[list[int], list[float]]]] = {name: {} for name in LOGS}

    def look(self) -> bool:
        """Read what was appended; returns whether anything changed. Raises ValueError with file and line."""
        changed = False
        for name, tail in self._tails.items():
            for _, _, row in tail.look():
                self._drop_if_reset(name)
                changed = True
                step = row.get("step")
                if type(step) is not int or not 0 <= step < MAX_STEP:
                    raise ValueError(f"{tail.path} line {tail.lines}: step is {step!r:.80}, but must be a whole number")
                try:
                    found = {key: number(value, key) for key, value in row.items() if key not in NOT_DRAWN}
                except ValueError as error:
                    raise ValueError(f"{tail.path} line {tail.lines}: {error}") from None
                for key, value in found.items():
                    if value is not None:
                        steps, values = self._columns[name].setdefault(key, ([], []))
                        steps.append(step)
                        values.append(float(value))
            changed |= tail.reset
            self._drop_if_reset(name)
        return changed

    def _drop_if_reset(self, name: str) -> None:
        if self._tails[name].reset:
            self._columns[name].clear()
            self._tails[name].reset = False

    @property
    def last_step(self) -> int:
        """The newest step that metrics.jsonl tells of; 0 before the first."""
        return max((steps[-1] for steps, _ in self._columns[LOGS[0]].values()), default=0)

    def columns(self) -> Iterator[tuple[str, str, list[int], list[float]]]:
        """(section, name, steps, values) of every metric, in the order of the page."""
        columns = {name: column for log in LOGS for name, column in self._columns[log].items()}
        timed = self._columns[LOGS[1]]
        placed: dict[str, str] = {}
        for section, wanted in SECTIONS:
            for want in wanted:
                for name in columns:
                    if name == want or (want.endswith("_") and name.startswith(want) and name not in timed):
                        placed.setdefault(name, section)
        for name in columns:
            placed.setdefault(name, ELSEWHERE[0] if name in timed else ELSEWHERE[1])
        order = [*(section for section, _ in SECTIONS), ELSEWHERE[1]]
        for name in sorted(placed, key=lambda name: order.index(placed[name])):  # sorted keeps the order of a section
            yield placed[name], name, *columns[name]

    def to_rows(self) -> list[dict[str, Any]]:
        """The thinned curves as JSON objects, in the order of the page."""
        return [
            {"section": section, "name": name, "about": ABOUT.get(name, ""), **thin(steps, values)}
            for section, name, steps, values in self.columns()
        ]


def thin(steps: Sequence[int], values: Sequence[float], points: int = POINTS) -> dict[str, list[float]]:
    """At most `points` points of a curve: last step, mean, lowest and highest value of stretches of about equal length.

    "low" and "high" are absent where no stretch has more than one value. "last" is the last value itself.

    >>> thin([1, 2, 3, 4], [1.0, 3.0, 5.0, 5.0], points=2)
    {'step': [2, 4], 'mean': [2.0, 5.0], 'low': [1.0, 5.0], 'high': [3.0, 5.0], 'last': [5.0]}
    """
    count = min(points, len(values))
    bounds = [place * len(values) // count for place in range(count)] + [len(values)]
    parts = [values[start:end] for start, end in pairwise(bounds)]
    curve: dict[str, list[float]] = {"step": [steps[end - 1] for end in bounds[1:]]}
    curve["mean"] = [_short(math.fsum(part) / len(part)) for part in parts]
    if count < len(values):
        curve |= {"low": [_short(min(part)) for part in parts], "high": [_short(max(part)) for part in parts]}
    return curve | {"last": [_short(value) for value in values[-1:]]}


def _short(value: float) -> float:
    return float(f"{value:.5g}")
