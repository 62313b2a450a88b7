"""torchrun set-up and tear-down, rank-0 output, and the few collectives on plain numbers.

Started by plain python there is one rank and no process group: every function below then does nothing but return.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Runtime:
    """This process's place in the run."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this rank prints and writes."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print once per run, past any progress bar."""
        if self.first:
            print(text, flush=True)


@contextmanager
def runtime(device: str = "auto", timeout_minutes: float = 30.0) -> Iterator[Runtime]:
    """Join the process group that torchrun describes (or none), and leave it again.

    device: "cpu", "cuda", or "auto" for CUDA where there is one. CUDA uses nccl, the CPU gloo. A collective that waits
    longer than `timeout_minutes` for another rank ends the run.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device is {device!r}, but must be auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch sees no GPU; use --run.device cpu or auto")
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    place = torch.device(kind, local_rank) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(place)
    if world_size > 1:
        timeout = timedelta(minutes=timeout_minutes)
        dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=timeout)
    try:
        yield Runtime(rank, world_size, place)
        if world_size > 1:
            dist.barrier()
    finally:
        sys.stdout.flush()
        if world_size > 1:
            dist.destroy_process_group()


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where its matrix products are fast: on CUDA, and on CPUs with native bf16; else float32.

    Measured, because a CPU without bf16 instructions computes it hundreds of times slower than fp32 (0.3 against 114
    GFLOP/s on two cores of a Zen 3).
    """
    if device.type == "cuda":
        return torch.bfloat16
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(192, 192, dtype=dtype)
        a @ a
        start = time.perf_counter()
        a @ a
        seconds[dtype] = time.perf_counter() - start
    return torch.bfloat16 if seconds[torch.bfloat16] < 2 * seconds[torch.float32] else torch.float32


def sum_over_ranks(values: Sequence[float], device: torch.device) -> list[float]:
    """Each number summed over all ranks, in float64 (a collective)."""
    return _reduce(values, device, dist.ReduceOp.SUM)


def max_over_ranks(values: Sequence[float], device: torch.device) -> list[float]:
    """The largest of each number over all ranks (a collective)."""
    return _reduce(values, device, dist.ReduceOp.MAX)


def _reduce(values: Sequence[float], device: torch.device, operation: dist.ReduceOp.RedOpType) -> list[float]:
    if not dist.is_initialized():
        return list(values)
    tensor = torch.tensor(list(values), dtype=torch.float64, device=device)
    dist.all_reduce(tensor, operation)
    return tensor.tolist()


def gather_json(value: Any, device: torch.device) -> list[Any]:
    """Every rank's JSON value, in the order of ranks, on every rank (a collective). Bytes travel, never pickles."""
    if not dist.is_initialized():
        return [value]
    payload = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
    lengths = [int(n) for n in _gather(torch.tensor([payload.numel()], device=device))]
    padded = torch.zeros(max(lengths), dtype=torch.uint8, device=device)
    padded[: payload.numel()] = payload
    parts = _gather(padded)
    return [json.loads(bytes(part[:n].cpu().numpy())) for part, n in zip(parts, lengths, strict=True)]


def _gather(tensor: torch.Tensor) -> list[torch.Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor)
    return parts
