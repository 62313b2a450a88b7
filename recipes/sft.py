"""Supervised fine-tuning on conversations: the loss falls on what the assistant says, and its stop token.

    python recipes/sft.py --config recipes/presets/demo.toml
    torchrun --nproc-per-node 8 recipes/sft.py --config recipes/presets/psyche_r1_7b.toml \\
        --model.path Qwen/Qwen2.5-7B-Instruct --data.train sft.jsonl --run.folder runs/sft

The loop below is the whole algorithm: next rows, forward and backward of their micro-batches, optimizer step, log,
checkpoint, evaluate. The run folder's export/ is a Hugging Face folder.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from cli import dump_config, load_config, main_guard
from common import (
    EvaluationOptions,
    ModelOptions,
    RunOptions,
    evaluate_sets,
    evaluated_on_first,
    evaluation_due,
    load_policy,
    option,
    record_evaluation,
    require,
    require_room,
    steps_of,
)
from planning import warn_if_too_large
from run_folder import end_step, hash_inputs, open_run_folder, resume, settle_dtype
from tqdm import tqdm

from psychecore.data.records import Conversation, read_conversations
from psychecore.data.stream import Stream, balanced_shares
from psychecore.model.config import ModelConfig
from psychecore.model.pretrained import local_folder, save_model
from psychecore.report.page import write_report
from psychecore.runtime import Runtime, runtime
from psychecore.text.tokenizer import Encoded, Tokenizer, load_tokenizer
from psychecore.train.metrics import RunLog, Stopwatch, matmul_peak, peak_memory_gib, step_line, training_flops
from psychecore.train.optimizer import Optimizer, OptimizerConfig
from psychecore.train.run_state import Checkpoints
from psychecore.train.sft import SftConfig, sft_step
from psychecore.train.sharding import ShardingConfig

LINE = {"loss": ".3f", "entropy": ".2f", "gradient_norm": ".2f", "lr": ".1e", "tokens_per_s": ".0f", "mfu": ".0%"}


@dataclass(frozen=True)
class DataOptions:
    """What it trains on."""

    train: Path = field(metadata={"help": "conversations, JSONL of {id, messages, source}"})
    shuffle_seed: int = option(0, "added to run.seed for the order of rows")

    def __post_init__(self) -> None:
        if self.shuffle_seed < 0:
            raise ValueError(f"shuffle_seed is {self.shuffle_seed}, but must be at least 0")


@dataclass(frozen=True)
class SftRecipe:
    """Everything an SFT run depends on."""

    model: ModelOptions
    data: DataOptions
    run: RunOptions
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    train: SftConfig = field(default_factory=SftConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    sharding: ShardingConfig = field(default_factory=ShardingConfig)


def main(config: SftRecipe, runtime: Runtime) -> None:
    """Train as configured, or continue the run that the folder holds."""
    with runtime.together("reading the data"):
        require(config.data.train, "data.train")
        rows = read_conversations(config.data.train)
        heldout = config.evaluation.read()
        model_folder = local_folder(config.model.path)
        tokenizer = load_tokenizer(model_folder, config.model.thinking)
        conversations = encode(rows, tokenizer, config.train.max_length, runtime)
        lengths = ((len(item.ids), row.id) for item, row in zip(conversations, rows, strict=True))
        length, row = max(lengths, default=(0, ""))
        if length > (positions := ModelConfig.from_folder(model_folder).context_length):
            raise ValueError(
                f"conversation {row!r} has {length} tokens, and the model {positions} positions: shorten it, or lower "
                "--train.max_length to find all that are too long"
            )
        require_room(heldout, tokenizer, model_folder, config.evaluation)
    config = settle_dtype(config, runtime)
    folder, config_text = config.run.folder, dump_config(config)
    open_run_folder(folder, config_text, runtime)
    inputs = hash_inputs({config.model.path: model_folder}, [config.data.train, *config.evaluation.files], runtime)

    total_steps = steps_of(config.run, len(rows), config.train.batch_size)
    warn_if_too_large(config, runtime)
    policy = load_policy(config.model, config.sharding, runtime)
    optimizer = Optimizer(policy, config.optimizer, total_steps)
    run = config.run
    checkpoints = Checkpoints(
        folder / "checkpoints", runtime, run.keep_checkpoints, run.checkpoint_in_background, config_text
    )
    state = resume(checkpoints, optimizer, inputs, config_text, runtime)
    first_step = state["step"]
    stream = Stream(len(rows), config.run.seed + config.data.shuffle_seed, state["cursor"])
    log = RunLog(folder, runtime)
    for name in ("metrics.jsonl", "timings.jsonl"):
        log.keep_until(name, first_step)
    runtime.say(
        f"SFT: {len(rows)} conversations, {total_steps} steps of {config.train.batch_size}, "
        f"{policy.config.parameters / 1e6:.0f}M parameters, {runtime.world_size} rank(s) on {runtime.device}"
    )
    peak = matmul_peak(runtime, policy.compute_dtype)

    def evaluate(label: str, step: int) -> None:
        if heldout and not (first_step and evaluated_on_first(folder, label, runtime)):
            runtime.say(f"held-out accuracy {label} (step {step}):")
            with runtime.phase("evaluation"):
                reports = evaluate_sets(policy, tokenizer, heldout, config.evaluation, 64, runtime)
            record_evaluation(folder, label, step, reports, runtime)

    if config.run.evaluate_first and first_step == 0:
        evaluate("before", 0)
    if first_step and evaluation_due(config.run, first_step, total_steps):
        evaluate(f"step {first_step}", first_step)  # a run may have been killed between checkpoint and evaluation
    for step in range(first_step + 1, total_steps + 1):
        watch, started = Stopwatch(runtime), time.perf_counter()
        lr = optimizer.lr
        batch = [conversations[i] for i in stream.take(config.train.batch_size)]
        mine = balanced_shares([len(conversation.ids) for conversation in batch], runtime.world_size)[runtime.rank]
        with watch("update"):
            metrics = sft_step(
                policy,
                optimizer,
                [batch[i] for i in mine],
                config.train,
                runtime,
                progress=runtime.first,
            )
        state |= {"step": step, "cursor": stream.position, "total_tokens": state["total_tokens"] + metrics["tokens"]}
        row = {"phase": "sft", "step": step, **metrics, "lr": lr, "epoch": stream.epoch}
        row["total_tokens"] = state["total_tokens"]
        log.write("metrics.jsonl", row)
        seconds, flops = watch.seconds["update"], training_flops(policy.config, metrics["tokens"], metrics["labels"])
        timing = {"phase": "sft", "step": step, "tokens_per_s": metrics["tokens"] / seconds}
        timing |= {"mfu": flops / seconds / (peak * runtime.world_size), "memory_gib": peak_memory_gib(runtime.device)}
        timing["seconds"] = time.perf_counter() - started
        log.write("timings.jsonl", timing)
        runtime.say(step_line("sft", step, total_steps, row | timing, LINE))
        if end_step(config.run, state, total_steps, checkpoints, optimizer, runtime):
            return
        if evaluation_due(config.run, step, total_steps):
            evaluate(f"step {step}", step)
    with runtime.phase("export"):  # before the evaluation, which may fail
        save_model(policy, tokenizer, folder / "export", dtype=torch.bfloat16)
    evaluate("after", total_steps)
    if runtime.first:
        write_report([folder], folder / "report.html")
    runtime.say(f"exported to {folder / 'export'}")


def encode(rows: list[Conversation], tokenizer: Tokenizer, max_length: int, runtime: Runtime) -> list[Encoded]:
    """Token ids and loss masks of all rows. Raises ValueError for a row that is too long or teaches nothing."""
    encoded = []
    for row in tqdm(rows, desc="tokenize", disable=None if runtime.first else True, leave=False):
        try:
            item = tokenizer.render_chat(row.messages)
        except ValueError as error:
            raise ValueError(f"conversation {row.id!r}: {error}") from None
        if len(item.ids) > max_length:
            raise ValueError(
                f"conversation {row.id!r} has {len(item.ids)} tokens, more than train.max_length {max_length}: "
                "shorten it, or raise --train.max_length"
            )
        if item.fault:
            raise ValueError(f"conversation {row.id!r}: {item.fault}")
        encoded.append(item)
    return encoded


if __name__ == "__main__":
    with main_guard():
        recipe = load_config(SftRecipe, sys.argv[1:], __doc__, table="sft")
        with runtime(recipe.run.device, recipe.run.timeout_minutes) as here:
            main(recipe, here)
