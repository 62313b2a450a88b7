"""The purse of one rendering of a chat template: what its work costs, and the end of it.

A unit is a character that is read or built, 4 where the text is not ASCII, since Python then stores it wider; so the
units bound memory as well as time. The count depends on nothing but the template and its input: what renders once
renders always.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, MappingView
from typing import Any

import jinja2

MAX_WORK = 400_000_000  # units of one rendering, a few seconds
NODE = 100  # units for a syntax node, list element or call. Qwen3's template spends 32,000 on a message
MAX_SECONDS = 30.0  # a last resort, in case that some operation takes longer than it pays for
MAX_DEPTH = 100  # of lists in lists


class TooMuchWork(jinja2.TemplateRuntimeError):
    """A template wants to do or build more than a chat template needs."""


class Meter:
    """Everything that costs asks here first."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Fill the purse for the next rendering."""
        self.left, self.deadline = MAX_WORK, time.monotonic() + MAX_SECONDS

    def charge(self, units: int) -> None:
        """Pay, or raise TooMuchWork."""
        self.left -= units
        if self.left < 0:
            raise TooMuchWork(f"it does more than {MAX_WORK:,} units of work")
        if units >= NODE and time.monotonic() > self.deadline:
            raise TooMuchWork(f"it takes more than {MAX_SECONDS} seconds")

    def weigh(self, value: Any) -> int:
        """Pay for reading a value with all that it holds, and return the price.

        Lists that share their elements are paid as often as they are met, as whoever reads them meets them. Raises
        TooMuchWork, also for values that are no data (functions, loops, namespaces): they have no text.
        """
        price, stack = 0, [(value, 0)]
        while stack and price <= self.left:
            item, depth = stack.pop()
            if isinstance(item, str):
                price += size(item)
            elif isinstance(item, range):
                price += NODE * len(item)
            elif isinstance(item, (dict, list, tuple, MappingView)):
                price += NODE * (len(item) + 1)
                if depth > MAX_DEPTH:
                    raise TooMuchWork(f"it nests lists deeper than {MAX_DEPTH}")
                if price <= self.left:
                    parts: Any = [*item.keys(), *item.values()] if isinstance(item, dict) else item
                    stack.extend((part, depth + 1) for part in parts)
            elif item is None or isinstance(item, (int, float, jinja2.Undefined)):
                price += 1
            else:
                raise TooMuchWork(f"a {type(item).__name__} is used as if it were data")
        self.charge(price)
        return price

    def string(self, value: Any) -> str:
        """str(value), paid beforehand: a text inside a list is written with escapes, up to 10 characters for one."""
        price = self.weigh(value)
        if not isinstance(value, str):
            self.charge(10 * price)
        return str(value)

    def listed(self, items: Iterable[Any]) -> list[Any]:
        """The items as a list, each paid before the next is asked for."""
        found = []
        for item in items:
            self.charge(NODE)
            found.append(item)
        return found

    def text(self, text: str) -> str:
        """Pay for a text that was built, and hand it on."""
        self.charge(size(text))
        return text


def size(text: str) -> int:
    """The units of a text."""
    return len(text) if text.isascii() else 4 * len(text)
