"""torch.compile traces each operation into one graph that holds the Triton kernel itself, forward and backward.

Only the tracing is seen here: dynamo is told that there is a GPU, and the graph is looked at instead of compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from psychecore.kernels.cache_store import cache_store
from psychecore.kernels.rms_norm import add_rms_norm, rms_norm
from psychecore.kernels.rotary import rotary
from psychecore.kernels.swiglu import swiglu


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


def kernels(module: torch.fx.GraphModule) -> int:
    """Launches in a graph and in the graphs inside of it."""
    here = sum("triton_kernel_wrapper" in str(node.target) for node in module.graph.nodes)
    return here + sum(kernels(child) for child in module.children() if isinstance(child, torch.fx.GraphModule))


class SeenError(Exception):
    """Ends a compilation once its graph has been looked at."""


@pytest.mark.parametrize(
    ("operation", "arguments", "launches"),
    [
        (rms_norm, (rand(6, 32), rand(32), 1e-6), 2),
        (add_rms_norm, (rand(6, 32), rand(6, 32), rand(32), 1e-6), 2),
        (rotary, (rand(4, 3, 8), rand(4, 2, 8), torch.ones(4, 4), torch.ones(4, 4)), 2),
        (swiglu, (rand(6, 32),), 2),
        (cache_store, (*torch.ones(2, 4, 2, 8), *torch.ones(2, 4, 2, 5, 8), None, torch.arange(4)), 1),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_an_operation_is_one_graph_with_its_kernels(
    operation: Callable[..., Any], arguments: tuple[Any, ...], launches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    graphs: list[torch.fx.GraphModule] = []

    def look(graph: torch.fx.GraphModule, example_inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        raise SeenError

    with pytest.raises(Exception, match="SeenError"):
        torch.compile(operation, fullgraph=True, backend=look)(*arguments)
    assert [kernels(graph) for graph in graphs] == [launches]
