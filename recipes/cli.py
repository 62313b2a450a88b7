"""A recipe's configuration: a dataclass of dataclasses, filled from a TOML preset and from flags.

    config = load_config(GrpoRecipe, sys.argv[1:], __doc__, table="grpo")

`--config x.toml` fills it, `--train.token_budget 4096` overrides; an unknown or ill-typed key is an error that names
the nearest valid one. Nothing is accepted and then ignored.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import sys
import tomllib
import traceback
import types
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from psychecore.reward.score import RewardError
from psychecore.runtime import PeerError

T = TypeVar("T")
MISSING = dataclasses.MISSING


def load_config(
    cls: type[T], argv: Sequence[str], description: str | None, table: str | None = None, skip: Sequence[str] = ()
) -> T:
    """Build `cls` from `--config FILE` and `--section.key value` flags; `--help` prints every option and exits.

    A file that holds the table [table] is read from there, so that one preset can describe several recipes; tables
    named in `skip` are another recipe's. Raises ValueError naming the file or flag, the value, and the nearest key.
    """
    try:
        return _load(cls, argv, description, table, skip)
    except (ValueError, OSError) as error:
        # every rank of a node reads the same words; a file may be wrong on one node only
        error.agreed = os.environ.get("LOCAL_RANK", "0") != "0"  # type: ignore[union-attr]
        raise


def _load(cls: type[T], argv: Sequence[str], description: str | None, table: str | None, skip: Sequence[str]) -> T:
    if "--help" in argv or "-h" in argv:
        print(help_text(cls, description))
        raise SystemExit(0)
    values: dict[str, Any] = {}
    flags = list(_flags(argv))
    if sum(name == "config" for name, _ in flags) > 1:
        raise ValueError("--config is given twice, but a preset is one file; give the values that differ as flags")
    for name, value in flags:
        if name == "config":
            file = read_toml(value)
            file = file[table] if table and isinstance(file.get(table), dict) else file
            values = {key: part for key, part in file.items() if key not in skip}
            _check_keys(cls, values, "", value)
    for name, value in flags:
        if name != "config":
            _set_flag(cls, values, name, value)
    return _build(cls, values, "")


def read_toml(path: str) -> dict[str, Any]:
    """The values of a TOML file. Raises FileNotFoundError or ValueError, naming the file."""
    try:
        values = tomllib.loads(Path(path).read_bytes().decode("utf-8-sig"))
        repr(values)  # fails on a number that is too long to be named in a message
    except FileNotFoundError:
        raise FileNotFoundError(f"config file {path!r} does not exist") from None
    except RecursionError:
        raise ValueError(f"config file {path!r}: it is nested too deeply") from None
    except (ValueError, OSError) as error:  # ValueError: what is no TOML, no UTF-8, or a number of 5,000 digits
        raise ValueError(f"config file {path!r:.200}: {error!s:.200}") from None
    return values


def dump_config(config: Any) -> str:
    """The configuration as TOML that load_config reads back to an equal one."""
    lines: list[str] = []
    _dump(config, "", lines)
    return "\n".join(lines).strip() + "\n"


@contextmanager
def main_guard() -> Iterator[None]:
    """An error ends in one message on stderr: exit code 2 for what a user can mend, without a traceback; else 1.

    What every rank knows of is told by the first alone, anything else by the rank that met it.
    """
    try:
        yield
    except (ValueError, OSError, FloatingPointError, PeerError, RewardError) as error:
        sys.stdout.flush()
        if os.environ.get("RANK", "0") == "0" or not getattr(error, "agreed", False):
            if isinstance(error, RewardError) and error.__cause__ is not None:
                traceback.print_exception(error.__cause__)  # a user's own code
            print("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]), file=sys.stderr, flush=True)
        raise SystemExit(1 if isinstance(error, PeerError) else 2) from error
    except KeyboardInterrupt:
        print("interrupted; the run continues from its last checkpoint when started again", file=sys.stderr)
        raise SystemExit(130) from None


def help_text(cls: type, description: str | None) -> str:
    """Every option with type, default and help, by section."""
    lines = [(description or "").strip(), "", "options:", "  --config FILE  a TOML preset; flags override it"]
    section = ""
    for path, field, kind, owner, default in _leaves(cls):
        if path.rpartition(".")[0] != section:
            section = path.rpartition(".")[0]
            lines.append(f"\n  [{section}] " + " ".join((owner.__doc__ or "").split()))
        shown = "required" if default is MISSING else "default " + _show(default)
        text = field.metadata.get("help", "")
        lines.append(f"  --{path} {_type_name(kind)}  ({shown})" + (f"\n        {text}" if text else ""))
    return "\n".join(lines)


def _flags(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    items = iter(argv)
    for item in items:
        if not item.startswith("--") or len(item) == 2:
            raise ValueError(f"argument {item!r:.80} is no option; options look like --section.key value (see --help)")
        name, equals, value = item[2:].partition("=")
        if not equals:
            following = next(items, None)
            if following is None:
                raise ValueError(f"option --{name:.80} needs a value")
            value = following
        if any("\ud800" <= char <= "\udfff" for char in name + value):  # bytes of the command line that are no UTF-8
            raise ValueError(f"option --{name!r:.80} has the value {value!r:.80}, which is no Unicode text")
        yield name, value


def _check_keys(cls: type, values: dict[str, Any], prefix: str, source: str) -> None:
    kinds = typing.get_type_hints(cls)
    for key, value in values.items():
        if key not in kinds:
            raise ValueError(f"{source}: unknown key {prefix + key!r:.80}{_nearest(key, list(kinds))}")
        if dataclasses.is_dataclass(kinds[key]):
            if not isinstance(value, dict):
                raise ValueError(f"{source}: {prefix + key} is {value!r:.80}, but must be a table")
            _check_keys(typing.cast(type, kinds[key]), value, f"{prefix}{key}.", source)


def _set_flag(cls: type, values: dict[str, Any], name: str, text: str) -> None:
    kinds = {path: kind for path, _, kind, _, _ in _leaves(cls)}
    if name not in kinds:
        raise ValueError(f"unknown option --{name:.80}{_nearest(name, list(kinds), '--')}")
    *sections, key = name.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[key] = _parse(text, kinds[name], name)


def _build(cls: type[T], values: dict[str, Any], prefix: str) -> T:
    kinds = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        path, kind = prefix + field.name, kinds[field.name]
        if dataclasses.is_dataclass(kind):
            base = _default(field)
            given = values.get(field.name, {})
            if base is not MISSING:  # a section's own defaults, not its class's, stand where nothing is given
                given = _merge(_values(base), given)
            arguments[field.name] = _build(typing.cast(type, kind), given, path + ".")
        elif field.name in values:
            arguments[field.name] = _convert(values[field.name], kind, path)
        elif _default(field) is MISSING:
            raise ValueError(f"option --{path} is required{_note(field)}")
    try:
        return cls(**arguments)
    except ValueError as error:
        raise ValueError(f"[{prefix.rstrip('.')}] {error}" if prefix else str(error)) from None


def _values(config: Any) -> dict[str, Any]:
    """A dataclass as nested tables."""
    pairs = ((field.name, getattr(config, field.name)) for field in dataclasses.fields(config))
    return {name: _values(value) if dataclasses.is_dataclass(value) else value for name, value in pairs}


def _merge(base: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in given.items():
        merged[key] = _merge(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return merged


def _parse(text: str, kind: Any, path: str) -> Any:
    """A flag's text as a value of `kind`."""
    options = [k for k in _alternatives(kind) if k is not type(None)]
    if text == "none" and type(None) in _alternatives(kind):
        return None
    first = options[0]
    if first is bool:
        if text not in ("true", "false"):
            raise ValueError(f"option --{path} is {text!r:.80}, but must be true or false")
        return text == "true"
    if typing.get_origin(first) is tuple:
        return [_parse(part, typing.get_args(first)[0], path) for part in text.split(",") if part]
    if first in (int, float):
        try:
            return first(text)
        except ValueError:
            raise ValueError(f"option --{path} is {text!r:.80}, but must be {_type_name(kind)}") from None
    return text


