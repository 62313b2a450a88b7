"""The layers of a decoding step on CPU, where a step is paid by the operation and not by the arithmetic.

Between two products the weights have emptied the caches, so every operation, and every view, costs microseconds before
it computes anything. Here each is called once per layer, on buffers and views that are made once per `Shape`, and
activations lie by feature, [features, columns]: a product is then W x with the weights as first operand, which torch's
CPU products split over threads and tiles (32 rows, all layers of SmolLM2: bf16 43 ms instead of 57), and no operand
is transposed for it, but in fp32 a few (products.py). The arithmetic is model/decoder.py's, in its order and with its
rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psychecore.model import products
from psychecore.model.decoder import Decoder, Layer
from psychecore.model.stacked_attention import attend_on_cpu
from psychecore.rollout.kv_cache import KVCache, Shape, length_bias


class LayerWork(NamedTuple):
    """A layer's norms, and products between a step's buffers, made once: look-ups and views would cost 2 ms a step.

    Weights stay the model's own tensors; one that is updated in place is up to date here.
    """

    weights: list[Tensor]  # and biases of its products, that of queries, keys and values first
    places: list[int]  # in memory
    attention_norm: Tensor
    qkv: Callable[[], object]
    out: Callable[[], object]
    mlp_norm: Tensor
    gate_up: Callable[[], object]
    down: Callable[[], object]


class CpuStep:
    """Buffers, views and places for steps of one shape over one cache; a call is one step.

    Letters beside the usual: C columns, one a slot; X the queries of a prompt that share a key/value head. One slot's
    products are of a matrix with a vector, in bf16 22 ms where those with two equal columns took 26. Where it is the
    one prompt's only sample and both lie together, they are read as one, and nothing is gathered.
    """

    def __init__(self, model: Decoder, cache: KVCache, shape: Shape):
        c, slots, like = model.config, shape.slots, cache.answer_L2BKSH
        self.model, self.shape = model, shape  # not the cache: it holds the step, and a cycle would keep both
        store = like if cache.both_L2BKSH is None else cache.both_L2BKSH
        self.views = [(*read, x.view(-1, c.head_dim)) for read, x in zip(cache.views(shape), store, strict=True)]
        before = store.shape[4] - like.shape[4]  # positions of a row before the answer's first
        self.together: list[Tensor] = []  # keys and values of prompt and answer by layer
        if shape.slots == shape.rows == shape.seats == 1 and before == shape.prompt_span:
            self.together = list(store[:, :, :, :, : before + shape.answer_span])
        queries, heads, width = c.query_heads, c.key_value_heads, c.head_dim
        sharing = queries // heads
        wide = torch.promote_types(like.dtype, torch.float32)

        self.layers = [cast(Layer, layer) for layer in model.layers]

        # one column each: residual, its wide copy and square, normed, products, and what attention gives
        self.x_DC, self.normed_DC, self.product_DC = (like.new_zeros(c.width, slots) for _ in range(3))
        self.wide_DC = self.x_DC if wide == like.dtype else self.x_DC.to(wide)
        self.square_DC = torch.zeros_like(self.wide_DC)
        self.scale_C, self.eps_C = self.square_DC.new_zeros(slots), self.square_DC.new_full((slots,), c.rms_eps)
        self.qkv_EC = like.new_zeros((queries + 2 * heads) * width, slots)
        self.qkv_BNH = self.qkv_EC.view(-1, width, slots).permute(2, 0, 1)
        self.attended_EC = like.new_zeros(queries * width, slots)
        self.attended_BKRH = self.attended_EC.view(heads, sharing, width, slots).permute(3, 0, 1, 2)
        self.gate_up_EC = like.new_zeros(2 * c.feed_forward_width, slots)
        self.gate_FC, self.up_FC = self.gate_up_EC.chunk(2)
        self.active_FC = torch.zeros_like(self.gate_FC)

        # one row each: queries, keys and values by head, and the first two turned
        rows = (slots, queries + 2 * heads, width)
        self.row_BNH = self.qkv_EC.view(rows) if slots == 1 else like.new_zeros(rows)
        self.flat_row = self.row_BNH.view(-1, width)
        self.q_BNH, self.k_BKH, _ = self.row_BNH.split([queries, heads, heads], 1)
        self.q_BKRH = self.q_BNH.view(slots, heads, sharing, width)
        self.qk_BNH, self.kv_BNH = self.row_BNH[:, : queries + heads], self.row_BNH[:, queries:]
        self.wide_BNH = self.qk_BNH if wide == like.dtype else self.qk_BNH.to(wide)
        self.turned_BNH = torch.zeros(self.qk_BNH.shape, dtype=wide, device=like.device)
        self.first_BNR, self.second_BNR = self.wide_BNH.chunk(2, -1)
        self.turned_first_BNR, self.turned_second_BNR = self.turned_BNH.chunk(2, -1)

        self.work = [self._work(layer) for layer in self.layers]

        # queries gathered by prompt, and what they found there scattered back
        self.seated_AKXH = like.new_zeros(shape.rows, heads, shape.seats * sharing, width)
        self.flat_seated = self.seated_AKXH.view(-1, width)
        self.shared_BKRH = like.new_zeros(slots, heads, sharing, width)
        self.flat_shared = self.shared_BKRH.view(-1, width)
        self.shared_lse_BKR = torch.zeros(slots, heads, sharing, dtype=wide, device=like.device)
        self.flat_shared_lse = self.shared_lse_BKR.view(-1)
        self.share_BKR = torch.zeros_like(self.shared_lse_BKR)
        self.narrow_share_BKR = like.new_zeros(slots, heads, sharing)
        self.share_BKR1 = self.narrow_share_BKR[..., None]

        # where heads stand, to which a step adds its places: [slots, keys then values] in the cache of one layer
        _, _, all_slots, _, span, _ = store.shape
        self.slot_B, self.head_K, self.sharing_R = (
            torch.arange(n, device=like.device) for n in (slots, heads, sharing)
        )
        kind_2 = torch.arange(2, device=like.device)[:, None]
        self.store_BE = ((kind_2 * all_slots + self.slot_B[:, None, None]) * heads + self.head_K).flatten(1) * span
        self.store_BE += before

    def _work(self, layer: Layer) -> LayerWork:
        linears = (layer.qkv, layer.out, layer.gate_up, layer.down)
        weights = [weight for linear in linears for weight in (linear.weight, linear.bias) if weight is not None]
        return LayerWork(
            weights,
            [weight.data_ptr() for weight in weights],
            layer.attention_norm.weight,
            self._product(layer.qkv, self.normed_DC, self.qkv_EC),
            self._product(layer.out, self.attended_EC, self.product_DC),
            layer.mlp_norm.weight,
            self._product(layer.gate_up, self.normed_DC, self.gate_up_EC),
            self._product(layer.down, self.active_FC, self.product_DC),
        )

    def _product(self, linear: nn.Linear, x_DC: Tensor, out_EC: Tensor) -> Callable[[], object]:
        """Puts W x + b into `out_EC`; of one slot as of a vector."""
        if self.shape.slots == 1:
            x_DC, out_EC = x_DC.view(-1), out_EC.view(-1)
        multiply, bias_E = products.into(out_EC, linear.weight, x_DC), linear.bias
        if bias_E is None:
            return multiply
        bias_EC = bias_E if x_DC.ndim == 1 else bias_E[:, None]
        return lambda: (multiply(), out_EC.add_(bias_EC))

    def is_current(self) -> bool:
        """Whether the model still has the weights that were found: FSDP2 puts others there, and frees these.

        Of parameters that are others, queries', keys' and values' stand for all; of others' data in them, each is seen.
        """
        return all(
            own.weights[0] is layer.qkv.weight and own.places == [weight.data_ptr() for weight in own.weights]
            for own, layer in zip(self.work, self.layers, strict=True)
        )

    def __call__(
        self, token_B: Tensor, position_B: Tensor, place_B: Tensor, seat_B: Tensor, prompt_length_A: Tensor
    ) -> Tensor:
        """Hidden states [B, D] after the last norm; stores the tokens' keys and values at place_B of their slots."""
        self.locate(place_B, seat_B, prompt_length_A)
        cos_BR, sin_BR = self.model.rotary_tables(position_B)
        self.cos_B1H, self.sin_B1R = torch.cat((cos_BR, cos_BR), -1)[:, None], sin_BR[:, None]
        self.minus_sin_B1R = -self.sin_B1R
        self.x_DC.copy_(self.model.embed(token_B).T)
        for index, work in enumerate(self.work):
            self._layer(index, work)
        self._norm(self.model.norm.weight)
        return self.normed_DC.T

    def locate(self, place_B: Tensor, seat_B: Tensor, prompt_length_A: Tensor) -> None:
        """Work out what goes where: once a step, not once a layer."""
        shape, heads, sharing = self.shape, len(self.head_K), len(self.sharing_R)
        self.answer_bias = length_bias(place_B + 1, shape.answer_span, self.x_DC.dtype)
        self.prompt_bias = length_bias(prompt_length_A, shape.prompt_span, self.x_DC.dtype)
        self.place_BE = self.store_BE + place_B[:, None]
        if self.together:
            self.bias = torch.cat((self.prompt_bias, self.answer_bias), -1)
            return
        seats = shape.rows * shape.seats
        slot_of_seat = seat_B.new_zeros(seats + 1).index_copy_(0, seat_B, self.slot_B)  # of an empty one: any
        slot_A1G1 = slot_of_seat[:seats].view(shape.rows, 1, shape.seats, 1)
        head_K11, sharing_R = self.head_K[:, None, None], self.sharing_R
        self.to_seat = (slot_A1G1 * self.row_BNH.shape[1] + head_K11 * sharing + sharing_R).flatten()
        seat_B11 = seat_B.clamp(max=seats - 1)[:, None, None]
        row_B11, place_B11 = seat_B11 // shape.seats, seat_B11 % shape.seats
        self.from_seat = (
            ((row_B11 * heads + self.head_K[:, None]) * shape.seats + place_B11) * sharing + sharing_R
        ).flatten()

    def _layer(self, index: int, work: LayerWork) -> None:
        self._norm(work.attention_norm)
        work.qkv()
        if self.shape.slots > 1:
            self.row_BNH.copy_(self.qkv_BNH)
        if self.model.config.qk_norm:
            self.q_BNH.copy_(self.layers[index].q_norm(self.q_BNH))
            self.k_BKH.copy_(self.layers[index].k_norm(self.k_BKH))
        self._turn()
        self.attend(index)
        work.out()
        self.x_DC.add_(self.product_DC)
        self._norm(work.mlp_norm)
        work.gate_up()
        torch.mul(F.silu(self.gate_FC, inplace=True), self.up_FC, out=self.active_FC)
        work.down()
        self.x_DC.add_(self.product_DC)

    def _norm(self, weight_D: Tensor) -> None:
        if self.wide_DC is not self.x_DC:
            self.wide_DC.copy_(self.x_DC)
        torch.mul(self.wide_DC, self.wide_DC, out=self.square_DC)
        torch.sum(self.square_DC, 0, out=self.scale_C)
        torch.add(self.eps_C, self.scale_C, alpha=1 / len(self.x_DC), out=self.scale_C).rsqrt_()
        torch.mul(self.wide_DC, self.scale_C, out=self.normed_DC).mul_(weight_D.unsqueeze(1))

    def _turn(self) -> None:
        """Rotary embedding of queries and keys, in place: (a, b) to (a cos - b sin, b cos + a sin)."""
        if self.wide_BNH is not self.qk_BNH:
            self.wide_BNH.copy_(self.qk_BNH)
        torch.mul(self.wide_BNH, self.cos_B1H, out=self.turned_BNH)
        self.turned_first_BNR.addcmul_(self.second_BNR, self.minus_sin_B1R)
        self.turned_second_BNR.addcmul_(self.first_BNR, self.sin_B1R)
        self.qk_BNH.copy_(self.turned_BNH)

    def attend(self, index: int) -> None:
        """Store the rows' keys and values; attend to the slots' own past and to their prompts, and merge the two."""
        k_BKSH, v_BKSH, k_AKPH, v_AKPH, flat_cache = self.views[index]
        flat_cache.index_put_((self.place_BE,), self.kv_BNH)
        if self.together:
            k_BKSH, v_BKSH = self.together[index]
            self.attended_BKRH.copy_(attend_on_cpu(self.q_BKRH, k_BKSH, v_BKSH, bias_S11K=self.bias)[0])
            return
        own_BKRH, own_lse_BKR = attend_on_cpu(self.q_BKRH, k_BKSH, v_BKSH, bias_S11K=self.answer_bias)
        torch.index_select(self.flat_row, 0, self.to_seat, out=self.flat_seated)
        shared_AKXH, shared_lse_AKX = attend_on_cpu(self.seated_AKXH, k_AKPH, v_AKPH, bias_S11K=self.prompt_bias)
        torch.index_select(shared_AKXH.reshape(self.flat_seated.shape), 0, self.from_seat, out=self.flat_shared)
        torch.index_select(shared_lse_AKX.reshape(-1), 0, self.from_seat, out=self.flat_shared_lse)
        torch.sub(own_lse_BKR, self.shared_lse_BKR, out=self.share_BKR).sigmoid_()
        self.narrow_share_BKR.copy_(self.share_BKR)
        torch.lerp(self.shared_BKRH, own_BKRH, self.share_BKR1, out=self.attended_BKRH)
