"""Expected speed of a planned run on a GPU that is described by numbers: seconds of an SFT step and of a GRPO step.

A prediction, not a measurement: matrix products run at a stated share of the bf16 peak (`mfu`, recomputed layers
included as work), reads of weights and cache at a stated share of the memory's bandwidth. FSDP2's traffic is assumed to
hide behind compute as far as it is shorter: a phase takes the longer of both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from psychecore.model.config import ModelConfig
from psychecore.train.metrics import training_flops
from psychecore.train.plan import Plan

NODE = 8  # GPUs that the fast link joins
# What a layer of a decoding step takes beside its reads, some 25 small kernels: in a CUDA graph, from fits to an H100's
# rollouts (about 110 us at 0.5B, 90 at 1.5B, 50 at 7B), and launched one by one from Python, which hides the reads
# (1.3 to 1.45 ms on that machine's CPU; both benchmarks/results/gpu_steps.json).
GRAPH_LAYER_SECONDS, EAGER_LAYER_SECONDS = 1e-4, 1.4e-3


@dataclass(frozen=True)
class Gpu:
    """What torch reports as memory (GiB), dense bf16 peak (FLOP/s), memory bandwidth, and per GPU one direction of the
    link inside a node and of the network between nodes (bytes/s)."""

    memory_gib: float
    peak: float
    bandwidth: float
    link: float
    network: float


# vendors' data sheets (SXM boards; dense, without sparsity); 200 Gbit/s network for A100 nodes, 400 for the others
GPUS = {
    "A100-40": Gpu(39.4, 312e12, 1.555e12, 300e9, 25e9),
    "A100-80": Gpu(79.2, 312e12, 2.039e12, 300e9, 25e9),
    "H100-80": Gpu(79.1, 989e12, 3.35e12, 450e9, 50e9),
    "H200-141": Gpu(139.8, 989e12, 4.8e12, 450e9, 50e9),
    "B200": Gpu(178.3, 2250e12, 8.0e12, 900e9, 50e9),
}


@dataclass(frozen=True)
class Efficiency:
    """Shares of the peaks that a run reaches: mfu of matrix products, bandwidth of memory, links between GPUs."""

    mfu: float = 0.4
    bandwidth: float = 0.6
    links: float = 0.7

    def __post_init__(self) -> None:
        for name, value in (("mfu", self.mfu), ("bandwidth", self.bandwidth), ("links", self.links)):
            if not 0 < value <= 1:
                raise ValueError(f"{name} is {value}, but must be a share above 0, at most 1")


def forward_flops(config: ModelConfig, tokens: float, head_rows: float, length: float) -> float:
    """Of one forward pass over tokens in sequences of `length`: 2 per weight, and attention's two products.

    A token sees half of its sequence on average, so the products of scores and values cost 2 x N x H x length a layer.
    """
    attention = 2.0 * config.query_heads * config.head_dim * length * tokens * config.layers
    return training_flops(config, tokens, head_rows) / 3 + attention


def update_seconds(
    plan: Plan, gpu: Gpu, efficiency: Efficiency, tokens: float, rows: float, length: float, forward_only: float = 0.0
) -> float:
    """Seconds of forward, backward and optimizer of `tokens` tokens a rank (`rows` labels) in sequences of `length`.

    forward_only: further forward passes without gradient over the same tokens (reference, old log-probs).
    """
    c = plan.model
    passes = 3 + plan.checkpoint_activations + forward_only
    compute = passes * forward_flops(c, tokens, rows, length) / (efficiency.mfu * gpu.peak)
    micro_batches = max(1, math.ceil(tokens / max(plan.micro_batch.tokens, 1)))
    b = plan.compute.itemsize
    traffic = micro_batches * c.parameters * (b * (2 + forward_only) + 4)  # gathered twice, reduced in fp32 once
    state = 28.0 * c.parameters / plan.shards  # read masters, gradients, moments; write masters and moments
    return max(compute, gather_seconds(plan, gpu, efficiency, traffic)) + state / (efficiency.bandwidth * gpu.bandwidth)


def gather_seconds(plan: Plan, gpu: Gpu, efficiency: Efficiency, traffic: float) -> float:
    """Seconds in which `traffic` bytes of parameters pass through a ring of all shards; 0 at one shard."""
    link = gpu.link if plan.shards <= NODE else gpu.network
    return traffic * (plan.shards - 1) / plan.shards / (efficiency.links * link)


def rollout_seconds(
    plan: Plan, gpu: Gpu, efficiency: Efficiency, prompts: float, samples: float, prompt: float, answer: float
) -> float:
    """Seconds in which a rank samples `samples` answers to `prompts` prompts, of these mean lengths.

    Steps: every slot decodes its share of the answers, then the longest goes on to answer_length. A step reads all
    weights once and the cache of the running samples, their prompts' once, or takes its products' time where that is
    longer. Small kernels come on top, or hide both where Python launches them.
    """
    rollouts, c, b = plan.rollouts, plan.model, plan.compute.itemsize
    assert rollouts is not None
    slots = min(rollouts.slots, samples)
    steps = samples / max(slots, 1) * answer + max(rollouts.answer_length - answer, 0.0)
    weights = b * (c.parameters - (0 if c.tied_head else c.vocab_size * c.width))  # the embedding is looked up
    position = 2 * c.layers * c.key_value_heads * c.head_dim * b
    cache = position * (min(rollouts.rows, prompts) * prompt + slots * answer / 2)
    read = (weights + cache) / (efficiency.bandwidth * gpu.bandwidth)
    products = forward_flops(c, slots, slots, prompt + answer) / (efficiency.mfu * gpu.peak)
    graph, eager = c.layers * GRAPH_LAYER_SECONDS, c.layers * EAGER_LAYER_SECONDS
    step = max(read, products) + graph if rollouts.graphs else max(read, products, eager)
    prefill = forward_flops(c, prompts * prompt, 0, prompt) / (efficiency.mfu * gpu.peak)
    whole = gather_seconds(plan, gpu, efficiency, b * c.parameters)  # once before the rollouts
    return whole + prefill + steps * step
