"""Tokens a second of the sampler against transformers' generate and llama.cpp: same weights, prompts, threads, dtype.

    .venv-bench/bin/python benchmarks/rollouts.py                 # all cases, about 15 minutes on 2 cores
    .venv-bench/bin/python benchmarks/rollouts.py --cases one     # one, group32, group64, shared600, tail, growth

Each contestant is a process of its own, with its own malloc, and they take turns; on CPU psychecore's prefill is
compiled (`--model.compile true` in the recipes), its decoding step is not. Each samples at temperature 1
without filters; "llama.cpp greedy" takes the likeliest token, which costs it no sampling. transformers gets its best:
one static batch, left-padded, without a stop token where all samples have the same length; in the long-tailed case
static batches of as many sequences as the sampler has slots, each as long as its longest member. llama.cpp, where
llama-cpp-python is installed and the dtype is bf16, shares a group's prompt as we do. Where there is a GPU, psychecore
and transformers run on it, psychecore with its CUDA graphs, transformers as it comes, without torch.compile; the result
is rollouts_gpu.json.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import torch
from measure import DEVICE, MODEL, before, chosen_dtype, named, race, roof, save, summary, synchronize

import psychecore as pc
from psychecore.model import compiler
from psychecore.rollout.engine import Engine, Sample
from psychecore.train.metrics import training_flops


class Case(NamedTuple):
    """Prompts of one length, samples of each, tokens to sample for every one."""

    prompts: int
    samples: int
    length: int
    new: int
    rounds: int

    @property
    def total(self) -> int:
        """Sequences."""
        return self.prompts * self.samples

    @property
    def ids(self) -> list[list[int]]:
        """Random tokens: what they are changes no time, and no prompt shares a beginning with another."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(100, 40_000, (self.prompts, self.length), generator=generator).tolist()


CASES = {
    "one": Case(1, 1, 100, 64, 7),
    "group32": Case(4, 8, 100, 128, 3),
    "group64": Case(8, 8, 100, 128, 2),
    "shared600": Case(4, 8, 600, 32, 3),
}
TAIL, TAIL_SLOTS = Case(16, 8, 100, 512, 1), 48  # lengths follow a long tail from 16 to 512 tokens
GROWTH = (1, 2, 4, 8, 16)  # prompts of 8 samples, 64 tokens each, on 32 slots
ALL = (*CASES, "tail", "growth")


