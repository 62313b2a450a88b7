"""What every benchmark shares: interleaved rounds, medians of their ratios, the machine's roof, result files."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from psychecore.model import products

RESULTS = Path(__file__).resolve().parent / "results"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MODEL = Path(__file__).resolve().parents[1] / ".models" / "SmolLM2-135M-Instruct"


def named(name: str, dtype: torch.dtype, device: torch.device) -> str:
    """What a result's file is called: a GPU's stands beside a CPU's and that of a CPU without bf16; another dtype than
    bf16 is named, and on the latter bf16 too."""
    slow = device.type == "cpu" and torch.bfloat16 in products.SLOW_ON_CPU
    place = "_gpu" if device.type == "cuda" else "_without_bf16" if slow else ""
    return name + place + (f"_{str(dtype).removeprefix('torch.')}" if slow or dtype != torch.bfloat16 else "")


def chosen_dtype(option: str) -> torch.dtype:
    """Of --dtype: by its name, or for "auto" what is fast here."""
    chosen: torch.dtype = products.fast_dtype(DEVICE) if option == "auto" else getattr(torch, option)
    return chosen


def race(contestants: Mapping[str, Callable[[], float]], rounds: int = 3) -> dict[str, list[float]]:
    """Run each contestant once to warm up, then `rounds` times in turn; each returns a rate (higher is better)."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            rate = run()
            if number:
                rates[name].append(rate)
            print(f"  {'warm-up' if not number else f'round {number}'}  {name:<28}{rate:10.1f}", flush=True)
    return rates


def summary(rates: Mapping[str, list[float]], ours: str) -> dict[str, Any]:
    """All rates, their medians, and how many times faster `ours` is than each other contestant.

    That is the median of the rounds' ratios: a machine that slows down from round to round slows both of a ratio.
    """
    ratios = {
        name: [our / their for our, their in zip(rates[ours], values, strict=True)]
        for name, values in rates.items()
        if name != ours
    }
    return {
        "rates": {name: [round(v, 2) for v in values] for name, values in rates.items()},
        "median": {name: round(statistics.median(values), 2) for name, values in rates.items()},
        "times_faster": {name: round(statistics.median(values), 2) for name, values in ratios.items()},
    }


def roof(dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Bytes a second of a large copy (read plus write) and FLOP/s of a large matrix product, here and now."""
    x = torch.ones((4096 if device.type == "cuda" else 512) * 2**18, device=device)  # no cache holds two of these
    y = torch.empty_like(x)
    side = 8192 if device.type == "cuda" else 2048
    a = products.wide(torch.randn(side, side, device=device).to(dtype))  # a GPU multiplies constants faster
    copy = min(timings(lambda: y.copy_(x), device, 5))
    product = min(timings(lambda: a @ a, device, 5))
    return {"bytes_per_s": 2 * x.nbytes / copy, "flops": 2 * side**3 / product}


def timings(work: Callable[[], Any], device: torch.device, repeats: int) -> list[float]:
    """Seconds of each of `repeats` runs; on CUDA of the GPU alone, with a cold cache and after one run to warm up."""
    if device.type != "cuda":
        return [_seconds(work) for _ in range(repeats)]
    work()
    flush = torch.empty(256 * 2**20, dtype=torch.int8, device=device)  # larger than any L2
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, stop in events:
        flush.zero_()
        torch.cuda._sleep(4_000_000)  # 2 ms, in which Python launches all of the work: the GPU doesn't wait for it
        start.record()
        work()
        stop.record()
    torch.cuda.synchronize(device)
    return [start.elapsed_time(stop) / 1e3 for start, stop in events]


def machine() -> dict[str, Any]:
    """What ran it, for the result file."""
    model = ""
    if Path("/proc/cpuinfo").exists():
        text = Path("/proc/cpuinfo").read_text()
        lines = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
        flags = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in text]
        model = f"{lines[0] if lines else platform.machine()} ({', '.join(flags)})"
    gpu = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda} if torch.cuda.is_available() else {}
    return gpu | {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": "python " + " ".join(sys.argv),
        "date": time.strftime("%Y-%m-%d"),
    }


def before(name: str, anew: Sequence[str], dtype: torch.dtype) -> dict[str, Any]:
    """The cases of an earlier result that are not measured anew."""
    return {case: row for case, row in comparable(name, dtype).get("cases", {}).items() if case not in anew}


def comparable(name: str, dtype: torch.dtype) -> dict[str, Any]:
    """benchmarks/results/NAME.json where this machine measured it today, in this dtype; else nothing."""
    result, here = read(name), machine()
    keys = ("gpu", "cpu", "torch", "threads", "date")
    same = all(result.get("machine", {}).get(key) == here.get(key) for key in keys)
    return result if same and str(dtype).endswith(str(result.get("dtype"))) else {}


def read(name: str) -> dict[str, Any]:
    """benchmarks/results/NAME.json, or nothing where it is not there."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def save(name: str, result: Mapping[str, Any]) -> None:
    """Write benchmarks/results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **result}, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {path}")


def synchronize() -> None:
    """Wait until the device has done all that it was given."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
