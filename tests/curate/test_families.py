"""Families against a search over the graph of shared keys."""

from __future__ import annotations

import random

import pytest

from psychecore.curate.families import LINKS, Families, lot


def reachable(rows: list[dict], start: int) -> frozenset[str]:
    """The ids that a walk over shared keys reaches: the definition, at quadratic cost."""
    seen, queue = {start}, [start]
    while queue:
        here = rows[queue.pop()]
        for index, row in enumerate(rows):
            if index not in seen and any(here.get(k) is not None and here.get(k) == row.get(k) for k in LINKS):
                seen.add(index)
                queue.append(index)
    return frozenset(rows[index]["id"] for index in seen)


@pytest.mark.parametrize("seed", range(20))
def test_a_family_is_all_that_shared_keys_reach_in_any_order(seed: int) -> None:
    draw = random.Random(seed)
    rows = [
        {"id": f"r{n}", **{key: draw.choice([None, None, *"abcdefghij"]) for key in LINKS}} for n in range(12 + seed)
    ]
    families = Families(rows)
    for index, row in enumerate(rows):
        family = families.of(row["id"])
        assert reachable(rows, index) == {other["id"] for other in rows if families.of(other["id"]) == family}
    backwards = Families(reversed(rows))
    assert [backwards.of(row["id"]) for row in rows] == [families.of(row["id"]) for row in rows]


def test_equal_values_of_different_keys_are_no_link() -> None:
    families = Families([{"id": "a", "passage_id": "x"}, {"id": "b", "post_id": "x"}, {"id": "x"}, {"id": "c"}])
    families.add({"id": "d", "cluster": "2"})
    families.add({"id": "e", "post_cluster": "2"})
    assert families.of("d") != families.of("e")
    assert len({families.of(row_id) for row_id in "abxc"}) == 4


@pytest.mark.parametrize("value", ["", True, 1.5, ["p"]])
def test_a_link_that_is_no_name_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="row 'a': passage_id is"):
        Families([{"id": "a", "passage_id": value}])


def test_a_lot_depends_on_seed_and_names_only() -> None:
    ids = [f"q{n}" for n in range(50)]
    order = sorted(ids, key=lambda name: lot(1, name))
    assert order != ids
    assert sorted(ids[:40], key=lambda name: lot(1, name)) == [name for name in order if name in ids[:40]]
    assert sorted(ids, key=lambda name: lot(2, name)) != order
    assert lot(1, "ab", "c") != lot(1, "a", "bc")
