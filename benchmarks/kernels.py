"""Every Triton kernel: measured on a GPU, or predicted by the roofline where there is none.

    python benchmarks/kernels.py                       # all models; writes benchmarks/results/kernels.json
    python benchmarks/kernels.py --models Qwen2.5-7B   # one; minutes on a GPU
    python benchmarks/kernels.py --table               # README's tables, from the committed results

On a GPU, forward and backward apart: our kernel, the torch code that it replaces, torch.compile of that, and
liger-kernel, flash-attn and torch's SDPA where they are installed (kernel_peers.py). Medians by CUDA events with a cold
L2; GB/s and TFLOP/s are the kernel's necessary bytes and FLOPs (kernel_cases.py) over its time, as shares of a copy and
a matrix product measured in the same run. Without a GPU: the prediction (roofline.py), and the torch references timed
on the CPU at 256 tokens of the smallest model, which only says that they run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kernel_cases import CASES, KernelCase, Sizes, Work
from kernel_peers import peers
from measure import DEVICE, RESULTS, roof, save, timings
from roofline import predict
from torch import Tensor
from torch._functorch import config as functorch_config

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))
from plan import MODELS  # the built-in sizes of Qwen2.5

RESOURCES = Path(__file__).resolve().parents[1] / "kernels" / "resources.md"
CHOSEN = ("Qwen2.5-0.5B", "Qwen2.5-7B", "Qwen2.5-72B")
ON_CPU = Sizes("Qwen2.5-0.5B", MODELS["Qwen2.5-0.5B"], tokens=256, length=64, samples=8, prompt=64, itemsize=4)


def main(arguments: list[str] | None = None) -> None:
    """Measure or predict, and write the result after every kernel, so that an interrupted run leaves what it has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=CHOSEN)
    parser.add_argument("--name", default="kernels", help="of the result file")
    parser.add_argument("--table", action="store_true", help="print README's tables and leave")
    options = parser.parse_args(arguments)
    if options.table:
        print(measured_table(json.loads((RESULTS / "kernels_gpu.json").read_text(encoding="utf-8"))), end="\n\n")
        print(table(json.loads((RESULTS / "kernels.json").read_text(encoding="utf-8")), RESOURCES.read_text("utf-8")))
        return
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    functorch_config.donated_buffer = False  # backward is timed by running it again on one graph
    result: dict[str, Any] = {"unit": "us", "dtype": str(dtype), "roof": roof(dtype, DEVICE)}
    result["predicted"] = [predict(case, Sizes(name, MODELS[name])) for name in options.models for case in CASES]
    result["measured"] = []
    for sizes in [Sizes(name, MODELS[name]) for name in options.models] if DEVICE.type == "cuda" else [ON_CPU]:
        for case in CASES:
            row = {"kernel": case.name, "model": sizes.model, "device": DEVICE.type, "tokens": sizes.tokens}
            result["measured"].append(row | measure(case, sizes, dtype, DEVICE, result["roof"]))
            print(json.dumps(result["measured"][-1]), flush=True)
            save(options.name, result)


def measure(
    case: KernelCase, sizes: Sizes, dtype: torch.dtype, device: torch.device, limits: dict[str, float]
) -> dict[str, Any]:
    """Each contestant's median times; a contestant that fails is named with its error."""
    return {name: _attempt(case, sizes, run, dtype, device, limits) for name, run in contestants(case, device).items()}


def contestants(case: KernelCase, device: torch.device) -> dict[str, Callable[..., Any]]:
    """By name, each with the kernel's arguments; on a CPU the torch code alone."""
    torch_code = case.torch_code()
    if device.type != "cuda":
        return {"torch": torch_code}
    # all references are called by one lambda, whose 8 recompilations the first cases would use up: then it runs eagerly
    torch.compiler.reset()
    return {
        "psychecore": case.kernel(),
        "torch": torch_code,
        "torch.compile": torch.compile(torch_code),
    } | peers(case.name)


