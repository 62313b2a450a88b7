"""Extra memory and time of the loss: token_logprobs against the plain head, log-softmax and gather.

    python benchmarks/loss_memory.py                                   # V = 151,936, D = 896, 4,096 tokens
    python benchmarks/loss_memory.py --growth                          # and how both grow with tokens and vocabulary

Every measurement is a process of its own: its peak resident memory after forward and backward, less what it had with
the inputs and their gradients in place.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measure import comparable, named, save

from psychecore.model.products import fast_dtype
from psychecore.train.token_logprobs import token_logprobs

CPU = torch.device("cpu")
GROWTH = [(t, v) for v in (37_984, 75_968, 151_936) for t in (1024, 2048, 4096)]


def main() -> None:
    """Measure and write benchmarks/results/loss_memory.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--width", type=int, default=896)
    parser.add_argument("--growth", action="store_true", help="also other sizes")
    parser.add_argument("--worker", choices=["naive", "psychecore"], help="(internal) measure one way in this process")
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(options.worker, options.tokens, options.vocabulary, options.width)))
        return
    dtype = fast_dtype(CPU)
    file = named("loss_memory", dtype, CPU)
    earlier = comparable(file, dtype)
    result: dict[str, Any] = {"dtype": str(dtype), "main": compare(options.tokens, options.vocabulary, options.width)}
    if options.growth:
        result["growth"] = [compare(tokens, vocabulary, options.width) for tokens, vocabulary in GROWTH]
    elif "growth" in earlier:
        result["growth"] = earlier["growth"]
    save(file, result)


def compare(tokens: int, vocabulary: int, width: int) -> dict[str, Any]:
    """Both ways at one size, the naive one first."""
    row: dict[str, Any] = {"tokens": tokens, "vocabulary": vocabulary, "width": width}
    for way in ("naive", "psychecore"):
        flags = [f"--{name}={value}" for name, value in row.items() if name in ("tokens", "vocabulary", "width")]
        done = subprocess.run([sys.executable, __file__, "--worker", way, *flags], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{way}: {done.stderr}")
        row[way] = json.loads(done.stdout)
    row["memory_share"] = round(row["psychecore"]["extra_mib"] / row["naive"]["extra_mib"], 4)
    row["time_ratio"] = round(row["psychecore"]["seconds"] / row["naive"]["seconds"], 3)
    print(json.dumps(row), flush=True)
    return row


def measure(way: str, tokens: int, vocabulary: int, width: int) -> dict[str, float]:
    """Peak extra MiB of one forward and backward, then the best seconds of three."""
    dtype = fast_dtype(CPU)
    torch.manual_seed(0)
    hidden_TD = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
    head_VD = (torch.randn(vocabulary, width) * width**-0.5).to(dtype).requires_grad_()
    labels_T = torch.randint(vocabulary, (tokens,))
    for x in (hidden_TD, head_VD):
        x.grad = torch.zeros_like(x)  # gradients have to be somewhere either way
    (torch.ones(64, 64, dtype=dtype) @ torch.ones(64, 64, dtype=dtype)).sum()
    before = resident("VmRSS")
    reset_peak()
    seconds = [step(way, hidden_TD, head_VD, labels_T)]
    extra = resident("VmHWM") - before
    seconds += [step(way, hidden_TD, head_VD, labels_T) for _ in range(2)]
    return {"extra_mib": round(extra, 1), "seconds": round(min(seconds), 3)}


def step(way: str, hidden_TD: torch.Tensor, head_VD: torch.Tensor, labels_T: torch.Tensor) -> float:
    """One forward and backward of the mean log-prob; returns seconds."""
    start = time.perf_counter()
    if way == "psychecore":
        logprobs_T, _ = token_logprobs(hidden_TD, head_VD, labels_T)
    else:
        table_TV = (hidden_TD @ head_VD.T).float().log_softmax(-1)
        logprobs_T = table_TV.gather(1, labels_T[:, None])[:, 0]
    (-logprobs_T.mean()).backward()
    return time.perf_counter() - start


def resident(field: str) -> float:
    """MiB of this process, now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def reset_peak() -> None:
    """Start VmHWM anew from the present size."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
