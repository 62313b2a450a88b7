"""Stage 5: what a human decides about questions, and how it is merged with the rows (PAPER.md, Pipeline, item 3).

The reviewer works in a page (review_page.py) or in a spreadsheet (review_csv.py); both give decisions. A decision is
tied to a hash of what the reviewer saw, so that a re-run applies it again to an unchanged question, and asks again
about a changed one. Decision files are JSONL, one object a line, as the page exports them:

    {"id": "q7", "hash": "51cc..", "decision": "edit", "reason": "", "edited": {"question": .., "options": {..},
     "answer": "B", "kind": "single"}, "at": "2026-03-01T09:30:00.000Z"}
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from psychecore.curate.stage import Outcome, Rejection
from psychecore.data.records import Question, read_jsonl
from psychecore.durable import replace_file

DECISIONS = ("accept", "reject", "edit")
EDITABLE = ("question", "options", "answer", "kind")
JUDGED = (*EDITABLE, "context", "language", "span")  # what a reviewer judges; when one of them changes, ask again


@dataclass(frozen=True)
class ReviewConfig:
    """How many questions a human sees, and what becomes of the others.

    sample: questions to review, 0 for all. seed: of the sample; a larger sample of one seed holds the smaller one.
    undecided: "keep" or "reject" the questions without a decision.
    """

    sample: int = 0
    seed: int = 42
    undecided: Literal["keep", "reject"] = "keep"

    def __post_init__(self) -> None:
        if self.sample < 0:
            raise ValueError(f"sample is {self.sample}, but must be 0 (all questions) or above")
        if self.undecided not in ("keep", "reject"):
            raise ValueError(f"undecided is {self.undecided!r}, but must be one of keep, reject")


@dataclass(frozen=True)
class Decision:
    """What a reviewer said about one question.

    `hash` is `row_hash` of the row that was reviewed, `edited` the new values of EDITABLE keys (for "edit" only),
    `where` the file and line it was read from, for errors and notes.
    """

    id: str
    decision: Literal["accept", "reject", "edit"]
    hash: str
    reason: str = ""
    edited: dict[str, Any] | None = None
    where: str = "a decision"

    @classmethod
    def from_row(cls, row: dict[str, Any], where: str) -> Decision:
        """Validate one line of a decision file. Raises ValueError that begins with `where`."""
        texts = {key: row.get(key) for key in ("id", "decision", "hash")}
        for key, value in texts.items():
            if not isinstance(value, str) or not value:
                raise ValueError(f"{where}: {key} is {value!r:.80}, but must be a non-empty str")
        if row["decision"] not in DECISIONS:
            raise ValueError(f"{where}: decision is {row['decision']!r:.80}, but must be one of {', '.join(DECISIONS)}")
        reason, edited = row.get("reason") or "", row.get("edited")
        if not isinstance(reason, str):
            raise ValueError(f"{where}: reason is {reason!r:.80}, but must be a str")
        if (row["decision"] == "edit") != isinstance(edited, dict) or set(edited or ()) - set(EDITABLE):
            raise ValueError(
                f"{where}: edited is {edited!r:.80}, but must be an object of {', '.join(EDITABLE)} for an edit, "
                "and absent otherwise"
            )
        return cls(row["id"], row["decision"], row["hash"], reason, edited, where)


@dataclass(frozen=True)
class Outcomes:
    """The merged file: one Outcome a row, ids without a decision that holds, and what a person should know."""

    outcomes: list[Outcome]
    undecided: list[str]
    notes: list[str]


def row_hash(row: dict[str, Any]) -> str:
    """32 hexadecimal digits of the JUDGED values of a row; other keys (scores, answers) may change freely."""
    judged = json.dumps([row.get(key) for key in JUDGED], separators=(",", ":"))
    return hashlib.sha256(judged.encode()).hexdigest()[:32]


def sample_rows(rows: Iterable[dict[str, Any]], config: ReviewConfig) -> list[dict[str, Any]]:
    """The rows to review, in file order: those whose id hashes lowest, so that new rows hardly move the sample."""
    chosen = list(rows)
    if config.sample and config.sample < len(chosen):
        lots = sorted(hashlib.sha256(json.dumps([config.seed, row["id"]]).encode()).digest() for row in chosen)
        limit = lots[config.sample - 1]
        chosen = [
            row for row in chosen if hashlib.sha256(json.dumps([config.seed, row["id"]]).encode()).digest() <= limit
        ]
    return chosen


def read_decisions(path: str | os.PathLike[str]) -> list[Decision]:
    """Read a decision file in its order. Raises ValueError with file and line."""
    return [Decision.from_row(row, f"{path} line {number}") for number, row in read_jsonl(path)]


def merge_decisions(
    rows: Iterable[dict[str, Any]],
    decisions: Iterable[Decision],
    undecided: Literal["keep", "reject"] = "keep",
) -> Outcomes:
    """Apply decisions to the rows of a question file.

    Kept rows carry "review": {"decision", and for an edit "reason" and "before"}. A rejected row has the reason
    "rejected_by_reviewer" and the reviewer's words as its detail; a row without a decision is kept as it is, or
    rejected as "not_reviewed". Of several decisions for one question the last holds, with a note where they differ;
    decisions for unknown ids, and for questions that have changed, are noted. Raises ValueError with file and line
    where an edit makes no valid question, and for an id that stands twice among the rows.
    """
    given: dict[str, list[Decision]] = {}
    for decision in decisions:
        given.setdefault(decision.id, []).append(decision)
    outcomes: list[Outcome] = []
    open_ids: list[str] = []
    notes: list[str] = []
    seen: set[str] = set()
    for row in rows:
        if row["id"] in seen:
            raise ValueError(f"id {row['id']!r} stands twice among the questions, so a decision can't be told to one")
        seen.add(row["id"])
        holding = _holding(row, given.pop(row["id"], []), notes)
        if holding is None:
            open_ids.append(row["id"])
        outcomes.append(_apply(row, holding, undecided))
    notes.extend(f"{one.where}: no question has the id {one.id!r}" for unknown in given.values() for one in unknown)
    return Outcomes(outcomes, open_ids, notes)


def review_file(source: Path, decisions: Sequence[Decision], folder: Path, config: ReviewConfig) -> Outcomes:
    """Merge decisions into a question file: writes review.jsonl and review.rejects.jsonl into `folder`."""
    merged = merge_decisions((row for _, row in read_jsonl(source)), decisions, config.undecided)
    folder.mkdir(parents=True, exist_ok=True)
    kept = (row for outcome in merged.outcomes for row in outcome.kept)
    dropped = (
        {**rejection.row, "reason": rejection.reason, "detail": rejection.detail}
        for outcome in merged.outcomes
        for rejection in outcome.rejected
    )
    replace_file(folder / "review.jsonl", _lines(kept))
    replace_file(folder / "review.rejects.jsonl", _lines(dropped))
    return merged


def _holding(row: dict[str, Any], decisions: list[Decision], notes: list[str]) -> Decision | None:
    """The decision that holds for a row; says in `notes` what it overrules, and when all are of another version."""
    current = row_hash(row)
    valid = [decision for decision in decisions if decision.hash == current]
    if not valid:
        notes.extend(f"{one.where}: question {one.id!r} has changed since, so it is asked again" for one in decisions)
        return None
    for former, later in pairwise(valid):
        if (former.decision, former.reason, former.edited) != (later.decision, later.reason, later.edited):
            notes.append(
                f"{later.where}: question {later.id!r}: {later.decision} overrules {former.decision} ({former.where})"
            )
    return valid[-1]


def _apply(row: dict[str, Any], decision: Decision | None, undecided: str) -> Outcome:
    if decision is None:
        if undecided == "keep":
            return Outcome([row], [])
        return Outcome([], [Rejection(row, "not_reviewed", "no reviewer has decided about this version of it")])
    if decision.decision == "reject":
        return Outcome([], [Rejection(row, "rejected_by_reviewer", decision.reason)])
    if decision.decision == "accept":
        return Outcome([{**row, "review": {"decision": "accept"}}], [])
    edited = {key: value for key, value in (decision.edited or {}).items() if value != row.get(key)}
    note = {"decision": "edit", "reason": decision.reason, "before": {key: row.get(key) for key in edited}}
    changed = {**row, **edited, "review": note}
    if row.get("rationale") and {"question", "options", "answer"} & edited.keys():
        changed["rationale"] = None  # it argues for the question as it was
    try:
        Question.from_row(changed)
    except ValueError as error:
        raise ValueError(f"{decision.where}: question {decision.id!r} as edited: {error}") from None
    return Outcome([changed], [])


def _lines(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
