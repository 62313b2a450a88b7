"""A parameter as FSDP2 leaves it: a DTensor, of which every rank holds some rows.

torch.distributed.tensor brings sympy, and with it a quarter of the time that `import psychecore` takes; so it is
imported by train/sharding.py, where a model is sharded, and only asked for here.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeGuard

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.tensor import DTensor


def is_shard(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor lies on several ranks. Where nobody imported DTensor, none does."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def gather_tensor(tensor: Tensor) -> Tensor:
    """The whole tensor of an FSDP2 shard (a collective: every rank must call), or the tensor itself."""
    tensor = tensor.detach()
    return tensor.full_tensor() if is_shard(tensor) else tensor


def shard_group(tensor: Tensor) -> ProcessGroup | None:
    """The ranks that hold the other rows of a tensor (not its replicas); None where this one has it whole."""
    if not is_shard(tensor):
        return None
    (dim,) = (dim for dim, placement in enumerate(tensor.placements) if placement.is_shard())
    return tensor.device_mesh.get_group(dim)


def local_part(tensor: Tensor) -> Tensor:
    """What of a tensor lies on this rank, in its own memory; without gradient."""
    tensor = tensor.detach()
    return tensor.to_local() if is_shard(tensor) else tensor


def local_rows(tensor: Tensor) -> tuple[Tensor, int]:
    """The rows of a tensor that lie on this rank, and the number of the first of them."""
    local = local_part(tensor)
    if not is_shard(tensor):
        return local, 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return local, offset[0] if shape[0] else 0


def holds_original(tensor: Tensor, first_rank: bool) -> bool:
    """Whether this rank is to write its part: of replicas only the first, of a whole tensor only the first rank."""
    if not is_shard(tensor):
        return first_rank
    coordinate = tensor.device_mesh.get_coordinate()
    assert coordinate is not None
    return all(at == 0 for at, placement in zip(coordinate, tensor.placements, strict=True) if placement.is_replicate())
