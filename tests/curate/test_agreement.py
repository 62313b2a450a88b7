"""Agreement and kappa against cases worked by hand and exact fractions over all pairs of labels."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import product

import pytest

from psychecore.curate.agreement import Pair, Tally


def test_kappa_of_a_table_worked_by_hand() -> None:
    # 20 both yes, 5 only the first, 10 only the second, 15 both no: observed 35/50 = 0.7, expected
    # 0.5 * 0.6 + 0.5 * 0.4 = 0.5, so kappa = 0.2 / 0.5 = 0.4
    pair = Pair()
    for count, one, other in ((20, True, True), (5, True, False), (10, False, True), (15, False, False)):
        for _ in range(count):
            pair.add([one], [other])
    assert pair.report() == {"agreement": 0.7, "kappa": 0.4}


@pytest.mark.parametrize("seed", range(8))
def test_several_samples_are_all_pairs_of_samples(seed: int) -> None:
    draw = random.Random(seed)
    ones, others = draw.choice([(1, 1), (3, 3), (2, 4)])
    labels = ["A", "B", "AC", None]
    items = [(draw.choices(labels, k=ones), draw.choices(labels, [5, 1, 1, 1], k=others)) for _ in range(30)]
    pair = Pair()
    for one, other in items:
        pair.add(one, other)
    flat = [(a, b) for one, other in items for a, b in product(one, other)]
    observed = Fraction(sum(a == b for a, b in flat), len(flat))
    expected = sum(
        Fraction(sum(a == label for a, _ in flat), len(flat)) * Fraction(sum(b == label for _, b in flat), len(flat))
        for label in labels
    )
    kappa = (observed - expected) / (1 - expected)
    assert pair.report() == {"agreement": pytest.approx(float(observed), abs=5e-5), "kappa": round(float(kappa), 4)}


def test_kappa_is_undefined_where_only_one_label_occurs() -> None:
    pair = Pair()
    pair.add(["A", "A"], ["A"])
    assert pair.report() == {"agreement": 1.0, "kappa": None}


def test_tally_counts_right_and_unread_by_selector_and_area() -> None:
    def answer(letters: str | None, right: bool) -> dict:
        return {"letters": letters, "right": right}

    tally = Tally(["small", "large"])
    tally.add("social", {"small": [answer("A", False), answer(None, False)], "large": [answer("B", True)]})
    tally.add("social", {"small": [answer("C", True), answer("C", True)], "large": [answer("C", True)]})
    tally.add("ethics", {"small": [answer("A", True), answer("B", False)], "large": [answer(None, False)]})
    report = tally.report()
    assert report["selectors"]["small"] == {"answers": 6, "unread": 0.1667, "right": 0.5}
    assert report["selectors"]["large"] == {"answers": 3, "unread": 0.3333, "right": 0.6667}
    assert report["areas"]["social"] == {"questions": 2, "right": {"small": 0.5, "large": 1.0}}
    assert report["areas"]["ethics"] == {"questions": 1, "right": {"small": 0.5, "large": 0.0}}
    # letters: of 6 pairs only the two (C, C) are equal; right: those and one (False, False)
    [agreement] = report["agreement"]
    assert agreement["selectors"] == ["small", "large"]
    assert agreement["letters"]["agreement"] == 0.3333
    assert agreement["right"]["agreement"] == 0.5
