"""FSDP2: shards of fp32 masters, bf16 compute, fp32 reductions; and one unshard around rollouts.

At one rank nothing is sharded: train/optimizer.py then keeps the fp32 masters beside bf16 parameters, which is the
same arithmetic and measured 1.35 to 1.5 times faster than FSDP2 at world size 1 on CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from psychecore.model.decoder import Decoder

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


@dataclass(frozen=True)
class ShardingConfig:
    """How a model lies on the ranks.

    replicas: copies of the set of shards; 1 shards over all ranks, the number of nodes keeps the gathering of
    parameters inside a node. cpu_offload: masters and optimizer state live in host memory.
    """

    replicas: int = 1
    cpu_offload: bool = False

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ValueError(f"replicas is {self.replicas}, but must be at least 1")


def make_mesh(config: ShardingConfig, world_size: int, device: torch.device) -> DeviceMesh:
    """One dimension of shards, or replicas x shards."""
    if world_size % config.replicas:
        raise ValueError(f"{world_size} ranks cannot be split into {config.replicas} equal replicas")
    if config.replicas == 1:
        return init_device_mesh(device.type, (world_size,), mesh_dim_names=("shard",))
    shape = (config.replicas, world_size // config.replicas)
    return init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))


def sharder(
    mesh: DeviceMesh, compute_dtype: torch.dtype, *, cpu_offload: bool = False, cast: bool = True
) -> Callable[[Decoder], None]:
    """The `shard` argument of load_model: every layer and the rest of the model become FSDP2 units on `mesh`.

    With `cast` parameters are gathered in compute_dtype and gradients reduced in fp32; without, the model keeps
    the dtype it has (a frozen bf16 reference).
    """
    # here, since it takes a second to import, which one rank never needs (see model/shards.py)
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    # cast_forward_inputs would round the fp32 rotary tables to bf16
    policy = MixedPrecisionPolicy(
        param_dtype=compute_dtype if cast else None,
        reduce_dtype=torch.float32 if cast and compute_dtype != torch.float64 else None,
        cast_forward_inputs=False,
    )
    offload = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if cpu_offload else OffloadPolicy()

    def shard(model: Decoder) -> None:
        for layer in model.layers:
            fully_shard(layer, mesh=mesh, mp_policy=policy, offload_policy=offload, reshard_after_forward=True)
        # the root holds embedding, last norm and head, which are used outside forward too: it stays gathered between
        # forward and backward
        fully_shard(model, mesh=mesh, mp_policy=policy, offload_policy=offload, reshard_after_forward=False)
        model.set_compute_dtype(compute_dtype)

    return shard


@contextmanager
def gathered(model: Decoder) -> Iterator[None]:
    """Hold the whole model on every rank, so that ranks may run different numbers of forward passes (rollouts).

    Gathers once instead of once per token. Shards are restored on leaving; without FSDP2 nothing happens.
    """
    units = [module for module in model.modules() if _is_unit(module)]
    for unit in units:
        unit.unshard()
        unit.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()  # else the optimizer's update would not reach the gathered copy
            unit.set_reshard_after_forward(unit is not model, recurse=False)


def release(model: Decoder) -> None:
    """Shard the root unit of a frozen model again: without a backward pass it would stay gathered for good."""
    if _is_unit(model):
        model.reshard()


def _is_unit(module: nn.Module) -> TypeGuard[FSDPModule]:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)
