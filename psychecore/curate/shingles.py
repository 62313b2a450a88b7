"""How texts are compared: units, shingles, Jaccard similarity.

A unit is one Chinese character, or one word or number of any other script, after NFKC, in lower case, without
punctuation. A shingle is a run of neighbouring units: of `zh_chars` units where most units are Chinese characters, of
`en_words` elsewhere. The parts of a row (stem, each option) are cut apart, so the order of the options does not matter.

    "冯特建立了实验室。" -> 冯特建 特建立 建立了 立了实 了实验 实验室
    "A variable-ratio schedule" -> "a variable", "variable ratio", "ratio schedule"

Shingles are kept as sorted 64-bit hashes: among a million different ones the chance of any collision is 3e-8.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from psychecore.curate.typography import HAN, RADICALS

Hashes = npt.NDArray[np.uint64]
UNIT = re.compile(rf"[{HAN}]|[^\W_{HAN}]+")
CHINESE = re.compile(rf"[{HAN}]")
# What stands before a stem in examination papers: 单选：, 12．, 3、 (not the 3. of 3.5)
NUMBERING = re.compile(r"^\s*(?:[单多]选题?\s*[:：]\s*)?(?:\d{1,3}\s*[.．、)）]\s*(?!\d))?")
NEGATION = re.compile(
    r"\b(?:not?|never|except|least|incorrect|wrong|false|without)\b|n['’]t\b|[不非没无未]|错误|除了", re.I
)
NOTHING = np.empty(0, np.uint64)


@dataclass(frozen=True)
class Parts:
    """The texts of a row that are compared."""

    stem: str
    options: tuple[str, ...] = ()
    context: str = ""
    negations: int = 0


@dataclass(frozen=True)
class Shingles:
    """Sorted, unique shingle hashes of a row.

    `body` is the stem with the options (or a post with its reply), `context` the case text before it. `key` is a
    digest of the normalised body, order of the options aside; `context_key` of the context, empty where there is none.
    `negations` are counted in a question's stem: with one more, "which is right?" asks for the opposite.
    """

    key: bytes
    context_key: bytes
    stem: Hashes
    body: Hashes
    context: Hashes
    negations: int = 0


def row_parts(row: dict[str, Any]) -> Parts:
    """Of a question its stem, options and context; of a passage its text; of a post the post and the reply; of a
    dialogue its messages. Raises ValueError for any other row."""
    if isinstance(row.get("question"), str):
        options = row.get("options") or {}
        stem, context = row["question"], row.get("context") or ""
        parts = Parts(stem, tuple(filter(None, options.values())), context, len(NEGATION.findall(stem)))
    elif isinstance(row.get("text"), str):
        parts = Parts(row["text"])
    elif isinstance(row.get("post"), str):
        parts = Parts(row["post"], tuple(filter(None, [row.get("reply")])))
    elif isinstance(row.get("messages"), list):
        texts = [message["content"] for message in row["messages"] if message["role"] != "system"]
        parts = Parts(texts[0] if texts else "", tuple(texts[1:]))
    else:
        raise ValueError(f"row {row.get('id')!r} has no question, text, post or messages; it has {sorted(row)}")
    for text in (parts.stem, parts.context, *parts.options):
        if not isinstance(text, str):
            raise ValueError(f"row {row.get('id')!r} holds {text!r:.80} where a text must stand")
    return parts


def shingle(parts: Parts, zh_chars: int = 3, en_words: int = 2) -> Shingles:
    """The shingles of a row's parts."""
    stem = units(NUMBERING.sub("", parts.stem, count=1))
    options = [units(option) for option in parts.options]
    context = units(parts.context)
    every = [unit for part in (stem, *options, context) for unit in part]
    chinese = len(CHINESE.findall("".join(every)))
    size = zh_chars if 2 * chinese >= len(every) else en_words
    raw = "" if every else parts.stem.strip()  # of a row without letters or digits only the same text is a duplicate
    stem_hashes = windows([stem], size)
    return Shingles(
        key=_digest(raw, " ".join(stem), *sorted(" ".join(option) for option in options)),
        context_key=_digest(" ".join(context)) if context else b"",
        stem=stem_hashes,
        body=windows([stem, *options], size) if options else stem_hashes,
        context=windows([context], size),
        negations=parts.negations,
    )


def units(text: str) -> list[str]:
    """Chinese characters and words of a text, for comparison only."""
    return UNIT.findall(unicodedata.normalize("NFKC", text.translate(RADICALS)).casefold())


def windows(parts: Sequence[Sequence[str]], size: int) -> Hashes:
    """Sorted unique hashes of all runs of `size` units within a part; a shorter part is one shingle of its own."""
    ids: list[int] = []
    ends: list[int] = []
    for part in parts:
        if part:
            ids.extend(map(_unit_hash, part))
            ids.extend([0] * (size - len(part)))
            ends.append(len(ids))
    if not ids:
        return NOTHING
    units_T = np.array(ids, np.uint64)
    count = len(ids) - size + 1
    hashes = units_T[:count].copy()
    for offset in range(1, size):
        hashes *= np.uint64(0x9E3779B97F4A7C15)
        hashes += units_T[offset : offset + count]
    inside = np.ones(count, bool)
    for end in ends[:-1]:
        inside[end - size + 1 : end] = False  # these runs reach into the next part
    return np.unique(_mix(hashes[inside]))


def jaccard(a: Hashes, b: Hashes) -> float:
    """Size of the intersection over size of the union; 0 for two empty sets."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    union = len(a) + len(b) - common
    return common / union if union else 0.0


def similarity(a: tuple[Hashes, Hashes], b: tuple[Hashes, Hashes]) -> float:
    """Jaccard similarity of two rows, given as (body, context).

    Of rows with a context it is the smaller of the bodies' and the contexts': questions on one case share the case,
    and "what is the diagnosis?" is another question on another case.
    """
    body = jaccard(a[0], b[0])
    return min(body, jaccard(a[1], b[1])) if len(a[1]) or len(b[1]) else body


@lru_cache(maxsize=1 << 18)
def _unit_hash(unit: str) -> int:
    return int.from_bytes(hashlib.blake2b(unit.encode(), digest_size=8).digest(), "little")


def _mix(hashes: Hashes) -> Hashes:
    """MurmurHash3's 64-bit finalizer: every bit of the result depends on every bit of the polynomial."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        hashes ^= hashes >> np.uint64(33)
        hashes *= np.uint64(factor)
    hashes ^= hashes >> np.uint64(33)
    return hashes


def _digest(*texts: str) -> bytes:
    return hashlib.blake2b("\x1f".join(texts).encode("utf-8", "surrogatepass"), digest_size=16).digest()
