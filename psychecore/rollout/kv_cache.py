"""Keys and values of running work, preallocated: a row per prompt, read by all its samples, and a row per sample.

A prompt's keys and values are stored once, not once per sample. A decoding query attends to its prompt's row and to its
own row; the two partial softmaxes are merged exactly by their log-sum-exp (as in FlashDecoding and Hydragen,
arXiv 2402.05099): out = (e^a out_prompt + e^b out_answer) / (e^a + e^b) with the log-sum-exps a and b.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from psychecore.model import fused
from psychecore.model.attention import PackedAttention, cached_attention
from psychecore.model.config import ModelConfig


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
        self.sharing = config.query_heads // heads  # queries of each key/value head
        # zeros, not empty: a masked position still multiplies its value with 0, and 0 x NaN is NaN
        prompts = (config.layers, rows, heads, prompt_length, width)
        answers = (config.layers, slots, heads, answer_length, width)
        self.prompt_k_LAKPH, self.prompt_v_LAKPH = (torch.zeros(prompts, dtype=dtype, device=device) for _ in range(2))
        self.answer_k_LBKSH, self.answer_v_LBKSH = (torch.zeros(answers, dtype=dtype, device=device) for _ in range(2))

        self._views: tuple[Shape | None, list[tuple[Tensor, Tensor, Tensor, Tensor]]] = None, []

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
        self.answer_bias = _bias(self.answer_length_B, shape.answer_span, cache.answer_k_LBKSH.dtype)
        self.prompt_bias = _bias(self.prompt_length_A, shape.prompt_span, cache.answer_k_LBKSH.dtype)

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


class RowAttention:
    """The same as DecodeAttention, for torch on CPU, where small steps are paid by the operation.

    A third of its operations: what goes where is worked out once a step, as places in rows of one head each, and the
    queries that share a key/value head stand as rows of one product, so that each key is read once.
    """

    def __init__(self, cache: KVCache, shape: Shape, place_B: Tensor, seat_B: Tensor, prompt_length_A: Tensor):
        _, _, heads, span, self.width = cache.answer_k_LBKSH.shape
        self.cache, self.shape, self.heads = cache, shape, heads
        dtype = cache.answer_k_LBKSH.dtype
        self.answer_bias = _bias(place_B + 1, shape.answer_span, dtype)
        self.prompt_bias = _bias(prompt_length_A, shape.prompt_span, dtype)
        slot_B, head_K, sharing_R = (
            torch.arange(size, device=place_B.device) for size in (shape.slots, heads, cache.sharing)
        )
        self.store_BK = ((slot_B[:, None] * heads + head_K) * span + place_B[:, None]).flatten()
        seats = shape.rows * shape.seats
        slot_of_seat = seat_B.new_zeros(seats + 1).index_copy_(0, seat_B, slot_B)[:seats]  # an empty seat: any query
        slot_A1G1 = slot_of_seat.view(shape.rows, 1, shape.seats, 1)
        # for [A, K, G x R] its place in [B, K, R], and for [B, K, R] its place in [A, G x R, K]
        self.to_seat = ((slot_A1G1 * heads + head_K[:, None, None]) * cache.sharing + sharing_R).flatten()
        seat_B11 = seat_B.clamp(max=seats - 1)[:, None, None]
        self.from_seat = ((seat_B11 * cache.sharing + sharing_R) * heads + head_K[:, None]).flatten()

    def __call__(self, layer: int, q_BNH: Tensor, k_BKH: Tensor, v_BKH: Tensor) -> Tensor:
        shape, width = self.shape, self.width
        k_BKSH, v_BKSH, k_AKPH, v_AKPH = self.cache.views(shape)[layer]
        for cache, new_BKH in ((self.cache.answer_k_LBKSH, k_BKH), (self.cache.answer_v_LBKSH, v_BKH)):
            cache[layer].view(-1, width).index_copy_(0, self.store_BK, new_BKH.reshape(-1, width))
        own_BKRH, own_lse_BKR = _attend(q_BNH.unflatten(1, (self.heads, -1)), k_BKSH, v_BKSH, self.answer_bias)
        q_AKXH = q_BNH.reshape(-1, width).index_select(0, self.to_seat).view(shape.rows, self.heads, -1, width)
        shared_AKXH, shared_lse_AKX = _attend(q_AKXH, k_AKPH, v_AKPH, self.prompt_bias)
        # the kernel leaves its results as [A, X, K, H] and [A, X, K] in memory
        shared_BKRH = shared_AKXH.transpose(1, 2).flatten(0, 2).index_select(0, self.from_seat).view(own_BKRH.shape)
        shared_lse_BKR = (
            shared_lse_AKX.transpose(1, 2).flatten().index_select(0, self.from_seat).view(own_lse_BKR.shape)
        )
        own_share_BKR = torch.sigmoid(own_lse_BKR - shared_lse_BKR).to(q_BNH.dtype)
        return torch.lerp(shared_BKRH, own_BKRH, own_share_BKR[..., None]).flatten(1, 2)


def _attend(q_AKXH: Tensor, k_AKSH: Tensor, v_AKSH: Tensor, bias_A11S: Tensor) -> tuple[Tensor, Tensor]:
    """SDPA's own kernel on CPU, called by name since only so it gives its log-sum-exp [A, K, X]."""
    out_AKXH, lse_AKX = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q_AKXH, k_AKSH, v_AKSH, 0.0, False, attn_mask=bias_A11S
    )
    return out_AKXH, lse_AKX


def _bias(length_B: Tensor, span: int, dtype: torch.dtype) -> Tensor:
    """[B, 1, 1, span]: 0 on the first length positions, -inf behind them."""
    behind_BS = torch.arange(span, device=length_B.device) >= length_B[:, None]
    return torch.zeros(behind_BS.shape, dtype=dtype, device=length_B.device).masked_fill_(behind_BS, -torch.inf)[
        :, None, None
    ]
