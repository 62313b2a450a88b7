"""Keys and values of running sequences, one preallocated row ("slot") each, and the attention that reads them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from psychecore.model.attention import PackedAttention, cached_attention
from psychecore.model.config import ModelConfig


class KVCache:
    """`slots` sequences of up to `length` positions; memory is 2 x L x slots x length x K x H elements.

    Running sequences occupy slots 0..n-1 without gaps, so that a decoding step reads a plain slice.
    """

    def __init__(self, config: ModelConfig, slots: int, length: int, dtype: torch.dtype, device: torch.device):
        shape = (config.layers, slots, length, config.key_value_heads, config.head_dim)
        # zeros, not empty: a masked position still multiplies its value with 0, and 0 x NaN is NaN
        self.k_LBSKH = torch.zeros(shape, dtype=dtype, device=device)
        self.v_LBSKH = torch.zeros(shape, dtype=dtype, device=device)
        self.slots, self.length = slots, length

    def fill(self, slots: Sequence[int], prompt: PromptCache) -> None:
        """Copy a prompt's keys and values into slots."""
        index = torch.tensor(slots, device=self.k_LBSKH.device)
        positions = prompt.k_LPKH.shape[1]
        self.k_LBSKH[:, index, :positions] = prompt.k_LPKH[:, None]
        self.v_LBSKH[:, index, :positions] = prompt.v_LPKH[:, None]

    def move(self, source: int, target: int, positions: int) -> None:
        """Move a running sequence to another slot, to close the gap that a finished one left."""
        self.k_LBSKH[:, target, :positions] = self.k_LBSKH[:, source, :positions]
        self.v_LBSKH[:, target, :positions] = self.v_LBSKH[:, source, :positions]


class PromptCache:
    """One prompt's keys and values [L, P, K, H] and the hidden state of its last token [D]."""

    def __init__(self, k_LPKH: Tensor, v_LPKH: Tensor, hidden_D: Tensor):
        self.k_LPKH, self.v_LPKH, self.hidden_D = k_LPKH, v_LPKH, hidden_D


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
    """One new token for each of the first B slots: stores its key and value, then attends to its slot's past."""

    def __init__(self, cache: KVCache, positions_B: Tensor, longest: int):
        self.cache, self.span = cache, longest + 1
        self.positions_B = positions_B
        self.rows_B = torch.arange(len(positions_B), device=positions_B.device)
        self.lengths_B = (positions_B + 1).to(torch.int32)
        self.mask_BS = torch.arange(self.span, device=positions_B.device) <= positions_B[:, None]

    def __call__(self, layer: int, q_BNH: Tensor, k_BKH: Tensor, v_BKH: Tensor) -> Tensor:
        k_BSKH, v_BSKH = self.cache.k_LBSKH[layer], self.cache.v_LBSKH[layer]
        k_BSKH[self.rows_B, self.positions_B] = k_BKH
        v_BSKH[self.rows_B, self.positions_B] = v_BKH
        batch = len(self.rows_B)
        return cached_attention(
            q_BNH, k_BSKH[:batch, : self.span], v_BSKH[:batch, : self.span], self.lengths_B, self.mask_BS
        )
