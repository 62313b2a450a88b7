"""A run folder as a recipe holds it: created or continued, locked, checked against its inputs, saved step by step."""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from cli import read_toml
from common import RunOptions, compute_dtype, read_evaluation

from psychecore.durable import digest, replace_file, require_shared, tidy
from psychecore.model.pretrained import HUB_FILES
from psychecore.runtime import Runtime, gather_json
from psychecore.train.metrics import RunLog
from psychecore.train.optimizer import Optimizer
from psychecore.train.run_state import Checkpoints, load_checkpoint

T = TypeVar("T", bound=Any)  # a recipe's configuration
DTYPES = ("bfloat16", "float32")
LOCK = ".lock"
HUB_CACHE = re.compile(r".*/models--([^/]+?)--([^/]+)/snapshots/[^/]+/")
_LOCKS: list[Any] = []  # of the run folders that this process holds
OPERATIONAL = {
    "run": (
        "folder",  # its path: a folder may be moved
        "device",
        "checkpoint_every",
        "keep_checkpoints",
        "mark_every",
        "checkpoint_in_background",
        "timeout_minutes",
    ),
    "optimizer": ("nonfinite",),
    "sharding": ("replicas", "cpu_offload"),
    "model": ("checkpoint_activations", "compile"),
    "reference": ("device",),
    "reward": ("timeout_seconds",),
}


def settle_dtype(config: T, runtime: Runtime) -> T:
    """A recipe's configuration with a dtype in place of "auto": that of the run in its folder, or what is fast here.

    "auto" is a measurement (products.fast_dtype): another machine, or a busy one, must not change how a run computes.
    """
    model, path = config.model, config.run.folder / "config.toml"
    if model.dtype != "auto":
        return config
    recorded = None
    with runtime.together("reading the run folder's configuration"):
        if runtime.first and path.exists():
            recorded = read_config(path).get("model", {}).get("dtype")
    dtype = gather_json(recorded if recorded in DTYPES else None, runtime.device)[0]
    dtype = dtype or str(compute_dtype(model, runtime)).removeprefix("torch.")
    return replace(config, model=replace(model, dtype=dtype))


def open_run_folder(folder: Path, config_text: str, runtime: Runtime) -> None:
    """Create the run folder with its resolved config, and hold it until this process ends.

    Raises ValueError where the folder holds a run with another config (two runs never mix), something that is no run,
    or a run that another process is at work on.
    """
    path = folder / "config.toml"
    with runtime.together("opening the run folder"):
        other = difference(path, config_text) if path.exists() else ""
        if other and _has_begun(folder):
            raise ValueError(
                f"{folder} holds a run with another configuration: {other}. Choose another --run.folder, remove it, or "
                f"give the configuration of {path} to continue it"
            )
        if (
            folder.is_dir()
            and not path.exists()
            and any(p.name not in (LOCK, ".config.toml.partial") for p in folder.iterdir())
        ):
            raise ValueError(
                f"{folder} is no run folder (it has no config.toml) but holds files: choose another --run.folder"
            )
    with runtime.together("creating the run folder"):
        if runtime.first:
            folder.mkdir(parents=True, exist_ok=True)
            _lock(folder)
            tidy(folder, ["config.toml", "*.jsonl", "evaluation.json", "export", "report.html"])
            tidy(folder / "reference", ["step_*"])
            replace_file(path, [config_text])
    with runtime.together("finding the run folder"):
        require_shared(path)


def _has_begun(folder: Path) -> bool:
    """Whether a run has come to a step or an evaluation: one that failed before may be begun with other settings."""
    log = folder / "metrics.jsonl"
    held = any((folder / "checkpoints").glob("*step_*")) or (folder / "evaluation.json").exists()
    return held or (log.exists() and log.stat().st_size > 0)


def read_config(path: Path) -> dict[str, dict[str, Any]]:
    """The configuration in a run folder. Raises ValueError naming the file where it is none."""
    config = read_toml(str(path))
    tables = {name: value for name, value in config.items() if isinstance(value, dict)}
    if wrong := sorted(config.keys() - tables.keys()) or ["run"] * ("run" not in tables):
        raise ValueError(f"{path} is damaged: {wrong[0]} is no table. Its copies lie in the run's checkpoints")
    return tables


def difference(path: Path, config_text: str) -> str:
    """The first option that decides how a run computes and is another in a config.toml, in words; else nothing.

    An option that was not there yet when the file was written had its default.
    """
    held, given = (_leaves("--", essentials(config)) for config in (read_config(path), tomllib.loads(config_text)))
    odd = next((key for key in held if _same(held[key]) != _same(given.get(key))), None)
    return "" if odd is None else f"{odd} is {held[odd]!r:.80} there and {given.get(odd)!r:.80} here"


