"""SFT, rollouts and GRPO updates at Qwen2.5's sizes on one GPU, with random weights, beside what plan.py predicts.

    python benchmarks/gpu_steps.py                                   # Qwen2.5-0.5B and 1.5B, rollouts of 7B; minutes
    python benchmarks/gpu_steps.py --train Qwen2.5-0.5B --sample     # one model's updates, no rollouts
    python benchmarks/gpu_steps.py --train Qwen2.5-7B --sample --ranks 8    # updates of the first of 8 ranks


Settings are those of recipes/presets/psyche_r1_7b.toml, lengths those of plan.py's speeds: conversations of 600 tokens,
prompts of 200, answers of 500. Weights are bf16 with fp32 masters, as at one rank of a recipe; activations are
recomputed. Peak memory is that of sequences of the greatest length. mfu: FLOPs without recomputation over the GPU's
data sheet.

With --ranks the other ranks are made up: FSDP2 gathers copies of this rank's shards and reduces its own gradients. So
the tensors and the compute are those of a rank with its share of the step; the links' time, NCCL's buffers and its
share of the GPU, and waiting for others are missing. The result is gpu_steps_of_N_ranks.json.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from gate_parts import Letters
from measure import DEVICE, comparable, roof, save, synchronize
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

import psychecore as pc
from psychecore.model.attention import resolve_backend
from psychecore.runtime import Runtime
from psychecore.text.tokenizer import Encoded
from psychecore.train.grpo import grpo_update
from psychecore.train.metrics import training_flops
from psychecore.train.optimizer import Optimizer
from psychecore.train.plan import GIB, MicroBatch, peak
from psychecore.train.sft import sft_step
from psychecore.train.sharding import ShardingConfig, make_mesh, sharder
from psychecore.train.speed import rollout_seconds, update_seconds

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))
from cli import load_config
from plan import MODELS, OTHERS, PRESET, Planner, make_plan

CONVERSATIONS, LONGEST = 128, 16  # of an SFT step that is timed, and of one that measures memory
GROUPS, ROUNDS = 48, 3


def main() -> None:
    """Measure the models and write benchmarks/results/gpu_steps.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs="*", choices=MODELS, default=["Qwen2.5-0.5B", "Qwen2.5-1.5B"])
    parser.add_argument("--sample", nargs="*", choices=MODELS, default=["Qwen2.5-0.5B", "Qwen2.5-1.5B", "Qwen2.5-7B"])
    parser.add_argument("--ranks", type=int, default=1, help="of which this process is the first (updates only)")
    parser.add_argument("--gpu", default="H100-80", help="data sheet that predictions are for, as in plan.py")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here")
    if options.ranks > 1 and options.sample:
        parser.error("--ranks is for updates, since sampling ranks do not meet: give --sample without a model")
    if GROUPS % options.ranks or CONVERSATIONS % options.ranks:
        parser.error(f"--ranks must divide the step's {GROUPS} groups and {CONVERSATIONS} conversations")
    file = "gpu_steps" if options.ranks == 1 else f"gpu_steps_of_{options.ranks}_ranks"
    planner = load_config(Planner, ["--config", str(PRESET), "--gpu", options.gpu], __doc__, skip=OTHERS)
    backends = {way: resolve_backend(DEVICE, torch.bfloat16, way == "cache") for way in ("segments", "cache")}
    dtype = torch.bfloat16
    earlier = comparable(file, dtype).get("rows", [])  # of this machine and day
    result: dict[str, Any] = {"roof": roof(dtype, DEVICE), "attention": backends, "dtype": "bfloat16", "rows": earlier}
    work = [(name, measure) for name in options.train for measure in (sft, update)]
    work += [(name, rollouts) for name in options.sample]
    for name, measure in work:
        gc.collect()  # FSDP2's modules are in cycles: the model of the row before would count
        torch.cuda.empty_cache()
        others = [row for row in result["rows"] if (row["model"], row["what"]) != (name, measure.__name__)]
        result["rows"] = [*others, {"model": name, "what": measure.__name__} | measure(name, planner, options.ranks)]
        print(result["rows"][-1], flush=True)
        save(file, result)


