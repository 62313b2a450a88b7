"""What a chat template may apply and call: jinja2's harmless filters and tests, and the methods of texts, all metered.

Left out are filters that reach for attributes (attr), that pad (center, batch, slice), that search with slow regular
expressions (urlize, wordwrap, striptags), that are random, and those for HTML; no published chat template uses them.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable
from functools import partial
from typing import Any

import jinja2
from jinja2.defaults import DEFAULT_FILTERS, DEFAULT_TESTS

from psychecore.text.meter import NODE, Meter, TooMuchWork, size

FREE = ("abs", "count", "d", "default", "first", "last", "length")  # read no more than they are handed
WHOLE = ("dictsort", "float")  # read all of it
WRITTEN = ("capitalize", "lower", "string", "upper")  # take it as a text
EACH = ("items", "list", "map", "reject", "rejectattr", "reverse", "select", "selectattr")  # read element by element
SORTS = ("join", "max", "min", "sort", "unique")  # read elements whole, and several times
TESTS = (
    *("==", "!=", "<", "<=", ">", ">=", "boolean", "callable", "defined", "divisibleby", "eq", "equalto", "even"),
    *("false", "float", "ge", "greaterthan", "gt", "in", "integer", "iterable", "le", "lessthan", "lower", "lt"),
    *("mapping", "ne", "none", "number", "odd", "sameas", "sequence", "string", "true", "undefined", "upper"),
)
TEXT_METHODS = (
    *("capitalize", "casefold", "count", "endswith", "find", "format", "format_map", "index", "isalnum", "isalpha"),
    *("isascii", "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower"),
    *("lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit"),
    *("rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper"),
)
FORMATS = re.compile(r"%(?:%|(?:\(\w{1,40}\))?0?\d?(?:\.\d)?[sdf])")  # "%s", "%02d", "%.1f": no width that costs
SORT_PASSES = 20  # comparisons of an element in a sort of a million
PART = NODE // 2  # units for a character of a text that may be cut into as many texts
MAX_BITS = 4096  # of a number

Function = Callable[..., Any]


def metered_filters(meter: Meter) -> dict[str, Function]:
    """The filters by name."""
    jinja: dict[str, Any] = DEFAULT_FILTERS
    metered: dict[str, Function] = {
        **{name: jinja[name] for name in FREE},
        **{name: _whole(meter, jinja[name]) for name in WHOLE},
        **{name: _written(meter, jinja[name]) for name in WRITTEN},
        **{name: _each(meter, jinja[name]) for name in EACH},
        **{name: _each(meter, jinja[name], sorts=True) for name in SORTS},
        **_own_filters(meter),
    }
    return {name: counted(meter, function) for name, function in metered.items()}


def metered_tests(meter: Meter) -> dict[str, Function]:
    """What may stand behind `is`, by name."""
    jinja: dict[str, Any] = DEFAULT_TESTS
    return {name: counted(meter, _whole(meter, jinja[name], any_value=True)) for name in TESTS}


def counted(meter: Meter, function: Function) -> Function:
    """`function` as jinja2 calls it, paying for the call. What asks for the context is not run at compile time."""
    passed = getattr(function, "jinja_pass_arg", None)

    @jinja2.pass_context
    def call(context: Any, *args: Any, **kwargs: Any) -> Any:
        meter.charge(NODE * (len(args) + len(kwargs)))
        if passed is not None:
            given = {"context": context, "environment": context.environment, "eval_context": context.eval_ctx}
            args = (given[passed.name], *args)
        return function(*args, **kwargs)

    return call


def text_method(meter: Meter, name: str, text: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """text.name(*args, **kwargs), paid beforehand by what it reads and builds."""
    given = meter.weigh([list(args), kwargs])
    weight = meter.weigh(text)
    first = args[0] if args and isinstance(args[0], str) else None
    if name == "replace":
        return replace(meter, text, *args, **kwargs)
    if name in ("strip", "lstrip", "rstrip", "rfind", "rindex", "rpartition", "rsplit"):
        meter.charge(weight * len(first or ""))  # compares each character with each, at worst
    if name in ("split", "rsplit", "splitlines"):  # a list of many short texts takes more room than the text
        meter.charge(NODE * (text.count(first) if first else len(text) // 2))
    if name == "join":
        meter.charge((weight + NODE) * (len(first) if first is not None else given // NODE))
    result = getattr(text, name)(*args, **kwargs)
    return meter.text(result) if isinstance(result, str) else result


def replace(meter: Meter, value: Any, old: str, new: str, count: int = -1) -> str:
    """str.replace, paid by the length of the result."""
    text, old, new = (meter.string(part) for part in (value, old, new))
    meter.charge(size(new) * text.count(old))
    return text.replace(old, new, count)


def percent(meter: Meter, form: str, values: Any) -> None:
    """Pay for form % values, or raise TooMuchWork where the form holds more than short fields."""
    meter.charge(size(form))
    if "%" in FORMATS.sub("", form):
        raise TooMuchWork(f"format {form!r:.80} has more than %s, %d and %f")
    meter.charge(len(FORMATS.findall(form)) * (10 * meter.weigh(values) + 400))  # %f of 1e308 has 309 digits


def braces(meter: Meter, form: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Pay for form.format(*args, **kwargs), or raise TooMuchWork where a field is wider than 999."""
    meter.charge(size(form))
    fields = meter.listed(string.Formatter().parse(form))
    if any(spec and re.search(r"{|\d{4}", spec) for _, _, spec, _ in fields):
        raise TooMuchWork(f"format {form!r:.80} would build something too large")
    meter.charge(len(fields) * (10 * meter.weigh([list(args), kwargs]) + 1000))  # escapes of what stands in lists


