"""Keys and values of running work, preallocated: a row per prompt, read by all its samples, and a row per sample.

A prompt's keys and values are stored once, not once per sample. A decoding query attends to its prompt's row and to its
own row; the two partial softmaxes are merged exactly by their log-sum-exp (as in FlashDecoding and Hydragen,
arXiv 2402.05099): out = (e^a out_prompt + e^b out_answer) / (e^a + e^b) with the log-sum-exps a and b.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from psychecore.model import fused
from psychecore.model.attention import PackedAttention, cached_attention
from psychecore.model.config import ModelConfig

if TYPE_CHECKING:
    from psychecore.rollout.cpu_step import CpuStep


class Shape(NamedTuple):
    """The sizes of one decoding step, Python integers: a step with equal sizes runs the same kernels on the same data.

    slots: samples that compute. rows x seats: prompts and samples of each. spans: cached positions that are read.
    """

    slots: int
    rows: int
    seats: int
    prompt_span: int
    answer_span: int


class KVCache:
    """`rows` prompts of up to `prompt_length` tokens and `slots` samples of up to `answer_length`."""

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        prompt_length: int,
        slots: int,
        answer_length: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        heads, width = config.key_value_heads, config.head_dim
        # zeros, not empty: a masked position still multiplies its value with 0, and 0 x NaN is NaN
        zeros = functools.partial(torch.zeros, dtype=dtype, device=device)
        self.both_L2BKSH: Tensor | None = None  # of one sample and one prompt on CPU, which a step can read as one
        if rows == slots == 1 and device.type == "cpu":
            self.both_L2BKSH = zeros(config.layers, 2, 1, heads, prompt_length + answer_length, width)
            prompt_L2AKPH, self.answer_L2BKSH = self.both_L2BKSH.split([prompt_length, answer_length], 4)
            self.prompt_k_LAKPH, self.prompt_v_LAKPH = prompt_L2AKPH.unbind(1)
        else:
            prompts = (config.layers, rows, heads, prompt_length, width)
            self.prompt_k_LAKPH, self.prompt_v_LAKPH = zeros(prompts), zeros(prompts)
            self.answer_L2BKSH = zeros(config.layers, 2, slots, heads, answer_length, width)  # 2: keys, values
        self.cpu_step: CpuStep | None = None  # of the last shape, with its buffers
        self._views: tuple[Shape | None, list[tuple[Tensor, Tensor, Tensor, Tensor]]] = None, []

    @property
    def answer_k_LBKSH(self) -> Tensor:
        """The samples' keys."""
        return self.answer_L2BKSH[:, 0]

    @property
    def answer_v_LBKSH(self) -> Tensor:
        """The samples' values."""
        return self.answer_L2BKSH[:, 1]

    def views(self, shape: Shape) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """What a step of this shape reads in each layer: keys and values of samples, keys and values of prompts."""
        if self._views[0] != shape:
            tensors = (self.answer_k_LBKSH, self.answer_v_LBKSH, self.prompt_k_LAKPH, self.prompt_v_LAKPH)
            sizes = [(shape.slots, shape.answer_span)] * 2 + [(shape.rows, shape.prompt_span)] * 2
            cut = (t[:, :rows, :, :span].unbind() for t, (rows, span) in zip(tensors, sizes, strict=True))
            self._views = shape, list(zip(*cut, strict=True))
        return self._views[1]

    def store_prompt(self, row: int, k_LPKH: Tensor, v_LPKH: Tensor) -> None:
        """Fill a row with a prompt's keys and values."""
        length = k_LPKH.shape[1]
        self.prompt_k_LAKPH[:, row, :, :length] = k_LPKH.transpose(1, 2)
        self.prompt_v_LAKPH[:, row, :, :length] = v_LPKH.transpose(1, 2)

    def move_prompt(self, source: int, target: int, length: int) -> None:
        """Move a prompt to another row, to close the gap that a finished one left."""
        for cache in (self.prompt_k_LAKPH, self.prompt_v_LAKPH):
            cache[:, target, :, :length] = cache[:, source, :, :length]

    def move_answer(self, source: int, target: int, length: int) -> None:
        """Move a sample to another slot, to close the gap that a finished one left."""
        for cache in (self.answer_k_LBKSH, self.answer_v_LBKSH):
            cache[:, target, :, :length] = cache[:, source, :, :length]