def main() -> None:
    """Run the chosen cases and write benchmarks/results/rollouts.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=ALL, choices=ALL)
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float32"], default="auto")
    parser.add_argument("--rounds", type=int, help="counted, of the cases of one length; their own number by default")
    options = parser.parse_args()
    dtype = chosen_dtype(options.dtype)
    file = named("rollouts", dtype, DEVICE)
    results: dict[str, Any] = before(file, options.cases, dtype)
    shared = {"dtype": str(dtype), "unit": "new tokens / s, prefill included", "cases": results}
    with contextlib.closing(Lanes(dtype)) as lanes:
        for name in options.cases:
            print(f"{name}:", flush=True)
            if name == "growth":
                results[name] = lanes.run("psychecore", growth)
            elif name == "tail":
                results[name] = tail(lanes)
            else:
                case = CASES[name]
                results[name] = one_length(lanes, case._replace(rounds=options.rounds or case.rounds))
            print(f"  { {k: v for k, v in results[name].items() if k not in ('rates', 'rows')} }", flush=True)
            save(file, shared)  # after each case: what is measured stays


class Lanes:
    """A process for each contestant, which keeps its model; a contestant's turn runs in its process."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self.context = multiprocessing.get_context("spawn")
        self.pools: dict[str, ProcessPoolExecutor] = {}

    def run(self, who: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """`work(dtype, *arguments)` in the process of `who`."""
        if who not in self.pools:
            self.pools[who] = ProcessPoolExecutor(1, self.context)
        return self.pools[who].submit(work, self.dtype, *arguments).result()

    def turn(self, who: str, work: Callable[..., Any], *arguments: Any) -> Callable[[], float]:
        """The same, for a race."""
        return lambda: self.run(who, work, *arguments)

    def close(self) -> None:
        """End the processes."""
        for pool in self.pools.values():
            pool.shutdown()


def one_length(lanes: Lanes, case: Case) -> dict[str, Any]:
    """All contestants on one case, and how near the sampler comes to what the machine could do."""
    turns = {
        "psychecore": lanes.turn("psychecore", ours, case),
        "transformers": lanes.turn("transformers", theirs, case),
    }
    if DEVICE.type == "cpu" and lanes.dtype == torch.bfloat16 and importlib.util.find_spec("llama_cpp"):
        turns["llama.cpp"] = lanes.turn("llama.cpp", llama_cpp, case, 1.0)
        if case.total <= 32:
            turns["llama.cpp greedy"] = lanes.turn("llama.cpp", llama_cpp, case, 0.0)
    result, limits = summary(race(turns, case.rounds), "psychecore"), roof(lanes.dtype, DEVICE)
    share = result["median"]["psychecore"] * least_seconds(case, lanes.dtype, limits) / (case.total * case.new)
    return result | {"roof": limits, "share_of_roof": round(share, 3)}


def least_seconds(case: Case, dtype: torch.dtype, limits: dict[str, float]) -> float:
    """What the machine needs to read every weight once a step, or for the FLOPs, whichever is longer.

    A prompt is computed once, a sample's last token never, and the head for every token that is sampled.
    """
    config = pc.ModelConfig.from_folder(MODEL)
    computed = case.prompts * case.length + case.total * (case.new - 1)
    flops = training_flops(config, computed, case.total * case.new) / 3  # forward is a third of it
    return max(case.new * config.parameters * dtype.itemsize / limits["bytes_per_s"], flops / limits["flops"])


def tail(lanes: Lanes) -> dict[str, Any]:
    """Continuous against static batches, and how full the slots were."""
    turns = {who: lanes.turn(who, work) for who, work in (("psychecore", ours_tail), ("transformers", theirs_tail))}
    result = summary(race(turns, TAIL.rounds), "psychecore")
    return result | {"occupancy_while_work_waits": round(lanes.run("psychecore", occupancy), 3)}


# What follows runs in a contestant's own process.


@functools.cache
def our_model(dtype: torch.dtype) -> tuple[pc.Decoder, pc.Tokenizer]:
    """Loaded once."""
    compiler.use(DEVICE.type == "cpu")
    return pc.load_model(MODEL, dtype, DEVICE), pc.load_tokenizer(MODEL)


@functools.cache
def their_model(dtype: torch.dtype) -> Any:
    """Loaded once."""
    from transformers import AutoModelForCausalLM

    peer = AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype)  # a folder of ours, not a hub id # nosec
    return peer.to(DEVICE)


@functools.lru_cache(1)
def our_sampler(dtype: torch.dtype, slots: int) -> pc.Sampler:
    """A sampler, kept as long as the case has turns."""
    return pc.Sampler(*our_model(dtype), max_slots=slots)


@functools.lru_cache(1)
def llama(total: int, length: int) -> Any:
    """A context, kept as long as the case has turns."""
    from llama_cpp_peer import LlamaCpp

    return LlamaCpp(total, length, torch.get_num_threads())


def rate(case: Case, work: Callable[[], Any]) -> float:
    """Tokens a second of what samples a case."""
    start = time.perf_counter()
    work()
    return case.total * case.new / (time.perf_counter() - start)


def ours(dtype: torch.dtype, case: Case) -> float:
    """Tokens a second of the sampler."""
    sampler, ids = our_sampler(dtype, case.total), case.ids
    params = pc.SamplingParams(max_new_tokens=case.new, ignore_stop=True)
    return rate(case, lambda: sampler.generate(ids, params, case.samples))