def _attempt(
    case: KernelCase,
    sizes: Sizes,
    run: Callable[..., Any],
    dtype: torch.dtype,
    device: torch.device,
    limits: dict[str, float],
) -> dict[str, Any]:
    try:
        return _time(case, sizes, run, dtype, device, limits)
    except Exception as error:  # a peer's failure, or memory that is too small for the unfused code, is a result too
        return {"failed": f"{type(error).__name__}: {error}"[:300]}
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _time(
    case: KernelCase,
    sizes: Sizes,
    run: Callable[..., Any],
    dtype: torch.dtype,
    device: torch.device,
    limits: dict[str, float],
) -> dict[str, Any]:
    repeats = 20 if device.type == "cuda" else 3
    inputs = case.inputs(sizes, dtype, device)
    with torch.no_grad():
        forward = timings(lambda: run(*inputs), device, repeats)
    row: dict[str, Any] = {"forward": _rates(forward, case.forward(sizes), limits)}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    out = run(*inputs)
    if case.backward is not None:
        outs = [x for x in case.results(inputs, out) if x.requires_grad]
        wanted = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
        slopes = [torch.ones_like(x) for x in outs]
        torch.autograd.grad(outs, wanted, slopes, retain_graph=True)
    if device.type == "cuda":  # of forward, and of backward where there is one
        row["peak_mib"] = round((torch.cuda.max_memory_allocated(device) - before) / 2**20, 1)
    if case.backward is not None:
        backward = timings(lambda: torch.autograd.grad(outs, wanted, slopes, retain_graph=True), device, repeats)
        row["backward"] = _rates(backward, case.backward(sizes), limits)
    return row


def _rates(times: list[float], work: Work, limits: dict[str, float]) -> dict[str, float]:
    median = statistics.median(times)
    return {
        "us": round(median * 1e6, 2),
        "gb_s": round(work.bytes / median / 1e9, 1),
        "tflop_s": round(work.flops / median / 1e12, 3),
        "share_of_copy": round(work.bytes / median / limits["bytes_per_s"], 3),
        "share_of_product": round(work.flops / median / limits["flops"], 3),
    }


def table(result: dict[str, Any], resources: str, model: str = "Qwen2.5-7B", chip: str = "H100-80") -> str:
    """Markdown: bytes, predicted time and gain of every kernel at one model's sizes, and what it takes of the GPU.

    resources: the text of kernels/resources.md, of which a kernel's largest configuration is shown.
    """
    lines = [
        "| kernel | forward | backward | torch, both | H100 at best | gain | of the step (torch) | registers, shared |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in (row for row in result["predicted"] if row["model"] == model):
        ways = [row[way] for way in ("forward", "backward") if way in row]
        size = [_size(way["bytes"]) for way in ways] + ["none"] * (2 - len(ways))
        found, replaced = row[chip], _size(sum(way["torch_bytes"] for way in ways))
        time, gain = _duration(found["us"]), found["gain"]
        lines.append(
            f"| {row['kernel']} | {size[0]} | {size[1]} | {replaced} | {time} | {gain:.1f} x | "
            f"{found['share_of_step']:.2%} ({found['torch_share_of_step']:.2%}) | {taken(row['kernel'], resources)} |"
        )
    return "\n".join(lines)


def measured_table(result: dict[str, Any]) -> str:
    """Markdown: microseconds of every kernel and of what else there is, and its share of the copy or product."""
    contestants = [*dict.fromkeys(name for row in result["measured"] for name in row if isinstance(row[name], dict))]
    lines = ["| kernel | " + " | ".join([*contestants[:1], "of the roof", *contestants[1:]]) + " |"]
    lines.append("|---" * (len(contestants) + 2) + "|")
    for row, way in itertools.product(result["measured"], ("forward", "backward")):
        times = {name: row[name][way] for name in contestants if way in row.get(name, {})}
        if "psychecore" not in times:
            continue
        cells = [_duration(times[name]["us"]) if name in times else "" for name in contestants]
        roof = max(times["psychecore"]["share_of_copy"], times["psychecore"]["share_of_product"])
        lines.append(f"| {row['kernel']} {way} | " + " | ".join([f"**{cells[0]}**", f"{roof:.0%}", *cells[1:]]) + " |")
    return "\n".join(lines)


def taken(kernel: str, resources: str, chip: str = "sm_90") -> str:
    """Most registers a thread and most shared memory of a kernel's configurations, where resources.md lists them."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in resources.splitlines() if line[:1] == "|"]
    column = next(i for i, title in enumerate(rows[0]) if title.startswith(chip))
    own = [row for row in rows[2:] if row[0].split()[0] == kernel]
    if not own:
        return "not compiled"
    registers, shared = (max(int(row[place]) for row in own) for place in (column, column + 1))
    return f"{registers}, {shared / 1024:.3g} KiB"


def _duration(microseconds: float) -> str:
    return f"{microseconds / 1e3:.3g} ms" if microseconds >= 1e3 else f"{microseconds:.3g} µs"


def _size(number: float) -> str:
    return f"{number / 1e9:.3g} GB" if number >= 1e9 else f"{number / 1e6:.3g} MB"


if __name__ == "__main__":
    main()
