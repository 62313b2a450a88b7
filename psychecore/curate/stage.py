"""What a stage is, and how one runs over a file: row by row, in bounded memory, going on where it was killed.

A stage writes three files: NAME.jsonl, what it kept; NAME.rejects.jsonl, what it turned away, each row with "reason"
and "detail"; NAME.done.json, last, with the counts and the SHA-256 of what went in and out. While it runs, both row
files are partial ones with a dot before their name, and .NAME.journal says how far they hold: after every batch they
are flushed to disk first and the journal second, so whatever a killed run left beyond the journal is cut off and done
again. The same input and settings therefore give the same bytes, however often the run was killed.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from psychecore.curate.progress import Progress
from psychecore.durable import digest, replace_file, sync_folder
from psychecore.untrusted import parse_json


@dataclass(frozen=True)
class Rejection:
    """A row, or raw text under "raw", that a stage turned away.

    `reason` is a short stable code ("duplicate_options"), `detail` names the value for a person.
    """

    row: dict[str, Any]
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Outcome:
    """What one input row became: it may give several rows, and several rejections."""

    kept: list[dict[str, Any]]
    rejected: list[Rejection]


class Stage(Protocol):
    """A step of the pipeline over rows."""

    name: str

    def batch(self, rows: Sequence[dict[str, Any]]) -> list[Outcome]:
        """One Outcome a row, in order, and the same for the same rows."""
        ...


@dataclass
class StageCounts:
    """Rows read and kept, those rejected by reason, and requests that servers had no room for."""

    read: int = 0
    kept: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    refused: int = 0

    def to_row(self) -> dict[str, Any]:
        """As JSON has it; without `refused` where none was."""
        return {name: value for name, value in asdict(self).items() if value or name != "refused"}


def run_stage(
    stage: Stage,
    source: Path,
    folder: Path,
    batch_size: int = 32,
    settings: Any = None,
    check: Callable[[dict[str, Any]], object] | None = None,
    refused: Callable[[], int] = lambda: 0,
) -> StageCounts:
    """Run `stage` over the JSONL file `source` and write its files into `folder`; a finished one is not run again.

    `settings` (JSON) is all that the result depends on besides the rows: where it or the source has changed, the stage
    starts anew. `check` raises ValueError for a wrong row; all rows are checked before the first is worked on.
    `refused` counts the requests that servers had no room for: a stage with such runs again, since they may have more.
    Raises ValueError with file and line for a row that is no object, has no id or one seen before, or fails the check;
    and where a finished file was changed by hand.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but must be at least 1")
    rows = _check_source(source, check)
    done = Done(folder, stage.name, [source], settings, [f"{stage.name}.jsonl", f"{stage.name}.rejects.jsonl"])
    if (counts := done.counts()) is not None:
        (folder / f".{stage.name}.journal").unlink(missing_ok=True)  # killed right after it was done
        return counts
    work = _Work(folder, stage.name, done.key)
    with Progress(stage.name, rows, work.counts.read) as bar, work.open(), open(source, "rb") as file:
        file.seek(work.position)
        for numbers, batch in _batches(file, work.counts.read, batch_size):
            before = refused()
            try:
                outcomes = stage.batch(batch)
            except ValueError as error:
                raise ValueError(f"{source} rows {numbers[0]} to {numbers[-1]}: {error}") from error
            if len(outcomes) != len(batch):
                raise RuntimeError(f"stage {stage.name!r} gave {len(outcomes)} outcomes for {len(batch)} rows")
            work.add(outcomes, file.tell(), refused() - before)
            bar.update(len(batch))
    work.finish()
    done.write(work.counts)
    work.journal.unlink()
    return work.counts


def run_whole(
    name: str,
    sources: Sequence[Path],
    folder: Path,
    outputs: Sequence[str],
    settings: Any,
    work: Callable[[], StageCounts],
) -> StageCounts:
    """Run a stage that needs its whole input at once: `work` writes `outputs` into `folder`, each by replace_file.

    It is not run again while sources, settings and outputs are as they were; killed, it starts from the beginning.
    """
    done = Done(folder, name, sources, settings, outputs)
    if (counts := done.counts()) is not None:
        return counts
    counts = work()
    done.write(counts)
    return counts


