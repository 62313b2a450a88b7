"""What a run tells: its JSONL logs, the line of a step, time by phase, memory, and MFU.

metrics.jsonl and samples.jsonl depend on the configuration alone, on CPU to the last bit; what depends on the clock
and the machine stands in timings.jsonl.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from psychecore.durable import replace_file
from psychecore.model.config import ModelConfig
from psychecore.runtime import Runtime
from psychecore.untrusted import parse_json


class RunLog:
    """Appends one JSON object a line to files of a run folder; only the first rank writes."""

    def __init__(self, folder: Path, runtime: Runtime):
        self.folder, self.runtime = folder, runtime

    def write(self, name: str, row: Mapping[str, Any]) -> None:
        """Append `row` to the file `name`, flushed to disk, so that a checkpoint is never newer than its log."""
        if self.runtime.first:
            with open(self.folder / name, "a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps(_plain(row), ensure_ascii=False, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def read(self, name: str) -> list[dict[str, Any]]:
        """The rows of a file so far; none where it does not exist. Raises ValueError naming a line that is no row."""
        path = self.folder / name
        return [row for _, row in _whole_lines(path)] if path.exists() else []

    def keep_until(self, name: str, step: int) -> None:
        """Drop the rows after `step`, which a resumed run writes again, and a last line that was cut off.

        A collective. Raises ValueError naming a line that is no row, and leaves the file as it is.
        """
        path = self.folder / name
        with self.runtime.together(f"reading {name}"):
            if self.runtime.first and path.exists():
                replace_file(path, (line for line, row in _whole_lines(path) if row["step"] <= step))


def _whole_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line that has its end, and the row on it."""
    with open(path, "rb") as file:  # a text may hold U+2028, which is no end of a line here
        for number, raw in enumerate(file, 1):
            if not raw.endswith(b"\n"):
                return
            try:
                line = raw.decode()
                row = parse_json(line)
                if not isinstance(row, dict) or type(row.get("step")) is not int:
                    raise ValueError("it is no object with a step")
            except ValueError as error:
                raise ValueError(f"{path} line {number}: {error}; remove the line, or restore the file") from None
            yield line, row


class Stopwatch:
    """Seconds by phase of one step: `with watch("rollout"): ...`. A phase is bounded by the run's time-out."""

    def __init__(self, runtime: Runtime):
        self.runtime, self.seconds = runtime, {}  # type: tuple[Runtime, dict[str, float]]

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        with self.runtime.phase(phase):
            yield
            if self.runtime.device.type == "cuda":
                torch.cuda.synchronize(self.runtime.device)  # kernels run on after the call that queued them returned
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start


def peak_memory_gib(device: torch.device) -> float:
    """Highest memory use so far, GiB: of the GPU, or of the process on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if (
        status := Path("/proc/self/status")
    ).exists():  # Linux's ru_maxrss starts with the peak of the process that started this one
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def training_flops(config: ModelConfig, tokens: float, head_rows: float) -> float:
    """Floating-point operations of forward and backward: 6 per weight and token, the head for labelled rows only.

    Attention's own products are left out (below 5 % while sequences are shorter than the width); so are recomputed
    activations, which do not count for MFU.
    """
    head = config.vocab_size * config.width
    body = config.parameters - (1 if config.tied_head else 2) * head
    return 6.0 * (body * tokens + head * head_rows)


def matmul_peak(runtime: Runtime, dtype: torch.dtype, size: int = 2048, seconds: float = 0.3) -> float:
    """FLOP/s of a large square matrix product here and now, the ceiling that MFU is a share of.

    Of random numbers: a GPU multiplies constants faster, since they take less power.
    """
    size = size if runtime.device.type == "cpu" else 4 * size
    own = torch.Generator(runtime.device).manual_seed(0)  # the global one's state is part of a run
    a, b = (torch.randn(size, size, device=runtime.device, generator=own).to(dtype) for _ in range(2))
    watch, best = Stopwatch(runtime), 0.0
    for number in range(100):
        with watch(str(number)):
            a @ b
        best = max(best, 2 * size**3 / watch.seconds[str(number)])
        if sum(watch.seconds.values()) > seconds:
            break
    return best


def step_line(phase: str, step: int, total: int, row: Mapping[str, float], names: Mapping[str, str]) -> str:
    """One readable line: `names` maps metrics to their format, such as {"loss": ".3f"}."""
    values = [f"{name} {format(row[name], spec)}" for name, spec in names.items() if name in row]
    return f"{phase} {step:>{len(str(total))}}/{total}  " + "  ".join(values)


def _plain(value: Any) -> Any:
    """JSON has no NaN or infinity: they become null, so that every reader can parse the line."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            return None
        return int(value) if value.is_integer() and abs(value) < 2**53 else float(f"{value:.6g}")
    return value