def _convert(value: Any, kind: Any, path: str) -> Any:
    """A TOML value as a value of `kind`. Raises ValueError where it does not fit."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"option --{path} is an integer beyond 64 bits")
    for option in _alternatives(kind):
        if option is type(None) and (value is None or value == "none"):
            return None
        if typing.get_origin(option) is Literal and value in typing.get_args(option):
            return value
        if typing.get_origin(option) is tuple and isinstance(value, (list, tuple)):
            return tuple(_convert(item, typing.get_args(option)[0], path) for item in value)
        if option is Path and isinstance(value, (str, Path)):
            return Path(os.path.expanduser(value))  # which no shell does in TOML or behind "="
        if option is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            if math.isnan(value):
                raise ValueError(f"option --{path} is nan, which stands for no number, but must be one")
            return float(value)
        if option in (int, str, bool) and type(value) is option:
            return value
    name = "a list, in brackets" if typing.get_origin(kind) is tuple else _type_name(kind)
    raise ValueError(f"option --{path} is {value!r:.80}, but must be {name}")


def _alternatives(kind: Any) -> tuple[Any, ...]:
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    # "none" must win over a text, so that it can be said
    return tuple(sorted(typing.get_args(kind), key=lambda k: k is not type(None))) if union else (kind,)


def _leaves(cls: type, prefix: str = "", base: Any = MISSING) -> Iterator[tuple[str, Any, Any, type, Any]]:
    """(path, field, type, class, default) of each option; `base` holds the defaults where they aren't the class's."""
    kinds = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        default = _default(field) if base is MISSING else getattr(base, field.name)
        if dataclasses.is_dataclass(kinds[field.name]):
            yield from _leaves(typing.cast(type, kinds[field.name]), f"{prefix}{field.name}.", default)
        else:
            yield prefix + field.name, field, kinds[field.name], cls, default


def _default(field: Any) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _dump(config: Any, section: str, lines: list[str]) -> None:
    fields = [(field.name, getattr(config, field.name)) for field in dataclasses.fields(config)]
    leaves = [(name, value) for name, value in fields if not dataclasses.is_dataclass(value)]
    if section and leaves:
        lines.append(f"\n[{section}]")
    lines += [f"{name} = {_show(value)}" for name, value in leaves]
    for name, value in fields:
        if dataclasses.is_dataclass(value):
            _dump(value, f"{section}.{name}" if section else name, lines)


def _show(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_show, value)) + "]"
    if isinstance(value, (str, Path)):  # JSON's escapes are TOML's, but for DEL
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _type_name(kind: Any) -> str:
    names = []
    for option in _alternatives(kind):
        if typing.get_origin(option) is Literal:
            names.append("|".join(map(str, typing.get_args(option))))
        elif typing.get_origin(option) is tuple:
            names.append("a,b,...")
        else:
            names.append({bool: "true|false", type(None): "none", float: "number", int: "integer"}.get(option, "text"))
    return "|".join(reversed(names))


def _nearest(key: str, valid: list[str], dashes: str = "") -> str:
    close = difflib.get_close_matches(key[:80], valid, n=1, cutoff=0.4)
    return f"; did you mean {dashes}{close[0]}?" if close else f"; valid are {', '.join(dashes + k for k in valid)}"


def _note(field: Any) -> str:
    text = field.metadata.get("help")
    return f": {text}" if text else ""
