"""What a curation starts from: texts become passages, posts with their replies become rows, ready questions join later.

Texts: a file or a folder, at any depth, of .txt, .md and .jsonl (rows with "text", and if they have them "id", "area",
"language", "source", "title"). A text that is longer than `most` characters is divided at the ends of paragraphs, a
paragraph that is longer still at the ends of its sentences. A Markdown heading starts a new passage.

Posts: .jsonl, .json (a list) or .csv, in our form ("post", "reply", "topic") or counsel_chat's, whose keys are
"question", "answer", "topic", "title", in newer files "questionText", "answerText", "topics", "questionTitle".
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from psychecore.curate.noise import sentences
from psychecore.curate.typography import language_of
from psychecore.data.records import Question, read_jsonl
from psychecore.untrusted import parse_json

STAGE_NOTES = ("quality", "review", "rationale_history", "answers")  # what stages write, and would find there
SUFFIXES = (".txt", ".md", ".jsonl")
_HEADING = re.compile(r"#{1,6} ")
POST_KEYS = {
    "post": ("post", "question", "questionText"),
    "reply": ("reply", "answer", "answerText"),
    "topic": ("topic", "topics"),
    "title": ("title", "questionTitle"),
    "id": ("id", "questionID"),
}


@dataclass(frozen=True)
class PassageConfig:
    """Passages have at most `most` characters; paragraphs are joined while they have fewer than `least`."""

    least: int = 400
    most: int = 2000

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(f"least is {self.least} and most {self.most}, but 1 <= least <= most must hold")


def read_passages(path: Path, config: PassageConfig) -> Iterator[dict[str, Any]]:
    """Passage rows {"id", "text", "area", "language", "source"} of a file or folder, in the order of the paths.

    Raises FileNotFoundError, or ValueError with file and, for rows, line.
    """
    files = sorted(one for one in path.rglob("*") if one.suffix in SUFFIXES) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path}: no {', '.join(SUFFIXES)} in this folder or below it")
    for file in files:
        name = str(file.relative_to(path)) if path.is_dir() else file.name
        if file.suffix == ".jsonl":
            for number, row in read_jsonl(file):
                if not isinstance(row.get("text"), str) or not row["text"].strip():
                    raise ValueError(f"{file} line {number}: text is {row.get('text')!r:.80}, but must not be empty")
                yield from _passages(row["text"], row, str(row.get("id") or f"{name}-{number}"), name, config)
        elif file.suffix in SUFFIXES:
            yield from _passages(_read_text(file), {}, name, name, config)
        else:
            raise ValueError(f"{file}: texts are read from {', '.join(SUFFIXES)}")


def divide_text(text: str, config: PassageConfig) -> list[str]:
    """The passages of a text, none empty, none longer than `most`; together they hold all its words in order."""
    passages: list[str] = []
    current = ""
    for paragraph in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        for part in _parts(paragraph.strip(), config.most):
            joined = f"{current}\n\n{part}" if current else part
            if current and (len(joined) > config.most or len(current) >= config.least or _HEADING.match(part)):
                passages.append(current)
                current = part
            else:
                current = joined
    return [*passages, current] if current else passages


def read_posts(path: Path) -> Iterator[dict[str, Any]]:
    """Post rows {"id", "post", "reply", "language", "source", "topic"}; several replies to a post give several rows.

    Raises ValueError with file and line, or item, for a row without post or reply, and for an id that stands twice in
    our form.
    """
    seen: dict[str, int] = {}
    for place, row in _post_rows(path):
        found = {key: next((row[name] for name in names if row.get(name)), "") for key, names in POST_KEYS.items()}
        for key in ("post", "reply"):
            if not isinstance(found[key], str) or not found[key].strip():
                raise ValueError(f"{path} {place}: no {key}; it may be named {', '.join(POST_KEYS[key])}")
        post, title = found["post"].strip(), str(found["title"]).strip()
        if title and title not in post:
            post = f"{title}\n{post}"
        name = str(found["id"] or f"post-{hashlib.sha256(post.encode()).hexdigest()[:12]}")
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1 and "reply" in row and found["id"]:  # counsel_chat's id is the question's
            raise ValueError(f"{path} {place}: id {name!r} stands twice")
        yield {
            "id": name if seen[name] == 1 else f"{name}-{seen[name]}",
            "post": post,
            "reply": found["reply"].strip(),
            "language": row.get("language") or language_of(post) or "en",
            "source": row.get("source") or path.name,
            "topic": str(found["topic"] or ""),
        }


def read_given(path: Path) -> Iterator[dict[str, Any]]:
    """Ready questions with whatever notes they carry, but for those of an earlier curation, marked "given".

    Raises ValueError with file and line.
    """
    for number, row in read_jsonl(path):
        try:
            question = Question.from_row(row)
        except ValueError as error:
            raise ValueError(f"{path} line {number}: {error}") from None
        words = " ".join([question.question, *question.options.values()])
        if not row.get("language") and language_of(words) == "zh":
            question = replace(question, language="zh")
        notes = {key: value for key, value in row.items() if key not in STAGE_NOTES}
        yield {**notes, **question.to_row(), "given": True}


def _passages(text: str, row: dict[str, Any], name: str, file: str, config: PassageConfig) -> Iterator[dict[str, Any]]:
    parts = divide_text(text, config)
    for number, part in enumerate(parts, start=1):
        yield {
            "id": name if len(parts) == 1 else f"{name}-{number}",
            "text": part,
            "area": str(row.get("area") or ""),
            "language": row.get("language") or language_of(part) or "en",
            "source": str(row.get("source") or row.get("title") or file),
        }


def _parts(paragraph: str, most: int) -> Iterator[str]:
    """The paragraph, or, where it is too long, runs of its sentences; a sentence that is too long is cut at a space."""
    if len(paragraph) <= most:
        if paragraph:
            yield paragraph
        return
    current = ""
    for sentence in sentences(paragraph):
        while len(sentence) > most:
            cut = sentence.rfind(" ", 1, most) if " " in sentence[1:most] else most
            if current:
                yield current.strip()
            current, sentence = sentence[:cut], sentence[cut:].lstrip()
        if current and len(current) + len(sentence.rstrip()) > most:
            yield current.strip()
            current = sentence
        else:
            current += sentence
    if current.strip():
        yield current.strip()


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 ({error}); convert it, for example: iconv -f GB18030 -t UTF-8") from None


def _post_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(_read_text(path), newline=""))
        try:
            yield from ((f"line {reader.line_num}", row) for row in reader)
        except csv.Error as error:
            raise ValueError(f"{path} after line {reader.line_num}: {error}") from None
    elif path.suffix == ".json":
        try:
            rows = parse_json(_read_text(path))
        except ValueError as error:
            raise ValueError(f"{path}: not JSON ({error})") from None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{path}: must hold a list of objects")
        yield from ((f"item {number}", row) for number, row in enumerate(rows, start=1))
    else:
        yield from ((f"line {number}", row) for number, row in read_jsonl(path))
