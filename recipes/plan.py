"""What a run will need, before it is paid for: memory a GPU by kind, what fits, tokens a second, hours an epoch.

    python recipes/plan.py --model Qwen2.5-7B --ranks 8 --gpu H100-80
    python recipes/plan.py --config recipes/presets/demo.toml --model .models/SmolLM2-135M-Instruct --ranks 1
    python recipes/plan.py --table true

Without --config it takes recipes/presets/psyche_r1_7b.toml. Memory is for the longest sequences that the configuration
allows, with flash-attn; speeds are predictions for the mean lengths below at the stated efficiency, not measurements.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from cli import load_config, main_guard
from common import option
from grpo_options import GrpoRecipe
from planning import plan_run, ways_out
from sft import SftRecipe

from psychecore.model.config import ModelConfig
from psychecore.train.plan import GIB, Plan, host_bytes, peak, rollout_moments, update_moments
from psychecore.train.speed import GPUS, Efficiency, Gpu, rollout_seconds, update_seconds

PRESET = Path(__file__).parent / "presets" / "psyche_r1_7b.toml"
OTHERS = ("pipeline", "curate")  # tables of a preset on which no memory depends
COUNTS = (1, 2, 4, 8, 16, 32, 64)
KINDS = ("masters", "parameters", "optimizer", "gradients", "reference", "activations", "logits", "key/value cache")


def _qwen(width: int, layers: int, heads: tuple[int, int], feed_forward: int, vocabulary: int, tied: bool) -> Any:
    raw = {"model_type": "qwen2", "hidden_size": width, "num_hidden_layers": layers, "vocab_size": vocabulary}
    raw |= {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "intermediate_size": feed_forward}
    return ModelConfig.from_hf(raw | {"tie_word_embeddings": tied, "rms_norm_eps": 1e-6, "rope_theta": 1e6})


# config.json of Qwen/Qwen2.5-*-Instruct (arXiv 2412.15115, table 1)
MODELS = {
    "Qwen2.5-0.5B": _qwen(896, 24, (14, 2), 4864, 151_936, True),
    "Qwen2.5-1.5B": _qwen(1536, 28, (12, 2), 8960, 151_936, True),
    "Qwen2.5-3B": _qwen(2048, 36, (16, 2), 11_008, 151_936, True),
    "Qwen2.5-7B": _qwen(3584, 28, (28, 4), 18_944, 152_064, False),
    "Qwen2.5-14B": _qwen(5120, 48, (40, 8), 13_824, 152_064, False),
    "Qwen2.5-32B": _qwen(5120, 64, (40, 8), 27_648, 152_064, False),
    "Qwen2.5-72B": _qwen(8192, 80, (64, 8), 29_568, 152_064, False),
}


@dataclass(frozen=True)
class CustomGpu:
    """A GPU by numbers, for --gpu custom; all are needed."""

    memory_gib: float = option(0.0, "what torch reports as its memory")
    tflops: float = option(0.0, "dense bf16 peak")
    bandwidth_gb_s: float = option(0.0, "of its memory")
    link_gb_s: float = option(0.0, "one direction, to the other GPUs of its node")
    network_gb_s: float = option(0.0, "one direction, between nodes, per GPU")

    def read(self) -> Gpu:
        """The GPU. Raises ValueError where a number is missing."""
        numbers = {name: getattr(self, name) for name in self.__dataclass_fields__}
        missing = [f"--custom.{name}" for name, value in numbers.items() if not 0 < value < math.inf]
        if missing:
            raise ValueError(f"--gpu custom needs {', '.join(missing)} above 0")
        return Gpu(
            self.memory_gib,
            self.tflops * 1e12,
            self.bandwidth_gb_s * 1e9,
            self.link_gb_s * 1e9,
            self.network_gb_s * 1e9,
        )


@dataclass(frozen=True)
class Work:
    """What an epoch holds: the mean lengths are assumptions, in tokens, for the speeds only."""

    rows: int = option(100_000, "conversations of SFT")
    questions: int = option(10_000, "questions of GRPO")
    conversation: int = option(600, "mean tokens of a conversation")
    answer_share: float = option(0.7, "share of them that the assistant says")
    prompt: int = option(200, "mean tokens of a question's prompt")
    answer: int = option(500, "mean tokens of a sampled answer")

    def __post_init__(self) -> None:
        if min(self.rows, self.questions, self.conversation, self.prompt, self.answer) < 1:
            raise ValueError("rows, questions, conversation, prompt and answer must be at least 1")
        if not 0 < self.answer_share <= 1:
            raise ValueError(f"answer_share is {self.answer_share}, but must be above 0, at most 1")


@dataclass(frozen=True)
class Planner:
    """The machine, and the recipes whose run is planned."""

    sft: SftRecipe
    grpo: GrpoRecipe
    model: str | None = option(None, f"folder, config.json, or {', '.join(MODELS)}; none: sft.model.path")
    ranks: int = option(8, "GPUs, one rank each")
    gpu: Literal["A100-40", "A100-80", "H100-80", "H200-141", "B200", "custom"] = option("H100-80", "type of GPU")
    usable: float = option(0.9, "share of its memory that a plan may fill: CUDA, NCCL, fragmentation take the rest")
    table: bool = option(False, "the Markdown table of Qwen2.5 0.5B to 72B on the fewest of these GPUs, up to 64")
    efficiency: Efficiency = field(default_factory=Efficiency)
    custom: CustomGpu = field(default_factory=CustomGpu)
    work: Work = field(default_factory=Work)

    def __post_init__(self) -> None:
        if not 1 <= self.ranks <= 1e6 or not 0 < self.usable <= 1:
            raise ValueError(f"ranks {self.ranks} must be 1 to 1e6, usable {self.usable} above 0 and at most 1")
        if self.gpu != "custom" and self.custom != CustomGpu():
            raise ValueError(f"--custom.* describes a GPU of its own, but --gpu is {self.gpu}; give --gpu custom")

        if self.table and (self.model is not None or self.ranks != 8):
            raise ValueError(
                "--table true is of Qwen2.5 on as many GPUs as each size needs: leave out --model and --ranks"
            )
        if self.ranks == 1 and (self.sft.sharding.cpu_offload or self.grpo.sharding.cpu_offload):
            raise ValueError("sharding.cpu_offload is FSDP2's, and there is one rank: leave it false")

    @property
    def machine(self) -> Gpu:
        """The GPU in numbers."""
        return self.custom.read() if self.gpu == "custom" else GPUS[self.gpu]

    @property
    def available(self) -> float:
        """Bytes of a GPU that a plan may fill."""
        return self.usable * self.machine.memory_gib * GIB


def main(config: Planner) -> None:
    """Print the plan of both stages, or the table."""
    if config.table:
        print(table(config))
        return
    model = find_model(config.model or config.sft.model.path)
    print(
        f"{model.parameters / 1e9:.3f}B parameters on {config.ranks} x {config.gpu} of {config.machine.memory_gib:.1f} "
        f"GiB, of which {config.available / GIB:.1f} may be planned"
    )
    for stage, recipe in (("SFT", config.sft), ("GRPO", config.grpo)):
        print(f"\n{stage}\n" + "\n".join(describe(stage, recipe, model, config)))
    share = config.efficiency
    print(
        f"\nPredicted, not measured: {share.mfu:.0%} of {config.machine.peak / 1e12:.0f} TFLOP/s, "
        f"{share.bandwidth:.0%} of {config.machine.bandwidth / 1e12:.2f} TB/s, {share.links:.0%} of the links."
    )


def find_model(name: str) -> ModelConfig:
    """A built-in model by its name (Qwen/Qwen2.5-7B-Instruct too), or a local folder or config.json."""
    for key, config in MODELS.items():
        if name.removeprefix("Qwen/").removesuffix("-Instruct").lower() == key.lower():
            return config
    path = Path(name)
    if path.name == "config.json":
        path = path.parent
    if not path.is_dir():
        raise FileNotFoundError(f"--model {name!r} is no local folder; built in are {', '.join(MODELS)}")
    return ModelConfig.from_folder(path)


def describe(stage: str, recipe: Any, model: ModelConfig, config: Planner) -> list[str]:
    """Memory by kind in the update and in the rollouts, whether it fits, and the speed."""
    plan = make_plan(recipe, model, config.ranks)
    phases = {"update": update_moments(plan), "rollouts": rollout_moments(plan)}
    worst = {
        name: max(moments.items(), key=lambda m: sum(m[1].values())) for name, moments in phases.items() if moments
    }
    lines = [f"  {'GiB on a GPU at the peak of':<28}" + "".join(f"{name:>12}" for name in worst)]
    for kind in KINDS:
        values = [kinds.get(kind, 0.0) / GIB for _, kinds in worst.values()]
        if any(values):
            lines.append(f"  {kind:<28}" + "".join(f"{value:>12.2f}" for value in values))
    lines.append(f"  {'together':<28}" + "".join(f"{sum(k.values()) / GIB:>12.2f}" for _, k in worst.values()))
    lines.append(f"  {'reached in':<28}  " + ", ".join(moment for moment, _ in worst.values()))
    needed = sum(peak(plan)[1].values())
    on_host = host_bytes(plan, True, recipe.run.checkpoint_in_background)
    lines.append(f"  host memory {on_host / GIB:.1f} GiB a rank, checkpoints included")
    if needed <= config.available:
        lines.append(f"  fits: {needed / GIB:.1f} of {config.available / GIB:.1f} GiB")
    else:
        ways = ways_out(recipe, plan, config.available)
        lines.append(f"  DOES NOT FIT: {needed / GIB:.1f} GiB, but {config.available / GIB:.1f} may be planned")
        lines += [f"    would fit with {way}" for way in ways]
        if not ways:
            reason = ", since every rank holds the whole model while it samples" if plan.rollouts else ""
            lines.append(f"    no setting and no number of ranks makes it fit{reason}: take a GPU with more memory")
    tokens_per_s, hours = speed(recipe, plan, config)
    what = "new tokens" if stage == "GRPO" else "tokens"
    rows = f"{config.work.questions} questions" if stage == "GRPO" else f"{config.work.rows} conversations"
    return [*lines, f"  {tokens_per_s:,.0f} {what}/s over all GPUs, {hours:.1f} hours for an epoch of {rows}"]


def make_plan(recipe: Any, model: ModelConfig, ranks: int) -> Plan:
    """On GPUs: "auto" is bfloat16, attention is flash-attn's."""
    return plan_run(recipe, model, ranks, torch.float32 if recipe.model.dtype == "float32" else torch.bfloat16, True)


