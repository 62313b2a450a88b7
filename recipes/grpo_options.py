"""What a GRPO run depends on: the options of grpo.py."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from common import EvaluationOptions, ModelOptions, RunOptions, option

from psychecore.reward.score import RewardConfig
from psychecore.rollout.sampling import SamplingParams
from psychecore.train.grpo import GrpoConfig
from psychecore.train.losses import LossConfig
from psychecore.train.optimizer import OptimizerConfig
from psychecore.train.sharding import ShardingConfig


@dataclass(frozen=True)
class DataOptions:
    """What it trains on."""

    train: Path = field(metadata={"help": "questions, JSONL of {id, question, options, answer, kind, ...}"})
    max_prompt_tokens: int = option(1024, "a longer prompt is refused before training, with its id")

    def __post_init__(self) -> None:
        if self.max_prompt_tokens < 1:
            raise ValueError(f"max_prompt_tokens is {self.max_prompt_tokens}, but must be at least 1")


@dataclass(frozen=True)
class ReferenceOptions:
    """What the KL term holds the policy to."""

    path: str | None = option(None, "another folder or hub id; none: the policy as it starts")
    device: Literal["same", "cpu"] = option("same", "cpu parks it in host memory outside the update")
    refresh_every: int = option(0, "copy the policy into the reference every so many steps; 0: never")


@dataclass(frozen=True)
class SamplingOptions:
    """How rollouts are sampled."""

    params: SamplingParams = field(default_factory=lambda: SamplingParams(max_new_tokens=1024))
    max_slots: int = option(64, "sequences that run at the same time on a rank")
    memory_gib: float | None = option(None, "bound of a rank's key/value cache; work that does not fit waits")
    cuda_graphs: bool | None = option(None, "replay decoding steps as CUDA graphs; none: on a GPU, false: never")

    def __post_init__(self) -> None:
        if not 1 <= self.max_slots <= 1e6:
            raise ValueError(f"max_slots is {self.max_slots}, but must be 1 to 1e6")
        if self.memory_gib is not None and not 0 < self.memory_gib < math.inf:
            raise ValueError(f"memory_gib is {self.memory_gib}, but must be above 0 and finite, or none")


@dataclass(frozen=True)
class GrpoRecipe:
    """Everything a GRPO run depends on."""

    model: ModelOptions
    data: DataOptions
    run: RunOptions
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    reward: RewardConfig = field(default_factory=RewardConfig)
    train: GrpoConfig = field(default_factory=GrpoConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    reference: ReferenceOptions = field(default_factory=ReferenceOptions)
    sharding: ShardingConfig = field(default_factory=ShardingConfig)

    def __post_init__(self) -> None:
        if self.sampling.params.temperature == 0:
            raise ValueError("sampling.params.temperature is 0: greedy samples of a group are all the same")
        params, reference = self.sampling.params, self.reference
        if params.seed:
            raise ValueError(f"sampling.params.seed is {params.seed}, but run.seed decides what is sampled: set that")
        if self.model.thinking is False and self.reward.format_weight > 0:
            raise ValueError(
                "model.thinking is false, so answers hold no think block, without which reward.format is 0: give "
                "--reward.format_weight 0, or leave thinking on"
            )
        loss, usual = self.train.loss, LossConfig()
        idle = [f"loss.{k}" for k in ("clip_low", "clip_high") if getattr(loss, k) != getattr(usual, k)]
        idle += ["loss.ratio"] if loss.ratio != usual.ratio and loss.importance_cap is None else []
        idle += ["old_logprobs"] if self.train.old_logprobs != "recompute" else []
        if self.train.mini_batches == 1 and idle:
            raise ValueError(
                f"train.{idle[0]} changes nothing at mini_batches 1, where each sample is trained on once, at ratio 1: "
                "leave it out, or take train.mini_batches 2 or more"
            )
        if loss.normalisation != "constant" and loss.constant_length != usual.constant_length:
            raise ValueError('train.loss.constant_length is of normalisation "constant": leave it out, or take that')
        if self.train.old_is_the_samplers and (params.top_p < 1 or params.top_k or params.min_p):
            raise ValueError(
                'train.old_logprobs is "sampler", whose log-probs are of what top_p, top_k and min_p leave, and the '
                'policy\'s are not: leave those off, or take "recompute"'
            )
        if self.train.loss.kl_coefficient == 0 and reference != ReferenceOptions():
            raise ValueError("train.loss.kl_coefficient is 0, so there is no reference: leave out [reference]")
        if self.reference.refresh_every < 0:
            raise ValueError(f"reference.refresh_every is {self.reference.refresh_every}, but must be at least 0")
