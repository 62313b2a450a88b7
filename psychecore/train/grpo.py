"""One GRPO update from scored groups: micro-batches, old and reference log-probs, gradient, optimizer step.

Groups are packed with their prompt standing once (data/packing.py). Work that isn't needed isn't done: no reference
pass at KL 0, no pass for old log-probs where one on-policy step follows (the ratio is then 1 by definition).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from psychecore.data.packing import PackedBatch, pack, plan_micro_batches
from psychecore.model.decoder import Decoder
from psychecore.rollout.trajectory import Group, Rollout
from psychecore.runtime import Runtime, max_over_ranks, sum_over_ranks
from psychecore.train.advantage import AdvantageKind
from psychecore.train.losses import LossConfig, policy_loss, token_weights
from psychecore.train.optimizer import Optimizer
from psychecore.train.token_logprobs import batch_logprobs


@dataclass(frozen=True)
class GrpoConfig:
    """The algorithm's settings beside sampling and optimizer.

    prompts_per_step x samples_per_prompt are sampled, then split into mini_batches optimizer steps.
    old_logprobs: what the ratio divides by when there are several mini-batches, the sampler's own log-probs or a pass
    of the policy before its first step. token_budget bounds a micro-batch. temperature of sampling and of the loss.
    """

    prompts_per_step: int = 128
    samples_per_prompt: int = 5
    mini_batches: int = 4
    advantage: AdvantageKind = "mean_std"
    old_logprobs: Literal["recompute", "sampler"] = "recompute"
    token_budget: int = 8192
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        if self.prompts_per_step < 1 or self.samples_per_prompt < 2:
            raise ValueError(
                f"prompts_per_step {self.prompts_per_step} must be at least 1 and samples_per_prompt "
                f"{self.samples_per_prompt} at least 2 (a group of one has no advantage)"
            )
        if not 1 <= self.mini_batches <= self.prompts_per_step:
            raise ValueError(f"mini_batches is {self.mini_batches}, but must be 1 to prompts_per_step")
        if self.token_budget < 1:
            raise ValueError(f"token_budget is {self.token_budget}, but must be at least 1")


@dataclass
class MicroBatch:
    """A packed batch with what the loss needs of each of its R rows."""

    batch: PackedBatch
    advantages_R: Tensor
    weights_R: Tensor
    behaviour_R: Tensor
    old_R: Tensor | None = None

    def to(self, device: torch.device) -> MicroBatch:
        """The micro-batch with its tensors on `device`."""
        old_R = None if self.old_R is None else self.old_R.to(device)
        return MicroBatch(
            self.batch.to(device),
            self.advantages_R.to(device),
            self.weights_R.to(device),
            self.behaviour_R.to(device),
            old_R,
        )


def grpo_update(
    policy: Decoder,
    optimizer: Optimizer,
    groups: Sequence[Group],
    advantages_PG: Tensor,
    config: GrpoConfig,
    runtime: Runtime,
    *,
    temperature: float = 1.0,
    reference: Decoder | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """Update the policy on this rank's scored groups (possibly none); every rank must call.

    Ranks hold every world_size-th group (data/stream.py `share`); mini-batches are cut from the groups of all ranks, so
    that they hold the same prompts at any number of ranks.

    Returns metrics over all ranks and mini-batches, per token unless said: loss (per optimizer step), kl, entropy,
    clip_fraction, ratio, mismatch, mismatch_kl, importance, gradient_norm (mean over steps), tokens (of forward).
    """
    (total_groups,) = sum_over_ranks([len(groups)], runtime.device)
    mini_batches = [
        build_micro_batches([groups[i] for i in part], advantages_PG[part], config, runtime)
        for part in _mini_batches(len(groups), int(total_groups), config.mini_batches, runtime)
    ]
    if config.mini_batches > 1:
        _fill_old(policy, mini_batches, config, runtime, temperature)
    sums: dict[str, float] = {}
    norms: list[float] = []
    total = sum(len(micros) for micros in mini_batches)
    with tqdm(total=total, desc="update", disable=None if progress else True, leave=False) as bar:
        for micros in mini_batches:
            loss = 0.0
            for micro in micros:
                parts = accumulate_gradient(policy, micro, config.loss, runtime, temperature, reference)
                loss += parts["loss"]
                _add(sums, parts)
                bar.update()
            norms.append(optimizer.step(loss))
    names = sorted(sums)  # every rank ran at least one micro-batch per mini-batch, so the names agree
    reduced = dict(zip(names, sum_over_ranks([sums[name] for name in names], runtime.device), strict=True))
    labels, forward_tokens, total_loss = (reduced.pop(name) for name in ("labels", "tokens", "loss"))
    metrics = {name: value / max(labels, 1) for name, value in reduced.items()}
    metrics["clip_fraction"] = metrics.pop("clipped")
    metrics |= {"loss": total_loss / len(norms), "gradient_norm": sum(norms) / len(norms), "tokens": forward_tokens}
    return metrics


def accumulate_gradient(
    policy: Decoder,
    micro: MicroBatch,
    loss_config: LossConfig,
    runtime: Runtime,
    temperature: float = 1.0,
    reference: Decoder | None = None,
) -> dict[str, float]:
    """Forward and backward of one micro-batch; returns sums over its tokens, and `loss`, `labels`, `tokens`."""
    micro = micro.to(runtime.device)
    logprobs_R, entropy_R = batch_logprobs(policy, micro.batch, temperature)
    reference_R = None
    if reference is not None and loss_config.kl_coefficient > 0:
        with torch.no_grad():
            reference_R = batch_logprobs(reference, micro.batch, temperature)[0]
    loss, sums = policy_loss(
        logprobs_R,
        logprobs_R.detach() if micro.old_R is None else micro.old_R,
        micro.advantages_R,
        micro.weights_R,
        loss_config,
        sequence_R=micro.batch.sequence_R,
        reference_R=reference_R,
        behaviour_R=micro.behaviour_R,
    )
    (loss * runtime.world_size).backward()  # FSDP2 averages over ranks; the weights already count all of them
    result = {name: float(value) for name, value in sums.items()}
    result |= {"loss": float(loss.detach()), "entropy": float(entropy_R.detach().sum())}
    return result | {"labels": len(micro.batch.labels_R), "tokens": micro.batch.tokens}


def build_micro_batches(
    groups: Sequence[Group], advantages_PG: Tensor, config: GrpoConfig, runtime: Runtime
) -> list[MicroBatch]:
    """Pack one mini-batch's groups under the token budget; every rank gets the same number of micro-batches.

    A group over the budget is split, its prompt standing once in each piece. The loss weights count the labels of
    all ranks.
    """
    pieces = _split_groups(groups, advantages_PG, config)
    trained = [len(rollout.token_ids) for piece in pieces for rollout, _ in piece.samples]
    total_tokens, total_sequences = sum_over_ranks([sum(trained), len(trained)], runtime.device)
    plan = plan_micro_batches([piece.tokens for piece in pieces], config.token_budget)
    (count,) = max_over_ranks([max(len(plan), 1)], runtime.device)
    plan += [[] for _ in range(int(count) - len(plan))]
    return [_pack([pieces[i] for i in bin_], config, int(total_tokens), int(total_sequences)) for bin_ in plan]


@dataclass
class _Piece:
    """A prompt with some of its rollouts and their advantages."""

    prompt_ids: list[int]
    samples: list[tuple[Rollout, float]]

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + sum(len(rollout.token_ids) for rollout, _ in self.samples)


def _split_groups(groups: Sequence[Group], advantages_PG: Tensor, config: GrpoConfig) -> list[_Piece]:
    pieces = []
    for group, advantages_G in zip(groups, advantages_PG.tolist(), strict=True):
        piece = _Piece(group.prompt_ids, [])
        for rollout, advantage in zip(group.rollouts, advantages_G, strict=True):
            if config.loss.mask_overlong and rollout.finish_reason == "length":
                continue
            if piece.samples and piece.tokens + len(rollout.token_ids) > config.token_budget:
                pieces.append(piece)
                piece = _Piece(group.prompt_ids, [])
            piece.samples.append((rollout, advantage))
        if piece.samples:
            pieces.append(piece)
    return pieces


def _pack(pieces: list[_Piece], config: GrpoConfig, total_tokens: int, total_sequences: int) -> MicroBatch:
    samples = [sample for piece in pieces for sample in piece.samples]
    lengths = [len(rollout.token_ids) for rollout, _ in samples]
    weights = token_weights(
        lengths, config.loss.normalisation, total_tokens, total_sequences, config.loss.constant_length
    )
    repeats = torch.tensor(lengths, dtype=torch.int64)
    return MicroBatch(
        batch=pack([_sequence(piece.prompt_ids, r) for piece in pieces for r, _ in piece.samples]),
        advantages_R=torch.tensor([a for _, a in samples], dtype=torch.float32).repeat_interleave(repeats),
        weights_R=torch.tensor(weights, dtype=torch.float32).repeat_interleave(repeats),
        behaviour_R=torch.tensor([p for rollout, _ in samples for p in rollout.logprobs], dtype=torch.float32),
    )


def _sequence(prompt_ids: list[int], rollout: Rollout) -> tuple[list[int], list[bool]]:
    """Prompt and completion, every completion token a label."""
    return prompt_ids + rollout.token_ids, [False] * len(prompt_ids) + [True] * len(rollout.token_ids)


def _fill_old(
    policy: Decoder, mini_batches: list[list[MicroBatch]], config: GrpoConfig, runtime: Runtime, temperature: float
) -> None:
    """Log-probs of the policy before its first step, for the ratios of the later ones."""
    for micro in (micro for micros in mini_batches for micro in micros):
        if config.old_logprobs == "sampler":
            micro.old_R = micro.behaviour_R
        else:
            with torch.no_grad():
                micro.old_R = batch_logprobs(policy, micro.batch.to(runtime.device), temperature)[0].cpu()


def _mini_batches(length: int, total: int, count: int, runtime: Runtime) -> list[list[int]]:
    """Which of this rank's groups belong to each mini-batch, of nearly equal size over all ranks; none is empty there.

    Example: 3 groups and 2 mini-batches are cut as [0, 1], [2]; of two ranks the first holds groups 0 and 2, the second
    group 1, so their parts are [0], [1] and [0], [].
    """
    count = max(min(count, total), 1)
    parts: list[list[int]] = [[] for _ in range(count)]
    for i in range(length):
        parts[(runtime.rank + i * runtime.world_size) * count // max(total, 1)].append(i)
    return parts


def _add(sums: dict[str, float], values: dict[str, float]) -> None:
    for name, value in values.items():
        sums[name] = sums.get(name, 0.0) + value
