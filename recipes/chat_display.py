"""What a terminal is shown of a model's words: the think part apart, and no control character among them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from typing import Literal, TextIO

from psychecore.text.chat import CLOSE, OPEN

Thinking = Literal["dim", "hide"]
DIM, PLAIN = "\x1b[2m", "\x1b[0m"
# C0 but for tab and newline, DEL, C1, and what turns the direction of text: all can show what is not there
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def harmless(text: str) -> str:
    """The text with what would steer a terminal replaced by U+FFFD.

    >>> harmless("a\\x1b[2Jb")
    'a�[2Jb'
    """
    return _CONTROL.sub("\ufffd", text)


class ThinkParts:
    """Cuts a stream of text into thought and answer, wherever the pieces end.

    `inside`: the template has opened the block already, so the text starts in it.
    """

    def __init__(self, inside: bool = False):
        self.inside = inside
        self._held = ""  # the beginning of what may become a tag

    def feed(self, piece: str) -> Iterator[tuple[bool, str]]:
        """Yield (whether it is thought, text) of what is certain by now; tags are left out."""
        self._held += piece
        while True:
            tag = CLOSE if self.inside else OPEN
            before, found, after = self._held.partition(tag)
            if not found:
                break
            if before:
                yield self.inside, before
            self.inside, self._held = not self.inside, after
        sizes = range(min(len(tag) - 1, len(before)), -1, -1)
        start = next(len(before) - size for size in sizes if tag.startswith(before[len(before) - size :]))
        certain, self._held = before[:start], before[start:]
        if certain:
            yield self.inside, certain

    def end(self) -> Iterator[tuple[bool, str]]:
        """Yield what was held back; the text is over."""
        if self._held:
            yield self.inside, self._held
            self._held = ""


class Screen:
    """Writes an answer as it comes: the thought dimmed or hidden, named in words where there is no colour."""

    def __init__(self, thinking: Thinking = "dim", out: TextIO | None = None):
        self.out = out or sys.stdout
        self.thinking = thinking
        self.colour = self.out.isatty() and os.environ.get("TERM") != "dumb" and "NO_COLOR" not in os.environ
        self._parts, self._in_thought, self._blank = ThinkParts(), False, True

    def begin(self, inside: bool) -> None:
        """An answer begins; `inside` as in ThinkParts."""
        self._parts, self._in_thought, self._blank = ThinkParts(inside), False, True

    def write(self, piece: str) -> None:
        """Show what a piece of the answer makes certain."""
        for thought, text in self._parts.feed(piece):
            self._show(thought, text)
        self.out.flush()

    def end(self) -> None:
        """The answer is over, or was broken off."""
        for thought, text in self._parts.end():
            self._show(thought, text)
        self._to(False)
        self.say("")

    def say(self, line: str) -> None:
        """A line of the program's own."""
        print(harmless(line), file=self.out, flush=True)

    def _show(self, thought: bool, text: str) -> None:
        self._to(thought)
        if self._blank:  # models put line breaks around the block
            text = text.lstrip()
        if text and not (thought and self.thinking == "hide"):
            self._blank = False
            self.out.write(harmless(text))

    def _to(self, thought: bool) -> None:
        if thought == self._in_thought:
            return
        self._in_thought, self._blank = thought, True
        if self.thinking == "hide":
            self.out.write("(thinking)\n" if thought else "")
        elif self.colour:
            self.out.write(DIM if thought else PLAIN + "\n")
        else:
            self.out.write("[thinking] " if thought else "\n[answer] ")