def theirs(dtype: torch.dtype, case: Case) -> float:
    """Tokens a second of transformers' generate."""
    peer, rows = their_model(dtype), [row for row in case.ids for _ in range(case.samples)]
    return rate(case, lambda: transformers_generate(peer, rows, case.new))


def llama_cpp(dtype: torch.dtype, case: Case, temperature: float) -> float:
    """Tokens a second of llama.cpp."""
    peer, ids = llama(case.total, case.length + case.new), case.ids
    return rate(case, lambda: peer.generate(ids, case.samples, case.new, temperature))


@torch.no_grad()
def transformers_generate(peer: Any, rows: list[list[int]], new: int) -> None:
    """Exactly `new` tokens for each row, which all have one length; done when it returns."""
    from transformers import GenerationConfig

    config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=new, min_new_tokens=new, pad_token_id=2
    )
    ids_BS = torch.tensor(rows, device=DEVICE)
    out = peer.generate(ids_BS, attention_mask=torch.ones_like(ids_BS), generation_config=config)
    synchronize()
    assert out.shape[1] == len(rows[0]) + new


def tail_lengths() -> list[int]:
    """New tokens of each sample of TAIL."""
    generator = torch.Generator().manual_seed(1)
    return (16 * 32 ** (torch.rand(TAIL.total, generator=generator) ** 2)).long().tolist()


occupancies: list[float] = []


def occupancy(dtype: torch.dtype) -> float:
    """The share of slots in use until no sample waited, in the last turn of `ours_tail`."""
    return occupancies[-1]


@torch.no_grad()
def ours_tail(dtype: torch.dtype) -> float:
    """Tokens a second of the engine on samples of many lengths: `Sampler` has one limit for all."""
    model, tokenizer = our_model(dtype)
    lengths = tail_lengths()
    waiting = [Sample(i // TAIL.samples, i % TAIL.samples, i, lengths[i]) for i in range(TAIL.total)]
    params = pc.SamplingParams(max_new_tokens=TAIL.new, ignore_stop=True)
    stops = sorted(tokenizer.stop_ids)
    capture = our_sampler(dtype, TAIL_SLOTS)._capture()
    engine = Engine(model, TAIL.ids, waiting, params, TAIL_SLOTS, TAIL.prompts, stops, tokenizer.valid_ids, capture)
    start = time.perf_counter()
    total = sum(len(said.token_ids) for said in engine.run())
    assert total == sum(lengths)
    occupancies.append(engine.stats.occupancy)
    return total / (time.perf_counter() - start)


def theirs_tail(dtype: torch.dtype) -> float:
    """Tokens a second of static batches."""
    peer, lengths, ids = their_model(dtype), tail_lengths(), TAIL.ids
    start = time.perf_counter()
    for first in range(0, TAIL.total, TAIL_SLOTS):
        part = range(first, min(first + TAIL_SLOTS, TAIL.total))
        transformers_generate(peer, [ids[i // TAIL.samples] for i in part], max(lengths[i] for i in part))
    return sum(lengths) / (time.perf_counter() - start)


def growth(dtype: torch.dtype) -> dict[str, Any]:
    """Seconds by the number of samples, at 32 slots: linear, once the slots are full."""
    params = pc.SamplingParams(max_new_tokens=64, ignore_stop=True)
    sampler = pc.Sampler(*our_model(dtype), max_slots=32)
    rows = []
    for prompts in (GROWTH[0], *GROWTH):  # the first one warms up
        ids, start = Case(prompts, 8, 100, 64, 1).ids, time.perf_counter()
        sampler.generate(ids, params, 8)
        rows.append({"samples": 8 * prompts, "seconds": round(time.perf_counter() - start, 3)})
        print(f"  {rows[-1]}", flush=True)
    return {"rows": rows[1:]}


if __name__ == "__main__":
    main()
