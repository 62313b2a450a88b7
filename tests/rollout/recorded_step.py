"""Stands in for a CUDA graph on a CPU: a step's operations, taken down with the very tensors that they read and write.

Like a graph it does nothing while recording, does the same operations on the same addresses at each replay, bakes in
every Python number, refuses what would make the host wait, and shares memory for intermediate results with all others,
so that these hold garbage between replays. The pool of that memory dies with its last graph.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# a number read by the host; a number made a tensor (on CUDA a copy from pageable memory); a size that depends on data
REFUSED = {"_local_scalar_dense", "item", "lift_fresh", "lift_fresh_copy", "nonzero", "masked_select", "equal"}


class CaptureError(RuntimeError):
    """What CUDA says of an operation that is not permitted while a stream is capturing."""


class Pool:
    """Memory that graphs share. As in torch's allocator, nothing more can be captured once all of them are gone."""

    def __init__(self) -> None:
        self.graphs: weakref.WeakSet[Callable[[], None]] = weakref.WeakSet()
        self.used = False

    def add(self, replay: Callable[[], None]) -> Callable[[], None]:
        if self.used and not self.graphs:
            raise CaptureError("use_count > 0 INTERNAL ASSERT FAILED: the pool's graphs are all gone")
        self.used = True
        self.graphs.add(replay)
        return replay


class RecordedCapture:
    """A `Capture` of rollout/graphs.py. `fixed`: the tensors that outlive a step, which recording must not change."""

    def __init__(self, fixed: Callable[[], list[Tensor]]):
        self.fixed = fixed
        self.warm_ups = 0
        self.programs: list[Program] = []
        self.renew()

    def renew(self) -> None:
        self.pool = Pool()

    def warm_up(self, step: Callable[[], None]) -> None:
        self.warm_ups += 1
        step()

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        kept = [(tensor, tensor.clone()) for tensor in self.fixed()]
        program = Program()
        with program:
            step()
        for tensor, before in kept:
            tensor.copy_(before)
        program.find_intermediate()
        self.programs.append(program)

        def replay() -> None:
            program.poison()  # one pool: another's replay has overwritten the intermediate results
            program.replay()

        return self.pool.add(replay)


class Program(TorchDispatchMode):
    """Operations in their order, each with its arguments and results by address."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.intermediate: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in REFUSED:
            raise CaptureError(f"operation not permitted while capturing: {func}")
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # detached: a parameter that is given other memory later must leave the program with the old memory
        args, kwargs = tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, (args, kwargs))
        self.calls.append((func, args, kwargs, [x.detach() for x in tree_leaves(result) if isinstance(x, Tensor)]))
        return result

    def replay(self) -> None:
        for func, args, kwargs, results in self.calls:
            again = [x for x in tree_leaves(func(*args, **kwargs)) if isinstance(x, Tensor)]
            for result, new in zip(results, again, strict=True):
                if result.data_ptr() != new.data_ptr():  # neither in place nor a view
                    result.copy_(new)

    def find_intermediate(self) -> None:
        """The results that have memory of their own."""
        for _, args, kwargs, results in self.calls:
            inputs = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
            self.intermediate += [x for x in results if x.untyped_storage().data_ptr() not in inputs]

    def poison(self) -> None:
        """Leave garbage in them."""
        for made in self.intermediate:
            made.fill_(torch.nan if made.is_floating_point() else 1)