class PrefillAttention:
    """Packed attention that also keeps every layer's keys and values [L, T, K, H]."""

    def __init__(self, packed: PackedAttention, config: ModelConfig, tokens: int, dtype: torch.dtype):
        shape = (config.layers, tokens, config.key_value_heads, config.head_dim)
        self.packed = packed
        self.k_LTKH = torch.empty(shape, dtype=dtype, device=packed.device)
        self.v_LTKH = torch.empty(shape, dtype=dtype, device=packed.device)

    def __call__(self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        self.k_LTKH[layer] = k_TKH
        self.v_LTKH[layer] = v_TKH
        return self.packed(layer, q_TNH, k_TKH, v_TKH)


class DecodeAttention:
    """One new token for each of the first shape.slots samples: stores its key and value, then attends to its past.

    place_B: the answer position of each new token. seat_B: row x seats + seat of each sample's query among its
    prompt's; rows x seats for a slot that is not in use. prompt_length_A: tokens of each prompt.
    """

    def __init__(self, cache: KVCache, shape: Shape, place_B: Tensor, seat_B: Tensor, prompt_length_A: Tensor):
        self.cache, self.shape, self.place_B, self.seat_B = cache, shape, place_B, seat_B
        self.answer_length_B, self.prompt_length_A = (place_B + 1).int(), prompt_length_A.int()
        self.answer_bias = length_bias(self.answer_length_B, shape.answer_span, cache.answer_k_LBKSH.dtype)
        self.prompt_bias = length_bias(self.prompt_length_A, shape.prompt_span, cache.answer_k_LBKSH.dtype)

    def __call__(self, layer: int, q_BNH: Tensor, k_BKH: Tensor, v_BKH: Tensor) -> Tensor:
        shape, cache = self.shape, self.cache
        k_BKSH, v_BKSH, k_AKPH, v_AKPH = cache.views(shape)[layer]
        fused.cache_store(k_BKH, v_BKH, cache.answer_k_LBKSH[layer], cache.answer_v_LBKSH[layer], None, self.place_B)
        own_B1NH, own_lse_B1N = cached_attention(q_BNH[:, None], k_BKSH, v_BKSH, self.answer_length_B, self.answer_bias)
        seats = shape.rows * shape.seats
        seated = q_BNH.new_zeros(seats + 1, *q_BNH.shape[1:]).index_copy_(0, self.seat_B, q_BNH)[:seats]
        shared_AGNH, shared_lse_AGN = cached_attention(
            seated.unflatten(0, (shape.rows, shape.seats)),
            k_AKPH,
            v_AKPH,
            self.prompt_length_A,
            self.prompt_bias,
        )
        from_B = self.seat_B.clamp(max=seats - 1)
        own_BNH, shared_BNH = own_B1NH[:, 0], shared_AGNH.flatten(0, 1)[from_B]
        share_BN = torch.sigmoid(shared_lse_AGN.flatten(0, 1)[from_B] - own_lse_B1N[:, 0])  # e^a / (e^a + e^b)
        return torch.lerp(own_BNH, shared_BNH, share_BN[..., None].to(own_BNH.dtype))


def length_bias(length_B: Tensor, span: int, dtype: torch.dtype) -> Tensor:
    """[B, 1, 1, span]: 0 on the first length positions, -inf behind them."""
    behind_BS = torch.arange(span, device=length_B.device) >= length_B[:, None]
    return torch.zeros(behind_BS.shape, dtype=dtype, device=length_B.device).masked_fill_(behind_BS, -torch.inf)[
        :, None, None
    ]
