"""From a recipe's configuration to its memory plan, what would make it fit, and the warning before a run that can't.

recipes/plan.py prints it; sft.py and grpo.py call warn_if_too_large before they load a model.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import compute_dtype

from psychecore.model.attention import resolve_backend
from psychecore.model.config import ModelConfig
from psychecore.model.decoder import Decoder
from psychecore.model.pretrained import local_folder
from psychecore.rollout.engine import PREFILL_TOKENS, SPAN
from psychecore.rollout.sampler import Sampler
from psychecore.rollout.sampling import SamplingParams
from psychecore.runtime import Runtime
from psychecore.train.plan import GIB, MicroBatch, Plan, RolloutPlan, host_bytes, peak

EVALUATION_PROMPT = 512  # tokens of a held-out question's prompt, where the recipe has no bound
MOST_RANKS = 1024


def plan_run(config: Any, model: ModelConfig, ranks: int, compute: torch.dtype, flash: bool) -> Plan:
    """The plan of an SftRecipe or a GrpoRecipe: its longest sequences, its fullest micro-batch, its widest rollouts."""
    grpo = hasattr(config, "sampling")
    plan = Plan(
        model=model,
        compute=compute,
        world_size=ranks,
        sharding=config.sharding,
        checkpoint_activations=config.model.checkpoint_activations,
        flash=flash,
        micro_batch=_grpo_batch(config, ranks) if grpo else _sft_batch(config, ranks),
    )
    if grpo:
        train, params = config.train, config.sampling.params
        rollouts = _rollouts(
            plan,
            prompts=math.ceil(train.prompts_per_step / ranks),
            samples=train.samples_per_prompt,
            prompt=config.data.max_prompt_tokens,
            params=params,
            max_slots=config.sampling.max_slots,
            memory_gib=config.sampling.memory_gib,
            graphs=config.sampling.cuda_graphs is not False,
        )
        reference = "none" if train.loss.kl_coefficient == 0 else config.reference.device
        return replace(plan, rollouts=rollouts, reference=reference)
    if config.evaluation.files:  # SFT samples for its held-out accuracy only, with 64 slots
        params = SamplingParams(temperature=0, max_new_tokens=config.evaluation.max_new_tokens)
        prompt = max(1, min(EVALUATION_PROMPT, plan.model.context_length - params.max_new_tokens))
        return replace(plan, rollouts=_rollouts(plan, 64, 1, prompt, params, 64, None))
    return plan


def _sft_batch(config: Any, ranks: int) -> MicroBatch:
    """Conversations of the greatest length, every token a label."""
    train = config.train
    available = math.ceil(train.batch_size / ranks) * train.max_length
    tokens = min(max(train.token_budget, train.max_length), available)
    return MicroBatch(tokens, tokens, accumulates=available > tokens)


def _grpo_batch(config: Any, ranks: int) -> MicroBatch:
    """Groups of the longest prompt and samples of the greatest length, a group over the budget split."""
    train, prompt, answer = config.train, config.data.max_prompt_tokens, config.sampling.params.max_new_tokens
    together = max(1, min(train.samples_per_prompt, (train.token_budget - prompt) // answer))
    piece, keys = prompt + together * answer, prompt + together * (prompt + answer)
    groups = math.ceil(math.ceil(train.prompts_per_step / train.mini_batches) / ranks)
    available = groups * math.ceil(train.samples_per_prompt / together) * piece
    tokens = min(max(train.token_budget, piece), available)
    share = tokens / piece  # pieces, not rounded: shorter ones fill the rest of the budget
    labels = int(share * together * answer)
    return MicroBatch(tokens, labels, int(share * keys), accumulates=available > tokens)


def _rollouts(
    plan: Plan,
    prompts: int,
    samples: int,
    prompt: int,
    params: SamplingParams,
    max_slots: int,
    memory_gib: float | None,
    graphs: bool = True,
) -> RolloutPlan:
    """Slots and rows as the sampler itself plans them, for prompts of the greatest length."""
    with torch.device("meta"):
        model = Decoder(replace(plan.model, layers=1))
    model.config = plan.model  # the sampler reads the shape only
    model.set_compute_dtype(plan.compute)
    sampler = Sampler(model, None, max_slots, prompt + params.max_new_tokens, memory_gib)
    slots, rows = sampler._plan([range(prompt)] * min(prompts, 2 * max_slots + 8), params, samples)  # more get no row
    return RolloutPlan(
        slots=slots,
        rows=rows,
        prompt_length=-(-prompt // SPAN) * SPAN,
        answer_length=-(-params.max_new_tokens // SPAN) * SPAN,
        prefill_tokens=min(max(PREFILL_TOKENS // prompt, 1), rows) * prompt,
        graphs=graphs,
        filtered=params.temperature not in (0, 1) or params.top_p < 1 or params.top_k > 0 or params.min_p > 0,
    )


def ways_out(config: Any, plan: Plan, available: float) -> list[str]:
    """Changes of a run that exceeds `available` bytes a rank: each alone would make it fit, or else all of the last
    line together; empty where nothing does."""

    def fits(changed: Any, ranks: int = plan.world_size) -> bool:
        try:
            return sum(peak(plan_run(changed, plan.model, ranks, plan.compute, plan.flash))[1].values()) <= available
        except ValueError:  # a cache bound that holds no sequence, ranks that the replicas don't divide
            return False

    found = []
    smallest: dict[str, tuple[str, Any]] = {}
    for name, text, changed in _changes(config, plan):
        smallest[name] = (text, changed)
        if fits(changed) and not any(line.startswith(name) for line in found):
            found.append(text)
    ranks = plan.world_size * 2
    while ranks <= MOST_RANKS and not fits(config, ranks):
        ranks *= 2
    if ranks <= MOST_RANKS:
        found.append(f"{ranks} ranks")
    if found:
        return found
    together, texts = config, []
    for name in smallest:
        changes = [(text, changed) for key, text, changed in _changes(together, plan) if key == name]
        texts.append(changes[-1][0])
        together = changes[-1][1]
        ranks = plan.world_size
        while ranks <= MOST_RANKS:
            if fits(together, ranks):
                return [" ".join([*texts, *([f"and {ranks} ranks"] if ranks > plan.world_size else [])])]
            ranks *= 2
    return []


def _changes(config: Any, plan: Plan) -> Iterator[tuple[str, str, Any]]:
    """(option, flag with its value, changed configuration), the mildest change of each option first."""
    train = config.train
    if not config.model.checkpoint_activations:
        name = "--model.checkpoint_activations"
        yield name, f"{name} true", replace(config, model=replace(config.model, checkpoint_activations=True))
    budget = train.token_budget // 2
    while budget >= 512:
        name = "--train.token_budget"
        yield name, f"{name} {budget}", replace(config, train=replace(train, token_budget=budget))
        budget //= 2
    if plan.reference == "same":
        name = "--reference.device"
        yield name, f"{name} cpu", replace(config, reference=replace(config.reference, device="cpu"))
    if hasattr(config, "sampling"):
        slots = config.sampling.max_slots // 2
        while slots >= 4:
            name = "--sampling.max_slots"
            yield name, f"{name} {slots}", replace(config, sampling=replace(config.sampling, max_slots=slots))
            slots //= 2
        for bound in (16.0, 8.0, 4.0, 2.0, 1.0):
            if bound < (config.sampling.memory_gib or math.inf):
                name = "--sampling.memory_gib"
                yield name, f"{name} {bound:g}", replace(config, sampling=replace(config.sampling, memory_gib=bound))
    elif config.evaluation.files:
        name = "--evaluation.files"
        yield name, f"{name} '' (evaluate the export apart)", _without_evaluation(config)
    if plan.world_size > 1 and not config.sharding.cpu_offload:
        name = "--sharding.cpu_offload"
        yield name, f"{name} true", replace(config, sharding=replace(config.sharding, cpu_offload=True))


def _without_evaluation(config: Any) -> Any:
    return replace(config, evaluation=replace(config.evaluation, files=()))


def warn_if_too_large(config: Any, runtime: Runtime) -> bool:
    """Before a model is loaded: say in one line that the run can exceed the memory of its device, and what helps."""
    model = ModelConfig.from_folder(local_folder(config.model.path))
    dtype, cuda = compute_dtype(config.model, runtime), runtime.device.type == "cuda"
    plan = plan_run(config, model, runtime.world_size, dtype, resolve_backend(runtime.device, dtype) != "torch")
    moment, kinds = peak(plan)
    available, needed = device_memory(runtime.device), sum(kinds.values())
    on_host = host_bytes(plan, cuda, config.run.checkpoint_in_background)
    host = device_memory(torch.device("cpu")) / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # which the ranks share
    if not cuda:
        available, needed = host, needed + on_host
    elif on_host > host:
        runtime.say(
            f"warning: a rank may need {on_host / GIB:.1f} GiB of host memory, for checkpoints and what lies there, of "
            f"the {host / GIB:.1f} GiB there are; fewer ranks on a node, or more of them in all, need less"
        )
    if needed <= available:
        return False
    kinds_text = ", ".join(f"{name} {size / GIB:.1f}" for name, size in largest(kinds))
    ways = ways_out(config, plan, available - (0 if cuda else on_host))
    runtime.say(
        f"warning: a rank may need {needed / GIB:.1f} GiB of the {available / GIB:.1f} GiB there are (GiB at its peak, "
        f"{moment}: {kinds_text}); what would fit: {'; or '.join(ways[:4]) or 'a device with more memory'}"
    )
    return True


def largest(kinds: dict[str, float], count: int = 3) -> list[tuple[str, float]]:
    """The kinds with the most bytes, largest first."""
    return sorted(kinds.items(), key=lambda item: -item[1])[:count]


def device_memory(device: torch.device) -> float:
    """Bytes of the GPU, or of the machine's memory that is available now (all of it where the system doesn't tell)."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
