"""Log-probability and entropy of labels straight from hidden states, never holding [tokens, vocabulary].

For a row with logits z = W h / temperature and label y:  logprob = z_y - lse(z),  entropy = lse(z) - sum_v p_v z_v.
Both are accumulated online over vocabulary chunks in fp32 (running maximum, sum of exponentials, weighted sum), so the
largest temporary is [row chunk, vocabulary chunk]. Backward keeps only the inputs, lse and entropy, and recomputes:
    d logprob / d z_v = [v = y] - p_v          d entropy / d z_v = -p_v (log p_v + entropy)
On CUDA in 16 bits kernels/token_logprobs.py does the same in fewer passes over memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from psychecore.data.packing import PackedBatch
from psychecore.model import compiler, fused, products
from psychecore.model.attention import PackedAttention
from psychecore.model.decoder import Decoder

ROWS_PER_CHUNK = 2048  # larger row chunks read the head's weight less often; NOTES: below 2k its traffic dominates
# Three buffers of rows x this in fp32 are what the loss needs beside its gradients. Small enough for the allocator to
# keep them: buffers of 64 MiB were new pages each time on CPU, and at 8,192 columns the loss took twice as long.
VOCABULARY_PER_CHUNK = 1_024


def token_logprobs(
    hidden_TD: Tensor, head_weight_VD: Tensor, labels_T: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probability of each label and entropy of each distribution, in nats: ([T], [T]).

    hidden_TD and head_weight_VD in one floating dtype, labels_T int64 in [0, V). Results are fp32 (float64 for
    float64 inputs) and differentiable once in hidden and weight. At temperature t the distribution is
    softmax(logits / t). Raises ValueError for a temperature that is not above 0, for misshapen inputs or two dtypes,
    and on CPU for labels beyond the vocabulary (-100 included: pass only rows that count); a GPU would have to be
    waited for.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, but a log-probability needs one above 0")
    if hidden_TD.ndim != 2 or head_weight_VD.ndim != 2 or hidden_TD.shape[1] != head_weight_VD.shape[1]:
        raise ValueError(f"hidden {tuple(hidden_TD.shape)} and head {tuple(head_weight_VD.shape)} must share a width")
    if hidden_TD.dtype != head_weight_VD.dtype:
        raise ValueError(
            f"hidden states are {hidden_TD.dtype}, but the head is {head_weight_VD.dtype}: cast one of them"
        )
    if labels_T.shape != hidden_TD.shape[:1]:
        raise ValueError(f"{hidden_TD.shape[0]} hidden states need as many labels, not {tuple(labels_T.shape)}")
    _check_labels(labels_T, len(head_weight_VD))
    if fused.takes_token_logprobs(hidden_TD):
        return fused.token_logprobs(hidden_TD, head_weight_VD, labels_T, temperature)
    logprobs_T, entropy_T = _TokenLogprobs.apply(hidden_TD, head_weight_VD, labels_T, temperature)
    return logprobs_T, entropy_T


def _check_labels(labels_T: Tensor, vocabulary: int) -> None:
    """Where their numbers are at hand: not on a GPU, in a compiler or in a fake tensor."""
    if torch.compiler.is_compiling() or type(labels_T) is not Tensor or labels_T.device.type != "cpu":
        return
    outside_T = ((labels_T < 0) | (labels_T >= vocabulary)).nonzero()
    if len(outside_T):
        row = int(outside_T[0])
        raise ValueError(f"label {int(labels_T[row])} of row {row} is not a token id in 0..{vocabulary - 1}")


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, head_VD: Tensor, labels_T: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        lse_T, entropy_T, picked_T = (hidden_TD.new_empty(len(labels_T), dtype=_wide(hidden_TD)) for _ in range(3))
        factor_TD = products.wide(hidden_TD)
        for rows in _chunks(len(labels_T), ROWS_PER_CHUNK):
            lse_T[rows], entropy_T[rows], picked_T[rows] = _statistics(
                factor_TD[rows], head_VD, labels_T[rows], temperature
            )
        ctx.save_for_backward(hidden_TD, head_VD, labels_T, lse_T, entropy_T)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)  # a loss without an entropy term then has a cheaper backward pass
        return picked_T - lse_T, entropy_T

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprob_T: Tensor | None, grad_entropy_T: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_TD, head_VD, labels_T, lse_T, entropy_T = ctx.saved_tensors
        if grad_logprob_T is None:
            if grad_entropy_T is None:
                return None, None, None, None
            grad_logprob_T = torch.zeros_like(lse_T)
        factor_TD = products.wide(hidden_TD)
        grad_hidden_TD = torch.zeros_like(hidden_TD, dtype=lse_T.dtype)
        grad_head_VD, in_place = torch.empty_like(head_VD), head_VD.dtype == lse_T.dtype
        for columns in _chunks(head_VD.shape[0], VOCABULARY_PER_CHUNK):
            chunk_VD = products.wide(head_VD[columns])
            sum_VD = grad_head_VD[columns] if in_place else torch.empty_like(chunk_VD, dtype=lse_T.dtype)
            sum_VD.zero_()
            for rows in _chunks(len(labels_T), ROWS_PER_CHUNK):
                product_TV = factor_TD[rows] @ chunk_VD.T
                slope_TV = compiler.where_it_pays(_slope, product_TV)(
                    product_TV,
                    labels_T[rows] - columns.start,
                    lse_T[rows],
                    grad_logprob_T[rows],
                    None if grad_entropy_T is None else (grad_entropy_T[rows], entropy_T[rows]),
                    ctx.temperature,
                )
                _add_product(grad_hidden_TD[rows], slope_TV, chunk_VD)
                _add_product(sum_VD, slope_TV.T, factor_TD[rows])
            if not in_place:
                grad_head_VD[columns] = sum_VD
        return grad_hidden_TD.to(hidden_TD.dtype), grad_head_VD, None, None


def _statistics(
    hidden_TD: Tensor, head_VD: Tensor, labels_T: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(log-sum-exp, entropy, logit of the label) of some rows, online over the vocabulary."""
    shape, dtype = labels_T.shape, _wide(hidden_TD)
    top_T = torch.full(shape, -torch.inf, dtype=dtype, device=hidden_TD.device)
    sum_T, weighted_T, picked_T = (torch.zeros_like(top_T) for _ in range(3))
    for columns in _chunks(head_VD.shape[0], VOCABULARY_PER_CHUNK):
        product_TV = hidden_TD @ products.wide(head_VD[columns]).T
        inside_T, place_T = _inside(labels_T - columns.start, product_TV)
        picked_T = torch.where(inside_T, product_TV.gather(1, place_T[:, None])[:, 0].to(dtype), picked_T)
        add_chunk = compiler.where_it_pays(_add_chunk, product_TV)
        top_T, sum_T, weighted_T = add_chunk(product_TV, top_T, sum_T, weighted_T, temperature)
    log_sum_T = sum_T.log()
    return top_T + log_sum_T, log_sum_T - weighted_T / sum_T, picked_T / temperature


