"""From logits to a token: temperature, top-k, top-p, min-p, and the log-prob under what was really sampled from.

A draw is one uniform number per sequence pushed through the cumulative distribution (inverse transform): no random
tensor of the vocabulary's size. The number is a hash of (seed, prompt, sample, token index), so a sample depends on
neither its batch neighbours, nor the slot it runs in, nor the number of ranks.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128  # tokens; divides the vocabularies of Qwen2.5, Qwen3 and SmolLM2
GOLDEN = -7046029254386353131  # 2^64 / golden ratio as a signed integer: the increment of splitmix64


@dataclass(frozen=True)
class SamplingParams:
    """How to sample. temperature 0 is greedy; top_p 1, top_k 0 and min_p 0 are off.

    top_k keeps the k likeliest tokens, top_p the smallest set of the likeliest with at least that mass, min_p those
    with at least that share of the likeliest one's probability; they apply in this order, after the temperature.
    ignore_stop samples exactly max_new_tokens. seed: of the random numbers.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_new_tokens: int = 128
    ignore_stop: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}, but must be 0 (greedy) or above")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, but must be in (0, 1]")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}, but must be 0 (off) or above")
        if not 0 <= self.min_p < 1:
            raise ValueError(f"min_p is {self.min_p}, but must be in [0, 1)")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}, but must be at least 1")


def sample(logits_BV: Tensor, params: SamplingParams, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Draw a token per row: (ids [B] int64, log-probs [B] in nats, fp32 or wider).

    uniform_B holds numbers in [0, 1). Tokens whose logit is -inf are never drawn.
    """
    # Wide first, no softmax, one buffer: decoding on CPU has the logits lie by column (fused.linear), where at 32 rows
    # of 49,152 the maximum takes 3.6 ms in bf16 and 0.2 in fp32, a softmax 5.8, and fresh pages for each buffer 2.
    below_BV = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32), copy=True)
    below_BV -= below_BV.amax(-1, keepdim=True)
    if params.temperature == 0:
        ids_B = below_BV.argmax(-1)
        return ids_B, -below_BV.exp_().sum(-1).log()
    if params.temperature != 1:  # less the maximum first: a tiny temperature then gives 0 and -inf, not inf
        below_BV /= params.temperature
    mass_BV = filter_logits(below_BV, params).exp_()
    ids_B, total_B = _invert(mass_BV, uniform_B)
    return ids_B, (mass_BV.gather(-1, ids_B[:, None])[:, 0] / total_B).log()


def _invert(mass_BV: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """The index at which the cumulative mass passes each number times the total, never one without mass; the total.

    Two levels, a block and a place in it: a third of the time of one cumulative sum over the vocabulary.
    """
    short = -mass_BV.shape[1] % BLOCK
    blocks_BCV = (F.pad(mass_BV, (0, short)) if short else mass_BV).unflatten(-1, (-1, BLOCK))
    before_BC = blocks_BCV.movedim(0, -1).sum(1).T.cumsum(-1)  # laid out as the mass: else 5.5 ms by columns, not 0.1
    point_B1 = _below(uniform_B[:, None].to(mass_BV.dtype) * before_BC[:, -1:], before_BC[:, -1:])
    # without the two clamps, a mass that is NaN would point behind the last block and token
    block_B1 = torch.searchsorted(before_BC, point_B1, right=True).clamp(max=before_BC.shape[1] - 1)
    inside_BV = blocks_BCV.gather(1, block_B1[..., None].expand(-1, 1, BLOCK))[:, 0].cumsum(-1)
    start_B1 = F.pad(before_BC, (1, 0)).gather(-1, block_B1)
    rest_B1 = _below(point_B1 - start_B1, inside_BV[:, -1:])
    ids_B = block_B1[:, 0] * BLOCK + torch.searchsorted(inside_BV, rest_B1, right=True)[:, 0]
    return ids_B.clamp(max=mass_BV.shape[1] - 1), before_BC[:, -1]


def _below(x: Tensor, bound: Tensor) -> Tensor:
    """x, at most the largest number below `bound`: rounding must not point past the last token with mass."""
    return torch.minimum(x, torch.nextafter(bound, torch.zeros_like(bound)))


def filter_logits(logits_BV: Tensor, params: SamplingParams) -> Tensor:
    """-inf for what top-k, top-p and min-p exclude; ties at the k-th place are all kept."""
    if 0 < params.top_k < logits_BV.shape[-1]:
        kth_B1 = logits_BV.topk(params.top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < kth_B1, -torch.inf)
    if params.top_p < 1:
        sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
        p_BV = sorted_BV.softmax(-1)
        drop_BV = p_BV.cumsum(-1) - p_BV >= params.top_p  # the mass of all likelier tokens is already enough
        drop_BV[:, 0].fill_(False)
        logits_BV = logits_BV.masked_fill(torch.zeros_like(drop_BV).scatter_(-1, order_BV, drop_BV), -torch.inf)
    if params.min_p > 0:
        floor_B1 = logits_BV.amax(-1, keepdim=True) + math.log(params.min_p)  # a number: a tensor would be copied over
        logits_BV = logits_BV.masked_fill(logits_BV < floor_B1, -torch.inf)
    return logits_BV


def stream_key(seed: int, prompt: int, sample_index: int) -> int:
    """The 64-bit key of one sample's random numbers, as a signed integer."""
    digest = hashlib.blake2b(f"{seed}/{prompt}/{sample_index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def uniform(keys_B: Tensor, index_B: Tensor) -> Tensor:
    """Random number `index` of each key's stream, float64 in [0, 1): splitmix64 (Steele et al. 2014), counter-based."""
    x_B = keys_B + (index_B + 1) * GOLDEN
    x_B = (x_B ^ _shift_right(x_B, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x_B = (x_B ^ _shift_right(x_B, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    x_B = x_B ^ _shift_right(x_B, 31)
    return _shift_right(x_B, 11).double() * 2.0**-53


def _shift_right(x_B: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's >> on int64 copies the sign bit, so it is masked away."""
    return (x_B >> bits) & ((1 << (64 - bits)) - 1)