def speed(recipe: Any, plan: Plan, config: Planner) -> tuple[float, float]:
    """(tokens a second over all ranks: trained ones in SFT, sampled ones in GRPO; hours of an epoch)."""
    work, gpu, train = config.work, config.machine, recipe.train
    if not hasattr(recipe, "sampling"):
        tokens = train.batch_size * work.conversation
        mine = tokens / plan.world_size
        seconds = update_seconds(plan, gpu, config.efficiency, mine, mine * work.answer_share, work.conversation)
        return tokens / seconds, work.rows / train.batch_size * seconds / 3600
    prompts = math.ceil(train.prompts_per_step / plan.world_size)  # the fullest rank: the others wait for it
    samples = prompts * train.samples_per_prompt
    seconds = rollout_seconds(plan, gpu, config.efficiency, prompts, samples, work.prompt, work.answer)
    forward_only = (plan.reference != "none") + (train.mini_batches > 1 and train.old_logprobs == "recompute")
    rows = samples * work.answer / train.mini_batches
    tokens = prompts * work.prompt / train.mini_batches + rows
    length = work.prompt + work.answer
    seconds += train.mini_batches * update_seconds(
        plan, gpu, config.efficiency, tokens, rows, length, float(forward_only)
    )
    new_tokens = train.prompts_per_step * train.samples_per_prompt * work.answer
    return new_tokens / seconds, work.questions / train.prompts_per_step * seconds / 3600


def table(config: Planner) -> str:
    """Per model and stage the fewest GPUs on which it fits, peak memory, speed, hours of an epoch."""
    head = "GPUs | peak GiB | {} | hours"
    lines = [f"| model | SFT: {head.format('tokens/s')} | GRPO: {head.format('new tokens/s')} |", "|---" * 9 + "|"]
    for name, model in MODELS.items():
        cells = [name]
        for recipe in (config.sft, config.grpo):
            recipe = replace(recipe, sharding=replace(recipe.sharding, replicas=1))
            for ranks in COUNTS:
                plan = make_plan(recipe, model, ranks)
                needed = sum(peak(plan)[1].values())
                if needed <= config.available:
                    tokens_per_s, hours = speed(recipe, plan, config)
                    cells += [str(ranks), f"{needed / GIB:.0f}", f"{tokens_per_s:,.0f}", f"{hours:.1f}"]
                    break
            else:
                cells += ["none", f"{needed / GIB:.0f} on {ranks}", "", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    with main_guard():
        arguments = sys.argv[1:]
        if not any(item.split("=")[0] == "--config" for item in arguments):
            arguments = ["--config", str(PRESET), *arguments]
        main(load_config(Planner, arguments, __doc__, skip=OTHERS))
