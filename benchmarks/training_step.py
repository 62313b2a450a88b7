"""Seconds and peak memory of a GRPO step and of SFT: psychecore against TRL, and against plain transformers.

    .venv-bench/bin/python benchmarks/training_step.py grpo    # 4 prompts x 8 samples x exactly 128 tokens
    .venv-bench/bin/python benchmarks/training_step.py sft --conversations counsel_chat.jsonl

Each contestant is a process of its own, so that its peak resident memory is its own; rounds take turns. All have the
same weights, tokens, threads and compute dtype, and their first step is not counted. TRL's GRPO keeps no fp32 masters
beside bf16 weights, psychecore does. For SFT, psychecore recomputes activations and has the conversations of a step in
one or two micro-batches; TRL packs to 1,024 tokens and keeps its activations, which is the faster of its two ways;
plain transformers runs forward and backward of the same conversations in pairs of nearly equal length, without an
optimizer. On CPU psychecore compiles its passes over memory, as `--model.compile true` does in its recipes; the peers
are as they come.
Where there is a GPU all run on it, memory is what torch allocated there, and the result is TASK_step_gpu.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from loss_memory import resident
from measure import DEVICE, MODEL, chosen_dtype, named, roof, save, summary, synchronize

PROMPTS, SAMPLES, NEW = 4, 8, 128
BATCH = 16  # conversations of an SFT step
PARTS: list[dict[str, float]] = []  # seconds of each part of psychecore's GRPO steps
CONTESTANTS = {"grpo": ("psychecore", "trl"), "sft": ("psychecore", "trl", "transformers")}


def main() -> None:
    """Run all contestants of one task in turn and write benchmarks/results/TASK_step.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=CONTESTANTS)
    parser.add_argument("--conversations", type=Path, help="sft: JSONL of {question, answer} or {messages}")
    parser.add_argument("--steps", type=int, default=2, help="counted steps a process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float32"], default="auto")
    parser.add_argument("--worker", help="(internal) run this contestant in this process")
    options = parser.parse_args()
    if options.task == "sft" and options.conversations is None:
        parser.error("sft needs --conversations")
    options.dtype = str(chosen_dtype(options.dtype)).removeprefix("torch.")
    if options.worker:
        work = {"grpo": {"psychecore": grpo, "trl": trl_grpo}, "sft": {"psychecore": sft, "trl": trl_sft}}
        work["sft"]["transformers"] = plain
        rates = work[options.task][options.worker](options)
        on_gpu = DEVICE.type == "cuda"
        peak_mib = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else resident("VmHWM")
        print(json.dumps({"rates": rates, "peak_mib": peak_mib, "parts": PARTS}))
        return
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTESTANTS[options.task]}
    for number in range(options.rounds):
        for name in rows:
            command = [sys.executable, *sys.argv, "--dtype", options.dtype, "--worker", name]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr[-2000:]}")
            rows[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"  round {number + 1}  {name:<14}{rows[name][-1]}", flush=True)
    rates = {name: [rate for row in found for rate in row["rates"]] for name, found in rows.items()}
    peak = {name: statistics.median(row["peak_mib"] for row in found) for name, found in rows.items()}
    result = {"unit": "trained tokens / s", "dtype": options.dtype, "rounds": rows, "peak_mib": peak}
    result |= summary(rates, "psychecore")  # each step against the same step of the same round
    result["memory_share"] = {n: round(peak["psychecore"] / p, 3) for n, p in peak.items() if n != "psychecore"}
    print(result["times_faster"], result["memory_share"])
    dtype = getattr(torch, options.dtype)
    save(named(f"{options.task}_step", dtype, DEVICE), result | {"roof": roof(dtype, DEVICE)})


def reward(completions: list[str], **_: Any) -> list[float]:
    """Something that differs from sample to sample and costs nothing."""
    return [(len(text) % 7) / 7 for text in completions]


def questions() -> list[str]:
    """The prompts of a GRPO step."""
    return [
        f"Explain in simple words what {word} is, and give one example from daily life." for word in WORDS[:PROMPTS]
    ]


WORDS = ("negative reinforcement", "object permanence", "cognitive dissonance", "transference")


