"""The gate's ranks: two of FSDP2 that share one device, against one, by what a run on several GPUs does.

NCCL wants a GPU for every rank, so collectives go through gloo and host memory here. All else is as on several GPUs:
shards, gathers beside compute, kernels on gathered weights, clipping, rollouts with CUDA graphs on every rank's own
share of the prompts, the exchange of groups, a reference in shards.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from gate_parts import Found, GateError, Letters, differences, shape, within
from safetensors.torch import load_file, save_file
from torch import Tensor

import psychecore as pc
from psychecore.data.stream import share
from psychecore.runtime import Runtime
from psychecore.text.tokenizer import Encoded
from psychecore.train.grpo import GrpoConfig, grpo_update
from psychecore.train.losses import LossConfig
from psychecore.train.optimizer import Optimizer, OptimizerConfig
from psychecore.train.sft import SftConfig, sft_step
from psychecore.train.sharding import ShardingConfig, gathered, make_mesh, sharder

RANKS, PROMPTS, SAMPLES = 2, 5, 4
# all parameters pass through host memory some fifty times
SMALL = {"layers": 2, "vocab_size": 2000, "width": 448, "query_heads": 7, "key_value_heads": 1}
LIMITS = {"float32": 1e-3, "bfloat16": 0.1}  # of the largest update of a parameter; a rank that is forgotten makes 0.5


def ranks(device: torch.device, rehearsal: bool) -> Found:
    """An SFT step, rollouts, and a GRPO update with a reference at two ranks, against the same at one."""
    with tempfile.TemporaryDirectory() as folder:
        for world_size in (1, RANKS):
            start(world_size, Path(folder), str(device), rehearsal)
        found = {dtype: compare(Path(folder), dtype) for dtype in LIMITS}
    for dtype, row in found.items():
        if not within(row["gaps"].values(), LIMITS[dtype]) or row["agreed"] < 0.2:
            raise GateError(f"two ranks differ from one: {found}")
        gap, limit = ("largest", 1e-3) if dtype == "float32" else ("mean", 0.05)  # as in gate_parts.sampler
        if not within([row[f"{gap}_logprob_gap"]], limit):
            raise GateError(f"log-probs of two ranks differ from one's: {found}")
    return found


def start(world_size: int, folder: Path, device: str, rehearsal: bool) -> None:
    """Run the ranks to their end; one that fails is an error here, and ends the others."""
    context = multiprocessing.get_context("spawn")
    arguments = (world_size, folder, device, rehearsal)
    children = [context.Process(target=rank, args=(number, *arguments)) for number in range(world_size)]
    for child in children:
        child.start()
    try:
        while any(child.is_alive() for child in children):
            for child in children:
                child.join(0.2)
            if any(child.exitcode for child in children):
                break
        if any(child.exitcode for child in children):
            raise GateError(f"{world_size} ranks ended with {[child.exitcode for child in children]}")
    finally:
        for child in children:
            child.kill()
            child.join()


def rank(number: int, world_size: int, folder: Path, device: str, rehearsal: bool) -> None:
    """What one process does: the work in each dtype; every rank writes its shards and its samples."""
    store = dist.FileStore(str(folder / f"store-{world_size}"), world_size)
    dist.init_process_group("gloo", store=store, rank=number, world_size=world_size)
    if device == "cuda":
        torch.cuda.set_device(0)
    try:
        place = Runtime(number, world_size, torch.device(device))
        for dtype in LIMITS:
            tensors, groups = work(place, getattr(torch, dtype), rehearsal)
            save_file(tensors, folder / f"{dtype}-{world_size}-{number}.safetensors")
            (folder / f"{dtype}-{world_size}-{number}.json").write_text(json.dumps(groups), encoding="utf-8")
    finally:
        dist.destroy_process_group()


def work(place: Runtime, dtype: torch.dtype, rehearsal: bool) -> tuple[dict[str, Tensor], list[Any]]:
    """Both updates of the weights, as UPDATE/NAME, and the rollouts between them, of this rank's prompts."""
    mesh = make_mesh(ShardingConfig(), place.world_size, place.device)

    def model(trained: bool) -> pc.Decoder:
        one = pc.Decoder(shape(rehearsal, **({} if rehearsal else SMALL))).initialise(0, std=0.05)
        one = one.to(place.device, torch.float32 if trained else dtype)
        sharder(mesh, dtype, cast=trained)(one)
        return one

    policy, reference = model(True), model(False).requires_grad_(False)
    policy.checkpoint_activations = True
    # eps 1: the update follows the gradient, while AdamW's sign of a gradient of about 0 is chance
    optimizer = Optimizer(policy, OptimizerConfig(lr=1.0, eps=1.0), 2)
    before = held(policy)
    mine = share(range(PROMPTS), place.rank, place.world_size)
    ids = [[(7 * i + 31 * p) % 199 + 1 for i in range(40 + 9 * p)] for p in range(PROMPTS)]
    rows = [Encoded(ids[p], [i >= 10 for i in range(len(ids[p]))], "") for p in mine]
    sft_step(policy, optimizer, rows, SftConfig(PROMPTS, token_budget=128), place)
    between = held(policy)
    letters: Any = Letters(policy.config.vocab_size)
    sampler = pc.Sampler(policy, letters, cuda_graphs=place.device.type == "cuda")
    params = pc.SamplingParams(max_new_tokens=8 if rehearsal else 64, ignore_stop=True, seed=1)
    with gathered(policy):
        groups = sampler.generate([ids[p] for p in mine], params, SAMPLES, prompt_keys=mine)
    found = [[[r.token_ids, r.logprobs] for r in group.rollouts] for group in groups]
    # rounding may flip a draw, so the update is on answers that are the same at any number of ranks
    fixed = [
        pc.Group(ids[p], [pc.Rollout(ids[p][g:20], [-5.0] * (20 - g), "", "length") for g in range(SAMPLES)])
        for p in mine
    ]
    advantages_PG = torch.tensor([[(g - 1.5) * (1 + p) for g in range(SAMPLES)] for p in mine])
    config = GrpoConfig(PROMPTS, SAMPLES, 1, token_budget=128, loss=LossConfig(kl_coefficient=0.1))
    grpo_update(policy, optimizer, fixed, advantages_PG, config, place, reference=reference)
    updates = {f"sft/{path}": between[path] - old for path, old in before.items()}
    return updates | {f"grpo/{path}": new - between[path] for path, new in held(policy).items()}, found


