"""The decoding step: tensors in, tensors out, at the sizes of a `Shape`, without reading a tensor on the host.

That makes a step of equal sizes a CUDA graph: what changes between replays are the tensors of `State` and the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from psychecore.model import fused
from psychecore.model.attention import resolve_backend
from psychecore.model.decoder import Decoder
from psychecore.rollout.cpu_step import CpuStep
from psychecore.rollout.graphs import whole
from psychecore.rollout.kv_cache import DecodeAttention, KVCache, Shape
from psychecore.rollout.sampling import SamplingParams, sample, uniform


@dataclass
class State:
    """What the slots hold, one row each; all int64 but for running, done (bool) and logprob (fp32 or wider)."""

    token_B: Tensor  # the last token
    count_B: Tensor  # tokens said
    key_B: Tensor
    limit_B: Tensor  # tokens to say at most
    prompt_B: Tensor  # length of the prompt
    seat_B: Tensor
    running_B: Tensor
    done_B: Tensor
    stopped_B: Tensor
    said_BM: Tensor
    logprob_BM: Tensor
    prompt_length_A: Tensor  # of the prompt rows
    stop_V: Tensor  # which tokens end a sample
    forbidden_V: Tensor  # which must not be sampled: none, or [V]

    @classmethod
    def empty(
        cls,
        model: Decoder,
        slots: int,
        rows: int,
        params: SamplingParams,
        stop_ids: Sequence[int],
        valid_ids: Sequence[bool],
    ) -> State:
        """No slot is in use. Tokens of `stop_ids` end a sample; those that are not valid are never sampled."""
        device, vocabulary = model.device, model.config.vocab_size
        integers, flags = (torch.zeros(slots, dtype=dtype, device=device) for dtype in (torch.int64, torch.bool))
        wide = torch.promote_types(model.compute_dtype, torch.float32)
        allowed_V, stop_V = (torch.zeros(vocabulary, dtype=torch.bool) for _ in range(2))
        valid_V = torch.as_tensor(valid_ids, dtype=torch.bool)[:vocabulary]
        allowed_V[: len(valid_V)] = valid_V
        if not params.ignore_stop:
            stop_V[[i for i in stop_ids if i < vocabulary]] = True
        return cls(
            token_B=integers.clone(),
            count_B=integers.clone(),
            key_B=integers.clone(),
            limit_B=integers.clone(),
            prompt_B=integers.clone(),
            seat_B=integers.clone(),
            running_B=flags.clone(),
            done_B=flags.clone(),
            stopped_B=flags.clone(),
            said_BM=integers.new_zeros(slots, params.max_new_tokens),
            logprob_BM=torch.zeros(slots, params.max_new_tokens, dtype=wide, device=device),
            prompt_length_A=integers.new_ones(rows),
            stop_V=stop_V.to(device),
            forbidden_V=flags[:0] if allowed_V.all() else ~allowed_V.to(device),
        )


def decode_step(model: Decoder, cache: KVCache, state: State, shape: Shape, params: SamplingParams) -> None:
    """The last token of every running sample through the model, and one new token each; writes into `state`."""
    slots = slice(0, shape.slots)
    place_B = (state.count_B[slots] - 1).clamp(min=0)
    seat_B, prompt_length_A = state.seat_B[slots], state.prompt_length_A[: shape.rows]
    token_B, position_B = state.token_B[slots], state.prompt_B[slots] + place_B
    if step := _cpu_step(model, cache, shape):
        hidden_BD = step(token_B, position_B, place_B, seat_B, prompt_length_A)
    else:
        hidden_BD = model(token_B, position_B, DecodeAttention(cache, shape, place_B, seat_B, prompt_length_A))
    accept(model, state, torch.arange(shape.slots, device=place_B.device), hidden_BD, params)


def _cpu_step(model: Decoder, cache: KVCache, shape: Shape) -> CpuStep | None:
    """The cache's own step, made anew for another shape or other weights; None where the model's layers must run.

    They must where attention is forced elsewhere, where a compiler looks on, and where a layer is a shard that its
    hooks gather.
    """
    if model.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    if resolve_backend(model.device, model.compute_dtype, cached=True) != "torch":
        return None
    step = cache.cpu_step
    if step is None or step.shape != shape or not step.is_current():
        with torch.inference_mode(False), torch.no_grad():  # the buffers of a stream may be used outside that mode
            step = CpuStep(model, cache, shape) if whole(model) else None
        cache.cpu_step = step
    return step


def accept(model: Decoder, state: State, slot_B: Tensor, hidden_BD: Tensor, params: SamplingParams) -> None:
    """Sample the next token of these slots from their hidden states and record it; slots that don't run stay as is."""
    logits_BV = fused.linear(hidden_BD, model.head_weight)
    if len(state.forbidden_V):
        logits_BV = logits_BV.masked_fill(state.forbidden_V, -torch.inf)
    count_B = state.count_B[slot_B]
    token_B, logprob_B = sample(logits_BV, params, uniform(state.key_B[slot_B], count_B))
    running_B = state.running_B[slot_B]
    state.said_BM[slot_B, count_B] = token_B
    state.logprob_BM[slot_B, count_B] = logprob_B.to(state.logprob_BM.dtype)
    state.token_B[slot_B] = token_B
    state.count_B[slot_B] = count_B + running_B
    stopped_B = state.stop_V[token_B]
    state.stopped_B[slot_B] = stopped_B
    state.done_B[slot_B] = running_B & (stopped_B | (count_B + 1 >= state.limit_B[slot_B]))
