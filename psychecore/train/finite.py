"""NaN and infinity: found on any rank before the optimizer's step, named, and never written to disk."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from psychecore.model.shards import local_part, shard_group
from psychecore.runtime import CPU, gather_json, max_over_ranks


class NonFiniteError(FloatingPointError):
    """A loss, gradient or weight is NaN or infinite; the message names which, on which rank."""


def global_norm(tensors: list[Tensor]) -> Tensor:
    """The 2-norm over all tensors and, where they are shards, all ranks (then a collective)."""
    norm = torch.nn.utils.get_total_norm([local_part(tensor) for tensor in tensors])
    if not tensors or (group := shard_group(tensors[0])) is None:
        return norm
    squared = norm.double().square()  # in fp32 a norm above 1e19 would be infinite here
    dist.all_reduce(squared, group=group)
    return squared.sqrt().to(norm.dtype)


def all_finite(*local: float) -> bool:
    """Whether these numbers are finite on every rank (a collective)."""
    (bad,) = max_over_ranks([float(not all(map(math.isfinite, local)))], CPU)
    return bad == 0


def describe_nonfinite(kinds: Mapping[str, Mapping[str, Tensor | None]], loss: float = 0.0) -> str:
    """Name what is not finite, by rank (a collective): the loss, and up to three tensors of each kind."""
    found = [] if math.isfinite(loss) else [f"loss is {loss}"]
    for kind, tensors in kinds.items():
        counts = {name: count_nonfinite(tensor) for name, tensor in tensors.items() if tensor is not None}
        bad = [f"{kind} {name} ({count} values)" for name, count in counts.items() if count]
        found += [*bad[:3], f"{len(bad) - 3} more of kind {kind}"] if len(bad) > 3 else bad
    parts = [f"rank {rank}: {', '.join(names)}" for rank, names in enumerate(gather_json(found, CPU)) if names]
    return "; ".join(parts) or "the norms overflow, though every value is finite"


def count_nonfinite(tensor: Tensor) -> int:
    """How many values of a tensor, or of this rank's shard of it, are NaN or infinite."""
    return int((~torch.isfinite(local_part(tensor))).sum())
