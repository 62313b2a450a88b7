"""The network: RMSNorm, rotary embedding, grouped-query attention, SwiGLU. Tokens in, final hidden states out.

The head is separate: training never builds [tokens, vocabulary] (train/token_logprobs.py), the sampler applies it
to the last position only. Attention is an argument, so the same layers serve packed training and cached decoding.
Query, key and value share one matrix, gate and up another: fewer, larger products; pretrained.py splits them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from psychecore.model import fused, products
from psychecore.model.attention import Attention, PackedAttention
from psychecore.model.config import ModelConfig


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned scale (arXiv 1910.07467), over the last dimension."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return fused.rms_norm(x, self.weight, self.eps)

    def of_sum(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(norm of the sum, the sum), [..., D] each: the addition before a norm costs no pass of its own on CUDA."""
        return fused.add_rms_norm(x, residual, self.weight, self.eps)


class Layer(nn.Module):
    """Pre-norm attention and feed-forward with residuals."""

    def __init__(self, config: ModelConfig, index: int):
        super().__init__()
        self.config, self.index = config, index
        heads = config.query_heads + 2 * config.key_value_heads
        self.attention_norm = RMSNorm(config.width, config.rms_eps)
        self.qkv = nn.Linear(config.width, heads * config.head_dim, bias=config.qkv_bias)
        self.q_norm = RMSNorm(config.head_dim, config.rms_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.rms_eps) if config.qk_norm else nn.Identity()
        self.out = nn.Linear(config.query_heads * config.head_dim, config.width, bias=config.out_bias)
        self.mlp_norm = RMSNorm(config.width, config.rms_eps)
        self.gate_up = nn.Linear(config.width, 2 * config.feed_forward_width, bias=config.mlp_bias)
        self.down = nn.Linear(config.feed_forward_width, config.width, bias=config.mlp_bias)

    def forward(self, x_TD: Tensor, cos_TR: Tensor, sin_TR: Tensor, attention: Attention) -> Tensor:
        """[T, D] -> [T, D]."""
        c = self.config
        # contiguous: few rows on CPU have their products transposed (fused.linear), and heads are read by rows
        qkv_THH = _apply(self.qkv, self.attention_norm(x_TD)).contiguous().unflatten(-1, (-1, c.head_dim))
        q_TNH, k_TKH, v_TKH = qkv_THH.split([c.query_heads, c.key_value_heads, c.key_value_heads], dim=1)
        q_TNH, k_TKH = fused.rotary(self.q_norm(q_TNH), self.k_norm(k_TKH), cos_TR, sin_TR)
        attended_TD = _apply(self.out, attention(self.index, q_TNH, k_TKH, v_TKH).flatten(1))
        normed_TD, x_TD = self.mlp_norm.of_sum(attended_TD, x_TD)
        # this sum is not left to the next layer's norm: a checkpoint would then keep two tensors for each layer
        return _apply(self.down, fused.swiglu(_apply(self.gate_up, normed_TD))) + x_TD


def _apply(linear: nn.Linear, x_TD: Tensor) -> Tensor:
    return fused.linear(x_TD, linear.weight, linear.bias)


class Decoder(nn.Module):
    """A causal language model without its head's product: `forward` gives hidden states, `head_weight` the head.

    Set `checkpoint_activations` to keep only each layer's input for the backward pass (about a third more compute,
    activation memory of one layer).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.checkpoint_activations = False
        self._compute_dtype: torch.dtype | None = None
        # nn.Embedding(V, D) draws numbers that nobody needs; on the meta device that imports the compiler, for 3 s
        zeros_VD = torch.zeros(config.vocab_size, config.width)
        self.embed = nn.Embedding.from_pretrained(zeros_VD, freeze=False)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.layers))
        self.norm = RMSNorm(config.width, config.rms_eps)
        self.head = None if config.tied_head else nn.Linear(config.width, config.vocab_size, bias=False)
        # a plain attribute, not a buffer: a cast of the module must not round the frequencies to bf16
        self._inverse_frequency_R = config.rope.inverse_frequencies(config.head_dim)

    @property
    def head_weight(self) -> Tensor:
        """[V, D], the embedding itself where the head is tied."""
        return self.embed.weight if self.head is None else self.head.weight

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters as they are held."""
        return self.embed.weight.dtype

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of activations: that of the parameters, unless FSDP2 casts fp32 shards for computing."""
        return self._compute_dtype or self.dtype

    def set_compute_dtype(self, dtype: torch.dtype) -> None:
        """Told by the sharder, which gathers fp32 shards in this dtype."""
        self._compute_dtype = dtype

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.embed.weight.device

    def forward(self, tokens_T: Tensor, positions_T: Tensor, attention: Attention) -> Tensor:
        """Hidden states after the last norm, [T, D], of T packed tokens at these positions (both int64)."""
        x_TD = self.embed(tokens_T)
        cos_TR, sin_TR = self.rotary_tables(positions_T)
        for layer in self.layers:
            if self.checkpoint_activations and torch.is_grad_enabled():
                x_TD = checkpoint(layer, x_TD, cos_TR, sin_TR, attention, use_reentrant=False)
            else:
                x_TD = layer(x_TD, cos_TR, sin_TR, attention)
        return self.norm(x_TD)

    def logits(self, ids_BS: Tensor) -> Tensor:
        """Plain dense forward of B sequences of S tokens: [B, S, V]. For inspection and parity, not for training."""
        batch, length = ids_BS.shape
        positions_T = torch.arange(length, device=ids_BS.device).repeat(batch)
        attention = PackedAttention.of_lengths([length] * batch, ids_BS.device)
        hidden_TD = self(ids_BS.flatten(), positions_T, attention)
        return products.linear(hidden_TD, self.head_weight).unflatten(0, (batch, length))

    @torch.no_grad()
    def initialise(self, seed: int, std: float = 0.02) -> Decoder:
        """Fill with small random weights (norms with ones, biases small too); for tests and from scratch."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            else:
                values = torch.randn(parameter.shape, generator=generator, dtype=torch.float32) * std
                parameter.copy_(values)
        return self

    def rotary_tables(self, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of every pair's angle, [T, H / 2] each, fp32."""
        if self._inverse_frequency_R.device != positions_T.device:
            self._inverse_frequency_R = self._inverse_frequency_R.to(positions_T.device)
        angle_TR = positions_T[:, None].float() * self._inverse_frequency_R
        scale = self.config.rope.attention_factor
        return angle_TR.cos() * scale, angle_TR.sin() * scale
