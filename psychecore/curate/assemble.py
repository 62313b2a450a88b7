"""Stage 9: the training files, shuffled and disjoint, and a manifest that says where every byte came from.

The splits are sft.jsonl (worked questions and dialogues), grpo.jsonl and heldout.jsonl. A family of rows (families.py:
same passage, post or near-duplicate cluster, directly or through others) stands in one of them only:
1. a family with a held-out row is held out;
2. any other family goes where most of its rows are meant to go (dialogues to SFT), on a tie to GRPO.
Rows meant for another split than their family's are rejected, as "held_out" or "straddles"; they never change sides,
because a dialogue can't be scored and a held-out file is not ours to extend. After divide.py only families that link
questions with dialogues, or that a hand has edited, can straddle.

Rows are read twice, and sorted by keys: memory is about a hundred bytes a row. The same inputs give the same bytes.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from psychecore.curate.families import LINKS, Families, lot
from psychecore.curate.line_index import LineIndex
from psychecore.curate.stage import StageCounts
from psychecore.data.prompts import worked_conversation
from psychecore.data.records import Conversation, Question, read_jsonl
from psychecore.durable import digest, replace_file

OUTPUTS = {"sft": "sft.jsonl", "grpo": "grpo.jsonl", "heldout": "heldout.jsonl"}
REJECTS_FILE, MANIFEST_FILE = "assemble.rejects.jsonl", "manifest.json"
NOTES = ("area", "language", "topic", "risk", *LINKS)  # keys that conversations carry along beside their own


@dataclass(frozen=True)
class Sources:
    """The files to assemble, JSONL: questions for SFT and for GRPO, dialogues, and questions that are held out."""

    sft: Path
    grpo: Path
    dialogues: Path | None = None
    heldout: Path | None = None

    def files(self) -> dict[str, Path]:
        """Those given, by role; where an id stands twice, the first of this order keeps it."""
        named = {"heldout": self.heldout, "grpo": self.grpo, "sft": self.sft, "dialogues": self.dialogues}
        return {role: path for role, path in named.items() if path is not None}


@dataclass(frozen=True)
class Provenance:
    """What the manifest says beside what assemble sees itself.

    stages: counts of each stage, in the order of running. inputs: all other files that went in (texts, posts, prompts,
    benchmarks), by role. models: Generator names by role. prompts: version and hash by file name. seeds, config: as
    resolved.
    """

    stages: Sequence[Mapping[str, Any]] = ()
    inputs: Mapping[str, Path] = field(default_factory=dict)
    models: Mapping[str, Any] = field(default_factory=dict)
    prompts: Mapping[str, Any] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


def assemble(
    sources: Sources, folder: Path, seed: int = 42, provenance: Provenance | None = None, by_source: bool = False
) -> StageCounts:
    """Write the three splits, assemble.rejects.jsonl and manifest.json into `folder`; kept counts the three together.

    The manifest is written last, so a folder with one is complete. Raises ValueError for a file that is no JSONL.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
    entries, rejects = _read(sources, by_source)
    kept = _place(entries, rejects)
    with ExitStack() as stack:
        rows = {role: stack.enter_context(LineIndex(path)) for role, path in sources.files().items()}
        for split, name in OUTPUTS.items():
            chosen = sorted((e for e in kept if e.split == split), key=lambda entry: lot(seed, split, entry.id))
            replace_file(folder / name, _lines(_output(e.role, rows[e.role].row(e.line)) for e in chosen))
        replace_file(
            folder / REJECTS_FILE,
            _lines({**rows[r.role].row(r.line), "reason": r.reason, "detail": r.detail} for r in sorted(rejects)),
        )
    manifest = _manifest(sources, folder, seed, kept, rejects, provenance or Provenance())
    replace_file(folder / MANIFEST_FILE, [json.dumps(manifest, ensure_ascii=False, indent=2, default=str) + "\n"])
    return StageCounts(len(kept) + len(rejects), len(kept), manifest["counts"]["rejected"])


class _Entry(NamedTuple):
    role: str  # which source
    line: int
    id: str
    split: str  # where it is meant to go
    area: str
    family: str = ""


class _Reject(NamedTuple):
    role: str
    line: int
    reason: str
    detail: str