def grpo(options: argparse.Namespace) -> list[float]:
    """Completion tokens a second of rollout, reward and update."""
    step = grpo_stepper(getattr(torch, options.dtype), options.steps + 1)
    rates = []
    for number in range(options.steps + 1):
        rollouts_s, update_s = step(number)
        rates.append(PROMPTS * SAMPLES * NEW / (rollouts_s + update_s))
        PARTS.append({"rollouts_s": round(rollouts_s, 2), "update_s": round(update_s, 2)})
    del PARTS[0]
    return rates[1:]


def grpo_stepper(dtype: torch.dtype, steps: int) -> Callable[[int], tuple[float, float]]:
    """Takes psychecore's step of a number below `steps`; seconds of its rollouts, and of the rest."""
    import psychecore as pc
    from psychecore.model import compiler
    from psychecore.runtime import Runtime
    from psychecore.train.grpo import GrpoConfig, grpo_update
    from psychecore.train.losses import LossConfig
    from psychecore.train.optimizer import Optimizer, OptimizerConfig

    compiler.use(DEVICE.type == "cpu")
    policy, reference = (pc.load_model(MODEL, dtype, DEVICE) for _ in range(2))
    reference.requires_grad_(False)
    sampler = pc.Sampler(policy, pc.load_tokenizer(MODEL), max_slots=PROMPTS * SAMPLES)
    optimizer, alone = Optimizer(policy, OptimizerConfig(), steps), Runtime(0, 1, DEVICE)
    loss = LossConfig(kl_coefficient=0.001)
    config = GrpoConfig(PROMPTS, SAMPLES, mini_batches=1, token_budget=2304, loss=loss)  # two groups a micro-batch
    prompts = [[{"role": "user", "content": text}] for text in questions()]

    def step(number: int) -> tuple[float, float]:
        start = time.perf_counter()
        params = pc.SamplingParams(max_new_tokens=NEW, ignore_stop=True, seed=number)
        groups = sampler.generate(prompts, params, SAMPLES)
        rewards_PG, sampled = torch.tensor([reward(group.texts) for group in groups]), time.perf_counter()
        grpo_update(policy, optimizer, groups, pc.group_advantages(rewards_PG), config, alone, reference=reference)
        synchronize()
        return sampled - start, time.perf_counter() - sampled

    return step


def trl_grpo(options: argparse.Namespace) -> list[float]:
    """The same by TRL's GRPOTrainer."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=DEVICE.type == "cpu",
        bf16=False,
        report_to="none",
        per_device_train_batch_size=PROMPTS * SAMPLES,
        num_generations=SAMPLES,
        max_completion_length=NEW,
        generation_kwargs={"min_new_tokens": NEW},
        beta=0.001,
        temperature=1.0,
        max_steps=options.steps + 1,
        gradient_checkpointing=False,
        save_strategy="no",
        disable_tqdm=True,
        model_init_kwargs={"dtype": options.dtype},
    )
    rows = [[{"role": "user", "content": text}] for text in questions()] * (options.steps + 1)
    texts = lambda completions, **_: reward([turns[0]["content"] for turns in completions])  # noqa: E731
    trainer = GRPOTrainer(str(MODEL), texts, config, train_dataset=Dataset.from_dict({"prompt": rows}))
    return _timed(trainer, PROMPTS * SAMPLES * NEW, options.steps)


def messages(path: Path) -> list[list[dict[str, str]]]:
    """Conversations of a file."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        row = json.loads(line)
        if not {"question", "answer"} <= row.keys() and "messages" not in row:
            raise SystemExit(f"{path} line {number}: neither question and answer nor messages, but {list(row)}")
        turns = row.get("messages") or [
            {"role": "user", "content": row["question"] or row.get("title", "")},
            {"role": "assistant", "content": row["answer"]},
        ]
        if all(turn["content"] and turn["content"].strip() for turn in turns):
            found.append(turns)
    return found


def encoded(conversations: Path, steps: int) -> list[Any]:
    """The first conversations that have at most 1,024 tokens, for all steps."""
    import psychecore as pc

    tokenizer = pc.load_tokenizer(MODEL)
    rows = (tokenizer.render_chat(turns) for turns in messages(conversations))
    short = (row for row in rows if len(row.ids) <= 1024)
    needed = BATCH * steps
    found = list(itertools.islice(short, needed))
    if len(found) < needed:
        raise SystemExit(f"{conversations}: {len(found)} conversations of at most 1,024 tokens, {needed} are needed")
    return found


