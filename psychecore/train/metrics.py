"""What a run tells: metrics.jsonl and samples.jsonl, the line of a step, time by phase, memory, and MFU."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from psychecore.model.config import ModelConfig
from psychecore.runtime import Runtime


class RunLog:
    """Appends one JSON object a line to files of a run folder; only the first rank writes."""

    def __init__(self, folder: Path, runtime: Runtime):
        self.folder, self.runtime = folder, runtime

    def write(self, name: str, row: Mapping[str, Any]) -> None:
        """Append `row` to the file `name`, flushed, so that a watcher sees it and a killed run keeps it."""
        if self.runtime.first:
            with open(self.folder / name, "a", encoding="utf-8") as file:
                file.write(json.dumps(_plain(row), ensure_ascii=False, allow_nan=False) + "\n")

    def read(self, name: str) -> list[dict[str, Any]]:
        """The rows of a file so far; none where it does not exist."""
        path = self.folder / name
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        return [json.loads(line) for line in lines if line]

    def keep_until(self, name: str, phase: str, step: int) -> None:
        """Drop the rows of `phase` after `step`, which a resumed run writes again, and a last line that was cut off."""
        path = self.folder / name
        if self.runtime.first and path.exists():
            lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # not splitlines: a text may hold U+2028
            rows = [(line, json.loads(line)) for line in lines]
            kept = [line + "\n" for line, row in rows if row.get("phase") != phase or row["step"] <= step]
            temporary = path.with_name(path.name + ".tmp")
            temporary.write_text("".join(kept), encoding="utf-8", newline="\n")
            temporary.replace(path)


class Stopwatch:
    """Seconds by phase of one step: `with watch("rollout"): ...`."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, {}  # type: tuple[torch.device, dict[str, float]]

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # kernels run on after the call that queued them has returned
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start


def peak_memory_gib(device: torch.device) -> float:
    """Highest memory use so far, GiB: of the GPU, or of the process on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
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


def matmul_peak(device: torch.device, dtype: torch.dtype, size: int = 2048, seconds: float = 0.3) -> float:
    """FLOP/s of a large square matrix product here and now, the ceiling that MFU is a share of."""
    size = size if device.type == "cpu" else 4 * size
    a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    watch, best = Stopwatch(device), 0.0
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
        return float(f"{value:.6g}")
    return value
