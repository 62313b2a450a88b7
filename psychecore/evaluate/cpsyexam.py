"""CPsyExam (arXiv 2405.10212): examination questions of 39 psychology subjects, from its zip file or its folder.

`{train,dev,test}/TASK.json`, TASK being SUBJECT-单项选择题 or SUBJECT-多项选择题. MCQA is the mean over the
single-choice tasks of their accuracies, MRQA over the multiple-choice ones, Avg half their sum; an answer is right
where its letters are exactly the key's. Five worked examples come from the training questions of the same task, and
where that has fewer, from those of the same type; each question draws its own, by seed, never itself (220 dev questions
stand in train).

The test split has no answers. What its site takes is {"zero_shot": {TASK: [{"question_id", "prediction"}]},
"five_shot": {..}} (evaluations/evaluate_submission.py of the benchmark's repository).
"""

from __future__ import annotations

import lzma
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from psychecore.data.records import Question
from psychecore.evaluate.item import Item, Problem, clean_letters, clean_options, clean_text, parse_rows
from psychecore.untrusted import MAX_JSON, within

SPLITS = ("train", "dev", "test")
KINDS: dict[str, Literal["single", "multiple"]] = {"单项": "single", "多项": "multiple"}
TYPES: dict[str, Literal["single", "multiple"]] = {"single": "single", "multi": "multiple"}
SHOT_KEYS = {0: "zero_shot", 5: "five_shot"}
DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, RuntimeError)
CHUNK = 1 << 20  # bytes unpacked at a time
MAX_FILES, MAX_ARCHIVE = 10_000, 1_000_000_000  # members, and unpacked bytes of all of them


@dataclass(frozen=True)
class CPsyExam:
    """Items by split, each grouped by task, subject and kind; what was wrong with the files."""

    splits: dict[str, list[Item]]
    problems: list[Problem]

    def with_shots(self, split: str, shots: int, seed: int = 0) -> list[Item]:
        """The items of a split with so many worked examples each. Raises ValueError where train has too few.

        A single-choice question whose key names several letters is asked, as published, but is no example.
        """
        if not self.splits.get(split):
            raise ValueError(f"the split {split!r} holds no question; there are {', '.join(self.splits) or 'none'}")
        by_task: dict[str, list[Item]] = {}
        by_kind: dict[str, list[Item]] = {}
        for item in self.splits.get("train", []):
            if item.question.kind == "single" and len(item.question.answer) > 1:  # no example of how to answer
                continue
            by_task.setdefault(item.groups["task"], []).append(item)
            by_kind.setdefault(item.groups["kind"], []).append(item)
        drawn = []
        for item in self.splits[split]:
            own, alike = by_task.get(item.groups["task"], []), by_kind.get(item.groups["kind"], [])
            found = _draw([own, alike], item.question, shots, seed)
            if len(found) < shots:
                raise ValueError(
                    f"{shots} worked examples are asked for, but train has {len(found)} {item.groups['kind']}"
                )
            drawn.append(Item(item.question, item.groups, tuple(found)))
        return drawn


def read_cpsyexam(path: Path) -> CPsyExam:
    """Read the zip or the folder.

    Raises ValueError for one that is damaged, too large, not of this form, or holds a task of a split twice.
    """
    splits: dict[str, list[Item]] = {}
    problems: list[Problem] = []
    seen: dict[tuple[str, str], PurePosixPath] = {}
    for name, raw in _zipped(path) if path.is_file() else _in_folder(path):
        split, task = name.parent.name, name.stem
        if (split, task) in seen:
            raise ValueError(
                f"{path}: {seen[split, task]} and {name} both hold {split}'s {task}: leave one of them out"
            )
        seen[split, task] = name
        for number, row in enumerate(parse_rows(raw, f"{path}: {name}"), start=1):
            place = f"{split}/{name.name}"
            try:
                item = _item(row, split, task, number)
            except ValueError as error:
                problems.append(Problem(place, f"row {number}", str(error), dropped=True))
                continue
            if item.question.answer and (item.question.kind == "single") != (len(item.question.answer) == 1):
                reason = f"a {item.question.kind}-choice question with the answer {item.question.answer}"
                problems.append(Problem(place, f"row {number}", reason, dropped=False))
            splits.setdefault(split, []).append(item)
    if not splits:
        raise ValueError(
            f"{path} is no CPsyExam: it holds no {{train,dev,test}}/SUBJECT-单项选择题.json with questions"
        )
    return CPsyExam({split: splits[split] for split in SPLITS if split in splits}, problems)


def task_weights(items: Sequence[Item]) -> dict[str, dict[str, float]]:
    """The weight of each task in MCQA, MRQA and Avg, by figure; one of a kind that is absent is left out."""
    tasks: dict[str, dict[str, None]] = {}
    for item in items:
        tasks.setdefault(item.groups["kind"], {})[item.groups["task"]] = None
    figures = {name: kind for name, kind in (("MCQA", "single"), ("MRQA", "multiple")) if kind in tasks}
    weights = {name: dict.fromkeys(tasks[kind], 1 / len(tasks[kind])) for name, kind in figures.items()}
    if len(weights) == 2:
        weights["Avg"] = {task: weight / 2 for name in figures for task, weight in weights[name].items()}
    return weights


