"""Who got what: how often selectors are right, by area, and how far each two of them agree.

Cohen's kappa is (observed - expected) / (1 - expected): `observed` is the share of equal labels, `expected` the share
that two raters with these label frequencies would reach by chance (Cohen 1960, doi 10.1177/001316446002000104).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import Any


class Pair:
    """The agreement of two raters, fed item by item; with several labels an item, every one meets every other."""

    def __init__(self) -> None:
        self.items, self._equal, self._one, self._other = 0, 0, Counter[Hashable](), Counter[Hashable]()

    def add(self, one: Sequence[Hashable], other: Sequence[Hashable]) -> None:
        """One item's labels by each rater; each rater must give all items the same number of labels."""
        self.items += 1
        self._equal += sum(a == b for a in one for b in other)
        self._one.update(one)
        self._other.update(other)

    def report(self) -> dict[str, float | None]:
        """{"agreement", "kappa"}, rounded to 4 places; kappa is null where both raters always give one same label."""
        ones, others = self._one.total(), self._other.total()
        observed = self._equal * self.items / (ones * others)
        expected = sum(count * self._other[label] for label, count in self._one.items()) / (ones * others)
        kappa = None if expected == 1 else round((observed - expected) / (1 - expected), 4)
        return {"agreement": round(observed, 4), "kappa": kappa}


class Tally:
    """Counts over the rows of a selected question file; memory grows with selectors and areas only."""

    def __init__(self, selectors: Sequence[str]):
        self.selectors = list(selectors)
        self._samples, self._unread, self._right = Counter[str](), Counter[str](), Counter[str]()
        self._questions: Counter[str] = Counter()
        self._by_area: Counter[tuple[str, str]] = Counter()
        self._area_samples: Counter[tuple[str, str]] = Counter()
        self._pairs = {pair: (Pair(), Pair()) for pair in combinations(self.selectors, 2)}

    def add(self, area: str, answers: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """One question: its area, and for each selector its answers ("letters", "right")."""
        self._questions[area] += 1
        for name in self.selectors:
            right = sum(answer["right"] for answer in answers[name])
            self._samples[name] += len(answers[name])
            self._unread[name] += sum(answer["letters"] is None for answer in answers[name])
            self._right[name] += right
            self._area_samples[area, name] += len(answers[name])
            self._by_area[area, name] += right
        for (one, other), (letters, right_pair) in self._pairs.items():
            letters.add([a["letters"] for a in answers[one]], [a["letters"] for a in answers[other]])
            right_pair.add([a["right"] for a in answers[one]], [a["right"] for a in answers[other]])

    def report(self) -> dict[str, Any]:
        """Selectors (answers, share unread, share right), areas (questions, share right by selector), agreement.

        Agreement is given on the letters, where an unread answer is a label of its own, and on right or wrong.
        """
        selectors = {
            name: {
                "answers": self._samples[name],
                "unread": round(self._unread[name] / self._samples[name], 4),
                "right": round(self._right[name] / self._samples[name], 4),
            }
            for name in self.selectors
        }
        areas = {
            area: {
                "questions": self._questions[area],
                "right": {
                    name: round(self._by_area[area, name] / self._area_samples[area, name], 4)
                    for name in self.selectors
                },
            }
            for area in sorted(self._questions)
        }
        agreement = [
            {"selectors": [one, other], "letters": letters.report(), "right": right.report()}
            for (one, other), (letters, right) in self._pairs.items()
        ]
        return {"selectors": selectors, "areas": areas, "agreement": agreement}