class Done:
    """NAME.done.json: that a stage is finished, out of what, with what."""

    def __init__(self, folder: Path, name: str, sources: Sequence[Path], settings: Any, outputs: Sequence[str]):
        self.folder, self.name, self.outputs = folder, name, outputs
        self.path = folder / f"{name}.done.json"
        inputs = [{"file": source.name, "sha256": digest(source)} for source in sources]
        self.key = json.loads(json.dumps({"stage": name, "inputs": inputs, "settings": settings}, default=str))
        folder.mkdir(parents=True, exist_ok=True)

    def counts(self) -> StageCounts | None:
        """The counts of the finished stage; None where it must run, warned of where it had: its record is then gone.

        Raises ValueError where an output is not what the stage wrote, since running it again would lose the changes.
        """
        if not self.path.exists():
            return None
        record = json.loads(self.path.read_text(encoding="utf-8"))
        written = record.pop("outputs")
        present = [name for name in written if (self.folder / name).exists()]
        for name in present:
            if digest(self.folder / name) != written[name]:
                raise ValueError(
                    f"{self.folder / name} was changed after stage {self.name!r} wrote it: move it away, and the "
                    f"stage runs again; or give your file as an input to a run of the later stages"
                )
        counts = StageCounts(**record.pop("counts"))
        if record == self.key and len(present) == len(written) and not counts.refused:
            return counts
        other = f"a server had no room for {counts.refused} requests" if counts.refused else ""
        reason = next(_differences(record, self.key), other or f"not all of its files are in {self.folder}")
        logging.getLogger(__name__).warning("stage %s runs again: %s", self.name, reason)
        self.path.unlink()
        return None

    def check(self) -> None:
        """Raise ValueError where the stage is not finished, or was finished with other inputs or settings."""
        if not self.path.exists():
            raise ValueError(f"{self.path} is missing, so stage {self.name!r} is not finished: run it, or all stages")
        record = json.loads(self.path.read_text(encoding="utf-8"))
        if changed := next(_differences({key: record[key] for key in self.key}, self.key), ""):
            raise ValueError(
                f"{self.path}: stage {self.name!r} ran with {changed}: run it again with the stages after it "
                "(--run.stage all passes over those that are unchanged), or take the change back"
            )

    def write(self, counts: StageCounts) -> None:
        """Say that the stage is finished."""
        outputs = {name: digest(self.folder / name) for name in self.outputs}
        record = {**self.key, "counts": counts.to_row(), "outputs": outputs}
        replace_file(self.path, [json.dumps(record, ensure_ascii=False, indent=2) + "\n"])


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """What two JSON values differ in, each as "NAME OLD, and now it is NEW"."""
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        for key in old:
            yield from _differences(old[key], new[key], f"{name}.{key}".strip("."))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _differences(one, other, f"{name}[{number}]")
    elif old != new:
        yield f"{name} {old!r:.80}, and now it is {new!r:.80}"


