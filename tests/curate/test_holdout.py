"""The hold-out takes whole families, by share, id or file, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from psychecore.curate.families import Families
from psychecore.curate.holdout import HoldOutConfig, draw_held_out, set_aside
from psychecore.curate.stage import StageCounts

# 60 rows from 20 passages of 3; clusters join passage 0 with 1, and 2 with 3
ROWS = [
    {"id": f"q{n}", "passage_id": f"p{n // 3}", "cluster": {0: "a", 3: "a", 6: "b", 9: "b"}.get(n)} for n in range(60)
]


@pytest.mark.parametrize("seed", range(10))
def test_a_share_is_whole_families_and_no_more_than_the_share(seed: int) -> None:
    held = draw_held_out(ROWS, HoldOutConfig(share=0.2, seed=seed))
    assert 0 < len(held) <= 12
    assert len(held) >= 12 - 2  # families are of 3 and 6 rows, so less than 3 rows of room stay
    families = Families(ROWS)
    assert not {families.of(row_id) for row_id in held} & {
        families.of(row["id"]) for row in ROWS if row["id"] not in held
    }


def test_the_draw_depends_on_the_seed_and_not_on_the_order_of_rows() -> None:
    config = HoldOutConfig(share=0.2)
    assert draw_held_out(ROWS[::-1], config) == draw_held_out(ROWS, config)
    assert len({draw_held_out(ROWS, HoldOutConfig(share=0.2, seed=seed)) for seed in range(5)}) > 1


def test_a_named_row_takes_its_passage_and_near_duplicates_along() -> None:
    assert draw_held_out(ROWS, HoldOutConfig(ids=("q2",))) == {f"q{n}" for n in range(6)}
    with pytest.raises(ValueError, match="hold-out id 'q99' is in no row"):
        draw_held_out(ROWS, HoldOutConfig(ids=("q2", "q99")))


def test_a_file_names_rows_and_may_name_others(tmp_path: Path) -> None:
    path = tmp_path / "earlier.jsonl"
    path.write_text('{"id": "q59"}\n{"id": "elsewhere"}\n')
    assert draw_held_out(ROWS, HoldOutConfig(file=path)) == {"q57", "q58", "q59"}
    path.write_text('{"id": 5}\n')
    with pytest.raises(ValueError, match=r"earlier.jsonl line 1: id is 5"):
        draw_held_out(ROWS, HoldOutConfig(file=path))


def test_a_share_that_no_family_fits_into_is_an_error() -> None:
    with pytest.raises(ValueError, match="smallest family of related rows has 3: raise the share"):
        draw_held_out(ROWS, HoldOutConfig(share=0.04))
    assert draw_held_out(ROWS, HoldOutConfig()) == frozenset()


def test_set_aside_splits_a_file_and_loses_nothing(tmp_path: Path) -> None:
    source, rest, held_out = (tmp_path / name for name in ("in.jsonl", "rest.jsonl", "heldout.jsonl"))
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    held = draw_held_out(ROWS, HoldOutConfig(share=0.2))
    assert set_aside(source, held, rest, held_out) == StageCounts(60, 60 - len(held), {"held_out": len(held)})
    got = [json.loads(line) for path in (held_out, rest) for line in path.read_text().splitlines()]
    assert [row["id"] in held for row in got] == [True] * len(held) + [False] * (60 - len(held))
    assert sorted(got, key=lambda row: int(row["id"][1:])) == ROWS
