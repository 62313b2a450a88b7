"""Stage clean: texts without what is no part of them, in consistent characters and punctuation.

One pass applies the rules in this order, and passes are repeated until nothing changes, so that cleaning twice is the
same as cleaning once. A text that has not settled after 8 passes (markup nested many times over) is rejected.

    rule            what it removes or changes; what it leaves
    characters      control, zero-width, bidi and private-use characters, lone surrogates; any space becomes a plain
                    one, any line end \\n; NFC, and NFKC where it is safe. Left: x², ①, ½, ℝ, …; typography.py says why
    markup          HTML comments, scripts, tags, entities; Markdown headings, emphasis with *, code, quotes, rules,
                    links, images. x<sup>2</sup> becomes x². Left: "p < 0.05", blanks to fill in (____), "- " lists
    links           http, https, ftp, www., bare domains of common endings, with a label such as "网址：". Left: the
                    punctuation after them
    contacts        e-mail; mobile numbers (China, also with +86), land lines with area code and hyphen, 400 and 800
                    numbers, North American ones, +country ones; 18-digit identity numbers; ids of WeChat, QQ,
                    WhatsApp and Telegram after that name; @handles. Left: short numbers (12356, 988), public crisis
                    lines (helplines.py)
    emoji           emoji, [微笑] and :smile: codes; :-) ;) ^_^ T_T -_- (╯°□°)╯ and their like. Left: 8:30, A:B, (1),
                    "Answer:D", a bracket that closes one; TAT, <3, XD, =), 8), which may mean something else
    advertisements  sentences and lines with an advertising phrase (follow our account, scan the code, click here, 20%
                    off), but for ready questions, of which they may be the case. Left: psychology of advertising,
                    since the bare words don't matter
    repetition      ！！！ to ！, ???? to ?, ...... to ... or ……, decorative runs of = ~ * -; a sentence or line that
                    stood before (of 16 units or more anywhere, of 4 or more right after itself). Left: ……, ——, ____
    punctuation     half-width marks in Chinese text, full-width marks in English (typography.set_punctuation). Left:
                    formulae, times, decimals, quotation marks
    spaces          runs of spaces, empty lines beyond one, spaces at line ends

Names of people are not recognised here; the dialogue stage looks for them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psychecore.curate.noise import (
    sentences,
    without_advertisements,
    without_contacts,
    without_emoji,
    without_links,
    without_markup,
)
from psychecore.curate.stage import Outcome, Rejection
from psychecore.curate.typography import (
    OTHER_SCRIPT,
    fold_characters,
    language_of,
    length_of,
    set_punctuation,
    set_spaces,
)

PASSES = 8
KINDS = {  # by the key that marks a kind of row: the fields that are cleaned
    "question": ("context", "question", "options", "rationale"),
    "text": ("text",),
    "post": ("post", "reply"),
    "messages": ("messages",),
}
BLANK = re.compile(r"(?<=[^\W\d_] )-{4,}")  # to be filled in, in a question; elsewhere decoration
DOTS = re.compile(r"\.{4,}|…{2,}|。{3,}|(?<=。)…+|…+(?=。)")
RUNS = [
    (re.compile(r"^[，。、；,;]+ ?(?!\.)", re.M), ""),  # what was before it has been taken out
    (re.compile(r"([。！？!?；，、,;])[ ]?[，、；,;]+"), r"\1"),
    (re.compile(r"([，、；：！？,;!。])\1+"), r"\1"),
    (re.compile(r"\?{2,}"), "?"),
    (re.compile(r"([!！?？])(?:(?!\1)[!！?？])[!！?？]+"), r"\1"),
    (re.compile(r"~{2,}"), "~"),
    (re.compile(r"—{3,}"), "——"),
    (re.compile(r"-{4,}|={3,}|\*{3,}|#{3,}|\+{4,}"), ""),
]
UNCOMPARED = re.compile(r"[\W_]+")
ANYWHERE, AT_ONCE = 16, 4  # units of a repeated sentence from which the repetition goes


@dataclass(frozen=True)
class CleanConfig:
    """Which rows pass the stage `clean`.

    `fields` are cleaned (a text, a dict of texts such as options, or a list of messages); empty, they follow from the
    kind of row: KINDS. `least` and `most` bound a row's length in Chinese characters plus words of other scripts, all
    cleaned fields together. `languages` are those that may pass.
    """

    fields: tuple[str, ...] = ()
    least: int = 10
    most: int = 8000
    languages: tuple[str, ...] = ("zh", "en")

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(f"least is {self.least} and most {self.most}, but 1 <= least <= most must hold")
        if not self.languages or set(self.languages) - {"zh", "en"}:
            raise ValueError(f"languages is {self.languages}, but must be zh, en or both")


class Unsettled(ValueError):
    """A text that still changes after the last pass."""


class Clean:
    """The stage. Reasons to reject: empty, too_short, too_long, wrong_language, never_settles."""

    name = "clean"

    def __init__(self, config: CleanConfig | None = None) -> None:
        self.config = config or CleanConfig()

    def batch(self, rows: Sequence[dict[str, Any]]) -> list[Outcome]:
        """One outcome a row. A kept row without "language" gets the one that was found."""
        return [self._clean(row) for row in rows]

    def _clean(self, row: dict[str, Any]) -> Outcome:
        fields = self.config.fields or next((names for key, names in KINDS.items() if key in row), ())
        present = [name for name in fields if row.get(name)]
        if not present:
            names = ", ".join(fields or KINDS)
            return _reject(row, "empty", f"none of these fields has a text: {names}")
        language = row.get("language") or language_of("\n".join(t for n in present for t in _texts(row[n])))
        cleaned: dict[str, Any] = {}
        for name in present:
            try:
                cleaned[name] = _clean_value(row[name], language, "question" in row)
            except Unsettled as error:
                return _reject(row, "never_settles", f"{name}: {error}")
            for before, after in zip(_texts(row[name]), _texts(cleaned[name]), strict=True):
                if before.strip() and not after:
                    return _reject(row, "empty", f"nothing is left of {name} {before!r:.60}")
        whole = "\n".join(text for name in present for text in _texts(cleaned[name]))
        found, length = language_of(whole), length_of(whole)
        if found == "other" and language == "en" and "options" in cleaned:  # which may be lists of terms
            stem = "\n".join(text for name in present if name != "options" for text in _texts(cleaned[name]))
            found = "other" if OTHER_SCRIPT.search(whole) else language_of(stem, least=1)
        if found not in self.config.languages:
            return _reject(row, "wrong_language", f"{found or 'no letters'}, but only {self.config.languages} may pass")
        if found != language:
            return _reject(row, "wrong_language", f"the row says {language!r}, the cleaned text is {found!r}")
        if length < self.config.least:
            return _reject(row, "too_short", f"{length} characters or words, the least is {self.config.least}")
        if length > self.config.most:
            return _reject(row, "too_long", f"{length} characters or words, the most is {self.config.most}")
        return Outcome([row | cleaned | {"language": language}], [])


def clean_text(text: str, language: str | None = None, question: bool = False) -> str:
    """The text after all rules; `language` decides the punctuation, found anew in each pass where it is None. An
    exam `question` may speak in an advertisement's words, and "----" is a blank in it.

    clean_text(clean_text(x)) == clean_text(x) for every x. Raises Unsettled where 8 passes do not reach an end.

        >>> clean_text("今天好难过!!!😭加微信:abc12345,详见https://a.cn/x 。")
        '今天好难过！详见。'
    """
    if question:
        text = BLANK.sub("____", text)
    for _ in range(PASSES):
        before = text
        text = _one_pass(text, language, question)
        if text == before:
            return text
    raise Unsettled(f"still changes after {PASSES} passes: {text!r:.60}")


def without_repetition(text: str, language: str | None = None) -> str:
    """Runs of one mark become one mark; sentences and lines that stood before go."""
    text = DOTS.sub("……" if language == "zh" else "...", text)
    for pattern, replacement in RUNS:
        text = pattern.sub(replacement, text)
    seen: set[str] = set()
    kept: list[str] = []
    last = ""
    for line in text.splitlines(keepends=True):
        whole = _compared(line)
        if whole in seen and length_of(line) >= ANYWHERE:
            kept.append("\n" if line.endswith("\n") else "")
            continue
        for sentence in sentences(line):
            core = _compared(sentence)
            long = length_of(sentence)
            if (core in seen and long >= ANYWHERE) or (core == last and long >= AT_ONCE):
                kept.append("\n" if sentence.endswith("\n") else "")
                continue
            seen.add(core)
            last = core or last
            kept.append(sentence)
        seen.add(whole)
    return "".join(kept)


def _one_pass(text: str, language: str | None, question: bool) -> str:
    text = without_markup(fold_characters(text))
    text = without_contacts(without_links(text))
    text = without_emoji(text) if question else without_advertisements(without_emoji(text))
    language = language or language_of(text)
    text = without_repetition(text, language)
    return set_spaces(set_punctuation(text, language))


def _compared(sentence: str) -> str:
    return UNCOMPARED.sub("", sentence.casefold())


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list):
        return [message["content"] for message in value]
    return [value]


def _clean_value(value: Any, language: str | None, question: bool) -> Any:
    if isinstance(value, dict):
        return {key: clean_text(text, language, question) for key, text in value.items()}
    if isinstance(value, list):
        return [message | {"content": clean_text(message["content"], language, question)} for message in value]
    return clean_text(value, language, question)


def _reject(row: dict[str, Any], reason: str, detail: str) -> Outcome:
    return Outcome([], [Rejection(row, reason, detail)])