class _Work:
    """The partial files of a stage that runs, and the journal of how far they hold."""

    def __init__(self, folder: Path, name: str, key: Mapping[str, Any]):
        self.folder, self.key = folder, key
        self.journal = folder / f".{name}.journal"
        self.targets = [folder / f"{name}.jsonl", folder / f"{name}.rejects.jsonl"]
        self.partials = [path.with_name(f".{path.name}.partial") for path in self.targets]
        self.position, self.sizes, self.counts = 0, [0, 0], StageCounts()
        self.files: list[BinaryIO] = []
        state = json.loads(self.journal.read_text(encoding="utf-8")) if self.journal.exists() else {}
        if state.get("key") == key and self._hold(state["sizes"]):
            self.position, self.sizes, self.counts = state["position"], state["sizes"], StageCounts(**state["counts"])
        else:
            for path in (self.journal, *self.targets, *self.partials):  # of another source, or other settings
                path.unlink(missing_ok=True)

    def _hold(self, sizes: list[int]) -> bool:
        """Whether the rows that the journal speaks of are there; a finished file may bear its name already."""
        return all(
            (partial if partial.exists() else target).exists()
            and (partial if partial.exists() else target).stat().st_size >= size
            for partial, target, size in zip(self.partials, self.targets, sizes, strict=True)
        )

    def open(self) -> _Work:
        for partial, target, size in zip(self.partials, self.targets, self.sizes, strict=True):
            if target.exists() and not partial.exists():
                target.rename(partial)  # killed while giving the files their names
            file = open(partial, "ab")  # noqa: SIM115 - closed by __exit__
            file.truncate(size)
            self.files.append(file)
        return self

    def __enter__(self) -> _Work:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self.files:
            file.close()

    def add(self, outcomes: Sequence[Outcome], position: int, refused: int) -> None:
        """Write a batch's rows, then that they hold; `position` is where the source goes on."""
        reasons = Counter(self.counts.rejected)
        kept = [row for outcome in outcomes for row in outcome.kept]
        rejected = [rejection for outcome in outcomes for rejection in outcome.rejected]
        reasons.update(rejection.reason for rejection in rejected)
        dropped = [{**one.row, "reason": one.reason, "detail": one.detail} for one in rejected]
        for file, rows in zip(self.files, (kept, dropped), strict=True):
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
            file.flush()
            os.fsync(file.fileno())
        self.sizes, self.position = [file.tell() for file in self.files], position
        self.counts = StageCounts(
            self.counts.read + len(outcomes),
            self.counts.kept + len(kept),
            dict(sorted(reasons.items())),
            self.counts.refused + refused,
        )
        self._note()

    def finish(self) -> None:
        """Give the files their names."""
        self._note()  # also where the source was empty: from here on the journal stands for whole files
        for partial, target in zip(self.partials, self.targets, strict=True):
            os.replace(partial, target)
        sync_folder(self.folder)

    def _note(self) -> None:
        state = {"key": self.key, "position": self.position, "sizes": self.sizes, "counts": asdict(self.counts)}
        replace_file(self.journal, [json.dumps(state, ensure_ascii=False)])


def _check_source(source: Path, check: Callable[[dict[str, Any]], object] | None) -> int:
    """The number of rows, all of which hold; memory is the ids."""
    seen: dict[str, int] = {}
    with open(source, "rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            try:
                row = _parse(raw, number)
                if not isinstance(row.get("id"), str) or not row["id"]:
                    raise ValueError(f"id is {row.get('id')!r:.80}, but must be a non-empty text")
                if row["id"] in seen:
                    raise ValueError(f"id {row['id']!r} already stands on line {seen[row['id']]}")
                if check is not None:
                    check(row)
            except ValueError as error:
                raise ValueError(f"{source} line {number}: {error}") from None
            seen[row["id"]] = number
    return len(seen)


def _parse(raw: bytes, number: int) -> dict[str, Any]:
    try:
        row = parse_json(raw.decode("utf-8-sig" if number == 1 else "utf-8"), unique_keys=True)
    except ValueError as error:
        raise ValueError(f"not a JSON object in UTF-8 ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"a {type(row).__name__}, but each line must be a JSON object")
    return row


def _batches(file: BinaryIO, done: int, size: int) -> Iterator[tuple[range, list[dict[str, Any]]]]:
    """(row numbers, rows) from the file's position on; `file.tell()` is then where the next batch starts."""
    batch: list[dict[str, Any]] = []
    while raw := file.readline():
        if raw.strip():
            batch.append(_parse(raw, done + len(batch) + 1))
        if len(batch) == size:
            yield range(done + 1, done + size + 1), batch
            done, batch = done + size, []
    if batch:
        yield range(done + 1, done + len(batch) + 1), batch
