"""What a kernel can gain, before it has met a GPU: bytes and FLOPs against the peaks of A100, H100 and B200.

The kernel's own work comes from kernel_cases.py. The torch that it replaces is run on meta tensors at full size, and
every operation that autograd and eager execution launch is counted: it reads its arguments from memory and writes its
results. Both are then timed by the roofline, each operation at the slower of memory and matrix products:

    seconds = max(bytes / bandwidth, FLOPs / peak)

That is a bound, not a measurement: it forgets launches, caches (an eager operation may find its argument in L2) and
everything that keeps a kernel off the roof. The gain of a kernel that moves less is what the roofline can tell.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from kernel_cases import KernelCase, Sizes, Work
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from psychecore.train.speed import GPUS, Efficiency, Gpu, forward_flops

CHIPS = ("A100-80", "H100-80", "B200")
NO_READ = {"copy_", "fill_", "zero_"}  # overwrite their first argument without reading it
LOOK_UPS = {"gather", "index", "index_select", "scatter_add_", "index_put_", "index_copy_"}
FREE = {"empty", "empty_like", "new_empty", "empty_strided", "detach", "alias", "lift_fresh", "_unsafe_view"}


class OperationCounter(TorchDispatchMode):
    """Collects the Work of every operation that runs within it; views cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[str, Work]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name not in FREE and not func.is_view:
            counts = flop_registry.get(func.overloadpacket)
            flops = counts(*args, **kwargs, out_val=out) if counts else 0
            self.operations.append((name, Work(float(_traffic(name, args, kwargs, out)), float(flops))))
        return out

    @property
    def works(self) -> list[Work]:
        """Without the names."""
        return [work for _, work in self.operations]


def _traffic(name: str, args: Any, kwargs: Any, out: Any) -> int:
    read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    written = sum(_bytes(x) for x in tree_leaves(out) if isinstance(x, Tensor))
    if name in LOOK_UPS:  # as much is read of the table as is written, or the other way round
        picked = min([written, *(_bytes(x) for x in read[1:] if x.is_floating_point())])
        return 2 * picked + sum(_bytes(x) for x in read if not x.is_floating_point())
    return written + sum(_bytes(x) for x in (read[1:] if name in NO_READ else read))


def _bytes(x: Tensor) -> int:
    """Of memory that lies behind it: an expanded dimension is read once."""
    return x.element_size() * math.prod(n for n, stride in zip(x.shape, x.stride(), strict=True) if stride)


def unfused(case: KernelCase, sizes: Sizes) -> tuple[list[Work], list[Work]]:
    """Operations of the torch code that the kernel replaces, (forward, backward), at full size without memory."""
    inputs = case.inputs(sizes, torch.bfloat16, torch.device("meta"))
    function = case.torch_code()
    with OperationCounter() as forward:
        out = function(*inputs)
    outs = [x for x in case.results(inputs, out) if x.requires_grad]
    wanted = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    if case.backward is None:
        return forward.works, []
    gradients = [torch.empty_like(x) for x in outs]
    with OperationCounter() as backward:
        torch.autograd.grad(outs, wanted, gradients)
    return forward.works, backward.works


def seconds(works: Iterable[Work], gpu: Gpu) -> float:
    """On the roofline, one operation after the other."""
    return sum(max(work.bytes / gpu.bandwidth, work.flops / gpu.peak) for work in works)


def step_seconds(case: KernelCase, sizes: Sizes, gpu: Gpu) -> float:
    """Of the step that the kernel is a part of, by the assumptions of train/speed.py (40 % of the FLOPs, 60 % of the
    bandwidth): forward and backward of the micro-batch, or a decoding step that reads all weights and the cache."""
    c, efficiency = sizes.config, Efficiency()
    if not case.decoding:
        flops = 3 * forward_flops(c, sizes.tokens, sizes.tokens, sizes.length)
        return flops / (efficiency.mfu * gpu.peak)
    weights = sizes.itemsize * (c.parameters - (0 if c.tied_head else c.vocab_size * c.width))
    positions = sizes.samples // sizes.group * sizes.prompt + sizes.samples * sizes.answer
    cache = 2 * sizes.itemsize * c.layers * c.key_value_heads * c.head_dim * positions
    return (weights + cache) / (efficiency.bandwidth * gpu.bandwidth)


def predict(case: KernelCase, sizes: Sizes) -> dict[str, Any]:
    """A kernel's row: bytes and FLOPs forward and backward, those of the unfused torch, and times by GPU."""
    own = {"forward": case.forward(sizes)} | ({"backward": case.backward(sizes)} if case.backward else {})
    counted = dict(zip(("forward", "backward"), unfused(case, sizes), strict=True))
    row: dict[str, Any] = {"kernel": case.name, "model": sizes.model, "per_step": case.per_step(sizes.config)}
    for way, work in own.items():
        row[way] = {
            "bytes": work.bytes,
            "flops": work.flops,
            "torch_bytes": sum(w.bytes for w in counted[way]),
            "torch_operations": len(counted[way]),
        }
    for chip in CHIPS:
        gpu = GPUS[chip]
        fused = sum(seconds([work], gpu) for work in own.values())
        replaced = sum(seconds(counted[way], gpu) for way in own)
        row[chip] = {
            "us": round(fused * 1e6, 4),
            "torch_us": round(replaced * 1e6, 4),
            "gain": round(replaced / fused, 2),
            "share_of_step": round(fused * row["per_step"] / step_seconds(case, sizes, gpu), 4),
            "torch_share_of_step": round(replaced * row["per_step"] / step_seconds(case, sizes, gpu), 4),
        }
    return row
