"""Where psychecore's time goes on CPU, and which targets torch's own calls leave in reach.

    .venv-bench/bin/python benchmarks/where_time_goes.py               # after rollouts.py and training_step.py
    .venv-bench/bin/python benchmarks/where_time_goes.py --cases one   # one, group32, group64, shared600, grpo, sft
    .venv-bench/bin/python benchmarks/where_time_goes.py --conversations counsel_chat.jsonl    # which sft needs

A case is timed, then run once more under torch's profiler, which adds up the calls by kind: products of matrices, the
attention kernel, other operators. What is left of the time without the profiler is Python, compiled passes, and what
operators cost beside the profiler's clock (which slows them, so that it may be negative). `roof` is the time to read
the weights once a step or to do the FLOPs, at rates measured after the case. `bound` is how many times faster than a
peer, by the race that this machine ran on the same day, psychecore would be if the products and the attention kernel
alone took time: where that is below a target, nothing that changes around them reaches it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rollouts
import torch
from measure import DEVICE, before, chosen_dtype, comparable, named, roof, save
from torch.profiler import ProfilerActivity, profile
from training_step import encoded, grpo_stepper, sft_stepper

PRODUCTS = ("mm", "addmm", "addmm_", "mv", "addmv", "addmv_", "bmm", "baddbmm", "baddbmm_")
SDPA = "_scaled_dot_product_flash_attention_for_cpu"
KINDS = dict.fromkeys(PRODUCTS, "products") | dict.fromkeys((SDPA, f"{SDPA}_backward"), "attention")
ALL = (*rollouts.CASES, "grpo", "sft")


def main() -> None:
    """Profile the chosen cases and write benchmarks/results/where_time_goes.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", choices=ALL, help="all by default, sft only with --conversations")
    parser.add_argument("--conversations", type=Path, help="sft: JSONL of {question, answer} or {messages}")
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float32"], default="auto")
    options = parser.parse_args()
    if DEVICE.type != "cpu":
        print("no profile: this is of a CPU's time; a GPU's is in gpu_steps.py")
        return
    chosen = options.cases or [case for case in ALL if case != "sft" or options.conversations]
    if ("sft" in chosen) != bool(options.conversations):
        parser.error("sft needs --conversations, and --conversations needs sft among the cases")
    if options.conversations and not options.conversations.is_file():
        parser.error(f"--conversations: {options.conversations} is no file")
    dtype = chosen_dtype(options.dtype)
    file = named("where_time_goes", dtype, DEVICE)
    cases: dict[str, Any] = before(file, chosen, dtype)
    for name in chosen:
        if name in ("grpo", "sft"):
            row = spent(training(name, dtype, options.conversations))
            race = comparable(named(f"{name}_step", dtype, DEVICE), dtype)
        else:
            case = rollouts.CASES[name]
            row = spent(lambda: case.total * case.new / rollouts.ours(dtype, case))  # noqa: B023
            race = before(named("rollouts", dtype, DEVICE), (), dtype).get(name, {})
            limits = roof(dtype, DEVICE)
            row |= {"roof": limits, "roof_s": round(rollouts.least_seconds(case, dtype, limits), 3)}
        share = (row["products_s"] + row["attention_s"]) / row["all_s"]
        row["bound"] = {who: round(ratio / share, 2) for who, ratio in race.get("times_faster", {}).items()}
        cases[name] = row
        print(f"{name}: {row}", flush=True)
        save(file, {"dtype": str(dtype), "unit": "seconds", "cases": cases})


def training(name: str, dtype: torch.dtype, conversations: Path) -> Callable[[], float]:
    """The next step of GRPO or SFT; its seconds. Three times: what warms up, what is timed and what is profiled."""
    numbers = iter(range(3))
    if name == "grpo":
        grpo = grpo_stepper(dtype, 3)
        return lambda: sum(grpo(next(numbers)))
    sft = sft_stepper(dtype, encoded(conversations, 1) * 3)  # of the same conversations
    return lambda: sft(next(numbers))


def spent(work: Callable[[], float]) -> dict[str, Any]:
    """Seconds of a run and of its parts; `work` tells how long it took, and its first run warms up."""
    work()
    seconds = work()
    with profile(activities=[ProfilerActivity.CPU]) as run:
        work()
    parts = {"products": 0.0, "attention": 0.0, "others": 0.0}
    for event in run.key_averages():
        library, _, operator = event.key.partition("::")
        if library == "aten":
            parts[KINDS.get(operator, "others")] += event.self_cpu_time_total / 1e6
    parts["left"] = seconds - sum(parts.values())
    return {f"{part}_s": round(value, 3) for part, value in {"all": seconds, **parts}.items()}


if __name__ == "__main__":
    main()
