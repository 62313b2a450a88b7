"""Rows that a benchmark holds: what is trained on must not stand in what is evaluated with.

Benchmarks are small beside training sets, so every row is compared with every benchmark item, exactly: an inverted
index from shingle to items gives the size of each intersection at once, and Jaccard and containment follow from it.
There is no hashing that could miss one.

| reason | the row |
|---|---|
| benchmark_exact | equals an item after normalisation: stem and options, or a stem that no other item has |
| benchmark_near | has a similarity of at least `threshold` to an item |
| holds_benchmark | contains at least `containment` of an item's question, or of its case, within a longer text |
| inside_benchmark | is itself contained to that degree in an item's case |

An item's question is its stem; with the options where the stem is short, or a form that several items share ("which of
the following is right?"). Texts of fewer than `least_shingles` are only compared as wholes. Of two questions with
different cases neither is taken from the other, however much they ask the same.

Files: PCEB (a folder, any depth; plain questions and cases with questions_and_answers), CPsyExam's JSON lists (absent
options are ""), and JSONL of this project's rows. (PAPER.md has the shapes.)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from psychecore.curate.shingles import Hashes, Parts, Shingles, row_parts, shingle
from psychecore.data.records import read_jsonl

Counts = npt.NDArray[np.int64]
Shares = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DecontaminateConfig:
    """Which benchmarks are kept clean, and how near is too near.

    `benchmarks` are files or folders. `threshold` is a Jaccard similarity, `containment` the share of a text's
    shingles, `least_shingles` the length from which containment is looked for (12: 14 Chinese
    characters or 13 words).
    """

    benchmarks: tuple[str, ...] = ()
    threshold: float = 0.7
    containment: float = 0.8
    least_shingles: int = 12

    def __post_init__(self) -> None:
        for name in ("threshold", "containment"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be above 0 and at most 1")
        if self.least_shingles < 1:
            raise ValueError(f"least_shingles is {self.least_shingles}, but must be 1 or more")


class Benchmarks:
    """All items of the named benchmarks, ready to be compared with.

    Raises FileNotFoundError or ValueError, with file and item, for what cannot be read.
    """

    def __init__(self, config: DecontaminateConfig, zh_chars: int = 3, en_words: int = 2) -> None:
        self.config = config
        self._names: list[str] = []
        files: list[Path] = []
        items: list[Shingles] = []
        for path in config.benchmarks:
            for file, name, parts in read_benchmark(Path(path)):
                files.append(file)
                self._names.append(name)
                items.append(shingle(parts, zh_chars, en_words))
        self._keys: dict[bytes, list[int]] = {}
        for number, item in enumerate(items):
            self._keys.setdefault(item.key, []).append(number)
        shared = Counter(item.stem.tobytes() for item in {item.key: item for item in items}.values())
        stems = {(file, item.stem.tobytes(), item.key) for file, item in zip(files, items, strict=True)}
        within = Counter((file, stem) for file, stem, _ in stems)

        # Whether an item's stem is a question, not a form such as "which is right?" that several items have. Benchmarks
        # share questions, with options of their own, so a long one without a case counts in its own file only.
        long = [len(item.stem) >= config.least_shingles for item in items]
        own = [
            (within[file, item.stem.tobytes()] if far and not item.context_key else shared[item.stem.tobytes()]) == 1
            for file, item, far in zip(files, items, long, strict=True)
        ]
        self._stems = {  # from 8 Chinese characters or 7 words
            item.stem.tobytes(): number
            for number, (item, alone) in enumerate(zip(items, own, strict=True))
            if alone and len(item.stem) >= 6
        }
        questions = [
            item.stem if far and alone else item.body for item, far, alone in zip(items, long, own, strict=True)
        ]
        cases = {item.context_key: (number, item.context) for number, item in enumerate(items) if item.context_key}
        order = {key: at for at, key in enumerate(cases)}
        self._case_item = [number for number, _ in cases.values()]
        self._item_case = np.array([order.get(item.context_key, -1) for item in items], np.int64)
        n = len(items)
        self._sets = _Postings([*(item.body for item in items), *questions, *(case for _, case in cases.values())])
        self._bodies, self._questions, self._cases = slice(0, n), slice(n, 2 * n), slice(2 * n, None)

    def __len__(self) -> int:
        return len(self._names)

    def find(self, row: Shingles) -> tuple[str, str] | None:
        """(reason, detail) of the first reason that applies; None for a row that no benchmark holds."""
        if not self._names:
            return None
        least, share = self.config.least_shingles, self.config.containment
        sizes = self._sets.sizes
        in_body = self._sets.common(row.body)
        in_context = self._sets.common(row.context)[self._cases]
        in_whole = self._sets.common(np.union1d(row.body, row.context)) if len(row.context) else in_body
        case_sizes, case_jaccard = sizes[self._cases], _jaccard(in_context, sizes[self._cases], len(row.context))
        other_case = self._other_case(len(row.context), in_context, case_jaccard)
        for number in self._keys.get(row.key, []):
            if not other_case[number]:
                return "benchmark_exact", f"the same as {self._names[number]}"
        same_stem = self._stems.get(row.stem.tobytes())
        if same_stem is not None and not other_case[same_stem]:
            return "benchmark_exact", f"the same stem as {self._names[same_stem]}"
        near = np.where(other_case, 0.0, _jaccard(in_body[self._bodies], sizes[self._bodies], len(row.body)))
        if near.max() >= self.config.threshold:
            return "benchmark_near", f"{near.max():.3f} like {self._names[int(near.argmax())]}"
        held = _share(in_whole[self._questions], sizes[self._questions], least)
        held[other_case] = 0
        if held.max() >= share:
            return "holds_benchmark", f"{held.max():.3f} of the question of {self._names[int(held.argmax())]}"
        if not len(case_sizes):
            return None
        held = np.maximum(_share(in_whole[self._cases], case_sizes, least), case_jaccard)
        if held.max() >= share:
            return "holds_benchmark", f"{held.max():.3f} of the case of {self._case_name(int(held.argmax()))}"
        for text, common in ((row.stem, self._sets.common(row.stem)[self._cases]), (row.context, in_context)):
            if len(text) >= least and (inside := common / len(text)).max() >= share:
                name = self._case_name(int(inside.argmax()))
                return "inside_benchmark", f"{inside.max():.3f} of it stands in the case of {name}"
        return None

    def _other_case(self, length: int, common: Counts, jaccard: Shares) -> npt.NDArray[np.bool_]:
        """By item: whether it and the row both have a case, and neither case is like the other or holds it."""
        if not length or not len(common):
            return np.zeros(len(self._names), bool)
        held = common / np.maximum(np.minimum(self._sets.sizes[self._cases], length), 1)
        same = (jaccard >= self.config.threshold) | (held >= self.config.containment)
        return (self._item_case >= 0) & ~same[self._item_case]

    def _case_name(self, at: int) -> str:
        return self._names[self._case_item[at]]


class _Postings:
    """From each shingle to the sets that contain it."""

    def __init__(self, sets: list[Hashes]) -> None:
        self.sizes = np.array([len(hashes) for hashes in sets], np.int64)
        every = np.concatenate(sets) if sets else np.empty(0, np.uint64)
        owner = np.repeat(np.arange(len(sets), dtype=np.int32), self.sizes)
        order = np.argsort(every, kind="stable")
        self._owners = owner[order]
        self._hashes, self._starts, self._lengths = np.unique(every[order], return_index=True, return_counts=True)

    def common(self, hashes: Hashes) -> Counts:
        """By set: the size of its intersection with `hashes`."""
        if not len(self._hashes):
            return np.zeros(len(self.sizes), np.int64)
        at = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        at = at[self._hashes[at] == hashes]
        lengths = self._lengths[at]
        before = np.cumsum(lengths) - lengths
        index = np.repeat(self._starts[at] - before, lengths) + np.arange(lengths.sum())
        return np.bincount(self._owners[index], minlength=len(self.sizes))


def _jaccard(common: Counts, sizes: Counts, size: int) -> Shares:
    return common / np.maximum(sizes + size - common, 1)


def _share(common: Counts, sizes: Counts, least: int) -> Shares:
    """The share of each set that is common; 0 for sets of fewer than `least`."""
    return np.where(sizes < least, 0.0, common / np.maximum(sizes, 1))


def read_benchmark(path: Path) -> Iterator[tuple[Path, str, Parts]]:
    """(file, name, parts) of each item of a file or folder; the name is "FILE item 17", "FILE id" for rows of our own.

    Raises FileNotFoundError, or ValueError with file and item.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in (".json", ".jsonl"))
        if not files:
            raise ValueError(f"{path}: no .json or .jsonl file in this folder or below it")
    else:
        files = [path]
    for file in files:
        count = 0
        for place, row in _rows(file):
            try:
                for parts in _items(row):
                    count += 1
                    yield file, f"{file.name} {row['id'] if file.suffix == '.jsonl' and 'id' in row else place}", parts
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ValueError(f"{file} {place}: not a benchmark item ({type(error).__name__}: {error})") from None
        if not count:
            raise ValueError(f"{file}: no items")


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if file.suffix == ".jsonl":
        yield from ((f"line {line}", row) for line, row in read_jsonl(file))
        return
    try:
        rows = json.loads(file.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON in UTF-8 ({error})") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file}: must hold a list of objects")
    yield from ((f"item {number}", row) for number, row in enumerate(rows, start=1))


def _items(row: dict[str, Any]) -> Iterable[Parts]:
    if "questions_and_answers" in row:
        case = "\n".join(filter(None, [row.get("general_info"), row.get("case_introduction")]))
        return [row_parts(question | {"context": case}) for question in row["questions_and_answers"]]
    return [row_parts(row)]
