"""Typed rows and their JSONL files: one object a line, validated with file, line and value in the error.

A question file (grpo.jsonl, held-out sets) holds `Question` rows, a training file (sft.jsonl) holds
`Conversation` rows. Unknown keys are kept out of the objects but not refused, so that a file may carry notes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from psychecore.durable import replace_file
from psychecore.text.chat import Message, check_messages
from psychecore.untrusted import parse_json

LETTERS = "ABCDEFGHIJ"
MAX_LINE = 64_000_000  # bytes; a row of a million tokens has about 4 million
KINDS = ("single", "multiple")
LANGUAGES = ("zh", "en")


THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # a template writes them, and the loss leaves them out


@dataclass(frozen=True)
class Question:
    """A multiple-choice question.

    `options` maps letters (A, B, ... without gaps) to texts, `answer` is the sorted string of right letters
    ("AC"), `context` a case text that stands before the stem, `rationale` a worked reasoning to the answer.
    """

    id: str
    question: str
    options: dict[str, str]
    answer: str
    kind: Literal["single", "multiple"]
    context: str | None = None
    rationale: str | None = None
    area: str = ""
    language: Literal["zh", "en"] = "en"
    source: str = ""

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Question:
        """Validate one JSON object. Raises ValueError that says which key is wrong and what is allowed."""
        options = _get(row, "options", dict)
        letters = "".join(options)
        if len(options) < 2 or letters != LETTERS[: len(options)]:
            raise ValueError(f"options are lettered {letters!r:.80}, but must be 2 to {len(LETTERS)}: 'AB', 'ABC', ...")
        for letter, text in options.items():
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"option {letter} is {text!r:.80}, but must be a non-empty text")
        answer, kind = _get(row, "answer", str), _get(row, "kind", str)
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r:.80}, but must be one of {', '.join(KINDS)}")
        for letter in answer:
            if letter not in options:
                raise ValueError(
                    f"answer {answer!r:.80} names option {letter!s:.80}, but the question has A-{letters[-1]}"
                )
        if not answer or answer != "".join(sorted(set(answer))):
            raise ValueError(f"answer is {answer!r:.80}, but must be one or more letters in order, each once")
        if kind == "single" and len(answer) != 1:
            raise ValueError(f"answer is {answer!r}, but a question of kind 'single' has one right letter")
        language = row.get("language", "en")
        if language not in LANGUAGES:
            raise ValueError(f"language is {language!r:.80}, but must be one of {', '.join(LANGUAGES)}")
        return cls(
            id=_get(row, "id", str),
            question=_get(row, "question", str),
            options=options,
            answer=answer,
            kind=kind,
            context=_get_optional(row, "context"),
            rationale=_get_optional(row, "rationale"),
            area=_get_optional(row, "area") or "",
            language=language,
            source=_get_optional(row, "source") or "",
        )

    def to_row(self) -> dict[str, Any]:
        """The JSON object that `from_row` reads back to an equal question."""
        return asdict(self)


@dataclass(frozen=True)
class Conversation:
    """A training conversation; the loss falls on what the assistant says, but for messages with "weight": 0."""

    id: str
    messages: list[Message] = field(default_factory=list)
    source: str = ""

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Conversation:
        """Validate one JSON object. Raises ValueError that says which key is wrong and what is allowed."""
        messages = _get(row, "messages", list)
        check_messages(messages)
        spoken = [(n, message) for n, message in enumerate(messages, 1) if message["role"] == "assistant"]
        for number, message in spoken:
            if message.get("weight") not in (None, 0, 1):
                raise ValueError(f"message {number} has weight {message['weight']!r:.80}, but must be 0 or 1")
        trained = [(number, message) for number, message in spoken if message.get("weight") != 0]
        if not trained:
            raise ValueError("messages hold no assistant turn (of weight 1), so there is nothing to train on")
        for number, message in trained:
            if not message["content"].strip() and not message.get("tool_calls"):
                raise ValueError(f"message {number}: the assistant says nothing; leave it out, or give it weight 0")
            for key in THOUGHTS:
                if message.get(key):
                    raise ValueError(
                        f"message {number}: put its {key} into content, as <think>...</think> before the words"
                    )
        return cls(id=_get(row, "id", str), messages=messages, source=_get_optional(row, "source") or "")

    def to_row(self) -> dict[str, Any]:
        """The JSON object that `from_row` reads back to an equal conversation."""
        return asdict(self)


Row = TypeVar("Row", Question, Conversation)


def read_questions(path: str | os.PathLike[str]) -> list[Question]:
    """Read a question file; ids must be unique. Raises ValueError with file and line."""
    return _read_unique(path, Question.from_row)


def read_conversations(path: str | os.PathLike[str]) -> list[Conversation]:
    """Read a training file; ids must be unique. Raises ValueError with file and line."""
    return _read_unique(path, Conversation.from_row)


def write_rows(path: str | os.PathLike[str], rows: Iterable[Row]) -> None:
    """Write rows as JSONL beside `path` and rename, so that a killed run leaves the old file or the new one."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_file(target, (json.dumps(row.to_row(), ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of a UTF-8 JSONL file; blank lines are skipped.

    Raises FileNotFoundError, or ValueError with file and line for what is not UTF-8, JSON or an object, for equal keys
    in one object, NaN, lone surrogates, and lines of more than MAX_LINE bytes.
    """
    with open(path, "rb") as file:
        for number, raw in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), start=1):
            if len(raw) > MAX_LINE:
                raise ValueError(f"{path} line {number}: longer than {MAX_LINE:,} bytes")
            if not raw.strip():
                continue
            try:
                row = parse_json(raw.decode("utf-8-sig" if number == 1 else "utf-8"), unique_keys=True)
            except ValueError as error:
                raise ValueError(f"{path} line {number}: not a JSON object in UTF-8 ({error})") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path} line {number}: a {type(row).__name__}, but each line must be a JSON object")
            yield number, row


def _read_unique(path: str | os.PathLike[str], parse: Callable[[dict[str, Any]], Row]) -> list[Row]:
    rows: list[Row] = []
    seen: dict[str, int] = {}
    for number, raw in read_jsonl(path):
        try:
            row = parse(raw)
        except ValueError as error:
            raise ValueError(f"{path} line {number}: {error}") from None
        if row.id in seen:
            raise ValueError(f"{path} line {number}: id {row.id!r:.80} already stands on line {seen[row.id]}")
        seen[row.id] = number
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: no rows")
    return rows


def _get(row: dict[str, Any], key: str, kind: type) -> Any:
    if key not in row:
        raise ValueError(f"key {key!r} is missing")
    value = row[key]
    if not isinstance(value, kind) or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"{key} is {value!r:.80}, but must be a non-empty {kind.__name__}")
    return value


def _get_optional(row: dict[str, Any], key: str) -> str | None:
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{key} is {value!r:.80}, but must be a str or null")
    return value
