"""One GRPO update from scored groups: micro-batches, old and reference log-probs, gradient, optimizer step.

Groups are packed with their prompt standing once (data/packing.py). Work that isn't needed isn't done: no reference
pass at KL 0, no pass for old log-probs where one on-policy step follows (the ratio is then 1 by definition).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from psychecore.data.packing import PackedBatch, pack, plan_micro_batches
from psychecore.data.stream import balanced_shares
from psychecore.model.decoder import Decoder
from psychecore.rollout.trajectory import Group, Rollout
from psychecore.runtime import Runtime, gather_json, sum_over_ranks
from psychecore.train.advantage import AdvantageKind
from psychecore.train.losses import LossConfig, policy_loss, token_weights
from psychecore.train.optimizer import Optimizer
from psychecore.train.sharding import release
from psychecore.train.token_logprobs import batch_logprobs


@dataclass(frozen=True)
class GrpoConfig:
    """The algorithm's settings beside sampling and optimizer.

    prompts_per_step x samples_per_prompt are sampled, then split into mini_batches optimizer steps. old_logprobs: what
    the ratio divides by when there are several mini-batches, the sampler's own log-probs or a pass of the policy before
    its first step. token_budget bounds a micro-batch. advantage: a reward less its group's mean, over their standard
    deviation (GRPO) or not (`mean`, Dr. GRPO), or less the others' mean (RLOO).
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
        if self.old_is_the_samplers and self.loss.importance_cap is not None:
            raise ValueError(
                "loss.importance_cap corrects what lies between sampler and old log-probs, and with old_logprobs "
                '"sampler" they are the same: leave it out, or take old_logprobs "recompute"'
            )

    @property
    def old_is_the_samplers(self) -> bool:
        """Whether ratios divide by what the sampler said; with one mini-batch they don't."""
        return self.old_logprobs == "sampler" and self.mini_batches > 1


@dataclass
class MicroBatch:
    """A packed batch with what the loss needs of each of its R rows."""

    batch: PackedBatch
    advantages_R: Tensor
    weights_R: Tensor
    behaviour_R: Tensor | None  # the sampler's log-probs, but where they are the old ones
    old_R: Tensor | None = None

    def to(self, device: torch.device) -> MicroBatch:
        """The micro-batch with its tensors on `device`."""
        behaviour_R, old_R = (x if x is None else x.to(device) for x in (self.behaviour_R, self.old_R))
        return MicroBatch(
            self.batch.to(device), self.advantages_R.to(device), self.weights_R.to(device), behaviour_R, old_R
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

    Ranks hold every world_size-th group (data/stream.py `share`). They exchange them first: mini-batches are cut from
    the groups of all ranks, so that they hold the same prompts at any number of ranks, and each rank trains on about as
    many tokens, whoever sampled them.

    Returns metrics over all ranks and mini-batches, per token unless said: loss (per optimizer step), kl, entropy,
    clip_fraction, ratio, mismatch, mismatch_kl, importance, gradient_norm (mean over steps), tokens (of forward). Old
    log-probs that are the sampler's leave no mismatch to be told.
    """
    groups, advantages_PG = _exchange(groups, advantages_PG, runtime)
    mini_batches = [
        build_micro_batches(groups[part], advantages_PG[part], config, runtime)
        for part in _mini_batches(len(groups), config.mini_batches)
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
    if reference is not None:
        release(reference)
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
    """This rank's micro-batches of a mini-batch, given the groups of all ranks; every rank gets the same number.

    A group over the token budget, or over what one rank should do of the mini-batch, is split; its prompt then stands
    once in each piece. The pieces are spread over the ranks by tokens. The loss weights count the labels of all ranks.
    """
    fair_share = -(-sum(group.tokens for group in groups) // runtime.world_size)
    pieces = _split_groups(groups, advantages_PG, min(config.token_budget, fair_share), config.loss.mask_overlong)
    lengths = [piece.tokens for piece in pieces]
    trained = [len(rollout.token_ids) for piece in pieces for rollout, _ in piece.samples]
    shares = balanced_shares(lengths, runtime.world_size)
    plans = [plan_micro_batches([lengths[i] for i in mine], config.token_budget) for mine in shares]
    plan, mine = plans[runtime.rank], shares[runtime.rank]
    plan += [[] for _ in range(max(1, *map(len, plans)) - len(plan))]
    return [_pack([pieces[mine[i]] for i in bin_], config, sum(trained), len(trained)) for bin_ in plan]


@dataclass
class _Piece:
    """A prompt with some of its rollouts and their advantages."""

    prompt_ids: list[int]
    samples: list[tuple[Rollout, float]]

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + sum(len(rollout.token_ids) for rollout, _ in self.samples)


def _split_groups(groups: Sequence[Group], advantages_PG: Tensor, limit: int, mask_overlong: bool) -> list[_Piece]:
    pieces = []
    for group, advantages_G in zip(groups, advantages_PG.tolist(), strict=True):
        piece = _Piece(group.prompt_ids, [])
        for rollout, advantage in zip(group.rollouts, advantages_G, strict=True):
            if mask_overlong and rollout.finish_reason == "length":
                continue
            if piece.samples and piece.tokens + len(rollout.token_ids) > limit:
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
        if config.old_is_the_samplers:
            micro.old_R, micro.behaviour_R = micro.behaviour_R, None
        else:
            with torch.no_grad():
                micro.old_R = batch_logprobs(policy, micro.batch.to(runtime.device), temperature)[0].cpu()


def _exchange(groups: Sequence[Group], advantages_PG: Tensor, runtime: Runtime) -> tuple[Sequence[Group], Tensor]:
    """The groups of all ranks, in the order of the batch and without their texts, and their advantages.

    Only sampling shows how long a group is, so the rank that sampled it need not be the one with time for it. JSON
    carries floats exactly; a million tokens are 28 MB and take 1 to 2 s of one core, little beside sampling them.
    """
    if runtime.world_size == 1:
        return groups, advantages_PG
    rows = [
        [group.prompt_ids, [[r.token_ids, r.logprobs, r.finish_reason] for r in group.rollouts], advantages_G]
        for group, advantages_G in zip(groups, advantages_PG.tolist(), strict=True)
    ]
    turns = zip_longest(*gather_json(rows, runtime.device))
    rows = [row for turn in turns for row in turn if row is not None]
    everyone = [
        Group(prompt_ids, [Rollout(token_ids, logprobs, "", reason) for token_ids, logprobs, reason in rollouts])
        for prompt_ids, rollouts, _ in rows
    ]
    return everyone, torch.tensor([advantages_G for *_, advantages_G in rows], dtype=advantages_PG.dtype)


def _mini_batches(groups: int, count: int) -> list[slice]:
    """Cuts of nearly equal size, none empty where there is a group. Example: 3 groups, 2 mini-batches: 0 1 | 2."""
    count = max(min(count, groups), 1)
    return [slice(*edges) for edges in pairwise(-(-part * groups // count) for part in range(count + 1))]


def _add(sums: dict[str, float], values: dict[str, float]) -> None:
    for name, value in values.items():
        sums[name] = sums.get(name, 0.0) + value