def _add_chunk(
    product_TV: Tensor, top_T: Tensor, sum_T: Tensor, weighted_T: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Maximum of the logits z so far, sum of p = exp(z - maximum), and sum of p (z - maximum)."""
    logits_TV = _logits(product_TV, temperature)
    new_top_T = torch.maximum(top_T, logits_TV.amax(1))
    shrink_T = (top_T - new_top_T).exp()
    logits_TV -= new_top_T[:, None]
    exp_TV = logits_TV.exp()
    # shifting the maximum moves the third by (shift) * (second)
    shift_T = torch.where(shrink_T > 0, top_T - new_top_T, torch.zeros_like(top_T))
    weighted_T, sum_T = (weighted_T + shift_T * sum_T) * shrink_T, sum_T * shrink_T + exp_TV.sum(1)
    return new_top_T, sum_T, weighted_T + exp_TV.mul_(logits_TV).sum(1)


def _slope(
    product_TV: Tensor,
    label_T: Tensor,
    lse_T: Tensor,
    grad_logprob_T: Tensor,
    of_entropy: tuple[Tensor, Tensor] | None,
    temperature: float,
) -> Tensor:
    """The loss's gradient for a chunk of products, in their dtype: d z / temperature with

    d z = -p (grad_logprob + grad_entropy (log p + entropy)), plus grad_logprob at the label.
    label_T: counted from the chunk's first column. of_entropy: its gradient and itself.
    """
    logprob_TV = _logits(product_TV, temperature).sub_(lse_T[:, None])
    if of_entropy is None:
        slope_TV = logprob_TV.exp_().mul_(-grad_logprob_T[:, None])
    else:
        grad_entropy_T, entropy_T = of_entropy
        p_TV = logprob_TV.exp()
        slope_TV = logprob_TV.add_(entropy_T[:, None]).mul_(grad_entropy_T[:, None])
        slope_TV = slope_TV.add_(grad_logprob_T[:, None]).mul_(p_TV).neg_()
    inside_T, place_T = _inside(label_T, product_TV)
    value_T = torch.where(inside_T, grad_logprob_T, torch.zeros_like(grad_logprob_T))
    return slope_TV.scatter_add_(1, place_T[:, None], value_T[:, None]).div_(temperature).to(product_TV.dtype)


def _logits(product_TV: Tensor, temperature: float) -> Tensor:
    logits_TV = product_TV.to(_wide(product_TV))
    return logits_TV.div_(temperature) if temperature != 1.0 else logits_TV


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, without the product's memory where the dtypes are equal."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _chunks(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _inside(label_T: Tensor, product_TV: Tensor) -> tuple[Tensor, Tensor]:
    """Which labels fall into these columns, and where (clamped for those that do not)."""
    columns = product_TV.shape[1]
    return (label_T >= 0) & (label_T < columns), label_T.clamp(0, columns - 1)


def batch_logprobs(model: Decoder, batch: PackedBatch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of every label of a packed batch, ([R], [R]).

    A batch without labels still runs through every parameter (with gradients of zero), so that ranks without work
    take part in FSDP2's collectives.
    """
    attention = PackedAttention(batch.cu_q, batch.cu_k, batch.key_index_I, batch.tokens_T.device)
    hidden_TD = model(batch.tokens_T, batch.positions_T, attention)
    rows = len(batch.labels_R)
    if rows:
        return token_logprobs(hidden_TD[batch.predict_from_R], model.head_weight, batch.labels_R, temperature)
    logprobs_1, entropy_1 = token_logprobs(hidden_TD[:1], model.head_weight, batch.tokens_T[:1], temperature)
    return logprobs_1[:0], entropy_1[:0]
