"""Item, Essay and Problem: what reading a benchmark gives, with what was wrong with its files."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from psychecore.curate.typography import fold_characters
from psychecore.data.prompts import SYSTEM_CASE, answer_text, question_messages
from psychecore.data.records import LETTERS, Question
from psychecore.text.chat import Message
from psychecore.untrusted import parse_json


@dataclass(frozen=True)
class Item:
    """A question, where it stands in its benchmark ({"column": "theory single", "tier": "third"}), worked examples.

    `question.answer` is "" where the benchmark publishes none. The ids of a benchmark's items are unique.
    """

    question: Question
    groups: dict[str, str] = field(default_factory=dict)
    shots: tuple[Question, ...] = ()

    def messages(self) -> list[Message]:
        """The question as a chat, the worked examples as turns before it."""
        system, *asked = question_messages(self.question)
        return [system, *(turn for shot in self.shots for turn in _shot(shot)), *asked]


@dataclass(frozen=True)
class Essay:
    """An open question on a case, with the answer that the benchmark holds to be good."""

    id: str
    context: str
    question: str
    gold: str
    groups: dict[str, str] = field(default_factory=dict)

    def messages(self) -> list[Message]:
        """The case and the question, under the system prompt for cases."""
        asked = f"{self.context}\n{self.question}"
        return [{"role": "system", "content": SYSTEM_CASE["zh"]}, {"role": "user", "content": asked}]


@dataclass(frozen=True)
class Problem:
    """What is wrong with a row, and whether it was dropped for that; row "" speaks of the whole file."""

    file: str
    row: str
    reason: str
    dropped: bool

    def __str__(self) -> str:
        """One line: "cases/x.json row 3: the answer is empty (dropped)"."""
        place = f"{self.file} {self.row}".strip()
        return f"{place}: {self.reason} ({'dropped' if self.dropped else 'kept'})"


def parse_rows(raw: bytes, place: str) -> list[Any]:
    """The rows of a file that is one JSON list. Raises ValueError naming it."""
    try:
        rows = parse_json(raw.decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{place}: not JSON in UTF-8 ({error})") from None
    if not isinstance(rows, list):
        raise ValueError(f"{place}: a {type(rows).__name__}, but the published files are lists of questions")
    return rows


def clean_text(value: Any) -> str:
    """A text of a benchmark in plain characters (⼈ is 人), without what is not seen; "" for what is no text."""
    return fold_characters(value).strip() if isinstance(value, str) else ""


def clean_letters(value: Any) -> str:
    """The letters of a published answer, sorted, each once; "" where it is empty. Raises ValueError for anything else.

    >>> clean_letters("d、a\\u2003")
    'AD'
    """
    text = unicodedata.normalize("NFKC", value) if isinstance(value, str) else ""
    letters = re.sub(r"[\s,.;:/、。和与及]+", "", clean_text(text)).upper()
    if (value is not None and not isinstance(value, str)) or set(letters) - set(LETTERS):
        raise ValueError(f"the answer {value!r:.60} is no set of option letters")
    return "".join(sorted(set(letters)))


def row_id(row: Mapping[str, Any], default: str) -> str:
    """The id that a row has, or the default. Raises ValueError for what is no text or number."""
    found = row.get("id", default)
    if not isinstance(found, (str, int)) or isinstance(found, bool) or found == "":
        raise ValueError(f"id is {found!r:.80}, but must be a text or a number")
    return str(found)


def optional_text(row: Mapping[str, Any], name: str) -> str:
    """The clean text that a row has under a name; "" where it has none. Raises ValueError for what is no text."""
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name} is {value!r:.80}, but must be a text, or be left out")
    return clean_text(value)


def clean_options(value: Any) -> dict[str, str]:
    """Options by capital letter, in order, without empty ones; a number is taken as its text.

    Raises ValueError for an option that is neither, and unless there are two or more.
    """
    if not isinstance(value, dict):
        raise ValueError(f'options is {value!r:.80}, but must be texts by letter, as in {{"A": "fear", "B": "joy"}}')
    options: dict[str, str] = {}
    for key, said in value.items():
        letter = unicodedata.normalize("NFKC", key).strip().rstrip(".、:").upper()
        if isinstance(said, bool) or not isinstance(said, (str, int, float)):
            raise ValueError(f'option {key!r:.40} is {said!r:.80}, but must be a text or a number; "" stands for none')
        text = clean_text(str(said))
        if not text:
            continue
        if len(letter) != 1 or letter not in LETTERS:
            raise ValueError(f"an option is named {key!r:.40}, but must be a letter from A to {LETTERS[-1]}")
        if letter in options:
            raise ValueError(f"option {letter} stands twice")
        options[letter] = text
    if len(options) < 2:
        raise ValueError(f"it has {len(options)} options that hold text, but a choice needs two")
    return dict(sorted(options.items()))


def _shot(question: Question) -> list[Message]:
    thinking = f"<think>{question.rationale}</think>\n" if question.rationale else ""
    return [question_messages(question)[1], {"role": "assistant", "content": thinking + answer_text(question)}]
