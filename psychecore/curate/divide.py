"""Stage 8, second half: answered questions become the SFT set and the GRPO set, in whole families.

A question is easy when enough selectors got it (one, in PAPER.md item 6): SFT. Otherwise it is hard: GRPO. A family
(families.py: same passage, post or near-duplicate cluster) must not stand in both, so it goes to GRPO when at least
`hard_share` of its questions are hard, else to SFT. Its questions of the other kind are dropped, so that each SFT
question was got and each GRPO question was not; or, by option, they move with their family.

The file is read several times and never held; memory is a short tuple a question. The same rows give the same bytes.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from psychecore.curate.agreement import Tally
from psychecore.curate.families import Families, lot
from psychecore.curate.stage import StageCounts
from psychecore.data.records import read_jsonl
from psychecore.durable import replace_file

SFT_FILE, GRPO_FILE, REJECTS_FILE = "questions_sft.jsonl", "questions_grpo.jsonl", "divide.rejects.jsonl"
MATRIX_FILE, REPORT_FILE = "matrix.jsonl", "selection.json"
OUTPUTS = (SFT_FILE, GRPO_FILE, REJECTS_FILE, MATRIX_FILE, REPORT_FILE)
OTHER = {"sft": "grpo", "grpo": "sft"}


@dataclass(frozen=True)
class DivideConfig:
    """Which questions are easy, and what happens to sets that are too large or too small.

    samples_needed: a selector got a question when so many of its samples are right. selectors_needed: a question is
    easy when so many selectors got it. hard_share: a family with at least this share of hard questions goes to GRPO.
    straddling: "drop" or "move" the questions that are of the other kind than their family. sft_limit, grpo_limit: a
    set that is larger keeps a seeded subsample; 0 keeps all. sft_minimum, grpo_minimum: the least size of a set.
    short: a set below its minimum is an "error", or "move" takes families over from the other set, for GRPO the hardest
    (lowest mean of selectors that got it, then of right samples), for SFT the easiest, ties in a seeded order, never so
    many that the other set falls below its own minimum. seed: of the subsamples and ties.
    """

    samples_needed: int = 1
    selectors_needed: int = 1
    hard_share: float = 0.5
    straddling: Literal["drop", "move"] = "drop"
    sft_limit: int = 0
    grpo_limit: int = 0
    sft_minimum: int = 1
    grpo_minimum: int = 1
    short: Literal["error", "move"] = "error"
    seed: int = 42

    def __post_init__(self) -> None:
        if self.samples_needed < 1 or self.selectors_needed < 1:
            raise ValueError(
                f"samples_needed {self.samples_needed} and selectors_needed {self.selectors_needed} must be at least 1"
            )
        if not 0 < self.hard_share <= 1:
            raise ValueError(f"hard_share is {self.hard_share}, but must be above 0 and at most 1")
        for name, values in (("straddling", ("drop", "move")), ("short", ("error", "move"))):
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but must be one of {', '.join(values)}")
        for side in OTHER:
            limit, minimum = getattr(self, f"{side}_limit"), getattr(self, f"{side}_minimum")
            if limit < 0 or minimum < 0 or 0 < limit < minimum:
                raise ValueError(f"{side}_limit {limit} must be 0, or at least {side}_minimum {minimum}, which is >= 0")


def divide(source: Path, folder: Path, config: DivideConfig, by_source: bool = False) -> StageCounts:
    """Divide the rows of SelectStage into five files in `folder`; kept counts both sets together.

    questions_sft.jsonl and questions_grpo.jsonl hold the rows as they came; divide.rejects.jsonl holds the others with
    "reason" ("straddles", "subsampled"; "not_answered": nobody got it, and somebody could not be asked) and "detail";
    matrix.jsonl one line a question: who answered and got what, and where it went; selection.json counts, the letters
    that are right in either set (where selectors like one, few such questions are hard, and GRPO learns to avoid it),
    difficulty by area, agreement. Raises ValueError where the answers are not of the same selectors on every row, can
    never meet the threshold, or leave a set below its minimum.
    """
    votes, unanswered, tally = _read_votes(source, config, by_source)
    sides = _sides(votes, config)
    moved = _fill_up(votes, sides, config)
    fates = _fates(votes, sides, moved, config) | unanswered
    _drop_surplus(votes, fates, config)
    report = _report(votes, sides, moved, fates, config) | tally.report()
    for side, name in (("sft", SFT_FILE), ("grpo", GRPO_FILE)):
        replace_file(folder / name, _lines(row for row, fate in _with_fates(source, fates) if fate.side == side))
    replace_file(
        folder / REJECTS_FILE,
        _lines(
            {**row, "reason": fate.reason, "detail": fate.detail}
            for row, fate in _with_fates(source, fates)
            if fate.side is None
        ),
    )
    replace_file(folder / MATRIX_FILE, _lines(_matrix_row(row, fate) for row, fate in _with_fates(source, fates)))
    replace_file(folder / REPORT_FILE, [json.dumps(report, ensure_ascii=False, indent=2) + "\n"])
    dropped = Counter(fate.reason for fate in fates.values() if fate.side is None)
    return StageCounts(len(fates), len(fates) - dropped.total(), dict(sorted(dropped.items())))


class _Vote(NamedTuple):
    id: str
    family: str
    kind: str  # the set that the answers call for
    got: int  # selectors
    right: int  # samples
    gold: str  # letters of the right options


class _Fate(NamedTuple):
    side: str | None  # the set, None: dropped
    kind: str
    reason: str = ""
    detail: str = ""


def _read_votes(source: Path, config: DivideConfig, by_source: bool) -> tuple[list[_Vote], dict[str, _Fate], Tally]:
    """The votes of the questions, and the fates of those that nobody got and not everybody was asked."""
    families, tally, votes, seen = Families(by_source=by_source), None, [], set()
    unanswered: dict[str, _Fate] = {}
    for number, row in read_jsonl(source):
        place = f"{source} line {number}"
        answers = _answers(row, place)
        shape = {name: len(given) for name, given in answers.items()}
        if tally is None:
            tally, expected = Tally(sorted(answers)), shape
            _check_reach(shape, config)
        if shape != expected:
            raise ValueError(f"{place}: answers of {shape}, but the first row has {expected}: run all selectors on all")
        if row["id"] in seen:
            raise ValueError(f"{place}: id {row['id']!r} stands twice")
        seen.add(row["id"])
        families.add(row)
        right = {name: sum(answer["right"] for answer in given) for name, given in answers.items()}
        got = sum(count >= config.samples_needed for count in right.values())
        kind = "sft" if got >= config.selectors_needed else "grpo"
        refusing = sorted(name for name, given in answers.items() if any(answer.get("refused") for answer in given))
        if kind == "grpo" and refusing:
            detail = f"no room for it in {', '.join(refusing)}: raise models.max_length, or the server's"
            unanswered[row["id"]] = _Fate(None, kind, "not_answered", detail)
            continue
        tally.add(row.get("area") or "", answers)
        votes.append(_Vote(row["id"], "", kind, got, sum(right.values()), str(row["answer"])))
    if tally is None:
        raise ValueError(f"{source}: no rows")
    if not votes:
        raise ValueError(f"{source}: no question was answered, since none had room: raise models.max_length")
    return [vote._replace(family=families.of(vote.id)) for vote in votes], unanswered, tally


def _answers(row: dict[str, Any], place: str) -> dict[str, list[dict[str, Any]]]:
    answers = row.get("answers")
    if not isinstance(row.get("id"), str) or not isinstance(answers, dict) or not answers:
        raise ValueError(f"{place}: id {row.get('id')!r:.80} without answers; divide what the select stage has written")
    for name, given in answers.items():
        if not given or not all(isinstance(answer.get("right"), bool) for answer in given):
            raise ValueError(f'{place}: the answers of {name!r} are {given!r:.80}, each needs "letters" and "right"')
    return answers


def _check_reach(shape: dict[str, int], config: DivideConfig) -> None:
    able = sum(samples >= config.samples_needed for samples in shape.values())
    if able < config.selectors_needed:
        raise ValueError(
            f"no question can be easy: {config.selectors_needed} selectors with {config.samples_needed} right samples "
            f"are needed, but the answers by selector are {shape}"
        )


def _sides(votes: Iterable[_Vote], config: DivideConfig) -> dict[str, str]:
    """The set of each family."""
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for vote in votes:
        kinds[vote.family][vote.kind] += 1
    return {
        family: "grpo" if count["grpo"] >= config.hard_share * count.total() else "sft"
        for family, count in kinds.items()
    }


def _fill_up(votes: Iterable[_Vote], sides: dict[str, str], config: DivideConfig) -> set[str]:
    """Move families in `sides` until both sets have their minimum; returns those moved."""
    members: dict[str, list[_Vote]] = defaultdict(list)
    for vote in votes:
        members[vote.family].append(vote)
    moved: set[str] = set()

    def size(family: str) -> int:
        whole = config.straddling == "move" or family in moved
        return sum(whole or vote.kind == sides[family] for vote in members[family])

    def ease(family: str) -> tuple[float, float]:
        group = members[family]
        return sum(vote.got for vote in group) / len(group), sum(vote.right for vote in group) / len(group)

    sizes = Counter({"sft": 0, "grpo": 0})
    for family, side in sides.items():
        sizes[side] += size(family)
    for side, other in OTHER.items():
        minimum, reserve = getattr(config, f"{side}_minimum"), getattr(config, f"{other}_minimum")
        sign = -1 if side == "sft" else 1  # SFT takes the easiest first, GRPO the hardest
        candidates = [family for family in sides if sides[family] == other]
        if config.short == "error" or sizes[side] >= minimum:
            candidates = []
        candidates.sort(key=lambda family: (*(sign * part for part in ease(family)), lot(config.seed, family)))
        for family in candidates:
            if sizes[side] < minimum and sizes[other] - size(family) >= reserve:
                sizes[other] -= size(family)
                sides[family] = side
                moved.add(family)
                sizes[side] += size(family)
        if sizes[side] < minimum:
            raise ValueError(
                f"{side} would hold {sizes[side]} questions, below {side}_minimum {minimum} (the other set: "
                f"{sizes[other]}): change the threshold, the selectors or the minimum, or set short to 'move'"
            )
    return moved


def _fates(votes: Iterable[_Vote], sides: dict[str, str], moved: set[str], config: DivideConfig) -> dict[str, _Fate]:
    fates = {}
    for vote in votes:
        side = sides[vote.family]
        if vote.kind == side:
            fates[vote.id] = _Fate(side, vote.kind)
        elif vote.family in moved:
            fates[vote.id] = _Fate(side, vote.kind, "moved_to_minimum")
        elif config.straddling == "move":
            fates[vote.id] = _Fate(side, vote.kind, "moved_with_family")
        else:
            detail = f"its answers call for {vote.kind}, its family {vote.family} is in {side}"
            fates[vote.id] = _Fate(None, vote.kind, "straddles", detail)
    return fates


def _drop_surplus(votes: Iterable[_Vote], fates: dict[str, _Fate], config: DivideConfig) -> None:
    for side in OTHER:
        limit = getattr(config, f"{side}_limit")
        chosen = [vote.id for vote in votes if fates[vote.id].side == side]
        if limit:
            chosen.sort(key=lambda row_id: lot(config.seed, "subsample", row_id))
            for row_id in chosen[limit:]:
                detail = f"{side}_limit is {limit}, and there were {len(chosen)}"
                fates[row_id] = _Fate(None, fates[row_id].kind, "subsampled", detail)


def _with_fates(source: Path, fates: dict[str, _Fate]) -> Iterator[tuple[dict[str, Any], _Fate]]:
    for _, row in read_jsonl(source):
        yield row, fates[row["id"]]


def _matrix_row(row: dict[str, Any], fate: _Fate) -> dict[str, Any]:
    answers = row["answers"]
    return {
        "id": row["id"],
        "area": row.get("area") or "",
        "gold": row["answer"],
        "letters": {name: [answer["letters"] for answer in given] for name, given in sorted(answers.items())},
        "right": {name: sum(answer["right"] for answer in given) for name, given in sorted(answers.items())},
        "kind": fate.kind,
        "set": fate.side,
        "reason": fate.reason,
    }


def _report(
    votes: list[_Vote], sides: dict[str, str], moved: set[str], fates: dict[str, _Fate], config: DivideConfig
) -> dict[str, Any]:
    kinds: dict[str, set[str]] = defaultdict(set)
    for vote in votes:
        kinds[vote.family].add(vote.kind)
    sizes = Counter(vote.family for vote in votes)
    side_counts = Counter(fate.side for fate in fates.values())
    return {
        "questions": len(fates),
        "easy": sum(vote.kind == "sft" for vote in votes),
        "hard": sum(vote.kind == "grpo" for vote in votes),
        "sets": {"sft": side_counts["sft"], "grpo": side_counts["grpo"], "dropped": side_counts[None]},
        "gold_letters": {
            side: dict(sorted(Counter(vote.gold for vote in votes if fates[vote.id].side == side).items()))
            for side in OTHER
        },
        "reasons": dict(sorted(Counter(fate.reason for fate in fates.values() if fate.reason).items())),
        "families": {
            "count": len(sides),
            "largest": max(sizes.values(), default=0),
            "mixed": sum(len(kind) > 1 for kind in kinds.values()),
            "moved": len(moved),
        },
        "config": asdict(config),
    }


def _lines(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
