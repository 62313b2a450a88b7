"""From answers to figures: accuracies with what is needed to believe them, by group, as macro means, and paired.

Beside every figure stand n and the 95 % interval over items, or over cases that several are asked on (statistics.py);
beside accuracies and averages what the best constant answer scores on these very questions; beside a group's accuracy
the share of answers that could not be read (they score 0). All are shares in [0, 1]. With several samples an item's
value is the mean over its samples, and pass@k and the majority's accuracy are given too, with interval alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from psychecore.evaluate.answers import Answer, EssayAnswer
from psychecore.evaluate.choice import best_constant
from psychecore.evaluate.statistics import (
    DIFFERENCE,
    Estimate,
    Span,
    majority,
    pass_at_k,
    weighted_estimate,
)

CLUSTER = "case"  # a group whose items are alike: intervals resample it whole


@dataclass(frozen=True)
class Score:
    """One figure: its mean over n items and [low, high], and the best constant answer's score, where there is one."""

    n: int
    value: float
    low: float
    high: float
    constant: float | None = None
    constant_answer: str = ""


@dataclass(frozen=True)
class ChoiceScores:
    """The figures of one group of items; `elastic` where it holds multiple-choice questions.

    unparsable: answers without readable letters. format: one think block, then an answer. empty: no text at all, as for
    a question that is too long for the model. pass_k by k and majority where items have several samples.
    """

    accuracy: Score
    elastic: Score | None
    unparsable: float
    format: float
    empty: float
    pass_k: dict[int, Score] = field(default_factory=dict)
    majority: Score | None = None

    def to_row(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class Tallied:
    """One item over its samples."""

    id: str
    kind: str
    gold: str
    groups: dict[str, str]
    credit: float
    elastic: float
    answers: tuple[Answer, ...]


def tally(answers: Sequence[Answer]) -> list[Tallied]:
    """Answers by item, in order; those without a published key are left out."""
    by_id: dict[str, list[Answer]] = {}
    for answer in answers:
        if answer.credit is not None:
            by_id.setdefault(answer.id, []).append(answer)
    return [
        Tallied(
            name,
            said[0].kind,
            said[0].gold,
            said[0].groups,
            _mean([one.credit or 0.0 for one in said]),
            _mean([one.elastic or 0.0 for one in said]),
            tuple(said),
        )
        for name, said in by_id.items()
    ]


def choice_scores(items: Sequence[Tallied], pass_k: Sequence[int] = (), seed: int = 0) -> ChoiceScores:
    """The figures over these items. Raises ValueError for none, or where a k is larger than the number of samples."""
    answers = [answer for item in items for answer in item.answers]
    clusters = {"": [cluster(item) for item in items]}

    def figure(values: Sequence[float], *constant: Any) -> Score:
        return _score(weighted_estimate({"": (1.0, values)}, seed, clusters=clusters), *constant)

    if not items:
        raise ValueError("there are no items, so there is no mean")
    golds = Counter((item.gold, item.kind) for item in items)
    always, constant = best_constant(golds, elastic=False)
    elastic = None
    if any(item.kind == "multiple" for item in items):
        always_elastic, floor = best_constant(golds, elastic=True)
        elastic = figure([item.elastic for item in items], floor, always_elastic)
    return ChoiceScores(
        accuracy=figure([item.credit for item in items], constant, always),
        elastic=elastic,
        unparsable=_mean([answer.parsed is None for answer in answers]),
        format=_mean([answer.format for answer in answers]),
        empty=_mean([not answer.text.strip() for answer in answers]),
        pass_k={k: figure([_pass(item, k) for item in items]) for k in pass_k},
        majority=figure([_majority(item) for item in items]) if len(answers) > len(items) else None,
    )


def by_group(items: Sequence[Tallied], group: str) -> dict[str, list[Tallied]]:
    """Items by their value of a group, in the order in which the values occur; those without one are left out."""
    found: dict[str, list[Tallied]] = {}
    for item in items:
        if group in item.groups:
            found.setdefault(item.groups[group], []).append(item)
    return found


def macro_score(
    items: Sequence[Tallied], group: str, weights: Mapping[str, float], elastic: bool = False, seed: int = 0
) -> Score:
    """The weighted sum of the means of a group's values, such as the mean over six columns.

    The constant is what the best constant answer of each value would give: a floor by columns, for one who knows which
    column a question is of. Raises ValueError where a value has a weight but no items.
    """
    found = by_group(items, group)
    strata = {
        name: (weight, [item.elastic if elastic else item.credit for item in found.get(name, [])])
        for name, weight in weights.items()
    }
    clusters = {name: [cluster(item) for item in found.get(name, [])] for name in weights}
    result = weighted_estimate(strata, seed, clusters=clusters)
    golds = {name: Counter((item.gold, item.kind) for item in found[name]) for name in weights}
    floor = math.fsum(weight * best_constant(golds[name], elastic)[1] for name, weight in weights.items())
    return _score(result, floor)


def macro_difference(
    one: Sequence[Tallied],
    other: Sequence[Tallied],
    group: str = "",
    weights: Mapping[str, float] | None = None,
    elastic: bool = False,
    seed: int = 0,
) -> Score:
    """Mean of one minus other over the items of both, paired; with weights, the weighted sum of the groups' means.

    Raises ValueError where an item's key is not the same in both, or a group shares no item.
    """
    there = {item.id: item for item in other}
    strata: dict[str, tuple[float, list[float]]] = {
        name: (weight, []) for name, weight in (weights or {"": 1.0}).items()
    }
    clusters: dict[str, list[str]] = {name: [] for name in strata}
    for item in one:
        name = item.groups.get(group, "") if weights else ""
        if item.id not in there or name not in strata:
            continue
        twin = there[item.id]
        if twin.gold != item.gold:
            raise ValueError(f"item {item.id!r:.80} has the key {item.gold} here and {twin.gold} there")
        strata[name][1].append(item.elastic - twin.elastic if elastic else item.credit - twin.credit)
        clusters[name].append(cluster(item))
    return _score(weighted_estimate(strata, seed, DIFFERENCE, clusters))


def mean_score(
    values: Sequence[float], seed: int = 0, span: Span = (0.0, 100.0), clusters: Sequence[str] = ()
) -> Score:
    """A plain mean, of values from 0 to 100 unless `span` says else, with its interval. Raises ValueError for none.

    clusters: what each value belongs to.
    """
    return _score(weighted_estimate({"": (1.0, values)}, seed, span, {"": clusters}))


def cluster(one: Tallied | EssayAnswer) -> str:
    """What it belongs to with others (the case that it is asked on), or itself."""
    return one.groups.get(CLUSTER, one.id)


def _score(found: Estimate, constant: float | None = None, constant_answer: str = "") -> Score:
    return Score(found.n, found.value, found.low, found.high, constant, constant_answer)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _pass(item: Tallied, k: int) -> float:
    return pass_at_k(len(item.answers), sum(answer.credit == 1 for answer in item.answers), k)


def _majority(item: Tallied) -> float:
    return float(majority([answer.parsed for answer in item.answers]) == item.gold)
