"""What the SFT and GRPO recipes share: options, the policy on its ranks, the run folder, held-out accuracy."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch.distributed.device_mesh import DeviceMesh

from psychecore.data.prompts import question_messages
from psychecore.data.records import Question, read_questions
from psychecore.data.stream import share
from psychecore.durable import replace_file
from psychecore.evaluate.choice import ChoiceReport, score_choice
from psychecore.model import compiler
from psychecore.model.config import ModelConfig
from psychecore.model.decoder import Decoder
from psychecore.model.pretrained import load_model
from psychecore.model.products import fast_dtype
from psychecore.rollout.sampler import Sampler
from psychecore.rollout.sampling import SamplingParams
from psychecore.runtime import Runtime, gather_json
from psychecore.text.tokenizer import Tokenizer
from psychecore.train.finite import NonFiniteError, count_nonfinite
from psychecore.train.sharding import ShardingConfig, gathered, make_mesh, sharder
from psychecore.untrusted import read_json


def option(default: Any, text: str) -> Any:
    """A dataclass field with its help text."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class ModelOptions:
    """Which model trains."""

    path: str = field(metadata={"help": "Hugging Face folder or hub id, such as Qwen/Qwen2.5-7B-Instruct"})
    dtype: Literal["auto", "bfloat16", "float32"] = option(
        "auto", "dtype of computing; auto: bfloat16 where a run begins and it is fast, else float32; masters are fp32"
    )
    thinking: bool | None = option(None, "the switch of chat templates that have one (Qwen3); none: as they come")
    checkpoint_activations: bool = option(False, "keep only each layer's input for backward: less memory, more compute")
    compile: bool = option(False, "on CPU: norms, rotary embedding, SwiGLU and loss by torch.compile, through g++")


@dataclass(frozen=True)
class RunOptions:
    """How long, where to, and how often."""

    folder: Path = field(metadata={"help": "run folder; a run that was interrupted continues in it"})
    steps: int = option(0, "rollout batches (GRPO) or optimizer steps (SFT); 0 takes them from epochs")
    epochs: float = option(2.0, "passes over the training file when steps is 0, rounded up to whole steps")
    seed: int = option(42, "seeds the order of rows and all sampling")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto takes CUDA where there is one")
    checkpoint_every: int = option(50, "steps between checkpoints; one is always written at the end")
    keep_checkpoints: int = option(2, "how many of the newest checkpoints stay, at least 2")
    mark_every: int = option(0, "steps between checkpoints that stay for good, a multiple of checkpoint_every; 0: none")
    checkpoint_in_background: bool = option(False, "write checkpoints from a copy while training goes on")
    timeout_minutes: float = option(60.0, "a phase, or a wait for another rank, that lasts longer ends the run")
    evaluate_first: bool = option(True, "measure held-out accuracy before the first step too")
    evaluate_every: int = option(0, "steps between held-out evaluations; 0: only at the end")

    def __post_init__(self) -> None:
        if self.steps < 0 or not 0 < self.epochs <= 1e6 or self.seed < 0:
            raise ValueError(
                f"steps {self.steps} and seed {self.seed} must be at least 0, epochs {self.epochs} above 0, at most 1e6"
            )
        if self.checkpoint_every < 1 or self.keep_checkpoints < 2 or self.evaluate_every < 0:
            raise ValueError(
                "checkpoint_every must be at least 1, keep_checkpoints at least 2, evaluate_every at least 0"
            )
        if self.mark_every < 0 or self.mark_every % self.checkpoint_every:
            raise ValueError(
                f"mark_every is {self.mark_every}, but must be a multiple of {self.checkpoint_every}, or 0"
            )
        if not 0 < self.timeout_minutes <= 1e6:
            raise ValueError(f"timeout_minutes is {self.timeout_minutes}, but must be above 0 and at most 1e6")