def submission(items: Sequence[Item], letters: Mapping[str, str | None], shots: int) -> dict[str, Any]:
    """What the site takes for one setting, from the letters by item id; an unreadable answer is the empty text."""
    tasks: dict[str, list[dict[str, Any]]] = {}
    for item in items:
        row = {"question_id": item.groups["question_id"], "prediction": letters.get(item.question.id) or ""}
        tasks.setdefault(item.groups["task"], []).append(row)
    return {SHOT_KEYS.get(shots, f"{shots}_shot"): tasks}


def _item(row: Any, split: str, task: str, number: int) -> Item:
    if not isinstance(row, dict):
        raise ValueError(f"a {type(row).__name__}, but each row must be an object")
    stem = clean_text(row.get("question"))
    if not stem:
        raise ValueError("the question is empty")
    subject, _, form = task.rpartition("-")
    kind = KINDS.get(form[:2]) or TYPES.get(str(row.get("question_type")))
    if kind is None:
        raise ValueError("neither its file's name (SUBJECT-单项选择题) nor its question_type tells its type")
    options, gold = clean_options(row.get("options")), clean_letters(row.get("answer"))
    if not gold and split != "test":
        raise ValueError("the answer is empty, so nothing can be scored")
    if strange := sorted(set(gold) - set(options)):
        raise ValueError(f"the answer {gold} names {''.join(strange)}, but the options are {''.join(options)}")
    question = Question(
        id=f"{split}/{task} row {number}",
        question=stem,
        options=options,
        answer=gold,
        kind=kind,
        rationale=clean_text(row.get("explanation")) or None,
        area=subject,
        language="zh",
        source="cpsyexam",
    )
    identity = row.get("id", number)
    groups = {"task": task, "kind": kind, "subject": subject, "question_id": str(identity)}
    return Item(question, groups)


def _draw(pools: list[list[Item]], question: Question, shots: int, seed: int) -> list[Question]:
    """So many of the pools, the first as far as it goes, in an order of this question's own, without itself."""
    found: dict[str, Question] = {}
    for number, pool in enumerate(pools):
        order = random.Random(f"{seed}/{number}/{question.id}")
        for item in order.sample(pool, len(pool)) if len(found) < shots else []:
            if len(found) < shots and item.question.question != question.question:
                found.setdefault(item.question.id, item.question)
    return list(found.values())


def _in_folder(folder: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    for path in sorted(folder.rglob("*.json")):
        name = path.relative_to(folder).as_posix()
        if path.parent.name not in SPLITS:
            continue
        if (size := within(folder, name).stat().st_size) > MAX_JSON:
            raise ValueError(f"{path} has {size:,} bytes, but at most {MAX_JSON:,} are read")
        yield PurePosixPath(name), path.read_bytes()


def _zipped(path: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """The JSON files of a zip, read in memory: nothing is unpacked to the disk."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            sizes = [member.file_size for member in members]
            if len(members) > MAX_FILES or sum(sizes) > MAX_ARCHIVE or max(sizes, default=0) > MAX_JSON:
                raise ValueError(
                    f"{path}: {len(members):,} files of {sum(sizes):,} bytes, the largest of {max(sizes):,}; at most "
                    f"{MAX_FILES:,}, {MAX_ARCHIVE:,} and {MAX_JSON:,} are read"
                )
            for member in sorted(members, key=_member_name):
                name = PurePosixPath(_member_name(member).replace("\\", "/"))
                if name.is_absolute() or ".." in name.parts or str(name)[1:2] == ":":
                    raise ValueError(f"{path}: member {str(name)!r:.80} leads out of the folder, so nothing is read")
                if name.suffix == ".json" and name.parent.name in SPLITS and "__MACOSX" not in name.parts:
                    yield name, _unpacked(archive, member, f"{path}: {name}")
    except (*DAMAGE, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no zip file that can be read: {error!s:.200}") from None


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo, place: str) -> bytes:
    """A member's bytes, counted as they come, since its header may lie about their number."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # bz2 and lzma unpack without a bound
        raise ValueError(f"{place}: packed by method {member.compress_type}, but only stored and deflated are read")
    found = bytearray()
    try:
        with archive.open(member) as file:
            while part := file.read(CHUNK):
                found += part
                if len(found) > MAX_JSON:
                    raise ValueError(f"{place}: it unpacks to more than {MAX_JSON:,} bytes, the most that are read")
    except DAMAGE as error:
        raise ValueError(f"{place}: damaged, or not readable: {error!s:.200}") from None
    return bytes(found)


def _member_name(member: zipfile.ZipInfo) -> str:
    """The name as it was meant: without the UTF-8 flag it is UTF-8 or GBK, which zipfile has read as cp437."""
    if member.flag_bits & 0x800:
        return member.filename
    try:
        raw = member.filename.encode("cp437")
    except UnicodeEncodeError:
        return member.filename
    for encoding in ("utf-8", "gbk"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    return member.filename