def batch_tokens(rows: list[Any], step: int) -> int:
    """Tokens of a step's conversations."""
    return sum(len(row.ids) for row in rows[BATCH * step : BATCH * (step + 1)])


def sft(options: argparse.Namespace) -> list[float]:
    """Tokens a second of SFT steps: forward, backward, optimizer."""
    rows = encoded(options.conversations, options.steps + 1)
    step = sft_stepper(getattr(torch, options.dtype), rows)
    return [batch_tokens(rows, number) / step(number) for number in range(options.steps + 1)][1:]


def sft_stepper(dtype: torch.dtype, rows: list[Any]) -> Callable[[int], float]:
    """Takes psychecore's step of a number, on the conversations of that step; its seconds."""
    import psychecore as pc
    from psychecore.model import compiler
    from psychecore.runtime import Runtime
    from psychecore.train.optimizer import Optimizer, OptimizerConfig
    from psychecore.train.sft import SftConfig, sft_step

    compiler.use(DEVICE.type == "cpu")
    model, alone = pc.load_model(MODEL, dtype, DEVICE), Runtime(0, 1, DEVICE)
    model.checkpoint_activations = True
    optimizer = Optimizer(model, OptimizerConfig(lr=1e-5), len(rows) // BATCH)
    config = SftConfig(BATCH, token_budget=4096, max_length=1024)

    def step(number: int) -> float:
        start = time.perf_counter()
        sft_step(model, optimizer, rows[BATCH * number : BATCH * (number + 1)], config, alone)
        synchronize()
        return time.perf_counter() - start

    return step


def trl_sft(options: argparse.Namespace) -> list[float]:
    """The same conversations by TRL's SFTTrainer, packed to 1,024 tokens, two rows a batch."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=DEVICE.type == "cpu",
        bf16=options.dtype == "bfloat16",
        report_to="none",
        packing=True,
        max_length=1024,
        per_device_train_batch_size=2,
        max_steps=options.steps + 1,
        gradient_checkpointing=False,
        save_strategy="no",
        disable_tqdm=True,
        model_init_kwargs={"dtype": "float32"},  # masters, with bf16 autocast where that is the compute dtype
    )
    rows = Dataset.from_dict({"messages": messages(options.conversations)[: BATCH * (options.steps + 1)]})
    trainer = SFTTrainer(str(MODEL), config, train_dataset=rows)
    return _timed(trainer, 2 * 1024, options.steps)


def plain(options: argparse.Namespace) -> list[float]:
    """Forward and backward by transformers, without an optimizer, on padded batches of two conversations."""
    from transformers import AutoModelForCausalLM

    rows = encoded(options.conversations, options.steps + 1)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=getattr(torch, options.dtype))  # a folder of ours # nosec
    model.to(DEVICE)
    rates = []
    for step in range(options.steps + 1):
        batch = sorted(rows[BATCH * step : BATCH * (step + 1)], key=lambda row: len(row.ids))
        start = time.perf_counter()
        for i in range(0, BATCH, 2):  # of nearly equal length, which is the best that padding can do
            pair = batch[i : i + 2]
            longest = max(len(row.ids) for row in pair)
            ids_BS = torch.tensor([row.ids + [2] * (longest - len(row.ids)) for row in pair], device=DEVICE)
            mask_BS = torch.tensor([[1] * len(row.ids) + [0] * (longest - len(row.ids)) for row in pair], device=DEVICE)
            labels_BS = torch.tensor(
                [
                    [i if m else -100 for i, m in zip(row.ids, row.loss_mask, strict=True)]
                    + [-100] * (longest - len(row.ids))
                    for row in pair
                ],
                device=DEVICE,
            )
            model(input_ids=ids_BS, attention_mask=mask_BS, labels=labels_BS).loss.backward()
        synchronize()
        rates.append(batch_tokens(rows, step) / (time.perf_counter() - start))
        model.zero_grad()
    return rates[1:]


def _timed(trainer: Any, tokens: int, steps: int) -> list[float]:
    """Tokens a second of every step of a trainer but the first."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_end(self, *arguments: Any, **options: Any) -> None:
            synchronize()
            self.times.append(time.perf_counter())

    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    assert len(clock.times) == steps + 1
    return [tokens / (b - a) for a, b in zip(clock.times, clock.times[1:], strict=False)]


if __name__ == "__main__":
    main()
