"""Tokens a second of the sampler against transformers' generate and llama.cpp: same weights, prompts, threads, dtype.

    .venv-bench/bin/python benchmarks/rollouts.py                 # all cases, about 15 minutes on 2 cores
    .venv-bench/bin/python benchmarks/rollouts.py --cases one     # one, group32, group64, shared600, tail, growth

Each contestant samples at temperature 1 without filters; "llama.cpp greedy" takes the likeliest token, which costs it
no sampling. transformers gets its best: one static batch, left-padded, without a stop token where all samples have the
same length; in the long-tailed case static batches of as many sequences as the sampler has slots, each as long as its
longest member. llama.cpp, where llama-cpp-python is installed and the dtype is bf16, shares a group's prompt as we do.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import torch
from measure import MODEL, before, race, roof, save, summary
from transformers import AutoModelForCausalLM, GenerationConfig

import psychecore as pc
from psychecore.rollout.engine import Engine, Sample
from psychecore.runtime import fast_dtype

# prompts, samples of each, prompt tokens, new tokens, rounds
CASES = {
    "one": (1, 1, 100, 64, 3),
    "group32": (4, 8, 100, 128, 3),
    "group64": (8, 8, 100, 128, 2),
    "shared600": (4, 8, 600, 32, 3),
}
TAIL_SLOTS = 48
GROWTH = (1, 2, 4, 8, 16)  # prompts of 8 samples, 64 tokens each, on 32 slots
ALL = (*CASES, "tail", "growth")


def main() -> None:
    """Run the chosen cases and write benchmarks/results/rollouts.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=ALL, choices=ALL)
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float32"], default="auto")
    options = parser.parse_args()
    dtype = fast_dtype(torch.device("cpu")) if options.dtype == "auto" else getattr(torch, options.dtype)
    model, tokenizer = pc.load_model(MODEL, dtype), pc.load_tokenizer(MODEL)
    peer = AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype)  # a folder of ours, not a hub id # nosec
    limits = roof(dtype)
    weights = model.config.parameters * dtype.itemsize
    results: dict[str, Any] = before("rollouts", options.cases)
    shared = {"dtype": str(dtype), "unit": "new tokens / s, prefill included", "roof": limits, "cases": results}
    for name in options.cases:
        print(f"{name}:", flush=True)
        if name in ("tail", "growth"):
            results[name] = tail(model, tokenizer, peer) if name == "tail" else growth(model, tokenizer)
            save("rollouts", shared)
            continue
        prompts, samples, length, new, rounds = CASES[name]
        ids = prompt_ids(prompts, length)
        results[name] = summary(race(contestants(model, tokenizer, peer, ids, samples, new), rounds), "psychecore")
        steps = new * weights / limits["bytes_per_s"]  # every step reads every weight once
        flops = 2 * model.config.parameters * prompts * samples * new / limits["flops"]
        results[name]["share_of_roof"] = round(
            results[name]["median"]["psychecore"] * max(steps, flops) / (prompts * samples * new), 3
        )
        print(f"  {results[name]['times_faster']}, {results[name]['share_of_roof']:.0%} of the roof", flush=True)
        save("rollouts", shared)  # after each case: what is measured stays


def prompt_ids(prompts: int, length: int) -> list[list[int]]:
    """Random tokens: what they are changes no time, and no prompt shares a beginning with another."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(100, 40_000, (prompts, length), generator=generator).tolist()


def contestants(
    model: pc.Decoder, tokenizer: pc.Tokenizer, peer: Any, ids: list[list[int]], samples: int, new: int
) -> dict[str, Callable[[], float]]:
    """Functions that sample `new` tokens for every prompt and sample and return tokens per second."""
    total = len(ids) * samples
    sampler = pc.Sampler(model, tokenizer, max_slots=total)
    params = pc.SamplingParams(max_new_tokens=new, ignore_stop=True)

    def timed(work: Callable[[], Any]) -> Callable[[], float]:
        def run() -> float:
            start = time.perf_counter()
            work()
            return total * new / (time.perf_counter() - start)

        return run

    found = {
        "psychecore": timed(lambda: sampler.generate(ids, params, samples)),
        "transformers": timed(lambda: transformers_generate(peer, [r for r in ids for _ in range(samples)], new)),
    }
    if model.dtype == torch.bfloat16 and importlib.util.find_spec("llama_cpp"):
        from llama_cpp_peer import LlamaCpp

        llama = LlamaCpp(total, len(ids[0]) + new, torch.get_num_threads())
        found["llama.cpp"] = timed(lambda: llama.generate(ids, samples, new))
        if total <= 32:
            found["llama.cpp greedy"] = timed(lambda: llama.generate(ids, samples, new, temperature=0))
    return found


@torch.no_grad()
def transformers_generate(peer: Any, rows: list[list[int]], new: int) -> None:
    """Exactly `new` tokens for each row, which all have one length."""
    config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=new, min_new_tokens=new, pad_token_id=2
    )
    out = peer.generate(
        torch.tensor(rows), attention_mask=torch.ones(len(rows), len(rows[0])), generation_config=config
    )
    assert out.shape[1] == len(rows[0]) + new


@torch.no_grad()
def tail(model: pc.Decoder, tokenizer: pc.Tokenizer, peer: Any) -> dict[str, Any]:
    """16 prompts x 8 samples whose lengths follow a long tail from 16 to 512 tokens, 48 slots."""
    ids = prompt_ids(16, 100)
    generator = torch.Generator().manual_seed(1)
    lengths = (16 * 32 ** (torch.rand(128, generator=generator) ** 2)).long().tolist()
    params = pc.SamplingParams(max_new_tokens=512, ignore_stop=True)
    stats: list[float] = []

    def ours() -> float:
        waiting = [Sample(i // 8, i % 8, i, lengths[i]) for i in range(128)]
        engine = Engine(model, ids, waiting, params, TAIL_SLOTS, 16, sorted(tokenizer.stop_ids), tokenizer.valid_ids)
        start = time.perf_counter()
        total = sum(len(said.token_ids) for said in engine.run())
        assert total == sum(lengths)
        stats.append(engine.stats.occupancy)
        return total / (time.perf_counter() - start)

    def theirs() -> float:
        start = time.perf_counter()
        for first in range(0, 128, TAIL_SLOTS):
            part = range(first, min(first + TAIL_SLOTS, 128))
            transformers_generate(peer, [ids[i // 8] for i in part], max(lengths[i] for i in part))
        return sum(lengths) / (time.perf_counter() - start)

    result = summary(race({"psychecore": ours, "transformers": theirs}, 1), "psychecore")
    result["occupancy_while_work_waits"] = round(stats[-1], 3)
    print(f"  {result['times_faster']}, occupancy {stats[-1]:.1%}", flush=True)
    return result


def growth(model: pc.Decoder, tokenizer: pc.Tokenizer) -> dict[str, Any]:
    """Seconds by the number of samples, at 32 slots: linear, once the slots are full."""
    params = pc.SamplingParams(max_new_tokens=64, ignore_stop=True)
    sampler = pc.Sampler(model, tokenizer, max_slots=32)
    rows = []
    for prompts in (GROWTH[0], *GROWTH):  # the first one warms up
        ids, start = prompt_ids(prompts, 100), time.perf_counter()
        sampler.generate(ids, params, 8)
        rows.append({"samples": 8 * prompts, "seconds": round(time.perf_counter() - start, 3)})
        print(f"  {rows[-1]}", flush=True)
    return {"rows": rows[1:]}


if __name__ == "__main__":
    main()
