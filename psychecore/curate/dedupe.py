"""Stage dedupe: near-duplicates within a set, by MinHash LSH, each one verified.

Two rows are near-duplicates where their similarity (shingles.similarity, a Jaccard coefficient) is at least
`threshold`. MinHash signatures (datasketch) only propose pairs: each pair is checked on the shingles themselves, so no
row is dropped below the threshold, and of the pairs above it at most 1 - `recall` are missed. A question whose stem
negates more often or less often than its near-duplicate asks for something else: it shares the cluster, and stays.

    signature   128 minima per row; two rows agree in each one with probability J
    bands       rows per band r and bands b, so that J = threshold meets in some band with 1 - (1 - J^r)^b >= recall
    candidates  rows equal in a band: neighbours after sorting the band's keys
    clusters    connected components of the verified pairs; "cluster" is the id of the first row in it
    kept        in each cluster, from the best row down, every row without a kept near-duplicate

The bands are sorted here and not put into datasketch's MinHashLSH, which finds the same pairs (a test compares them)
but takes 36 s and 700 MB for 100,000 rows where sorting takes 1 s and 21 MB (benchmarks/dedupe.py).

Memory: 128 minima (512 bytes) and some 200 bytes a row; shingles lie in a temporary file. Time grows with the number
of rows and of candidate pairs: a bucket of m rows that are alike, yet below the threshold, costs m^2 / 2 comparisons.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from psychecore.curate.bands import Pairs, bands_for, candidate_pairs
from psychecore.curate.decontaminate import Benchmarks
from psychecore.curate.shingles import NOTHING, Hashes, Shingles, row_parts, shingle, similarity
from psychecore.data.records import read_jsonl
from psychecore.durable import replace_file

try:
    from datasketch import MinHash
except ImportError:
    raise ImportError("curation needs datasketch: pip install -e '.[curate]' in psychecore's folder") from None

ESTIMATE_SIGMAS = (
    4.0  # a pair whose signatures agree this much too little is not checked further: 1 in 30,000 is missed
)


@dataclass(frozen=True)
class DedupeConfig:
    """What counts as a duplicate, and which of several stays.

    `threshold` is the similarity from which rows are duplicates, `recall` the least chance to find a pair just at it,
    `permutations` the length of a signature, drawn by `seed`. `best` is a numeric key that the rows bring along, such
    as "notes.rating": of duplicates the row with the highest value stays; without it, and among equals, the first.
    `zh_chars` and `en_words` are the shingle lengths.
    """

    threshold: float = 0.8
    recall: float = 0.99
    permutations: int = 128
    seed: int = 1
    best: str = ""
    zh_chars: int = 3
    en_words: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}, but must be above 0 and at most 1")
        if not 0 < self.recall < 1:
            raise ValueError(f"recall is {self.recall}, but must be between 0 and 1")
        if self.zh_chars < 1 or self.en_words < 1:
            raise ValueError(f"zh_chars is {self.zh_chars}, en_words {self.en_words}, but both must be 1 or more")
        bands_for(self.threshold, self.recall, self.permutations)


@dataclass(frozen=True)
class Verdict:
    """What is done with one row: its cluster, and why it goes ("" if it stays)."""

    cluster: str
    reason: str = ""
    detail: str = ""


def dedupe(
    source: Path,
    folder: Path,
    config: DedupeConfig | None = None,
    benchmarks: Benchmarks | None = None,
    progress: Callable[[int], None] = lambda count: None,
    name: str = "dedupe",
) -> dict[str, int]:
    """Write folder/NAME.jsonl (rows with "cluster") and folder/NAME.rejects.jsonl (with "reason" and "detail").

    The source is read three times and never held. Both files are replaced whole, NAME.jsonl last: a killed run is
    started again. `progress` is called with the number of rows read so far. Returns the number of rows by reason, those
    that stay under "kept". Raises ValueError with file and line for a row without id or text, or an id seen twice.
    """
    verdicts = judge((row for row in _checked_rows(source, progress)), config or DedupeConfig(), benchmarks)
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / f"{name}.rejects.jsonl", _lines(source, verdicts, kept=False))
    replace_file(folder / f"{name}.jsonl", _lines(source, verdicts, kept=True))
    return dict(Counter(verdict.reason or "kept" for verdict in verdicts))


def judge(rows: Iterable[dict[str, Any]], config: DedupeConfig, benchmarks: Benchmarks | None = None) -> list[Verdict]:
    """One verdict a row, in order. Rows that a benchmark holds go first and take no part in the clusters.

    Reasons: those of decontaminate.Benchmarks; "exact_duplicate", equal after normalisation; "near_duplicate". The
    detail names the row that stays, and says where it has another answer. Raises ValueError where `config.best` is
    given and no row has it.
    """
    index = _Index(config)
    ids: list[str] = []
    found: dict[int, tuple[str, str]] = {}
    keys: list[int] = []
    for number, row in enumerate(rows):
        ids.append(row["id"])
        keys.append(hash(tuple(sorted(str((row.get("options") or {}).get(x)) for x in row.get("answer") or ""))))
        shingles = shingle(row_parts(row), config.zh_chars, config.en_words)
        match = benchmarks.find(shingles) if benchmarks else None
        if match:
            found[number] = match
        else:
            index.add(number, shingles, _best_value(row, config.best))
    if config.best and len(index) and not index.has_best:
        raise ValueError(f"no row has the key {config.best!r} by which the best of several duplicates is kept")
    verdicts = [Verdict(row_id, *found.get(number, ("", ""))) for number, row_id in enumerate(ids)]
    for cluster, dropped in index.clusters():
        first = ids[min(cluster)]
        for number in cluster:
            reason, kept, value = dropped.get(number, ("", -1, 0.0))
            other = ", which has another answer" if keys[number] != keys[kept] else ""
            detail = f"{value:.3f} like {ids[kept]}{other}" if reason else ""
            verdicts[number] = Verdict(first, reason, detail)
    return verdicts


class _Index:
    """Signatures in memory, shingles in a temporary file, exact duplicates set aside at once."""

    def __init__(self, config: DedupeConfig) -> None:
        self.config = config
        self.has_best = False
        self._empty = MinHash(num_perm=config.permutations, seed=config.seed, hashfunc=int)
        self._first: dict[bytes, int] = {}  # digest of the text: its slot
        self._members: list[list[int]] = []  # slot: the numbers of the rows with this text
        self._best: dict[int, float] = {}
        self._signatures = bytearray()
        self._file = tempfile.TemporaryFile(prefix="psychecore-dedupe-")  # noqa: SIM115 - lives as long as the index
        self._ends: list[tuple[int, int]] = []  # slot: where its body and its context end in the file
        self._written = 0
        self._negations: list[int] = []  # by slot

    def __len__(self) -> int:
        return len(self._members)

    def add(self, number: int, shingles: Shingles, best: float | None) -> None:
        """Take in the row with this number; `best` is its value to be chosen by, None where it has none."""
        self.has_best |= best is not None
        self._best[number] = -np.inf if best is None else best
        slot = self._first.setdefault(shingles.key + shingles.context_key, len(self._members))
        if slot < len(self._members):
            self._members[slot].append(number)
            return
        self._members.append([number])
        minhash = self._empty.copy()
        minhash.update_batch((shingles.body & np.uint64(0xFFFFFFFF)).tolist())
        self._signatures += minhash.hashvalues.astype(np.uint32).tobytes()
        middle = self._written + len(shingles.body)
        self._written = middle + len(shingles.context)
        self._file.write(shingles.body.tobytes() + shingles.context.tobytes())
        self._ends.append((middle, self._written))
        self._negations.append(shingles.negations)

    def clusters(self) -> Iterator[tuple[list[int], dict[int, tuple[str, int, float]]]]:
        """Of each cluster of two or more rows their numbers, and for those dropped (reason, row kept, similarity)."""
        self._file.flush()
        if self._written:
            self._hashes: Hashes = np.memmap(self._file, np.uint64, "r")
        else:
            self._hashes = NOTHING
        signatures_NP = np.frombuffer(self._signatures, np.uint32).reshape(-1, self.config.permutations)
        slots: dict[int, list[int]] = {}
        for slot, label in enumerate(self._labels(signatures_NP).tolist()):
            slots.setdefault(label, []).append(slot)
        for cluster in slots.values():
            if len(cluster) > 1 or len(self._members[cluster[0]]) > 1:
                yield self._choose(cluster, signatures_NP)
        self._file.close()

    def _labels(self, signatures_NP: npt.NDArray[np.uint32]) -> Pairs:
        """Of each slot the smallest slot of its connected component: union-find over the verified pairs."""
        bands = bands_for(self.config.threshold, self.config.recall, self.config.permutations)
        parent = np.arange(len(signatures_NP))
        for pairs in candidate_pairs(signatures_NP, *bands):
            while not np.array_equal(parent, parent[parent]):
                parent = parent[parent]
            pairs = pairs[parent[pairs[:, 0]] != parent[pairs[:, 1]]]
            likely = _estimates(signatures_NP[pairs[:, 0]], signatures_NP[pairs[:, 1]]) >= self._least_estimate()
            for i, j in pairs[likely].tolist():
                root_i, root_j = _root(parent, i), _root(parent, j)
                if root_i != root_j and self._similarity(i, j) >= self.config.threshold:
                    parent[max(root_i, root_j)] = min(root_i, root_j)
        while not np.array_equal(parent, parent[parent]):
            parent = parent[parent]
        return parent

    def _choose(
        self, cluster: list[int], signatures_NP: npt.NDArray[np.uint32]
    ) -> tuple[list[int], dict[int, tuple[str, int, float]]]:
        """Keep rows from the best down; drop each that has a near-duplicate among those kept."""
        dropped: dict[int, tuple[str, int, float]] = {}
        chosen: dict[int, int] = {}  # slot: the best row with its text
        for slot in cluster:
            best = min(self._members[slot], key=self._preference)
            chosen[slot] = best
            dropped |= {number: ("exact_duplicate", best, 1.0) for number in self._members[slot] if number != best}
        kept: list[int] = []
        for slot in sorted(cluster, key=lambda slot: self._preference(chosen[slot])):
            likely = _estimates(signatures_NP[kept], signatures_NP[slot]) >= self._least_estimate()
            likely &= np.array([self._negations[other] == self._negations[slot] for other in kept], bool)
            nearest = max(((self._similarity(slot, kept[at]), -at) for at in np.flatnonzero(likely)), default=(0.0, 0))
            if nearest[0] >= self.config.threshold:
                dropped[chosen[slot]] = ("near_duplicate", chosen[kept[-nearest[1]]], nearest[0])
            else:
                kept.append(slot)
        return [number for slot in cluster for number in self._members[slot]], dropped

    def _preference(self, number: int) -> tuple[float, int]:
        return (-self._best[number], number)

    def _least_estimate(self) -> float:
        t = self.config.threshold
        return t - ESTIMATE_SIGMAS * float(np.sqrt(t * (1 - t) / self.config.permutations))

    def _similarity(self, i: int, j: int) -> float:
        return similarity(self._shingles(i), self._shingles(j))

    def _shingles(self, slot: int) -> tuple[Hashes, Hashes]:
        start = self._ends[slot - 1][1] if slot else 0
        middle, end = self._ends[slot]
        return self._hashes[start:middle], self._hashes[middle:end]


def _estimates(a_MP: npt.NDArray[np.uint32], b_MP: npt.NDArray[np.uint32]) -> npt.NDArray[np.float64]:
    return (a_MP == b_MP).mean(axis=1) if len(a_MP) else np.empty(0)


def _root(parent: Pairs, slot: int) -> int:
    while parent[slot] != slot:
        slot = int(parent[slot])
    return slot


def _best_value(row: dict[str, Any], key: str) -> float | None:
    value: Any = row
    for part in key.split(".") if key else []:
        value = value.get(part) if isinstance(value, dict) else None
    return float(value) if isinstance(value, (int, float)) else None


def _checked_rows(source: Path, progress: Callable[[int], None]) -> Iterator[dict[str, Any]]:
    seen: dict[str, int] = {}
    for line, row in read_jsonl(source):
        if not isinstance(row.get("id"), str) or not row["id"]:
            raise ValueError(f"{source} line {line}: id is {row.get('id')!r}, but must be a non-empty str")
        if row["id"] in seen:
            raise ValueError(f"{source} line {line}: id {row['id']!r} already stands on line {seen[row['id']]}")
        seen[row["id"]] = line
        try:
            row_parts(row)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{source} line {line}: {error}") from None
        yield row
        progress(len(seen))


def _lines(source: Path, verdicts: Sequence[Verdict], kept: bool) -> Iterator[str]:
    for (_, row), verdict in zip(read_jsonl(source), verdicts, strict=True):
        if kept == (not verdict.reason):
            extra = {"cluster": verdict.cluster}
            if not kept:
                extra |= {"reason": verdict.reason, "detail": verdict.detail}
            yield json.dumps(row | extra, ensure_ascii=False) + "\n"
