"""Messages, chat templates, and what stands in and after a <think> block.

Templates come with the model folder and are not trusted; psychecore/text/template.py is the sandbox they run in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypedDict

import jinja2

from psychecore.text.meter import MAX_DEPTH
from psychecore.text.template import Sandbox

OPEN, CLOSE = "<think>", "</think>"
ROLES = ("system", "user", "assistant", "tool")
MAX_RENDERED = 16_000_000  # characters; a context of a million tokens is about a quarter of this


class Message(TypedDict):
    """One turn of a conversation: role is system, user, assistant or tool."""

    role: str
    content: str


def check_messages(messages: Any) -> None:
    """Raise ValueError, naming the turn and the value, unless this is a list of messages."""
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"messages must be a non-empty list, not {messages!r:.80}")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise ValueError(f"message {index} is {message!r:.80}, but must be an object with role and content")
        if message.get("role") not in ROLES:
            raise ValueError(f"message {index} has role {message.get('role')!r:.80}, but must be one of {ROLES}")
        content = message.get("content")
        if not isinstance(content, str):
            raise ValueError(f"message {index} has content {content!r:.80}, but must be a text")
        try:
            texts = "".join(texts_in(message))
        except RecursionError:
            raise ValueError(f"message {index} nests lists deeper than {MAX_DEPTH}") from None
        if any("\ud800" <= char <= "\udfff" for char in texts):
            raise ValueError(f"message {index} holds a lone surrogate, which is no Unicode text")


def texts_in(value: Any, depth: int = 0) -> Iterator[str]:
    """All texts of a JSON value, keys too. Raises RecursionError for lists in lists beyond what a template may read."""
    if depth > MAX_DEPTH:
        raise RecursionError
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in [*value.keys(), *value.values()] if isinstance(value, dict) else value:
            yield from texts_in(item, depth + 1)


def split_think(text: str) -> tuple[str | None, str]:
    """(what stands in the first think block, what follows it); (None, text) where no block is complete.

    Example: "<think>a</think>\\nB" gives ("a", "B"). A template may open the block itself, so a text that only closes
    one is taken as starting inside it.
    """
    head, closed, tail = text.partition(CLOSE)
    if not closed:
        return None, text
    return head.rpartition(OPEN)[2].strip(), tail.strip()


def opens_thinking(prompt: str) -> bool:
    """Whether a prompt ends in an open think block, which some templates (Qwen3-Thinking's) begin for the model."""
    return prompt.rstrip().endswith(OPEN)


class ChatTemplate:
    """A model's jinja2 chat template, rendered as transformers renders it, inside a sandbox."""

    def __init__(self, source: str, variables: dict[str, str]):
        """`variables` are the special tokens that templates may name: bos_token, eos_token, ..."""
        self.variables = variables
        self._sandbox = Sandbox()
        self._template = self._sandbox.compile_source(source)

    def render(self, messages: list[Any], add_generation_prompt: bool, **variables: Any) -> str:
        """The conversation as one text. Raises ValueError for what the template refuses or where it runs too long."""
        pieces, length = [], 0
        values = {**self.variables, "messages": messages, "add_generation_prompt": add_generation_prompt, **variables}
        self._sandbox.meter.reset()
        try:
            for piece in self._template.generate(tools=values.pop("tools", None), **values):
                pieces.append(piece)
                length += len(piece)
                if length > MAX_RENDERED:
                    raise jinja2.TemplateRuntimeError(f"it writes more than {MAX_RENDERED:,} characters")
        except Exception as error:  # a template is a program, and may fail in every way that Python can
            name = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__} "
            raise ValueError(f"the chat template failed: {name}{str(error)[:500]}") from None
        return "".join(pieces)
