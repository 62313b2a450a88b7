"""Checkpoints of a run: all that is needed to continue it exactly, in folders that are whole or are not taken.

    checkpoints/step_000040/  shard_00000.safetensors ...  state.json  config.toml  manifest.json  (keep)

Every rank writes the rows of masters and moments that lie on it, and on loading reads those that it needs, so a run
may continue on another number of ranks. The manifest, sizes and SHA-256 of all files, is written last, then the folder
is renamed; only a folder whose manifest holds is taken. A file named `keep` in a folder marks it: it is never pruned.
All ranks must see the checkpoints' folder.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from psychecore.durable import (
    damage,
    digest,
    remove_folder,
    replace_file,
    replace_folder,
    require_shared,
    require_space,
    seal,
    tidy,
)
from psychecore.model.pretrained import Place, copy_rows
from psychecore.model.shards import holds_original, local_rows
from psychecore.runtime import CPU, Runtime, gather_json
from psychecore.train.finite import NonFiniteError, count_nonfinite
from psychecore.train.optimizer import Optimizer
from psychecore.untrusted import read_json

NAME = re.compile(r"step_\d{6,}")
MARK = "keep"


class Checkpoints:
    """The checkpoints' folder of a run. Every rank must call `save`, `check` and `newest`, in the same order."""

    def __init__(self, folder: Path, runtime: Runtime, keep: int = 2, background: bool = False, config: str = ""):
        """`keep` counts the newest that stay beside the marked ones; `background` writes while training goes on.

        `config` is the run's configuration, which each checkpoint holds as config.toml.
        """
        if keep < 2:
            raise ValueError(f"keep is {keep}, but must be at least 2: the newest may turn out damaged")
        self.folder, self.runtime, self.keep, self.background = folder, runtime, keep, background
        self.config = config
        self._writer: threading.Thread | None = None
        self._failure: tuple[str, Exception] | None = None

    def save(self, step: int, optimizer: Optimizer, state: dict[str, Any], mark: bool = False) -> Path:
        """Write step_XXXXXX with `state` (JSON: counters, cursor, hashes) and prune; returns its path.

        Raises NonFiniteError for weights or moments that are not finite, OSError where the disk has too little room,
        both before anything is written. In the background, one is in flight at a time, and its failure is raised by
        the next `save` or `check`.
        """
        self.finish()
        target = self.folder / f"step_{step:06}"
        tensors, rows = self._snapshot(optimizer)
        with self.runtime.together("checking a checkpoint"):
            bad = {name: count_nonfinite(tensor) for name, tensor in tensors.items() if tensor.is_floating_point()}
            for name in (name for name, count in bad.items() if count):
                raise NonFiniteError(f"{name} has {bad[name]} values that are not finite; no checkpoint was written")
        sizes = gather_json(sum(tensor.nbytes for tensor in tensors.values()), CPU)
        with self.runtime.together("preparing a checkpoint"):
            if self.runtime.first:
                self.folder.mkdir(parents=True, exist_ok=True)
                require_space(self.folder, int(1.01 * sum(sizes)) + 2**20)
                shutil.rmtree(self._partial(target), ignore_errors=True)
                self._partial(target).mkdir()
        with self.runtime.together("finding the checkpoint's folder"):
            require_shared(self._partial(target))
        row = {**state, "step": step, "optimizer": optimizer.counters(), "world_size": self.runtime.world_size}
        arguments = (target, tensors, rows, row, mark)
        if self.background:
            self._writer = threading.Thread(target=self._write, args=arguments, name="checkpoint")
            self._writer.start()
        else:
            self._write(*arguments)
            self.check()
        return target

    def check(self) -> None:
        """Raise on every rank what a write in the background failed of on some rank (a collective)."""
        with self.runtime.together("writing a checkpoint"):
            failure, self._failure = self._failure, None
            if failure is not None:
                raise OSError(failure[0]) from failure[1]

    def finish(self) -> None:
        """Wait for a write in the background, and raise its failure (a collective)."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        self.check()

    def newest(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint whose manifest holds, and a line for each that was passed over (a collective).

        Those passed over are set aside as damaged_step_...: nothing is lost, and the run writes them anew. Raises
        ValueError where there are checkpoints but none is whole.
        """
        skipped: list[str] = []
        with self.runtime.together("tidying the checkpoints"):
            if self.runtime.first:
                tidy(self.folder, ["step_*"])
        names = gather_json([path.name for path in list_checkpoints(self.folder)], CPU)[0]
        found: Path | None = None
        for name in reversed(names):
            part = slice(self.runtime.rank, None, self.runtime.world_size)
            told = gather_json(damage(self.folder / name, part, (MARK,)) or _misplaced(self.folder / name), CPU)
            reason = next((text for text in told if text is not None), None)
            if reason is None:
                found = self.folder / name
                break
            skipped.append(f"{self.folder / name} is passed over: {reason}")
        if skipped and found is None:
            reasons = "; ".join(skipped)
            raise ValueError(f"no checkpoint is whole: {reasons}. Restore one, or remove {self.folder} to begin anew")
        with self.runtime.together("tidying the checkpoints"):
            if self.runtime.first and found is not None:
                for name in names[names.index(found.name) + 1 :]:  # the run will write these anew
                    (self.folder / name).rename(self.folder / f"damaged_{name}_{time.time_ns()}")
                self._prune()  # which a kill may have come before
        return found, skipped

    def _prune(self) -> None:
        for old in [p for p in list_checkpoints(self.folder) if not (p / MARK).exists()][: -self.keep]:
            remove_folder(old)

    def _snapshot(self, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
        """This rank's tensors on the CPU, and for each its first and last row + 1 in the whole."""
        tensors: dict[str, Tensor] = {}
        rows: dict[str, list[int]] = {}
        for name, tensor in optimizer.state_tensors().items():
            if not holds_original(tensor, self.runtime.first):
                continue
            local, first_row = local_rows(tensor)
            if local.numel():
                # a later step writes into the live tensors while the background still saves
                tensors[name] = local.to("cpu", copy=self.background).contiguous()
                rows[name] = [first_row, first_row + local.shape[0]]
        tensors["random/cpu"] = torch.get_rng_state()
        if self.runtime.device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state(self.runtime.device)
        return tensors, rows

    def _write(
        self, target: Path, tensors: dict[str, Tensor], rows: dict[str, list[int]], row: dict[str, Any], mark: bool
    ) -> None:
        """This rank's file; the first rank then waits for the others' and puts the folder in its place."""
        partial = self._partial(target)
        path = partial / f"shard_{self.runtime.rank:05}.safetensors"
        report = {"error": "it was stopped"}
        try:
            try:
                save_file(tensors, path, metadata={"rows": json.dumps(rows)})
                report = {"sha256": digest(path)}
            except Exception as error:
                path.unlink(missing_ok=True)  # makes room for the report
                report = {"error": str(error)}
                raise
            finally:
                replace_file(partial / f".{path.stem}.json", [json.dumps(report)])
            if self.runtime.first:
                self._commit(target, partial, row, mark)
        except Exception as error:
            self._failure = f"the checkpoint could not be written: {error}", error
            if self.runtime.first:
                shutil.rmtree(partial, ignore_errors=True)  # it may be what fills the disk
            return
        if self.runtime.first:
            try:
                self._prune()
            except Exception as error:
                self._failure = f"{target} is written, but an older checkpoint could not be removed: {error}", error

    def _commit(self, target: Path, partial: Path, row: dict[str, Any], mark: bool) -> None:
        digests = {}
        for rank in range(self.runtime.world_size):
            report = self._await_report(partial / f".shard_{rank:05}.json")
            if "error" in report:
                raise OSError(f"rank {rank}: {report['error']}")
            digests[f"shard_{rank:05}.safetensors"] = report["sha256"]
            (partial / f".shard_{rank:05}.json").unlink()
        (partial / "state.json").write_text(json.dumps(row, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (partial / "config.toml").write_text(self.config, encoding="utf-8")
        seal(partial, digests)
        if mark:
            (partial / MARK).touch()  # not sealed: a person may put it there, or take it away
        replace_folder(partial, target)

    def _await_report(self, path: Path) -> dict[str, str]:
        limit = time.monotonic() + (self.runtime.watch.timeout_seconds or 3600)
        while not path.exists():  # written beside and renamed, so that it is whole when it is there
            if time.monotonic() > limit:
                raise TimeoutError(f"{path} was not written in time")
            if self.runtime.watch.over.wait(0.01):
                raise RuntimeError("the run ended before every rank had written its part")
        return json.loads(path.read_text(encoding="utf-8"))

    def _partial(self, target: Path) -> Path:
        return target.with_name(f".{target.name}.partial")


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints by their names, oldest first; whether they are whole is not looked at."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if NAME.fullmatch(p.name)), key=lambda p: int(p.name[5:]))


@torch.no_grad()
def load_checkpoint(folder: Path, optimizer: Optimizer, runtime: Runtime) -> dict[str, Any]:
    """Fill masters, parameters, moments and random states from one checkpoint folder; returns its state.json.

    The folder's manifest is `Checkpoints.newest`'s business. Raises ValueError naming folder and tensor where the
    checkpoint is of another model. On another number of ranks, torch's own random states stay as they are; the library
    draws nothing from them.
    """
    try:
        state = read_json(folder / "state.json")
        expected = optimizer.allocate_state(state["optimizer"])
        filled = dict.fromkeys(expected, 0)
        for path in sorted(folder.glob("shard_*.safetensors")):
            with safe_open(path, framework="pt") as file:
                rows = json.loads(file.metadata()["rows"])
                for name, (start, stop) in rows.items():
                    if name not in expected:
                        raise ValueError(f"tensor {name!r} does not fit this model")
                    source, tensor = file.get_slice(name), expected[name]
                    if source.get_shape() != [stop - start, *tensor.shape[1:]] or stop > tensor.shape[0]:
                        raise ValueError(f"tensor {name!r} has shape {source.get_shape()}, not {list(tensor.shape)}")
                    copy_rows(tensor, Place(name, start, stop), source)
                    filled[name] += stop - start
                own = path.stem == f"shard_{runtime.rank:05}" and state["world_size"] == runtime.world_size
                if own:
                    torch.set_rng_state(file.get_tensor("random/cpu"))
                    if runtime.device.type == "cuda" and "random/cuda" in file.keys():  # noqa: SIM118 - no mapping
                        torch.cuda.set_rng_state(file.get_tensor("random/cuda"), runtime.device)
        for name, tensor in expected.items():
            if filled[name] != tensor.shape[0]:
                raise ValueError(f"tensor {name!r} has {filled[name]} rows, not {tensor.shape[0]}")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"checkpoint {folder} cannot be read: {error}") from error
    optimizer.publish()
    return state


def _misplaced(folder: Path) -> str | None:
    """A whole folder may still be another step's, moved here."""
    try:
        step = int(read_json(folder / "state.json")["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"state.json cannot be read ({error!r})"
    return None if folder.name == f"step_{step:06}" else f"it holds step {step}"
