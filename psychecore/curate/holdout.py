"""The hold-out: questions that no stage trains on or shows to a selector, drawn in whole families.

With a question go all its relatives (families.py): a question from the same passage, or a near-duplicate of it, would
leak what the held-out question measures.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psychecore.curate.families import Families, lot
from psychecore.curate.stage import StageCounts
from psychecore.data.records import read_jsonl
from psychecore.durable import replace_file


@dataclass(frozen=True)
class HoldOutConfig:
    """What is held out; the three ways add up.

    share: of the rows not named otherwise, at most this share, by families in a seeded order.
    ids: these rows. file: the rows whose "id" stands in this JSONL file, such as an earlier heldout.jsonl; there ids
    that this pool doesn't have are ignored. seed: of the draw for `share`.
    """

    share: float = 0.0
    ids: tuple[str, ...] = ()
    file: Path | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(f"share is {self.share}, but must be at least 0 and below 1")


def draw_held_out(rows: Iterable[Mapping[str, Any]], config: HoldOutConfig, by_source: bool = False) -> frozenset[str]:
    """The ids of the rows that are held out.

    Families are taken whole, in a seeded order; one that would pass the share is skipped. Raises ValueError for an id
    in `ids` that no row has, and for a share above 0 that no family fits into.
    """
    families, ids = Families(by_source=by_source), []
    for row in rows:
        families.add(row)
        ids.append(str(row["id"]))
    present = set(ids)
    if missing := sorted(set(config.ids) - present):
        raise ValueError(f"hold-out id {missing[0]!r} is in no row ({len(missing)} such): check ids against the file")
    named = set(config.ids)
    if config.file is not None:
        named |= {_id(config.file, number, row) for number, row in read_jsonl(config.file)} & present
    held = {families.of(row_id) for row_id in named}
    sizes = Counter(family for row_id in ids if (family := families.of(row_id)) not in held)
    room = int(config.share * sizes.total())
    drawn = _fill(sizes, room, config.seed)
    if config.share and sizes and not drawn:
        raise ValueError(
            f"a hold-out share of {config.share} is {room} of {sizes.total()} rows, and the smallest family of related "
            f"rows has {min(sizes.values())}: raise the share"
        )
    held |= drawn
    return frozenset(row_id for row_id in ids if families.of(row_id) in held)


def set_aside(source: Path, held: frozenset[str], rest: Path, held_out: Path) -> StageCounts:
    """Copy `source` into `rest`, which counts as kept, and `held_out` by id, keeping the order."""
    counts = [0, 0]

    def lines(wanted: bool) -> Iterable[str]:
        for number, row in read_jsonl(source):
            if (_id(source, number, row) in held) == wanted:
                counts[wanted] += 1
                yield json.dumps(row, ensure_ascii=False) + "\n"

    replace_file(held_out, lines(True))
    replace_file(rest, lines(False))
    return StageCounts(sum(counts), counts[False], {"held_out": counts[True]})


def _fill(sizes: Mapping[str, int], room: int, seed: int) -> set[str]:
    taken = set()
    for family in sorted(sizes, key=lambda family: lot(seed, "hold-out", family)):
        if sizes[family] <= room:
            taken.add(family)
            room -= sizes[family]
    return taken


def _id(path: Path, number: int, row: Mapping[str, Any]) -> str:
    if not isinstance(row.get("id"), str):
        raise ValueError(f"{path} line {number}: id is {row.get('id')!r:.80}, but must be a text")
    return str(row["id"])
