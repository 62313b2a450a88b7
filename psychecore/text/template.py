"""The sandbox in which chat templates run: no way to Python, and a bounded amount of work.

A template comes with a model folder, so anyone may have written it. Two fences stand around it:

1. Attributes, filters, tests and globals are lists of what is allowed, not of what is forbidden.
2. All work is paid to a `Meter` before it is done: for each syntax node of a body (of a loop, macro or block) each
   time that the body runs, and for each value that an operator, filter, method or output reads or builds.

jinja2 compiles slices, comparisons and `~` to plain Python, which no environment can watch; `_Rewriter` therefore turns
them into filters in the syntax tree, under names with a space, which no template can spell.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from psychecore.text.filters import TEXT_METHODS, braces, counted, metered_filters, metered_tests, percent, text_method
from psychecore.text.meter import NODE, Meter, TooMuchWork, size

MAX_SOURCE = 200_000  # characters; the longest templates of published models have some tens of thousands
MAX_NAMES = 500  # that it sets: jinja2 compiles each condition in the time of all of them
MAX_NODES = 5_000  # of the syntax tree, which bounds the time to compile it; Qwen3's has 355
LOOP = ("changed", "cycle", "depth", "depth0", "first", "index", "index0", "last", "length", "nextitem", "previtem")
ATTRIBUTES: dict[type, tuple[str, ...]] = {
    str: TEXT_METHODS,
    dict: ("copy", "get", "items", "keys", "values"),
    list: ("copy", "count", "index"),
    tuple: ("count", "index"),
    LoopContext: (*LOOP, "revindex", "revindex0"),
}
HANDED_BY_JINJA = ("_loop_vars", "_block_vars")  # keyword arguments of every call, for functions that ask for them


class _Generation(Extension):
    """`{% generation %}`, which marks an assistant's words for transformers' masks: what stands in it is rendered."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The nodes of the body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(ImmutableSandboxedEnvironment):
    """A jinja2 environment as transformers sets it up, within the two fences. It renders one template at a time."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation], finalize=self._output
        )
        meter = self.meter = Meter()
        self.concat = self._concat  # type: ignore[method-assign]
        self.globals = {"dict": dict, "namespace": Namespace, "range": _range, "raise_exception": _raise}
        self.globals["strftime_now"] = _strftime_now
        hidden: dict[str, Callable[..., Any]] = {
            "a turn": self._turn,
            "a slice": self._slice,
            "a join": self._join,
            "a weight": self._weighed,
        }
        self.filters = {**metered_filters(meter), **{name: counted(meter, hidden[name]) for name in hidden}}
        self.tests = {**metered_tests(meter)}

    def compile_source(self, source: str) -> jinja2.Template:
        """Compile a template. Raises ValueError for what is no template, too long or nested too deeply."""
        if len(source) > MAX_SOURCE:
            raise ValueError(f"the chat template has {len(source):,} characters, more than {MAX_SOURCE:,}")
        try:
            return self.from_string(_Rewriter().visit(self.parse(source)))
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template is not valid jinja2: {error!s:.500}") from None
        except (SyntaxError, RecursionError, MemoryError, ValueError) as error:  # from Python's own compiler
            raise ValueError(f"the chat template is not valid jinja2: {type(error).__name__} {error!s:.500}") from None

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """True for attributes on the list of the object's type, and for what a namespace holds."""
        if isinstance(obj, Namespace):
            return not attr.startswith("_")
        return any(isinstance(obj, kind) and attr in names for kind, names in ATTRIBUTES.items())

    def getitem(self, obj: Any, argument: Any) -> Any:
        """obj[argument]; what is no text or number is weighed, since Python reads it whole to look it up."""
        if not isinstance(argument, (str, int)):
            self.meter.weigh(argument)
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """str.format and format_map, whose fields reach for attributes through this sandbox."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def bounded(*args: Any, **kwargs: Any) -> str:
            braces(self.meter, value.__self__, args, kwargs)
            return self.meter.text(wrapped(*args, **kwargs))

        return bounded

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what may be called, and pay for what it reads and builds."""
        meter = __self.meter
        meter.charge(NODE * (1 + len(args) + len(kwargs)))
        if isinstance(__obj, (Macro, LoopContext, BlockReference, jinja2.Undefined)) or __obj is Namespace:
            return super().call(__context, __obj, *args, **kwargs)  # these only pass their arguments on
        own = {key: value for key, value in kwargs.items() if key not in HANDED_BY_JINJA}
        if isinstance(__obj, types.BuiltinMethodType):
            if isinstance(__obj.__self__, str):
                return text_method(meter, __obj.__name__, __obj.__self__, args, own)
            meter.charge(NODE * len(__obj.__self__))  # type: ignore[arg-type]
        elif __obj is not dict and not isinstance(__obj, (types.FunctionType, types.MethodType)):
            raise TooMuchWork(f"a {type(__obj).__name__} can't be called")
        meter.weigh([list(args), own])
        return super().call(__context, __obj, *args, **own)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """left operator right, paid before it is computed."""
        numbers = [x for x in (left, right) if isinstance(x, int)]
        if operator == "**" or any(abs(number) >= 2**64 for number in numbers):
            raise TooMuchWork(f"operator {operator!r} would build something too large")
        sizes = [size(x) if isinstance(x, str) else NODE * len(x) for x in (left, right) if hasattr(x, "__len__")]
        if operator == "%" and isinstance(left, str):
            percent(self.meter, left, right)
        elif operator == "*" and numbers:
            self.meter.charge(sum(sizes) * max(numbers[0], 0))
        self.meter.charge(sum(sizes))
        return super().call_binop(context, operator, left, right)

    def _output(self, value: Any) -> Any:
        return self.meter.string(value)

    def _concat(self, pieces: Iterable[str]) -> str:
        pieces = list(pieces)
        self.meter.charge(sum(map(size, pieces)))
        return "".join(pieces)

    def _turn(self, cost: int) -> bool:
        self.meter.charge(cost * NODE)
        return True

    def _weighed(self, value: Any) -> Any:
        if isinstance(value, (str, dict, list, tuple)):
            self.meter.weigh(value)
        return value

    def _slice(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        part = value[start:stop:step]
        self.meter.charge(size(part) if isinstance(part, str) else NODE * len(part))
        return part

    def _join(self, *values: Any) -> str:
        return self.meter.text("".join(map(self.meter.string, values)))


class _Rewriter(NodeTransformer):
    """Puts a charge at the head of each body, and filters in the place of what no environment can watch."""

    def __init__(self) -> None:
        self.seen = 0  # nodes, so that a body's number is a difference
        self.names: set[str] = set()

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        self.seen += 1
        if self.seen > MAX_NODES:
            raise jinja2.TemplateSyntaxError(f"it has more than {MAX_NODES:,} syntax nodes", node.lineno)
        if isinstance(node, nodes.Name) and node.ctx != "load":
            self.names.add(node.name)
            if len(self.names) > MAX_NAMES:
                raise jinja2.TemplateSyntaxError(f"it sets more than {MAX_NAMES} names", node.lineno)
        return super().visit(node, *args, **kwargs)

    def _body(self, node: Any) -> Any:
        before = self.seen
        node = self.generic_visit(node)
        turn = _filter("a turn", nodes.Const(self.seen - before + 1), node)
        node.body.insert(0, nodes.ExprStmt(turn, lineno=node.lineno))
        if isinstance(node, nodes.For) and node.test is not None:  # turns that the test refuses cost as well
            node.test = nodes.And(turn, node.test, lineno=node.lineno)
        return node

    visit_For = visit_Macro = visit_CallBlock = _body

    def visit_Block(self, node: Any) -> Any:
        if node.scoped:  # copies all names each time that it is met
            raise jinja2.TemplateSyntaxError("a scoped block, which no chat template needs", node.lineno)
        return self._body(node)

    def visit_Getitem(self, node: Any) -> nodes.Node:
        node = self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        limits = [limit or nodes.Const(None) for limit in (node.arg.start, node.arg.stop, node.arg.step)]
        return _filter("a slice", node.node, node, limits)

    def visit_Concat(self, node: Any) -> nodes.Node:
        node = self.generic_visit(node)
        return _filter("a join", node.nodes[0], node, node.nodes[1:])

    def visit_Compare(self, node: Any) -> nodes.Node:
        node = self.generic_visit(node)
        for place in (node, *node.ops):
            place.expr = _filter("a weight", place.expr, node)
        return node

    def visit_Pair(self, node: Any) -> nodes.Node:  # a key is hashed, which reads it whole
        node = self.generic_visit(node)
        node.key = _filter("a weight", node.key, node)
        return node

    def visit_ScopedEvalContextModifier(self, node: nodes.Node) -> NoReturn:
        raise jinja2.TemplateSyntaxError("autoescape is for HTML, which no chat template is", node.lineno)


def _filter(name: str, value: nodes.Expr, place: nodes.Node, args: Iterable[nodes.Expr] = ()) -> nodes.Filter:
    return nodes.Filter(value, name, list(args), [], None, None, lineno=place.lineno)


def _range(*arguments: int) -> range:
    values = range(*arguments)
    if len(values) > 1_000_000:
        raise TooMuchWork(f"range of {len(values)} is too long")
    return values


def _raise(message: Any) -> NoReturn:
    if not isinstance(message, str):
        raise TooMuchWork(f"raise_exception takes a text, not a {type(message).__name__}")
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    if len(form) > 100:
        raise TooMuchWork(f"strftime_now of {len(form)} characters is too long")
    return datetime.now().strftime(form)
