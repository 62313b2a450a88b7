"""What models write: thinking dropped, and the objects in JSON as models write it, which json.loads often refuses.

Read are trailing commas, single or typographic quotes, full-width punctuation, unquoted keys, Python's None and True,
line breaks and unescaped quotes inside a string, missing commas between lines, and text around the objects. Nothing is
evaluated. Each character is looked at a bounded number of times, so that the cost is linear in the reply.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

MAX_DEPTH = 12  # of nested objects and lists; what lies deeper is not read

_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_FLAT: dict[int, int | str] = {
    **_WIDE,
    0x3000: " ",
    0xA0: " ",
    ord("。"): ".",
    ord("【"): "[",
    ord("】"): "]",
    ord("｡"): ".",
}
_THINK = re.compile(r"(</?think(?:ing)?>)", re.IGNORECASE)


def flatten(text: str) -> str:
    """Full-width letters, digits and punctuation as ASCII, one character for one, so that positions stay the same."""
    return text.translate(_FLAT)


def writable(reply: str) -> str:
    """The reply with lone surrogates, which a server's JSON may hold and no file can, as U+FFFD."""
    return re.sub("[\ud800-\udfff]", "\ufffd", reply)


def without_thinking(reply: str) -> str:
    """The reply without its think blocks; thinking that never ends takes the rest of the reply with it.

    A chat template may open the block itself, so what stands before a first closing tag is thinking as well.
    """
    said: list[str] = []
    inside = opened = False
    for piece in _THINK.split(reply):
        if not _THINK.fullmatch(piece):
            said += [] if inside else [piece]
        elif piece.startswith("</"):
            said = said if opened else []
            inside, opened = False, True
        else:
            inside = opened = True
    return "".join(said).strip()


class Object(dict[str, Any]):
    """A JSON object; `repeated` are the keys that stand in it twice with different values (the first one counts)."""

    def __init__(self) -> None:
        super().__init__()
        self.repeated: set[str] = set()

    def add(self, key: str, value: Any) -> None:
        if key in self and self[key] != value:
            self.repeated.add(key)
        self.setdefault(key, value)


class Found(NamedTuple):
    """An object of a reply: its value, the piece of text it was read from, and whether its end was there."""

    value: Object
    raw: str
    whole: bool


def read_objects(text: str, wanted: Callable[[Object], bool]) -> list[Found]:
    """The objects anywhere in `text` (also inside others) that are `wanted`, in order. Never raises.

    >>> read_objects("Sure: {'key': 4, 'reason': 'it's plain',}", lambda found: "key" in found)[0].value
    {'key': 4, 'reason': "it's plain"}
    """
    reader = _Reader(text)
    while reader.at < len(text):
        if text[reader.at] not in "{｛":
            reader.at += 1
            continue
        start = reader.at
        try:
            reader.value(0)
        except _Broken:
            reader.at = max(reader.at, start + 1)  # go on where it broke: what was read is not read again
    found = sorted(reader.found, key=lambda item: item[0])
    return [Found(value, text[start:end], whole) for start, end, value, whole in found if value and wanted(value)]


class _Broken(Exception):
    pass


_CLOSES = {'"': '"', "'": "'", "“": "”", "‘": "’", "”": "”", "「": "」"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\n", "b": "", "f": ""}
_SPACE = re.compile(r"\s*")
_BARE = re.compile(r"[^\s,，:：{}\[\]｛｝\"'“”][^,，:：{}\[\]｛｝\"“”\n]{0,200}")
_PLAIN = re.compile(r"[^\"'”’」\\]+")
_UNICODE = re.compile(r"u([0-9a-fA-F]{4})(?:\\u([dD][c-fC-F][0-9a-fA-F]{2}))?")
_WORDS = {"true": True, "false": False, "null": None, "none": None}


class _Reader:
    def __init__(self, text: str):
        self.text, self.at = text, 0
        self.found: list[tuple[int, int, Object, bool]] = []

    def value(self, depth: int) -> Any:
        char = self._next()
        if depth > MAX_DEPTH:
            raise _Broken
        if char in "{｛":
            return self._object(depth)
        if char in "[［":
            return self._list(depth)
        if char in _CLOSES:
            return self._string()
        word = self._bare()
        if re.fullmatch(r"-?\d{1,9}", word):
            return int(word)
        if re.fullmatch(r"-?\d{1,9}\.\d{1,9}", word):
            return float(word)
        return _WORDS.get(word.lower(), word)

    def _object(self, depth: int) -> Object:
        start, made, whole = self.at, Object(), False
        self.at += 1
        try:
            while (char := self._next()) not in "}｝":
                if char in ",，":
                    self.at += 1
                    continue
                key = self._string() if char in _CLOSES else self._bare()
                if self._next() not in ":：":
                    raise _Broken
                self.at += 1
                made.add(key.strip(), self.value(depth + 1))
            self.at += 1
            whole = True
        finally:
            self.found.append((start, self.at, made, whole))
        return made

    def _list(self, depth: int) -> list[Any]:
        made = []
        self.at += 1
        while (char := self._next()) not in "]］":
            if char in ",，":
                self.at += 1
            else:
                made.append(self.value(depth + 1))
        self.at += 1
        return made

    def _next(self) -> str:
        """The next character that is no space, without going past it."""
        self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]  # it matches everywhere
        if self.at >= len(self.text):
            raise _Broken
        return self.text[self.at]

    def _bare(self) -> str:
        match = _BARE.match(self.text, self.at)
        if not match:
            raise _Broken
        self.at = match.end()
        return match[0].strip()

    def _string(self) -> str:
        """A string ends at a closing quote that a comma, colon or bracket, or the end of its line, follows."""
        close = _CLOSES[self.text[self.at]]
        self.at += 1
        parts: list[str] = []
        while self.at < len(self.text):
            if match := _PLAIN.match(self.text, self.at):
                parts.append(match[0])
                self.at = match.end()
                continue
            char = self.text[self.at]
            self.at += 1
            if char == "\\":
                parts.append(self._escape())
            elif char == close and self._ends():
                return "".join(parts)
            else:
                parts.append(char)
        raise _Broken

    def _ends(self) -> bool:
        after = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
        return after == len(self.text) or self.text[after] in ",，:：}｝]］" or "\n" in self.text[self.at : after]

    def _escape(self) -> str:
        if match := _UNICODE.match(self.text, self.at):
            high, low = int(match[1], 16), match[2]
            paired = low is not None and 0xD800 <= high < 0xDC00
            self.at += 11 if paired else 5
            if paired and low is not None:
                return chr(0x10000 + ((high - 0xD800) << 10) + int(low, 16) - 0xDC00)
            return "\ufffd" if 0xD800 <= high < 0xE000 else chr(high)
        char = self.text[self.at : self.at + 1]
        self.at += 1
        return _ESCAPES.get(char, char)