def _read(sources: Sources, by_source: bool) -> tuple[list[_Entry], list[_Reject]]:
    """The valid rows, each with its family, and the others."""
    entries: list[_Entry] = []
    rejects: list[_Reject] = []
    families, first = Families(by_source=by_source), dict[str, str]()
    for role, path in sources.files().items():
        for number, row in read_jsonl(path):
            if objection := _objection(role, row):
                rejects.append(_Reject(role, number, *objection))
            elif (row_id := str(row["id"])) in first:
                rejects.append(_Reject(role, number, "duplicate_id", f"id {row_id!r} stands at {first[row_id]}"))
            else:
                first[row_id] = f"{path.name} line {number}"
                try:
                    families.add(row)
                except ValueError as error:
                    raise ValueError(f"{path} line {number}: {error}") from None
                split = "sft" if role == "dialogues" else role
                entries.append(_Entry(role, number, row_id, split, row.get("area") or ""))
    return [entry._replace(family=families.of(entry.id)) for entry in entries], rejects


def _objection(role: str, row: dict[str, Any]) -> tuple[str, str] | None:
    """Reason and detail why a row can't stand in its split, or None."""
    try:
        if role == "dialogues":
            Conversation.from_row(row)
            return None
        rationale = Question.from_row(row).rationale
    except ValueError as error:
        return ("invalid_dialogue" if role == "dialogues" else "invalid_question"), str(error)
    if role == "sft" and not (rationale and rationale.strip()):
        return "no_rationale", "an SFT question teaches by its rationale, and this one has none"
    if role == "sft" and rationale and ("<think>" in rationale or "</think>" in rationale):
        return "think_tag_in_rationale", "the rationale would close or reopen the think block it stands in"
    return None


def _place(entries: list[_Entry], rejects: list[_Reject]) -> list[_Entry]:
    """The entries that go where they are meant to go; the others join the rejects."""
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in entries:
        votes[entry.family][entry.split] += 1
    kept = []
    for entry in entries:
        count = votes[entry.family]
        split = "heldout" if count["heldout"] else "sft" if count["sft"] > count["grpo"] else "grpo"
        if entry.split == split:
            kept.append(entry)
        else:
            reason = "held_out" if split == "heldout" else "straddles"
            detail = (
                f"meant for {entry.split}, but its family {entry.family} is in {split} ({dict(sorted(count.items()))})"
            )
            rejects.append(_Reject(entry.role, entry.line, reason, detail))
    return kept


def _output(role: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row as it stands in its training file."""
    notes = {key: row[key] for key in NOTES if row.get(key) is not None}
    if role == "dialogues":
        return {**Conversation.from_row(row).to_row(), "kind": "dialogue", **notes}
    question = Question.from_row(row)
    if role == "sft":
        return {**worked_conversation(question).to_row(), "kind": "question", **notes}
    return {**question.to_row(), **{key: row[key] for key in LINKS if row.get(key) is not None}}


def _manifest(
    sources: Sources,
    folder: Path,
    seed: int,
    kept: list[_Entry],
    rejects: list[_Reject],
    provenance: Provenance,
) -> dict[str, Any]:
    inputs = {**provenance.inputs, **{f"assemble/{role}": path for role, path in sources.files().items()}}
    roles = Counter(entry.role for entry in kept)
    areas: dict[str, Counter[str]] = {split: Counter() for split in OUTPUTS}
    for entry in kept:
        areas[entry.split][entry.area] += 1
    return {
        "version": 1,
        "counts": {
            "sft": {"questions": roles["sft"], "dialogues": roles["dialogues"]},
            "grpo": {"questions": roles["grpo"]},
            "heldout": {"questions": roles["heldout"]},
            "rejected": dict(sorted(Counter(reject.reason for reject in rejects).items())),
        },
        "areas": {split: dict(sorted(count.items())) for split, count in areas.items()},
        "stages": [dict(stage) for stage in provenance.stages],
        "inputs": {role: _file(path) for role, path in sorted(inputs.items())},
        "outputs": {name: _file(folder / name) for name in (*OUTPUTS.values(), REJECTS_FILE)},
        "models": dict(provenance.models),
        "prompts": dict(sorted(provenance.prompts.items())),
        "seeds": {"assemble": seed, **provenance.seeds},
        "config": dict(provenance.config),
    }


def _file(path: Path) -> dict[str, Any]:
    """Name without folder, so that the same run in another folder gives the same manifest."""
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest(path)}


def _lines(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
