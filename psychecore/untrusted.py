"""Reading what someone else wrote: JSON that fails in one line, and files that stay in their folder.

Python's json accepts more than JSON (NaN, lone surrogates, the last of equal keys) and fails in several ways (numbers
beyond 4,300 digits, deep nesting). Here every failure is a ValueError, and what passes can be written again as UTF-8.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

MAX_JSON = 256_000_000  # bytes of one file; the largest tokenizer.json that we know of has 33 million
MAX_DIGITS = 400  # of a number; a float ends at 309
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text: str, unique_keys: bool = False) -> Any:
    """The value of a JSON text. Raises ValueError, in one line of bounded length, for all that is wrong with it."""
    hook = _unique if unique_keys else None
    try:
        value = json.loads(
            text, parse_constant=_no_number, parse_int=_integer, parse_float=_float, object_pairs_hook=hook
        )
        if _SURROGATE.search(text):  # an escape is the only way in; a pair of them is a character
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("it holds a lone surrogate, which is no Unicode text") from None
    return value


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises FileNotFoundError, or ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    if path.stat().st_size > MAX_JSON:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, but at most {MAX_JSON:,} are read")
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must hold one JSON object")
    return value


def local_or_hub(source: str | os.PathLike[str], what: str, patterns: Sequence[str]) -> Path:
    """The folder of a `what` ("model"); a hub id's own files of these patterns are downloaded to the hub cache.

    Raises FileNotFoundError, naming the source, where there is none.
    """
    path, name = Path(source), os.fspath(source)
    if path.is_dir():
        return path
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise FileNotFoundError(f"{what} folder {name!r} does not exist (a hub id would read 'owner/name')")
    import huggingface_hub  # takes a while, and is needed here alone

    try:  # whoever may write to the repository may change it: its files are read as untrusted, and none is code
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=[*patterns], ignore_patterns=["*/*"]))  # nosec
    except Exception as error:
        raise FileNotFoundError(f"{name!r} is no local folder, and the hub did not give it: {error}") from error


def within(folder: Path, name: str) -> Path:
    """folder / name, which need not exist. Raises ValueError where a link leads out of the folder.

    Else a model folder could have any file of its user read, and copied into an export. The hub's cache is let
    through, whose snapshots hold links to ../../blobs.
    """
    path = folder / name
    real, homes = Path(os.path.realpath(path)), [Path(os.path.realpath(folder))]
    if homes[0].parent.name == "snapshots":
        homes.append(homes[0].parent.parent / "blobs")
    if not any(real.is_relative_to(home) for home in homes):
        raise ValueError(f"{path} is a link out of its folder, to {real}: put the file itself there")
    return path


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits is too long")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):  # Python would write it as Infinity, which is no JSON
        raise ValueError(f"{digits:.80} is too large for a number")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        double = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {double!r:.80} stands twice in one object")
    return found
