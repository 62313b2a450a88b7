"""Any multiple-choice JSONL: our own schema, or the plain one that most collections can be brought into.

    {"id": "q1", "question": "...", "options": {"A": "..", "B": ".."}, "answer": "B", "kind": "single", ...}
    {"question": "...", "options": {"a": "..", "b": ".."}, "answer": "b"}

A row with "kind" is ours and is validated as such; without "language" it is asked in what it is written in. Of the
others the letters may be of either case, an empty option is absent, an answer of several letters ("ab", "A, C") makes
the question a multiple-choice one, and "id", "context" and "area" may be there. A user's own file has no row that may
be dropped in silence: the first wrong one is an error.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from psychecore.curate.typography import language_of
from psychecore.data.records import LETTERS, Question, read_jsonl
from psychecore.evaluate.item import Item, clean_letters, clean_options, clean_text, optional_text, row_id


def read_question_file(path: Path) -> list[Item]:
    """The questions of a file, grouped by kind and area. Raises ValueError with file and line."""
    items: list[Item] = []
    seen: dict[str, int] = {}
    for number, row in read_jsonl(path):
        try:
            question = _ours(row) if "kind" in row else _plain(row, f"{path.stem} line {number}")
        except ValueError as error:
            raise ValueError(f"{path} line {number}: {error}") from None
        if question.id in seen:
            raise ValueError(f"{path} line {number}: id {question.id!r:.80} already stands on line {seen[question.id]}")
        seen[question.id] = number
        groups = {"kind": question.kind} | ({"area": question.area} if question.area else {})
        items.append(Item(question, groups))
    if not items:
        raise ValueError(f"{path}: no questions")
    return items


def first_of_each(items: Iterable[Item], group: str, limit: int) -> list[Item]:
    """The first `limit` items of each value of a group, in order; all where limit is 0."""
    taken: dict[str, int] = {}
    kept = []
    for item in items:
        name = item.groups.get(group, "")
        taken[name] = taken.get(name, 0) + 1
        if not limit or taken[name] <= limit:
            kept.append(item)
    return kept


def _ours(row: dict[str, Any]) -> Question:
    question = Question.from_row(row)
    return question if "language" in row else replace(question, language=_language(question))


def _language(question: Question) -> Literal["zh", "en"]:
    return "zh" if language_of(" ".join([question.question, *question.options.values()])) == "zh" else "en"


def _plain(row: dict[str, Any], name: str) -> Question:
    stem = clean_text(row.get("question"))
    if not stem:
        raise ValueError(f"question is {row.get('question')!r:.80}, but must be a text")
    options, answer = clean_options(row.get("options")), clean_letters(row.get("answer"))
    if not answer or set(answer) - set(options):
        raise ValueError(f"answer is {row.get('answer')!r:.60}, but must name options out of {''.join(options)}")
    if "".join(options) != LETTERS[: len(options)]:
        raise ValueError(f"options are lettered {''.join(options)!r}, but must be A, B, ... without gaps")
    kind: Literal["single", "multiple"] = "single" if len(answer) == 1 else "multiple"
    identity = row_id(row, name)
    question = Question(identity, stem, options, answer, kind, context=optional_text(row, "context") or None)
    return replace(question, area=optional_text(row, "area"), language=_language(question))
