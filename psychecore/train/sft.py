"""One SFT step: pack conversations under a token budget, minus the mean log-probability of their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from psychecore.data.packing import pack, plan_micro_batches
from psychecore.model.decoder import Decoder
from psychecore.runtime import Runtime, max_over_ranks, sum_over_ranks
from psychecore.text.tokenizer import Encoded
from psychecore.train.losses import Normalisation, sft_loss, token_weights
from psychecore.train.optimizer import Optimizer
from psychecore.train.token_logprobs import batch_logprobs


@dataclass(frozen=True)
class SftConfig:
    """batch_size conversations an optimizer step over all ranks; token_budget bounds a micro-batch.

    normalisation "token" weighs every label of the batch the same, "sequence" every conversation. max_length: a
    conversation with more tokens is refused before training, with its id.
    """

    batch_size: int = 256
    token_budget: int = 8192
    max_length: int = 2048
    normalisation: Normalisation = "token"

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.token_budget < 1 or self.max_length < 2:
            raise ValueError("batch_size and token_budget must be at least 1, max_length at least 2")
        if self.normalisation == "constant":
            raise ValueError("normalisation is 'constant', which is for GRPO; use token or sequence")


def sft_step(
    model: Decoder,
    optimizer: Optimizer,
    conversations: Sequence[Encoded],
    config: SftConfig,
    runtime: Runtime,
    *,
    progress: bool = False,
) -> dict[str, float]:
    """One optimizer step on this rank's conversations (possibly none); every rank must call.

    Returns loss (mean over all ranks' labels, or sequences), entropy (per label), gradient_norm (NaN for a step that
    was skipped), labels, tokens.
    """
    sums = accumulate_sft_gradient(model, conversations, config, runtime, progress=progress)
    norm = optimizer.step(sums["loss"])
    names = sorted(sums)
    reduced = dict(zip(names, sum_over_ranks([sums[name] for name in names], runtime.device), strict=True))
    reduced["entropy"] /= max(reduced["labels"], 1)
    return reduced | {"gradient_norm": norm}


def accumulate_sft_gradient(
    model: Decoder,
    conversations: Sequence[Encoded],
    config: SftConfig,
    runtime: Runtime,
    *,
    progress: bool = False,
) -> dict[str, float]:
    """Forward and backward over the micro-batches of one step; returns this rank's loss, entropy, labels, tokens."""
    lengths = [sum(encoded.loss_mask[1:]) for encoded in conversations]
    trained = sum(length > 0 for length in lengths)
    total_labels, total_sequences = sum_over_ranks([sum(lengths), trained], runtime.device)
    weights = token_weights(lengths, config.normalisation, int(total_labels), int(total_sequences))
    plan = plan_micro_batches([len(encoded.ids) for encoded in conversations], config.token_budget)
    (count,) = max_over_ranks([max(len(plan), 1)], runtime.device)
    plan += [[] for _ in range(int(count) - len(plan))]
    sums = {"loss": 0.0, "entropy": 0.0, "labels": 0.0, "tokens": 0.0}
    for bin_ in tqdm(plan, desc="update", disable=None if progress and len(plan) > 1 else True, leave=False):
        batch = pack([(conversations[i].ids, conversations[i].loss_mask) for i in bin_]).to(runtime.device)
        weight_by_sequence = torch.tensor([weights[i] for i in bin_], dtype=torch.float32, device=runtime.device)
        logprobs_R, entropy_R = batch_logprobs(model, batch)
        loss = sft_loss(logprobs_R, weight_by_sequence[batch.sequence_R])
        (loss * runtime.world_size).backward()  # FSDP2 averages over ranks; the weights already count all of them
        sums["loss"] += float(loss.detach())
        sums["entropy"] += float(entropy_R.detach().sum())
        sums["labels"] += len(batch.labels_R)
        sums["tokens"] += batch.tokens
    return sums