@dataclass(frozen=True)
class EvaluationOptions:
    """Held-out questions, answered greedily."""

    files: tuple[Path, ...] = option((), "question files (JSONL), comma separated")
    limit: int = option(0, "only the first so many questions of each file; 0: all")
    max_new_tokens: int = option(128, "longest answer")

    def read(self) -> dict[str, list[Question]]:
        """The questions by file stem; files are checked before any model is loaded."""
        sets: dict[str, list[Question]] = {}
        for path in self.files:
            name = path.stem
            if name in sets:
                raise ValueError(f"evaluation.files holds two files named {name!r}; results are kept by that name")
            require(path, "evaluation.files")
            rows = read_questions(path)
            sets[name] = rows[: self.limit] if self.limit else rows
        return sets

    def __post_init__(self) -> None:
        if self.limit < 0 or self.max_new_tokens < 1:
            raise ValueError(
                f"limit {self.limit} must be at least 0 and max_new_tokens {self.max_new_tokens} at least 1"
            )


def require(path: Path, option: str) -> None:
    """Raises FileNotFoundError, naming the option, where there is nothing at this path."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: --{option} must name something that does")


def compute_dtype(options: ModelOptions, runtime: Runtime) -> torch.dtype:
    """What `dtype` means on this device; every rank takes rank 0's choice."""
    if options.dtype == "auto":
        name = gather_json(str(fast_dtype(runtime.device)), runtime.device)[0]
    else:
        name = options.dtype
    return torch.float32 if name.endswith("float32") else torch.bfloat16


def load_policy(options: ModelOptions, sharding: ShardingConfig, runtime: Runtime) -> Decoder:
    """The trainable model: whole at one rank, FSDP2 shards of fp32 masters above."""
    with runtime.together("trying the compiler"):
        if options.compile and runtime.device.type != "cpu":
            raise ValueError("model.compile is for runs on CPU; on a GPU there are kernels: --model.compile false")
        compiler.use(options.compile)
    if sharding.cpu_offload and runtime.world_size == 1:
        raise ValueError("sharding.cpu_offload is FSDP2's, and there is one rank: leave it false")
    dtype = compute_dtype(options, runtime)
    if runtime.world_size == 1:
        policy = load_model(options.path, dtype, runtime.device)
    else:
        shard = sharder(_mesh(sharding, runtime), dtype, cpu_offload=sharding.cpu_offload)
        place = "cpu" if sharding.cpu_offload else runtime.device
        with runtime.together("loading the model"):
            policy = load_model(options.path, torch.float32, place, shard)
    policy.checkpoint_activations = options.checkpoint_activations
    require_finite(policy, options.path, runtime)
    return policy


def load_frozen(path: str, dtype: torch.dtype, sharding: ShardingConfig, runtime: Runtime, on_cpu: bool) -> Decoder:
    """A model that never trains, in `dtype`; sharded like the policy, kept in host memory where `on_cpu`."""
    shard: Callable[[Decoder], None] | None = None
    if runtime.world_size > 1:
        shard = sharder(_mesh(sharding, runtime), dtype, cpu_offload=on_cpu, cast=False)
    with runtime.together("loading the reference"):
        model = load_model(path, dtype, "cpu" if on_cpu else runtime.device, shard)
    require_finite(model, path, runtime)
    return model.requires_grad_(False)


@functools.cache
def _mesh(sharding: ShardingConfig, runtime: Runtime) -> DeviceMesh:
    """Made once: its groups of ranks are never freed, and a refreshed reference is loaded again and again."""
    return make_mesh(sharding, runtime.world_size, runtime.device)


def require_finite(model: Decoder, path: str, runtime: Runtime) -> None:
    """Raise NonFiniteError on every rank where a weight of the model is NaN or infinite on one."""
    with runtime.together("looking through the model's weights"):
        for name, parameter in model.named_parameters():
            if bad := count_nonfinite(parameter):
                raise NonFiniteError(f"{path}: weight {name} has {bad} values that are not finite")


def evaluated(folder: Path, label: str) -> bool:
    """Whether evaluation.json of the run folder has this entry already."""
    return label in read_evaluation(folder)