def _whole(meter: Meter, function: Function, any_value: bool = False) -> Function:
    def weighed(*args: Any, **kwargs: Any) -> Any:
        for value in [*args, *kwargs.values()]:
            if not any_value or isinstance(value, (str, dict, list, tuple)):
                meter.weigh(value)
        return function(*args, **kwargs)

    return _passing_like(function, weighed)


def _written(meter: Meter, function: Function) -> Function:
    def written(value: Any, *args: Any, **kwargs: Any) -> Any:
        meter.weigh([list(args), kwargs])
        return function(value if isinstance(value, str) else meter.string(value), *args, **kwargs)

    return _passing_like(function, written)


def _each(meter: Meter, function: Function, sorts: bool = False) -> Function:
    passed = hasattr(function, "jinja_pass_arg")

    def listed(*args: Any, **kwargs: Any) -> Any:
        head, (items, *rest) = args[:passed], args[passed:]
        if not isinstance(items, (str, dict, jinja2.Undefined)):
            items = meter.listed(items)
        each = meter.weigh([rest, kwargs])
        meter.charge(each * len(items))
        if sorts:
            meter.charge(SORT_PASSES * meter.weigh(items))
        result = function(*head, items, *rest, **kwargs)
        # a generator is run here, where its turns are paid
        return result if isinstance(result, (str, int, float)) or result is None else _run(meter, result, sorts)

    return _passing_like(function, listed)


def _run(meter: Meter, result: Any, sorts: bool) -> Any:
    return result if sorts and not hasattr(result, "__next__") else meter.listed(result)


def _passing_like(function: Function, wrapper: Function) -> Function:
    if hasattr(function, "jinja_pass_arg"):
        wrapper.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
    return wrapper


def _own_filters(meter: Meter) -> dict[str, Any]:
    """Filters whose arguments set the size of the result."""

    def indent(value: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        meter.weigh(width)
        wide, text = len(width) if isinstance(width, str) else width, meter.string(value)
        meter.charge(PART * len(text))
        meter.charge(4 * wide * (1 + len(text.splitlines())))
        return DEFAULT_FILTERS["indent"](text, width, first, blank)

    def title(value: Any) -> str:
        text = meter.string(value)
        meter.charge(PART * len(text))
        return str(DEFAULT_FILTERS["title"](text))

    def escape(value: Any) -> str:
        text = meter.string(value)
        meter.charge(5 * size(text))
        return str(DEFAULT_FILTERS["escape"](text))  # plain: the methods of a Markup are none of text_method's

    def whole_number(value: Any, default: Any = 0, base: int = 10) -> Any:
        meter.weigh(value)
        number = DEFAULT_FILTERS["int"](value, default, base)
        if isinstance(number, int) and number.bit_length() > MAX_BITS:
            raise TooMuchWork(f"a number of {number.bit_length():,} bits is too large")
        return number

    def round_off(value: Any, precision: int = 0, method: str = "common") -> Any:
        if abs(precision) > 20:
            raise TooMuchWork(f"round to {precision} places would build something too large")
        return DEFAULT_FILTERS["round"](value, precision, method)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # jinja's own filter escapes for HTML, which no chat template means
        if (indent or 0) > 16 or (separators and max(map(len, separators)) > 8):
            raise TooMuchWork(f"tojson with indent {indent!r:.80} would build something too large")
        meter.charge((6 + (indent or 0)) * meter.weigh(value))  # a control character is written as \\u0000
        options: dict[str, Any] = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
        return meter.text(json.dumps(value, ensure_ascii=ensure_ascii, **options))

    def trim(value: Any, chars: str | None = None) -> str:
        return text_method(meter, "strip", meter.string(value), () if chars is None else (chars,), {})

    return {
        "e": escape,
        "escape": escape,
        "indent": indent,
        "int": whole_number,
        "replace": partial(replace, meter),
        "round": round_off,
        "safe": meter.string,
        "title": title,
        "tojson": tojson,
        "trim": trim,
    }
