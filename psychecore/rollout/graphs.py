"""Decoding steps as CUDA graphs, one per `Shape`: some thousand kernel launches become one.

A small batch's step takes less time on the GPU than Python needs to launch it. A graph holds the step's kernels with
the addresses that they read and write: `State`, the cache and the weights stay where they are, so a replay does the
next step. Graphs belong to one `Engine`, whose cache they write into, and are freed with it: a training step between
two calls to the sampler has the memory, and weights that FSDP2 gathers somewhere else meet no old graph. The price is
that a call captures anew, each graph for about the time of one eager step.

Captures lie behind `Capture`, since only they need a GPU: tests run everything else with a stand-in on the CPU.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import nn

from psychecore.rollout.kv_cache import Shape

# Beyond it the one used longest ago is dropped. The buckets of slots, rows, seats and spans allow for more, but a call
# walks through few at a time: old samples leave, and the spans grow to four times as much.
LIMIT = 64

Work = Callable[[], None]


class Capture(Protocol):
    """What the device does with a step."""

    def warm_up(self, step: Work) -> None:
        """Do the step as it is, where a capture will run it: kernels are compiled and workspaces allocated now."""

    def record(self, step: Work) -> Work:
        """Take the step down without doing it; what comes back does it."""

    def renew(self) -> None:
        """All that was recorded has been dropped; what comes next shares nothing with it."""


class CudaCapture:
    """torch.cuda.CUDAGraph on a stream of its own; all graphs share one pool for their intermediate results.

    Sharing is safe in any order of replays, since no step reads another's intermediate results. A pool lives as long as
    one of its graphs: torch's allocator asserts that nothing is captured into it after the last of them is gone.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.renew()

    def renew(self) -> None:
        """A new pool."""
        self.pool = torch.cuda.graph_pool_handle()

    def warm_up(self, step: Work) -> None:
        """Do the step on the capturing stream."""
        outside = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(outside)
        with torch.cuda.stream(self.stream):
            step()
        outside.wait_stream(self.stream)

    def record(self, step: Work) -> Work:
        """Capture. Not by torch.cuda.graph, which empties the allocator's cache every time."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self.device)
        with torch.cuda.stream(self.stream):
            # thread_local: a checkpoint that another thread writes may use the GPU meanwhile
            graph.capture_begin(self.pool, capture_error_mode="thread_local")
            try:
                step()
            finally:
                graph.capture_end()
        return graph.replay


class StepGraphs:
    """Runs steps of `model`: the first of a shape as it is, the second taken down, that and all later ones replayed.

    Waiting for the second leaves shapes alone that occur once. Where the weights have moved, all graphs are dropped;
    where they are sharded (FSDP2 outside `gathered`), every step runs as it is.
    """

    def __init__(self, model: nn.Module, capture: Capture, limit: int = LIMIT):
        self.model, self.capture, self.limit = model, capture, limit
        self.captured = self.replayed = 0
        self._forget()

    def run(self, shape: Shape, step: Work) -> None:
        """Do `step`, whose work depends on nothing but its shape and on tensors that stay where they are."""
        if [parameter.data_ptr() for parameter in self._parameters] != self._addresses:
            self._forget()
        if shape not in self._warm or not self._whole:
            self._warm.add(shape)
            self.capture.warm_up(step)
            return
        if shape not in self._graphs:
            with _no_hooks(self.model):
                self._graphs[shape] = self.capture.record(step)
            if len(self._graphs) > self.limit:  # only now: the pool must not lose its last graph
                self._graphs.popitem(last=False)
            self.captured += 1
        self._graphs.move_to_end(shape)
        self._graphs[shape]()
        self.replayed += 1

    def _forget(self) -> None:
        self._graphs: OrderedDict[Shape, Work] = OrderedDict()  # the one used longest ago first
        self.capture.renew()
        self._warm: set[Shape] = set()
        self._parameters = list(self.model.parameters())
        self._whole = whole(self.model)
        self._addresses = [parameter.data_ptr() for parameter in self._parameters]


def whole(model: nn.Module) -> bool:
    """Whether every parameter is a plain tensor of this rank, as a graph needs it: FSDP2's shards are DTensors."""
    return all(type(parameter) is nn.Parameter for parameter in model.parameters())


@contextmanager
def _no_hooks(model: nn.Module) -> Iterator[None]:
    """Without the forward hooks of all modules.

    FSDP2's have nothing to do while the model is gathered, but let its gathering streams wait for the current one: in a
    capture that is a fork that nothing joins, and an error.
    """
    held = [(module, module._forward_pre_hooks, module._forward_hooks) for module in model.modules()]
    for module, _, _ in held:
        module._forward_pre_hooks, module._forward_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        for module, before, after in held:
            module._forward_pre_hooks, module._forward_hooks = before, after