def evaluated_on_first(folder: Path, label: str, runtime: Runtime) -> bool:
    """What `evaluated` says on the first rank (a collective): ranks that saw the file differently would part here."""
    found = False
    with runtime.together("reading evaluation.json"):
        if runtime.first:
            found = evaluated(folder, label)
    return gather_json(found, runtime.device)[0]


def read_evaluation(folder: Path) -> dict[str, Any]:
    """The run folder's evaluation.json, empty where there is none. Raises ValueError naming a damaged file."""
    path = folder / "evaluation.json"
    return read_json(path) if path.exists() else {}


def evaluate_sets(
    policy: Decoder,
    tokenizer: Tokenizer,
    sets: dict[str, list[Question]],
    options: EvaluationOptions,
    max_slots: int,
    runtime: Runtime,
    memory_gib: float | None = None,
    cuda_graphs: bool | None = None,
) -> dict[str, ChoiceReport]:
    """Accuracy on each held-out set, greedy; the questions are spread over the ranks."""
    params = SamplingParams(temperature=0, max_new_tokens=options.max_new_tokens)
    reports = {}
    for name, questions in sets.items():
        mine = share(questions, runtime.rank, runtime.world_size)
        prompts = [prompt_ids(tokenizer, question) for question in mine]
        longest = max(map(len, prompts), default=1) + options.max_new_tokens
        bar = f"evaluate {name}" if runtime.first else None
        with gathered(policy), runtime.together(f"evaluating {name}"):
            sampler = Sampler(policy, tokenizer, max_slots, longest, memory_gib, cuda_graphs)
            groups = sampler.generate(prompts, params, progress=bar)
        parts = gather_json([group.rollouts[0].text for group in groups], runtime.device)
        texts = [parts[i % runtime.world_size][i // runtime.world_size] for i in range(len(questions))]
        reports[name] = score_choice(questions, texts)
        runtime.say(f"  {name:<18} {reports[name]}")
    return reports


def require_room(
    sets: dict[str, list[Question]], tokenizer: Tokenizer, model: Path, options: EvaluationOptions
) -> None:
    """Raises ValueError for a held-out question that with its answer is longer than the model's positions."""
    positions = ModelConfig.from_folder(model).context_length
    for name, questions in sets.items():
        for question in questions:
            if (tokens := len(prompt_ids(tokenizer, question))) + options.max_new_tokens > positions:
                raise ValueError(
                    f"evaluation.files: question {question.id!r} of {name} has a prompt of {tokens} tokens; with "
                    f"evaluation.max_new_tokens {options.max_new_tokens} it exceeds the model's {positions} positions: "
                    "lower that, or leave the question out"
                )


def prompt_ids(tokenizer: Tokenizer, question: Question) -> list[int]:
    """What the policy is asked, up to where its answer begins."""
    return tokenizer.render_chat(question_messages(question), add_generation_prompt=True).ids


def record_evaluation(folder: Path, label: str, step: int, reports: dict[str, ChoiceReport], runtime: Runtime) -> None:
    """Put the reports into evaluation.json of the run folder, one entry a label ("before", "after", ...)."""
    with runtime.together("writing evaluation.json"):
        if runtime.first and reports:
            rows = read_evaluation(folder)
            rows[label] = {"step": step, "sets": {name: report.to_row() for name, report in reports.items()}}
            replace_file(folder / "evaluation.json", [json.dumps(rows, indent=2) + "\n"])


def evaluation_due(run: RunOptions, step: int, total_steps: int) -> bool:
    """Whether held-out accuracy is measured after this step, the last one apart."""
    return bool(run.evaluate_every) and step % run.evaluate_every == 0 and step < total_steps


def steps_of(run: RunOptions, rows: int, rows_per_step: int) -> int:
    """Number of steps: as configured, or the fewest in which every row comes as often as the epochs say."""
    return run.steps or max(1, math.ceil(round(run.epochs * rows / rows_per_step, 6)))  # without a product's last digit


def quarters(values: Sequence[float]) -> tuple[float, float]:
    """Means of the first and the last quarter, to see whether something rose."""
    size = max(len(values) // 4, 1)
    return sum(values[:size]) / size, sum(values[-size:]) / size
