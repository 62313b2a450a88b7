"""The review as a spreadsheet: one question a line, decisions written into its cells.

Columns: id, decision, reason, question, A, B, .., answer, kind, then context, span, passage and verdict to judge by,
and the hash that ties the decision to this version. A reviewer fills decision (accept, reject, edit, or a, r, e) and
reason; for an edit, question, options, answer and kind are changed in place.

Spreadsheets execute cells that begin with = + - @ (also in full width, and after white space). Such cells get an
apostrophe in front, which reading takes off again; a text that has apostrophes before such a sign gets one more, so
that every text comes back as it was. See OWASP, "CSV Injection".
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from psychecore.curate.review import DECISIONS, Decision, row_hash
from psychecore.curate.review_page import passage_text, verdict_lines
from psychecore.data.records import LETTERS
from psychecore.durable import replace_file

FORMULA = re.compile(r"'*(\s*[=+\-@＝＋－＠]|[\t\r\n])")
SHORT = {name[0]: name for name in DECISIONS}
READ_ONLY = ("context", "span", "passage", "verdict")
CELL = 32_000  # spreadsheets cut a cell at 32,767 characters


def write_csv(
    path: Path,
    rows: Iterable[dict[str, Any]],
    passages: Mapping[str, str] | None = None,
    decisions: Iterable[Decision] = (),
) -> None:
    """Write questions to review; `decisions` (of an earlier file) that still hold are filled in.

    `passages` maps passage ids to texts. UTF-8 with a byte order mark, without which spreadsheets garble Chinese.
    """
    questions = list(rows)
    letters = LETTERS[: max((len(row["options"]) for row in questions), default=4)]
    header = ["id", "decision", "reason", "question", *letters, "answer", "kind", *READ_ONLY, "hash"]
    earlier = {(decision.id, decision.hash): decision for decision in decisions}
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, header, lineterminator="\r\n")

    def chunks() -> Iterator[str]:
        yield "\ufeff"
        writer.writeheader()
        for row in questions:
            cells = _cells(row, passages or {}, earlier.get((row["id"], row_hash(row))))
            writer.writerow({name: _escape(text) for name, text in cells.items()})
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()

    replace_file(path, chunks())


def read_csv(path: str | os.PathLike[str], rows: Iterable[dict[str, Any]]) -> list[Decision]:
    """The decisions of a spreadsheet, for `rows` as they were when it was written; lines without one are skipped.

    Commas, semicolons and tabs are taken as separators, as spreadsheets of different countries save them. Raises
    ValueError with file and line for an unknown decision, a missing column, or a text changed without "edit".
    """
    known = {row["id"].replace("\r\n", "\n"): row for row in rows}  # as the cells are read
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}): save it as 'CSV UTF-8'") from None
    head = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count))
    header = next(reader, [])
    letters = [name for name in header if len(name) == 1 and name in LETTERS]
    if missing := [name for name in ("id", "decision", "question", "A", "B", "answer", "hash") if name not in header]:
        raise ValueError(f"{path} line 1: column {missing[0]!r} is missing; the header is {','.join(header)!r:.120}")
    decisions = []
    line = reader.line_num + 1
    for record in reader:
        where, line = f"{path} line {line}", reader.line_num + 1
        cells = {name: _unescape(cell).replace("\r\n", "\n") for name, cell in zip(header, record, strict=False)}
        word = cells.get("decision", "").strip().lower()
        if not word:
            continue
        row = known.get(cells["id"])
        decision = {"id": row["id"] if row else cells["id"], "hash": cells.get("hash", "")}
        decision |= {"decision": SHORT.get(word, word), "reason": cells.get("reason", "").strip()}
        edited = None if row is None or row_hash(row) != decision["hash"] else _edited(row, cells, letters)
        if edited and decision["decision"] == "accept":
            raise ValueError(f"{where}: {', '.join(edited)} changed, but the decision is 'accept': write 'edit'")
        # an edit of a row that is gone or has changed is only reported, so its text need not be compared
        decisions.append(
            Decision.from_row({**decision, **({"edited": edited or {}} if word in ("e", "edit") else {})}, where)
        )
    return decisions


def _cells(row: dict[str, Any], passages: Mapping[str, str], decision: Decision | None) -> dict[str, str]:
    shown = {**row, **((decision.edited if decision else None) or {})}
    return {
        "id": row["id"],
        "decision": decision.decision if decision else "",
        "reason": decision.reason if decision else "",
        "question": shown["question"],
        **shown["options"],
        "answer": shown["answer"],
        "kind": shown["kind"],
        "context": row.get("context") or "",
        "span": row.get("span") or "",
        "passage": passage_text(row, passages)[:CELL],
        "verdict": "\n".join(": ".join(filter(None, parts)) for parts in verdict_lines(row)),
        "hash": row_hash(row),
    }


def _edited(row: dict[str, Any], cells: dict[str, str], letters: list[str]) -> dict[str, Any]:
    """The values that differ from the row's; line ends are no difference, since spreadsheets rewrite them."""
    new = {
        "question": cells["question"],
        "options": {letter: cells[letter] for letter in letters if cells.get(letter, "").strip()},
        "answer": cells["answer"],
        "kind": cells.get("kind", row["kind"]),
    }
    old = {
        "question": row["question"].replace("\r\n", "\n"),
        "options": {letter: text.replace("\r\n", "\n") for letter, text in row["options"].items()},
    }
    return {key: value for key, value in new.items() if value != old.get(key, row.get(key))}


def _escape(text: str) -> str:
    return "'" + text if FORMULA.match(text) else text


def _unescape(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell
