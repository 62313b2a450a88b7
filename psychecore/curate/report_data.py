"""What the report tells, read from a curation folder in one pass over each file.

Memory is bounded by reasons, areas and selectors, not by rows: counts, lengths as counters, and a few examples for each
reason, those whose ids hash lowest, so that the same folder gives the same report.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from psychecore.data.records import read_jsonl

# Stages in the order of the pipeline; a manifest that lists them in its own order goes before.
ORDER = (
    *(
        "clean",
        "dedupe_texts",
        "dedupe_posts",
        "questions",
        "pool",
        "dedupe",
        "quality",
        "review",
        "hold_out",
        "rationale",
        "dialogue",
    ),
    *("select_", "select", "divide", "assemble"),  # select_1, select_2, ..., and select for the last selector
)
# Stages whose kept rows stand in other files than NAME.jsonl.
KEPT_FILES = {
    "hold_out": ("rest.jsonl", "held_out.jsonl"),
    "divide": ("questions_sft.jsonl", "questions_grpo.jsonl"),
    "assemble": ("sft.jsonl", "grpo.jsonl", "heldout.jsonl"),
}
EXAMPLES = 3
CJK = re.compile("[\u3400-\u9fff]")
BENCHMARK_FILE = re.compile(r"[^\s/\\]+\.jsonl?\b")


class Examples:
    """A few rows of many: those whose ids hash lowest, the first of those without an id."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, dict[str, Any]]] = []

    def add(self, row: dict[str, Any]) -> None:
        lot = -int.from_bytes(hashlib.sha256(str(row.get("id")).encode("utf-8", "replace")).digest()[:8])
        if len(self._heap) < EXAMPLES:
            heapq.heappush(self._heap, (lot, len(self._heap), row))
        elif lot > self._heap[0][0]:
            heapq.heapreplace(self._heap, (lot, self._heap[0][1], row))

    def rows(self) -> list[dict[str, Any]]:
        return [row for _, _, row in sorted(self._heap, key=lambda entry: -entry[0])]


@dataclass
class StageData:
    """One stage: rows read (None where unknown), kept rows by file, rejections by reason, and examples."""

    name: str
    read: int | None = None
    kept: dict[str, int] = field(default_factory=dict)
    rejected: Counter[str] = field(default_factory=Counter)
    kept_examples: Examples = field(default_factory=Examples)
    examples: dict[str, Examples] = field(default_factory=lambda: defaultdict(Examples))
    lengths: dict[tuple[str, str], Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    areas: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))  # by file
    kinds: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))  # by file

    @property
    def kept_count(self) -> int:
        return sum(self.kept.values())

    @property
    def is_dialogue(self) -> bool:
        return any(word in self.name for word in ("dialog", "post", "risk"))


@dataclass
class SelectorData:
    """Who got what. A selector got a question when one of its answers at least is right."""

    names: list[str] = field(default_factory=list)
    questions: Counter[str] = field(default_factory=Counter)  # by area
    answers: Counter[str] = field(default_factory=Counter)  # by selector
    right: Counter[str] = field(default_factory=Counter)
    got_by_area: Counter[tuple[str, str]] = field(default_factory=Counter)  # (area, selector)
    patterns: Counter[tuple[bool, ...]] = field(default_factory=Counter)
    sets: dict[tuple[bool, ...], Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    same: Counter[tuple[str, str]] = field(default_factory=Counter)  # both got it, or neither
    kappa: dict[tuple[str, str], float | None] = field(default_factory=dict)  # on letters, where select gave it

    def add(self, area: str, right: dict[str, int], samples: dict[str, int], went: str) -> None:
        """One question: right answers and all answers by selector, and the set it went to ("" where unknown)."""
        if not self.names:
            self.names = sorted(right)
        pattern = tuple(right.get(name, 0) > 0 for name in self.names)
        self.questions[area] += 1
        self.patterns[pattern] += 1
        self.sets[pattern][went] += 1
        for name, got in zip(self.names, pattern, strict=True):
            self.answers[name] += samples.get(name, 0)
            self.right[name] += right.get(name, 0)
            self.got_by_area[area, name] += got
        for (one, got), (other, also) in combinations(zip(self.names, pattern, strict=True), 2):
            self.same[one, other] += got == also


@dataclass
class ReportData:
    """Everything in the folder that the report shows."""

    title: str
    stages: list[StageData]
    selectors: SelectorData
    contaminated: dict[str, Counter[str]]  # benchmark file: reason: rows
    contaminated_examples: dict[str, Examples]
    manifest: dict[str, Any]

    def stage(self, name: str) -> StageData | None:
        return next((stage for stage in self.stages if stage.name == name), None)


def read_folder(folder: Path) -> ReportData:
    """Read a curation folder; what is absent is left out. Raises ValueError where it holds no stage at all."""
    manifest = _read_json(folder / "manifest.json")
    counted = dict(_counted(manifest))
    rejects = {path.name.removesuffix(".rejects.jsonl") for path in folder.glob("*.rejects.jsonl")}
    files = {path.name for path in folder.glob("*.jsonl")}
    known = {name for name, kept in KEPT_FILES.items() if files & set(kept)}
    others = files - {file for kept in KEPT_FILES.values() for file in kept}
    known |= {file.removesuffix(".jsonl") for file in others if _place(file) < len(ORDER) and ".rejects." not in file}
    if not (names := rejects | known | set(counted)):
        raise ValueError(f"{folder}: no stage's files (NAME.jsonl, NAME.rejects.jsonl) and no manifest.json are in it")
    listed = list(counted)
    ordered = sorted(
        names, key=lambda name: (_place(name), listed.index(name) if name in counted else len(listed), name)
    )
    if set(names) <= set(counted):
        ordered = listed
    data = ReportData(folder.name, [], SelectorData(), defaultdict(Counter), defaultdict(Examples), manifest)
    for name in ordered:
        data.stages.append(_read_stage(folder, name, counted.get(name, {}), data))
    for file in _benchmarks(manifest):
        data.contaminated[file] += Counter()
    _read_selectors(folder, data)
    return data


def _read_stage(folder: Path, name: str, counted: dict[str, Any], data: ReportData) -> StageData:
    read = next((counted[key] for key in ("rows", "read", "in") if isinstance(counted.get(key), int)), None)
    stage = StageData(name, read)
    for file in _kept_files(name):
        for row in _rows(folder / file):
            stage.kept[file] = stage.kept.get(file, 0) + 1
            stage.kept_examples.add(row)
            kind = "dialogues" if _is_dialogue(row) else "questions"
            stage.kinds[file][kind] += 1
            if kind == "questions" and ("question" in row or name == "assemble"):
                stage.areas[file][str(row.get("area") or "no area")] += 1
            if name == "assemble" and "question" in row:
                continue  # GRPO's rows; SFT's questions are conversations by now, so lengths would tell of half of them
            for measure, text in _texts(row):
                stage.lengths[measure, _language(row, text)][len(text)] += 1
    for row in _rows(folder / f"{name}.rejects.jsonl"):
        reason = str(row.get("reason") or "no reason given")
        stage.rejected[reason] += 1
        stage.examples[reason].add(row)
        if "benchmark" in reason or "contamina" in reason:
            named = BENCHMARK_FILE.search(str(row.get("detail") or ""))
            benchmark = str(
                row.get("benchmark") or (named[0] if named else "a benchmark that the detail does not name")
            )
            data.contaminated[benchmark][reason] += 1
            data.contaminated_examples[benchmark].add(row)
    if not stage.kept and not stage.rejected:  # files that are gone: the manifest still has the counts
        if isinstance(counted.get("kept"), int):
            stage.kept[f"{name}.jsonl"] = counted["kept"]
        if isinstance(counted.get("rejected"), dict):
            stage.rejected.update({str(key): int(value) for key, value in counted["rejected"].items()})
    return stage


def _read_selectors(folder: Path, data: ReportData) -> None:
    """From matrix.jsonl, else from the "answers" of the last stage that has them."""
    selectors = data.selectors
    for row in _rows(folder / "matrix.jsonl"):
        samples = {name: len(letters) for name, letters in row["letters"].items()}
        selectors.add(str(row.get("area") or "no area"), row["right"], samples, row.get("set") or "dropped")
    for stage in reversed(data.stages):
        if selectors.names:
            break
        for row in _rows(folder / f"{stage.name}.jsonl"):
            if not isinstance(row.get("answers"), dict) or not row["answers"]:
                break
            right = {name: sum(bool(one.get("right")) for one in given) for name, given in row["answers"].items()}
            samples = {name: len(given) for name, given in row["answers"].items()}
            selectors.add(str(row.get("area") or "no area"), right, samples, "")
    for pair in _read_json(folder / "selection.json").get("agreement", []):
        selectors.kappa[pair["selectors"][0], pair["selectors"][1]] = pair["letters"]["kappa"]


def _kept_files(name: str) -> tuple[str, ...]:
    return KEPT_FILES.get(name, (f"{name}.jsonl",))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        yield from (row for _, row in read_jsonl(path))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path}: not JSON in UTF-8 ({error})") from None
    return found if isinstance(found, dict) else {}


def _counted(manifest: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(stage, counts) of the manifest's "stages": a list of objects with a name, or an object by name."""
    stages = manifest.get("stages") or []
    entries = stages.items() if isinstance(stages, dict) else [(None, entry) for entry in stages]
    for name, entry in entries:
        if isinstance(entry, dict) and (name := name or entry.get("name") or entry.get("stage")):
            yield str(name), {**entry, **(entry["counts"] if isinstance(entry.get("counts"), dict) else {})}


def _benchmarks(manifest: dict[str, Any]) -> Iterator[str]:
    """Files that were kept clean, named among the manifest's inputs, found in the rows or not."""
    inputs = manifest.get("inputs")
    for role, entry in inputs.items() if isinstance(inputs, dict) else ():
        if "benchmark" in role:
            yield str(entry.get("file", role) if isinstance(entry, dict) else role)


def _place(name: str) -> int:
    return next((place for place, known in enumerate(ORDER) if name.startswith(known)), len(ORDER))


def _is_dialogue(row: dict[str, Any]) -> bool:
    return row.get("kind") == "dialogue" or ("messages" in row and row.get("kind") != "question") or "post" in row


def _texts(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(what, text) of what has a length worth showing."""
    if "question" in row:
        yield "question", str(row["question"])
        if row.get("rationale"):
            yield "rationale", str(row["rationale"])
    elif "messages" in row:
        name = "reply of a dialogue" if _is_dialogue(row) else "worked answer"
        yield name, "".join(m["content"] for m in row["messages"] if m.get("role") == "assistant")
    elif "post" in row:
        yield "post", str(row["post"])
    elif "text" in row:
        yield "passage", str(row["text"])


def _language(row: dict[str, Any], text: str) -> str:
    return str(row.get("language") or ("zh" if CJK.search(text) else "en"))