def _leaves(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _leaves(f"{prefix}{key}.", value) if isinstance(value, dict) else {prefix + key: value}
    return found


def _same(value: Any) -> Any:
    """Equal for paths in a list that are written in two ways."""
    return [str(Path(x)) if isinstance(x, str) else x for x in value] if isinstance(value, list) else value


def essentials(config: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A configuration without the keys that change how a run goes on, but not what it computes."""
    kept = {
        table: {key: value for key, value in values.items() if key not in OPERATIONAL.get(table, ())}
        for table, values in config.items()
    }
    return {table: values for table, values in kept.items() if values}


def _lock(folder: Path) -> None:
    """Hold the run folder; the system lets go when the process ends, however it ends."""
    file = open(folder / LOCK, "w")  # noqa: SIM115 - open until the process ends
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(f"another process is at work on the run in {folder}: wait for it, or stop it") from None
    except OSError:
        pass  # a file system without locks
    _LOCKS.append(file)


def resume(
    checkpoints: Checkpoints, optimizer: Optimizer, inputs: dict[str, str], config_text: str, runtime: Runtime
) -> dict[str, Any]:
    """Load the newest whole checkpoint, if there is one; returns its state, or that of a run that begins.

    Raises ValueError where the model's or the data's files are not those that the checkpoint was made with, and where
    the run has come so far that there must have been a checkpoint.
    """
    config = tomllib.loads(config_text)
    config_hash = text_hash(json.dumps(essentials(config), sort_keys=True))
    begin = {"step": 0, "cursor": 0, "total_tokens": 0, "inputs": inputs, "config_sha256": config_hash}
    with runtime.phase("resume"):
        checkpoint, skipped = checkpoints.newest()
        for line in skipped:
            runtime.say(line)
        if checkpoint is None:
            with runtime.together("looking for the run's checkpoints"):
                if runtime.first:
                    begin_anew(checkpoints.folder, config["run"]["checkpoint_every"], runtime)
            return begin
        with runtime.together("loading a checkpoint"):
            state = load_checkpoint(checkpoint, optimizer, runtime)
            if lacking := [key for key in begin if key not in state]:
                raise ValueError(f"{checkpoint}/state.json lacks {', '.join(lacking)}: remove {checkpoint}")
            if state["config_sha256"] != begin["config_sha256"] and (
                other := difference(checkpoint / "config.toml", config_text)
            ):
                raise ValueError(f"{checkpoint} is of a run with another configuration: {other}")
            check_hashes(state["inputs"], inputs, f"{checkpoint} was written")
            if runtime.first:  # of steps that are taken again
                _forget_evaluations(checkpoints.folder.parent, state["step"])
        if state["world_size"] != runtime.world_size:
            runtime.say(f"written by {state['world_size']} rank(s), continued by {runtime.world_size}")
        runtime.say(f"continuing {checkpoints.folder.parent} after step {state['step']}")
    return state


def _forget_evaluations(folder: Path, step: int) -> None:
    """Take out of evaluation.json what was measured after a step."""
    rows = read_evaluation(folder)
    later = lambda row: isinstance(row, dict) and isinstance(row.get("step"), int) and row["step"] > step  # noqa: E731
    kept = {label: row for label, row in rows.items() if not later(row)}
    if kept != rows:
        replace_file(folder / "evaluation.json", [json.dumps(kept, indent=2) + "\n"])


def begin_anew(checkpoints: Path, checkpoint_every: int, runtime: Runtime) -> None:
    """Clear what a run without a checkpoint left; it may have been killed before its first.

    Raises ValueError where its metrics go so far that there was one: a disk that is not mounted must not cost a run.
    """
    folder = checkpoints.parent
    step = max((row["step"] for row in RunLog(folder, runtime).read("metrics.jsonl")), default=0)
    sign = ""
    if step > 2 * checkpoint_every:  # one may have been on its way when the run was killed
        sign = f"{folder / 'metrics.jsonl'} goes to step {step}"
    elif (folder / "export").exists():  # which is written after the last checkpoint
        sign = f"{folder} holds the export of a run that ended"
    if sign:
        raise ValueError(
            f"{sign}, but {checkpoints} holds no checkpoint: bring them back (is their disk mounted?), or remove "
            f"{folder} to begin anew"
        )
    (folder / "evaluation.json").unlink(missing_ok=True)


def end_step(
    run: RunOptions,
    state: dict[str, Any],
    total_steps: int,
    checkpoints: Checkpoints,
    optimizer: Optimizer,
    runtime: Runtime,
) -> bool:
    """Write a checkpoint where one is due; returns whether a signal asks the run to end here, which makes one due."""
    step, stop = state["step"], runtime.stop_signal()
    last = step == total_steps
    if run.checkpoint_in_background:
        checkpoints.check()
    if stop or last or step % run.checkpoint_every == 0:
        with runtime.phase("checkpoint"):
            checkpoints.save(step, optimizer, state, mark=bool(run.mark_every) and step % run.mark_every == 0)
            if stop or last:
                checkpoints.finish()
    if stop and not last:
        runtime.say(f"stopped by {stop} after step {step}, which is saved: the same command continues the run")
    return bool(stop) and not last


def hash_inputs(models: Mapping[str, Path], files: Sequence[Path], runtime: Runtime) -> dict[str, str]:
    """SHA-256 by path of the files of model folders and of other files; read by the first rank, told to all.

    `models` are folders by what the user called them: a hub id's may lie elsewhere on the next day.
    """
    hashes: dict[str, str] = {}
    with runtime.together("reading the model's and the data's files"):
        if runtime.first:
            for name, folder in models.items():
                found = [path for pattern in HUB_FILES for path in sorted(folder.glob(pattern))]
                hashes |= {str(Path(name or folder, path.name)): digest(path) for path in found}
            hashes |= {str(path): digest(path) for path in files}
    return gather_json(hashes, runtime.device)[0]


def check_hashes(then: dict[str, str], now: dict[str, str], since: str) -> None:
    """Raise ValueError naming the first file that is not what it was."""
    then = {HUB_CACHE.sub(r"\1/\2/", path): sha256 for path, sha256 in then.items()}  # as they were once recorded
    for path in [*then, *now]:
        before, after = then.get(path, "no file"), now.get(path, "no file")
        if before != after:
            raise ValueError(
                f"{path} has changed since {since} (SHA-256 {before:.12} then, {after:.12} now): restore it, or choose "
                "another --run.folder"
            )


def text_hash(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()