def held(model: pc.Decoder) -> dict[str, Tensor]:
    """This rank's shards, in host memory."""
    return {path: p.to_local().detach().cpu().clone() for path, p in model.named_parameters()}  # type: ignore[attr-defined]


def compare(folder: Path, dtype: str) -> Found:
    """The largest gaps between updates, in units of the parameter's largest; how far the rollouts agree."""
    gaps: dict[str, list[float]] = {}
    one, *several = (
        load_file(folder / f"{dtype}-{world_size}-{number}.safetensors")
        for world_size in (1, RANKS)
        for number in range(world_size)
    )
    for name, wanted in one.items():
        gap = (torch.cat([shards[name] for shards in several]) - wanted).abs().max() / wanted.abs().max()
        gaps.setdefault(name.partition("/")[0], []).append(float(gap))
    alone, together = list(read(folder, dtype, 1)), list(read(folder, dtype, RANKS))
    same, off = differences(alone, together)
    new = sum(len(rollout.token_ids) for group in alone for rollout in group.rollouts)
    largest = {kind: float(torch.tensor(row).max()) for kind, row in gaps.items()}  # NaN stays NaN
    found: Found = {"gaps": largest, "same": same, "of": PROMPTS * SAMPLES, "agreed": len(off) / new}
    gaps_T = torch.tensor(off or [torch.inf], dtype=torch.float64)
    return found | {"largest_logprob_gap": float(gaps_T.max()), "mean_logprob_gap": float(gaps_T.mean())}


def read(folder: Path, dtype: str, world_size: int) -> Iterator[pc.Group]:
    """All ranks' rollouts in the order of the prompts."""
    parts = [json.loads((folder / f"{dtype}-{world_size}-{r}.json").read_text()) for r in range(world_size)]
    for p in range(PROMPTS):
        rows = parts[p % world_size][p // world_size]
        yield pc.Group([], [pc.Rollout(token_ids, logprobs, "", "length") for token_ids, logprobs in rows])
