"""Ranks that take every case's step, and write what came out and which collectives they took part in.

python rank_worker.py FOLDER 2 4     # two gloo ranks, then four: forks of one process, which imports torch once
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import rank_cases
import torch._dynamo  # AdamW imports it: once here, not in every fork
import torch.distributed.fsdp  # noqa: F401 - as does who shards a model
from forked import ranks
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.utils._python_dispatch import TorchDispatchMode

from psychecore.runtime import Runtime, runtime
from psychecore.train.sharding import gathered


class Collectives(TorchDispatchMode):
    """Lists the collectives that are issued while it is entered: operator and numbers of elements."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # DTensor then calls plain operators, which come by here
        if func.namespace in ("c10d", "_c10d_functional") and "wait" not in str(func):
            self.calls.append(f"{func} {_sizes(args)}")
        return func(*args, **(kwargs or {}))


def _sizes(value: Any) -> list[int]:
    if isinstance(value, (list, tuple)):
        return [size for item in value for size in _sizes(item)]
    return [value.numel()] if hasattr(value, "numel") else []


def shards(result: rank_cases.Result) -> dict[str, Tensor]:
    """This rank's rows, named STEP/FIRST ROW/PARAMETER for gradients and weight/FIRST ROW/PARAMETER; no collective."""
    found = {}
    for step, tensors in [*enumerate(result.gradients), ("weight", result.weights)]:
        for name, tensor in tensors.items():
            _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
            found[f"{step}/{offset[0]}/{name}"] = tensor.to_local().contiguous()
    return found


def main(folder: Path, place: Runtime) -> None:
    rows = {}
    for number, (name, case) in enumerate(rank_cases.cases().items()):
        marks: list[int] = []
        seen = Collectives()
        with seen if case.uneven else nullcontext():  # it doubles the time of small tensors
            result = rank_cases.run(case, folder, place, lambda seen=seen, marks=marks: marks.append(len(seen.calls)))
        rows[name] = {
            "metrics": result.metrics,
            "seconds": result.seconds,
            "collectives": seen.calls,
            "before_and_after_rollouts": marks,
        }
        save_file(shards(result), folder / f"{place.world_size}-{place.rank}-{number}.safetensors")
    case = rank_cases.Case(rank_cases.UPDATE)
    policy = rank_cases.load_policy(case, folder, place)
    mine = rank_cases.share_of(case, [0] * case.items, place)
    with gathered(policy):
        rows["rollouts"] = {i: asdict(group) for i, group in zip(mine, rank_cases.sample(policy, mine), strict=True)}
    (folder / f"{place.world_size}-rank-{place.rank}.json").write_text(json.dumps(rows))


def start(folder: Path, world_size: int) -> None:
    """Fork the ranks and wait until all are over; those that did not end well are an error."""

    def work() -> None:
        with runtime("cpu", timeout_minutes=1) as here:
            main(folder, here)

    if any(codes := ranks(world_size, work)):
        raise SystemExit(f"{world_size} ranks ended with {codes}")


if __name__ == "__main__":
    for argument in sys.argv[2:]:
        start(Path(sys.argv[1]), int(argument))
