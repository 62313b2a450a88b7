"""The roofline against arithmetic by hand, and README's table against the result that it is made of."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from kernel_cases import CASES, Sizes, Work
from measure import RESULTS
from roofline import OperationCounter, predict, seconds, unfused

import kernels
from psychecore.train.speed import GPUS

REPO = Path(__file__).resolve().parents[2]
CONFIG = replace(kernels.MODELS["Qwen2.5-0.5B"], vocab_size=3000)
TINY = Sizes("tiny", CONFIG, tokens=64, length=32, samples=8, group=4, prompt=32)


def test_operations_count_what_they_read_and_write_and_views_cost_nothing() -> None:
    a, b = (torch.empty(8, 16, device="meta", dtype=torch.bfloat16) for _ in range(2))
    with OperationCounter() as counter:
        c = a + b  # reads two, writes one
        c.transpose(0, 1).view(2, 8, 8)
        c.copy_(a)  # reads one, writes one
        (c @ b.T).exp()
    assert [work.bytes for work in counter.works] == [3 * 256, 2 * 256, 2 * 256 + 128, 2 * 128]
    assert [work.flops for work in counter.works] == [0, 0, 2 * 8 * 8 * 16, 0]


def test_an_expanded_tensor_is_read_once_and_a_look_up_reads_what_it_takes() -> None:
    row, table = torch.empty(1, 64, device="meta"), torch.empty(1000, 64, device="meta")
    with OperationCounter() as counter:
        row.expand(100, 64).exp()
        five = table[torch.empty(5, dtype=torch.int64, device="meta")]
        table.index_copy_(0, torch.empty(5, dtype=torch.int64, device="meta"), five)
    assert [work.bytes for work in counter.works] == [256 + 25_600, *[2 * 5 * 256 + 40] * 2]


def test_the_roof_is_the_slower_of_memory_and_products() -> None:
    h100 = GPUS["H100-80"]
    assert seconds([Work(3.35e12), Work(0, 989e12), Work(3.35e12, 989e12)], h100) == pytest.approx(3)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_kernel_moves_more_than_the_torch_that_it_replaces(case: kernels.KernelCase) -> None:
    row = predict(case, TINY)
    for way in ("forward", "backward"):
        if way in row:
            assert 0 < row[way]["bytes"] < row[way]["torch_bytes"]
    assert row["H100-80"]["gain"] > 1
    assert row["B200"]["us"] < row["H100-80"]["us"] < row["A100-80"]["us"]


@pytest.mark.parametrize("case", [c for c in CASES if not c.writes], ids=lambda case: case.name)
def test_a_kernel_reads_its_inputs_and_writes_its_results_at_least_once(case: kernels.KernelCase) -> None:
    inputs = case.inputs(TINY, torch.bfloat16, torch.device("cpu"))
    with torch.no_grad():
        out = case.reference()(*inputs)
    tensors = [*inputs, *(out if isinstance(out, tuple) else (out,))]
    least = sum(x.nbytes for x in tensors if isinstance(x, torch.Tensor) and x.is_floating_point() and x.ndim > 1)
    assert least <= case.forward(TINY).bytes <= 1.1 * least


def test_torch_s_products_have_the_flops_of_the_formulas() -> None:
    case = next(case for case in CASES if case.name == "token_logprobs")
    forward, backward = unfused(case, TINY)
    assert sum(work.flops for work in forward) == case.forward(TINY).flops
    # the kernel computes the logits once more in its backward pass: three products against two
    assert case.backward is not None
    assert sum(work.flops for work in backward) * 3 / 2 == case.backward(TINY).flops


def test_a_contestant_that_fails_is_named_with_its_error_and_the_others_are_timed() -> None:
    case = CASES[0]
    limits = {"bytes_per_s": 1e10, "flops": 1e11}
    found = kernels.measure(case, TINY, torch.float32, torch.device("cpu"), limits)
    assert found["torch"]["forward"]["us"] > 0
    assert found["torch"]["backward"]["gb_s"] > 0

    def broken(*_: object) -> None:
        raise RuntimeError("no such symbol")

    assert kernels._attempt(case, TINY, broken, torch.float32, torch.device("cpu"), limits) == {
        "failed": "RuntimeError: no such symbol"
    }


def test_torch_compile_compiles_every_case_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, example_inputs: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    for case in CASES:
        run = kernels.contestants(case, torch.device("cuda"))["torch.compile"]
        inputs = case.inputs(TINY, torch.float32, torch.device("cpu"))
        with torch.no_grad():
            run(*inputs)
        forward = len(graphs)
        assert forward, case.name
        run(*inputs)
        assert case.backward is None or len(graphs) > forward, case.name
        graphs.clear()


def test_readme_s_table_is_that_of_the_committed_result() -> None:
    result = json.loads((RESULTS / "kernels.json").read_text(encoding="utf-8"))
    made = kernels.table(result, kernels.RESOURCES.read_text(encoding="utf-8"))
    assert made in (REPO / "README.md").read_text(encoding="utf-8"), "python benchmarks/kernels.py --table prints it"
    assert {row["kernel"] for row in result["predicted"]} == {case.name for case in CASES}


def test_a_kernel_s_resources_are_those_of_its_largest_configuration() -> None:
    text = (
        "# Title\n\n"
        "| configuration | warps | sm_80 registers | shared | occupancy | sm_90 registers | shared | occupancy |\n"
        "|---|---|---|---|---|---|---|---|\n"
        "| rms_norm forward 896 bf16 | 4 | 1 | 2 | 5% | 40 | 1024 | 75% |\n"
        "| rms_norm backward 896 bf16 | 4 | 1 | 2 | 5% | 38 | 3072 | 75% |\n"
        "| add_rms_norm forward 896 bf16 | 4 | 1 | 2 | 5% | 99 | 9999 | 75% |\n"
    )
    assert kernels.taken("rms_norm", text) == "40, 3 KiB"
