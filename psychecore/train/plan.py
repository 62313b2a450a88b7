"""Memory of a run before it is paid for: bytes a rank by kind, computed from shapes and settings; nothing is loaded.

The formulas follow this library's own code: what autograd keeps of model/decoder.py, the chunks of token_logprobs.py,
the masters of optimizer.py, FSDP2's units of sharding.py, the cache of rollout/kv_cache.py. A run is planned in its
steady state (moments exist) as the largest of a few moments: the head's backward pass, a layer's, the end of backward,
the reference's forward pass, the rollouts. Letters in comments are the dimensions of psychecore/__init__.py, b is the
bytes of a compute number. Not in it: the CUDA context, NCCL's buffers and fragmentation (recipes/plan.py reserves a
share for them), and tensors of a few bytes a token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from psychecore.model.config import ModelConfig
from psychecore.model.decoder import Decoder
from psychecore.train.sharding import ShardingConfig
from psychecore.train.token_logprobs import ROWS_PER_CHUNK, VOCABULARY_PER_CHUNK

Bytes = dict[str, float]
GIB = 2**30


@dataclass(frozen=True)
class MicroBatch:
    """The largest micro-batch of an update: T tokens, of which `rows` are labels.

    keys: the keys of all segments where a prefix is shared, 0 where segments read their own tokens only.
    accumulates: whether gradients of an earlier micro-batch lie beside it.
    """

    tokens: int
    rows: int
    keys: int = 0
    accumulates: bool = True


@dataclass(frozen=True)
class RolloutPlan:
    """A rank's cache, `rows` prompts of prompt_length and `slots` samples of answer_length (the padded lengths), and
    the tokens of one prefill pass. `filtered`: a temperature other than 1, top-k, top-p or min-p. `graphs`: whether
    decoding steps are CUDA graphs."""

    slots: int
    rows: int
    prompt_length: int
    answer_length: int
    prefill_tokens: int
    filtered: bool = False
    graphs: bool = True


@dataclass(frozen=True)
class Plan:
    """A run to be planned. `reference` is a frozen model in the compute dtype, parked on the CPU outside the update
    where "cpu". `flash`: attention is one kernel over all segments (flash-attn, torch's varlen_attn, ours), which
    reads keys that are gathered, else plain torch, which gathers by block and keeps none."""

    model: ModelConfig
    compute: torch.dtype
    world_size: int = 1
    sharding: ShardingConfig = field(default_factory=ShardingConfig)
    checkpoint_activations: bool = False
    flash: bool = True
    micro_batch: MicroBatch = field(default_factory=lambda: MicroBatch(0, 0))
    reference: Literal["none", "same", "cpu"] = "none"
    rollouts: RolloutPlan | None = None

    def __post_init__(self) -> None:
        if self.world_size < 1 or self.world_size % self.sharding.replicas:
            raise ValueError(
                f"{self.world_size} ranks cannot be split into {self.sharding.replicas} equal replicas: "
                "change the ranks or sharding.replicas"
            )

    @property
    def shards(self) -> int:
        """Parts that masters, gradients and moments are cut into."""
        return self.world_size // self.sharding.replicas


def sharded_parameters(config: ModelConfig, shards: int) -> tuple[int, int]:
    """Numbers on rank 0 of (one layer, the root unit), its rows rounded up: FSDP2 cuts the first dimension evenly.

    Example: a norm of 896 on 1,024 shards is 1 number on rank 0, and 1,024 when gathered.
    """
    with torch.device("meta"):  # the decoder itself tells its shapes; one layer stands for all
        shapes = [(name, p.shape) for name, p in Decoder(replace(config, layers=1)).named_parameters()]
    numbers = [(name, math.ceil(shape[0] / shards) * shape[1:].numel()) for name, shape in shapes]
    layer = sum(number for name, number in numbers if name.startswith("layers."))
    return layer, sum(number for _, number in numbers) - layer


def saved_by_layer(plan: Plan) -> float:
    """Bytes that autograd keeps of one layer for its backward pass."""
    c, b, batch = plan.model, plan.compute.itemsize, plan.micro_batch
    tokens, heads, sharing = batch.tokens, c.query_heads * c.head_dim, c.key_value_heads * c.head_dim
    norms = 2 * tokens * _saved_by_norm(c.width, b)
    if c.qk_norm:  # its input is a view of the fused projection, which then is kept
        norms += 4 * tokens * (c.query_heads + c.key_value_heads)
    keys = batch.keys if plan.flash else 0
    # rotated queries; keys and values gathered, or rotated keys, and values that are a view of the fused projection
    inputs = tokens * heads + (2 * keys if keys else tokens) * sharing
    if not keys or c.qk_norm:
        inputs += tokens * (heads + 2 * sharing)
    attention = b * (inputs + tokens * heads) + 4 * tokens * c.query_heads  # and the output, and its log-sum-exp
    feed_forward = b * tokens * 3 * c.feed_forward_width  # gate and up, silu(gate) times up
    return norms + attention + feed_forward


def update_moments(plan: Plan) -> dict[str, Bytes]:
    """Bytes by kind at the moments of an update that can be its peak."""
    c, b, batch = plan.model, plan.compute.itemsize, plan.micro_batch
    sharded, state = plan.world_size > 1, _state(plan)
    layer, root = (n * plan.shards for n in sharded_parameters(c, plan.shards))  # as gathered and reduced, padded
    layer_gradient, root_gradient = (b * n for n in sharded_parameters(c, 1))  # as backward makes them, not padded
    head = c.vocab_size * c.width
    held = 0.0 if sharded and plan.sharding.cpu_offload else 4.0 * _local(plan)  # all gradients, as the masters lie
    earlier = held if batch.accumulates else 0.0
    # the head's gradient waits for the embedding's where they are tied, for the whole unit's under FSDP2
    waiting = b * head if sharded or c.tied_head else (0 if batch.accumulates else 4 * head)
    window = b * (root + 2 * layer) if sharded else 0  # the root, a layer, and the gathering of the next
    reduced = 4 * layer if sharded else 0  # a layer's gradients in fp32 on their way

    # across replicas each layer's reduced shard waits beside the gradient that it will be added to
    waiting_shards = 0.0
    if sharded and plan.sharding.replicas > 1 and batch.accumulates:
        waiting_shards = 4.0 * c.layers * sharded_parameters(c, plan.shards)[0]

    layer_saved, inside = saved_by_layer(plan), _layer_backward(plan)
    kept = c.layers * (b * batch.tokens * c.width if plan.checkpoint_activations else layer_saved) + _tail(plan)
    again = layer_saved if plan.checkpoint_activations else 0
    base = {**state, "parameters": state["parameters"] + window, "reference": _reference(plan, updating=True)}
    moments = {
        "head forward": base | {"gradients": earlier, "activations": kept, "logits": _head_forward(batch.rows, c, b)},
        "head backward": base
        | {"gradients": earlier + b * head, "activations": kept, "logits": _head_backward(batch.rows, c, b)},
        "layer backward": base | {"gradients": earlier + waiting + reduced, "activations": kept + again + inside},
        "layer reduced": base
        | {
            "gradients": earlier + waiting + reduced + layer_gradient * sharded,
            "activations": kept + again - layer_saved,
        },
        "first layer backward": base
        | {
            "gradients": held + waiting + waiting_shards - (0 if batch.accumulates or sharded else 4 * layer),
            "activations": layer_saved + inside + _tail(plan),
        },
        # tied: the head's gradient, the embedding's and their sum
        "embedding backward": {
            **base,
            "parameters": state["parameters"] + b * root * sharded,
            "gradients": held + waiting_shards + reduced + b * head * (3 if c.tied_head else 1 + sharded),
            "activations": _tail(plan),
        },
    }
    if sharded:
        gradients = held + waiting_shards + root_gradient + 4 * root
        moments["root reduced"] = {**state, "reference": base["reference"], "gradients": gradients}
    if plan.reference != "none":
        logits = _head_forward(batch.rows, c, b) + b * (batch.tokens + batch.rows) * c.width
        extra = {"activations": kept + _layer_forward(plan, batch.tokens), "logits": 0.0}
        if logits > extra["activations"] - kept:
            extra = {"activations": kept, "logits": logits}
        moments["reference forward"] = base | {"gradients": earlier} | extra
        moments["reference forward"]["parameters"] += 2 * b * layer * sharded
    return moments


def rollout_moments(plan: Plan) -> dict[str, Bytes]:
    """Bytes by kind in the rollouts, none where the run has none: every rank holds the whole model meanwhile."""
    c, b, rollouts = plan.model, plan.compute.itemsize, plan.rollouts
    if rollouts is None:
        return {}
    state = _state(plan)
    if plan.world_size > 1:
        layer, root = sharded_parameters(c, plan.shards)
        state["parameters"] += b * plan.shards * (c.layers * layer + root)
    state["reference"] = _reference(plan, updating=False)
    position = 2 * c.layers * c.key_value_heads * c.head_dim * b
    lengths = rollouts.rows * rollouts.prompt_length + rollouts.slots * rollouts.answer_length
    state["key/value cache"] = position * lengths + rollouts.slots * rollouts.answer_length * 12  # ids, log-probs
    tokens = rollouts.prefill_tokens
    prefilled = (position + 2 * b * c.width) * tokens
    # what is sampled from: logits, probabilities in fp32, and their copy in blocks; a filter adds two in fp32
    logits = rollouts.slots * c.vocab_size * (b + 8 + 8 * rollouts.filtered)
    return {
        "prefill": state | {"activations": prefilled + _layer_forward(plan, tokens)},
        "decoding": state | {"activations": prefilled, "logits": logits},
    }


def peak(plan: Plan) -> tuple[str, Bytes]:
    """The moment with the most bytes, and these by kind."""
    moments = update_moments(plan) | rollout_moments(plan)
    name = max(moments, key=lambda key: sum(moments[key].values()))
    return name, moments[name]


def host_bytes(plan: Plan, cuda: bool, background: bool) -> float:
    """Bytes a rank keeps in host memory beside what `peak` counts: masters, gradients and moments under cpu_offload, a
    parked reference, and masters and moments once more where a checkpoint is a copy: of a GPU's, or in the background.
    """
    numbers, offloaded = _local(plan), plan.world_size > 1 and plan.sharding.cpu_offload
    copied = background or (cuda and not offloaded)
    return (16.0 * offloaded + 12.0 * copied + plan.compute.itemsize * (plan.reference == "cpu")) * numbers


def _local(plan: Plan) -> int:
    layer, root = sharded_parameters(plan.model, plan.shards)
    return plan.model.layers * layer + root


def _state(plan: Plan) -> Bytes:
    """fp32 masters and moments; at one rank a 16-bit model lies beside its masters."""
    numbers = _local(plan)
    if plan.world_size > 1:
        on_device = 0.0 if plan.sharding.cpu_offload else float(numbers)
        return {"masters": 4 * on_device, "optimizer": 8 * on_device, "parameters": 0.0}
    beside = plan.compute.itemsize * float(numbers) if plan.compute.itemsize < 4 else 0.0
    return {"masters": 4.0 * numbers, "optimizer": 8.0 * numbers, "parameters": beside}


def _reference(plan: Plan, updating: bool) -> float:
    """Its shard, and in the update its root unit, which stays gathered since it never runs backward."""
    b = plan.compute.itemsize
    if plan.reference == "none" or (plan.world_size == 1 and plan.reference == "cpu" and not updating):
        return 0.0
    if plan.world_size == 1:
        return float(b * _local(plan))
    _, root = sharded_parameters(plan.model, plan.shards)
    return float(b * (plan.shards * root * updating + (0 if plan.reference == "cpu" else _local(plan))))


def _saved_by_norm(width: int, b: int, scaled: bool = True) -> float:
    """Of one row: its input, 1 / rms in fp32, and the scaled row where a projection reads it."""
    return b * width + 4 + (b * width if scaled else 0)


def _tail(plan: Plan) -> float:
    """Last norm, hidden states of the labelled rows, rotary tables, ids and positions, and a row's numbers."""
    c, b, batch = plan.model, plan.compute.itemsize, plan.micro_batch
    norm = _saved_by_norm(c.width, b, scaled=False)
    return batch.tokens * (norm + 4 * c.head_dim + 16) + batch.rows * (b * c.width + 48) + 8 * batch.keys


def _layer_forward(plan: Plan, tokens: int) -> float:
    """The most that a forward pass of one layer without gradient holds at a time."""
    c, b = plan.model, plan.compute.itemsize
    narrow = b if b < 4 else 0  # the normalised row before it is scaled
    return tokens * max(b * (3 * c.feed_forward_width + 2 * c.width), (4 * b + 4 + narrow) * c.width)


def _layer_backward(plan: Plan) -> float:
    """What a layer's backward pass holds beyond what forward kept: SwiGLU's gradients, or that of `down`'s weight."""
    c, b, tokens = plan.model, plan.compute.itemsize, plan.micro_batch.tokens
    wide = b * tokens * c.feed_forward_width
    return 2 * b * tokens * c.width + max(3 * wide, wide + b * c.feed_forward_width * c.width)


def _head_forward(rows: int, config: ModelConfig, b: int) -> float:
    """One chunk of products, its logits in fp32 and their exponentials."""
    _, old, _ = _chunks(rows, config)
    return (8.0 + (b if b < 4 else 0)) * old


def _head_backward(rows: int, config: ModelConfig, b: int) -> float:
    """Of one chunk: products, logits that become slopes in place, slopes as narrow as products, and the slopes before,
    which Python still names; the chunk's weight gradient in fp32."""
    chunk, old, new = _chunks(rows, config)
    weight, cast = 4 * chunk * config.width, b if b < 4 else 0
    logits = max((4 + 2 * cast) * old, b * old + (4 + 2 * cast) * new) + weight
    named = (2 * cast or 4) * old  # products and slopes, which in fp32 are one
    product = named + weight + b * chunk * config.width
    if config.vocab_size > chunk:  # the weight gradients of two chunks
        product = max(product, named + 2 * weight)
    return float(4 * rows * config.width + max(logits, product))


def _chunks(rows: int, config: ModelConfig) -> tuple[int, int, int]:
    """(vocabulary of a chunk, logits of a chunk, logits of the one after it, 0 where there is none)."""
    r, v = min(rows, ROWS_PER_CHUNK), min(config.vocab_size, VOCABULARY_PER_CHUNK)
    after_rows, after_columns = min(rows - r, r) * v, r * min(config.vocab_size - v, v)
    return v, r * v, max(after_rows, after_columns)