def random_model(name: str, ranks: int = 1, trained: bool = True) -> pc.Decoder:
    """A model of random weights, drawn on the GPU: `initialise` draws on the CPU, slowly at 7B.

    bf16 on one rank; on several the shards of the first, fp32 masters where it is trained.
    """
    with torch.device("meta"):
        model = pc.Decoder(MODELS[name]).to(torch.float32 if ranks > 1 and trained else torch.bfloat16)
    if ranks > 1:
        if not dist.is_initialized():
            dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
        sharder(make_mesh(ShardingConfig(), ranks, DEVICE), torch.bfloat16, cast=trained)(model)
        for unit in (model, *model.layers):
            unit.set_custom_all_gather(Echo())  # type: ignore[operator]
            unit.set_custom_reduce_scatter(OwnPart())  # type: ignore[operator]
    model.to_empty(device=DEVICE)
    torch.manual_seed(0)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            local.fill_(1) if path.endswith("norm.weight") else local.normal_(0, 0.02)
    return model.requires_grad_(trained)


class Echo:
    """FSDP2's gather among made-up ranks: every rank's shards are this one's."""

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Room for the result."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> None:
        """Gather."""
        for part in output_tensor.chunk(group.size()):
            part.copy_(input_tensor)


class OwnPart(Echo):
    """Its reduction: the sum, or mean, is what this rank has."""

    def __call__(  # type: ignore[override]
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        """Reduce and scatter."""
        output_tensor.view(-1).copy_(input_tensor.view(group.size(), -1)[0])


def seconds(run: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """Median of some runs, after one that warms up."""
    times = []
    for number in range(rounds + 1):
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        times += [time.perf_counter() - start] if number else []
    return statistics.median(times)


def conversations(count: int, length: int, labels: int, vocabulary: int) -> list[Encoded]:
    """Random tokens, the last of which are what an assistant said."""
    ids = torch.randint(1, vocabulary, (count, length), generator=torch.Generator().manual_seed(0)).tolist()
    return [Encoded(row, [False] * (length - labels) + [True] * labels, "") for row in ids]


def compared(tokens: float, measured: float, predicted: float) -> dict[str, float]:
    """Tokens a second of both."""
    return {
        "tokens_per_s": round(tokens / measured, 1),
        "predicted": round(tokens / predicted, 1),
        "measured_over_predicted": round(predicted / measured, 3),
    }


def sft(name: str, planner: Planner, ranks: int) -> dict[str, Any]:
    """An SFT step: forward, backward, optimizer; and the peak of one whose conversations are all of greatest length."""
    recipe, work, model = planner.sft, planner.work, random_model(name, ranks)
    plan = make_plan(recipe, model.config, ranks)
    model.checkpoint_activations = recipe.model.checkpoint_activations
    optimizer, alone = Optimizer(model, recipe.optimizer, 1000), Runtime(0, 1, DEVICE)
    labels = round(work.conversation * work.answer_share)
    count = CONVERSATIONS // ranks
    batch = conversations(count, work.conversation, labels, model.config.vocab_size)
    measured = seconds(lambda: sft_step(model, optimizer, batch, recipe.train, alone))
    tokens, rows = count * work.conversation, count * labels
    predicted = update_seconds(plan, planner.machine, planner.efficiency, tokens, rows, work.conversation)
    length = recipe.train.max_length
    longest = conversations(LONGEST, length, length - 1, model.config.vocab_size)
    torch.cuda.reset_peak_memory_stats()
    sft_step(model, optimizer, longest, recipe.train, alone)
    return compared(tokens, measured, predicted) | {
        "mfu": round(training_flops(model.config, tokens, rows) / measured / planner.machine.peak, 3),
        "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
        "predicted_peak_gib": round(sum(peak(plan)[1].values()) / GIB, 2),
    }


def update(name: str, planner: Planner, ranks: int) -> dict[str, Any]:
    """A GRPO update with a reference, one mini-batch; and the peak of one whose sequences have the greatest length."""
    recipe, work, model = planner.grpo, planner.work, random_model(name, ranks)
    plan = make_plan(recipe, model.config, ranks)
    reference = random_model(name, ranks, trained=False)
    model.checkpoint_activations = recipe.model.checkpoint_activations
    optimizer, alone = Optimizer(model, recipe.optimizer, 1000), Runtime(0, 1, DEVICE)
    samples = recipe.train.samples_per_prompt
    config, mine = replace(recipe.train, prompts_per_step=GROUPS, mini_batches=1), GROUPS // ranks

    def step(prompt: int, answer: int, groups: int) -> None:
        found = made_up(groups, samples, prompt, answer, model.config.vocab_size)
        advantages_PG = torch.randn(groups, samples, generator=torch.Generator().manual_seed(0))
        grpo_update(model, optimizer, found, advantages_PG, config, alone, reference=reference)

    measured = seconds(lambda: step(work.prompt, work.answer, mine))
    rows = mine * samples * work.answer
    tokens, length = mine * work.prompt + rows, work.prompt + work.answer
    predicted = update_seconds(plan, planner.machine, planner.efficiency, tokens, rows, length, 1.0)
    torch.cuda.reset_peak_memory_stats()
    prompt, answer = recipe.data.max_prompt_tokens, recipe.sampling.params.max_new_tokens
    step(prompt, answer, 8)
    fitting = config.token_budget // (prompt + samples * answer)  # groups of this length in a micro-batch
    assert fitting, "the micro-batch below is of whole groups"
    one = MicroBatch(prompt + samples * answer, samples * answer, prompt + samples * (prompt + answer))
    whole = MicroBatch(*(fitting * number for number in (one.tokens, one.rows, one.keys)))
    in_update = replace(plan, rollouts=None, micro_batch=whole)
    return compared(rows, measured, predicted) | {
        "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
        "predicted_peak_gib": round(sum(peak(in_update)[1].values()) / GIB, 2),
    }


def made_up(groups: int, samples: int, prompt: int, answer: int, vocabulary: int) -> list[pc.Group]:
    """Groups of random tokens with plausible log-probs."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda count: torch.randint(1, vocabulary, (count,), generator=generator).tolist()  # noqa: E731
    return [
        pc.Group(draw(prompt), [pc.Rollout(draw(answer), [-11.0] * answer, "", "length") for _ in range(samples)])
        for _ in range(groups)
    ]


def rollouts(name: str, planner: Planner, ranks: int) -> dict[str, Any]:
    """Samples of equal length on the preset's slots, with CUDA graphs; a step's milliseconds without them too."""
    recipe, work, model = planner.grpo, planner.work, random_model(name)
    plan, samples = make_plan(recipe, model.config, 1), recipe.train.samples_per_prompt
    assert plan.rollouts is not None
    plan = replace(plan, rollouts=replace(plan.rollouts, answer_length=work.answer))
    letters: Any = Letters(model.config.vocab_size)
    ids = [row.ids for row in conversations(GROUPS, work.prompt, 1, model.config.vocab_size)]
    params = pc.SamplingParams(max_new_tokens=work.answer, ignore_stop=True)
    graphs = pc.Sampler(model, letters, recipe.sampling.max_slots)
    measured = seconds(lambda: graphs.generate(ids, params, samples), rounds=1)
    total = GROUPS * samples
    predicted = rollout_seconds(plan, planner.machine, planner.efficiency, GROUPS, total, work.prompt, work.answer)
    eager = pc.Sampler(model, letters, recipe.sampling.max_slots, cuda_graphs=False)
    few = replace(params, max_new_tokens=64)
    occupancy = round(graphs.stats.occupancy, 3)

    def step_ms(sampler: pc.Sampler) -> float:
        return round(1e3 * seconds(lambda: sampler.generate(ids[:24], few, samples), 1) / few.max_new_tokens, 3)

    apart = {"graphs_ms_a_step": step_ms(graphs), "eager_ms_a_step": step_ms(eager)}
    return compared(total * work.answer, measured, predicted) | apart | {"occupancy": occupancy}


if __name__ == "__main__":
    main()
