"""Messages, chat templates, and what stands in and after a <think> block.

Templates come with the model folder and are not trusted: they run in jinja2's immutable sandbox, can't reach
attributes, and their time and output are bounded.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NoReturn, TypedDict

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

ROLES = ("system", "user", "assistant", "tool")
MAX_RENDERED = 16_000_000  # characters; a context of a million tokens is about a quarter of this
MAX_LOOPS = 1_000_000  # turns of all loops of one rendering


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
        if any("\ud800" <= char <= "\udfff" for char in content):
            raise ValueError(f"message {index} holds a lone surrogate, which is no Unicode text")


def split_think(text: str) -> tuple[str | None, str]:
    """(what stands in the first think block, what follows it); (None, text) where no block is complete.

    Example: "<think>a</think>\\nB" gives ("a", "B"). A template may open the block itself, so a text that only closes
    one is taken as starting inside it.
    """
    head, closed, tail = text.partition("</think>")
    if not closed:
        return None, text
    return head.rpartition("<think>")[2].strip(), tail.strip()


class ChatTemplate:
    """A model's jinja2 chat template, rendered as transformers renders it."""

    def __init__(self, source: str, variables: dict[str, str]):
        """`variables` are the special tokens that templates may name: bos_token, eos_token, ..."""
        environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals |= {"raise_exception": _raise, "strftime_now": _strftime_now, "range": _bounded_range}
        self.variables = variables
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template is not valid jinja2: {error}") from None

    def render(self, messages: list[Any], add_generation_prompt: bool, **variables: Any) -> str:
        """The conversation as one text. Raises ValueError for what the template refuses or where it runs too long."""
        pieces, length = [], 0
        values = {**self.variables, "messages": messages, "add_generation_prompt": add_generation_prompt, **variables}
        try:
            for piece in self._template.generate(tools=values.pop("tools", None), **values):
                pieces.append(piece)
                length += len(piece)
                if length > MAX_RENDERED:
                    raise ValueError(f"the chat template wrote more than {MAX_RENDERED} characters")
        except (jinja2.TemplateError, TypeError, OverflowError, MemoryError, RecursionError) as error:
            raise ValueError(f"the chat template failed: {error}") from None
        return "".join(pieces)


class _Environment(ImmutableSandboxedEnvironment):
    """Bounds what operators can build: text * huge number, huge powers."""

    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(x) if isinstance(x, (str, list, tuple)) else x for x in (left, right)]
        sized = isinstance(left, (str, list, tuple)) or isinstance(right, (str, list, tuple))
        if operator == "**" or (sized and sizes[0] * sizes[1] > MAX_RENDERED):
            raise jinja2.TemplateRuntimeError(f"operator {operator!r} would build something too large")
        return super().call_binop(context, operator, left, right)


def _bounded_range(*arguments: int) -> range:
    values = range(*arguments)
    if len(values) > MAX_LOOPS:
        raise jinja2.TemplateRuntimeError(f"range of {len(values)} is too long")
    return values


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # jinja's own filter escapes for HTML, which no chat template means
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)
