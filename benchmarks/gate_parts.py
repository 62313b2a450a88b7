"""The checks of benchmarks/gpu_gate.py, each a function of (device, rehearsal) that returns what it found, or raises.

A rehearsal runs on the CPU at small sizes, with the torch references where a kernel would run: it tests the checks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import torch
import torch.distributed as dist
from kernel_cases import CASES, KernelCase, Sizes
from torch import Tensor

import psychecore as pc
from psychecore.model.attention import PackedAttention, resolve_backend, set_backend
from psychecore.runtime import Runtime
from psychecore.text.tokenizer import Encoded
from psychecore.train.optimizer import Optimizer, OptimizerConfig
from psychecore.train.sft import SftConfig, sft_step
from psychecore.train.sharding import ShardingConfig, gathered, make_mesh, sharder

Found = dict[str, Any]


class GateError(AssertionError):
    """A check that did not hold."""


def kernels(device: torch.device, rehearsal: bool) -> Found:
    """Every kernel in bf16, forward and backward, against its reference in float64 on the same rounded inputs."""
    found: Found = {}
    for case in CASES:
        for sizes in odd_sizes(rehearsal):
            run = case.reference() if rehearsal else case.kernel()
            found[f"{case.name} {sizes.model}"] = errors(case, run, sizes, device)
    wrong = {name: errors for name, errors in found.items() if max(errors.values()) > 1}
    if wrong:
        raise GateError(f"beyond twice bf16's rounding: {wrong}")
    return found


def odd_sizes(rehearsal: bool) -> list[Sizes]:
    """Sizes that no block divides, at the heads of 0.5B and 7B; long enough for several tiles."""
    tokens, length, vocabulary, prompt = (26, 13, 211, 37) if rehearsal else (1537 * 3, 1537, 50_021, 1537)
    small = _config(width=72, head_dim=8, query_heads=6, key_value_heads=2, vocab_size=vocabulary)
    wide = {"vocab_size": vocabulary, "layers": 1}
    large = [
        _config(width=896, head_dim=64, query_heads=14, key_value_heads=2, feed_forward_width=4864, **wide),
        _config(width=3584, head_dim=128, query_heads=28, key_value_heads=4, feed_forward_width=18_944, **wide),
    ]
    return [
        Sizes(f"D={c.width}", c, tokens=tokens, length=length, samples=15, group=5, prompt=prompt)
        for c in ([small] if rehearsal else large)
    ]


def errors(case: KernelCase, run: Callable[..., Any], sizes: Sizes, device: torch.device) -> dict[str, float]:
    """Largest error of every result and gradient, in units of twice bf16's rounding of the tensor's largest number."""
    inputs = case.inputs(sizes, torch.bfloat16, device)
    exact = [_exact(x) for x in inputs]
    ours = case.results(inputs, run(*inputs))
    theirs = case.results(exact, case.reference()(*exact))
    pairs = dict(enumerate(zip(ours, theirs, strict=True)))
    if case.backward is not None:
        slopes = [torch.randn_like(x.detach()) for x in ours]
        ours = torch.autograd.grad(ours, _leaves(inputs), slopes)
        theirs = torch.autograd.grad(
            theirs, _leaves(exact), [s.to(t.dtype) for s, t in zip(slopes, theirs, strict=True)]
        )
        pairs |= {f"gradient {i}": pair for i, pair in enumerate(zip(ours, theirs, strict=True))}
    errors = {}
    for name, (got, wanted) in pairs.items():
        got, wanted = got.detach().double(), wanted.detach()
        errors[str(name)] = round(float((got - wanted).abs().max() / (2 * 2**-8 * wanted.abs().max())), 3)
    return errors


def _exact(x: Any) -> Any:
    floating = isinstance(x, Tensor) and x.is_floating_point()
    return x.detach().double().requires_grad_(x.requires_grad) if floating else x


def _leaves(inputs: list[Any]) -> list[Tensor]:
    return [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]


def attention(device: torch.device, rehearsal: bool) -> Found:
    """The back end that would be taken against torch's SDPA, on answers that share a prompt, with gradients."""
    dtype = torch.float32 if rehearsal else torch.bfloat16
    taken = resolve_backend(device, dtype)
    cu_q, cu_k = [0, 700, 1000, 1400], [0, 700, 1700, 2800]  # two answers that also see the prompt's 700 tokens
    if rehearsal:
        cu_q, cu_k = [0, 7, 10, 14], [0, 7, 17, 28]
    prompt = torch.arange(cu_q[1])
    rest = [torch.arange(start, stop) for start, stop in itertools.pairwise(cu_q[1:])]
    index = torch.cat([prompt, *(torch.cat((prompt, own)) for own in rest)]).to(device)
    results = {}
    for backend in (taken, "torch"):
        generator = torch.Generator().manual_seed(0)
        q, k, v, slope = (
            torch.randn(cu_q[-1], heads, 64, generator=generator).to(device, dtype).requires_grad_()
            for heads in (14, 2, 2, 14)
        )
        set_backend(backend)
        try:
            out = PackedAttention(cu_q, cu_k, index, device)(0, q, k, v)
        finally:
            set_backend(None)
        results[backend] = [out, *torch.autograd.grad(out, (q, k, v), slope.detach())]
    gaps = [
        float((a - b).detach().abs().max() / b.detach().abs().max())
        for a, b in zip(results[taken], results["torch"], strict=True)
    ]
    if max(gaps) > 0.03:
        raise GateError(f"{taken} and torch differ by {gaps} of the largest number in out, dq, dk, dv")
    return {"taken": taken, "largest_gap": max(gaps)}


class Letters:
    """A tokenizer of which only ids matter; 0 stops."""

    stop_ids = frozenset([0])

    def __init__(self, vocabulary: int):
        self.valid_ids = (True,) * vocabulary

    def decode(self, ids: list[int]) -> str:
        """Anything that differs."""
        return " ".join(map(str, ids))


class Again:
    """In a rehearsal the `Capture`: a replay does the step once more."""

    def warm_up(self, step: Callable[[], None]) -> None:
        """Do it."""
        step()

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """Keep it."""
        return step


def sampler(device: torch.device, rehearsal: bool) -> Found:
    """Samples with CUDA graphs and without: the same tokens in fp32, and tokens a second of both in bf16."""
    model = pc.Decoder(_config(rehearsal=rehearsal)).initialise(0, std=0.08).to(device)
    prompts = [[(7 * i + p) % 200 + 1 for i in range(20 + 9 * p)] for p in range(4)]
    new = 12 if rehearsal else 200
    params = pc.SamplingParams(max_new_tokens=new, seed=1)
    letters: Any = Letters(model.config.vocab_size)
    made = {"eager": pc.Sampler(model, letters, cuda_graphs=False)}
    made["graphs"] = pc.Sampler(model, letters, cuda_graphs=None if rehearsal else True)
    if rehearsal:
        made["graphs"]._capture = Again
    groups = {name: one.generate(prompts, params, samples_per_prompt=8) for name, one in made.items()}
    same, gap, total = 0, 0.0, 0
    for eager, replayed in zip(groups["eager"], groups["graphs"], strict=True):
        for a, b in zip(eager.rollouts, replayed.rollouts, strict=True):
            total += 1
            same += a.token_ids == b.token_ids
            if a.token_ids == b.token_ids:
                gap = max([gap, *(abs(x - y) for x, y in zip(a.logprobs, b.logprobs, strict=True))])
    stats = made["graphs"].stats
    found: Found = {"same": same, "of": total, "logprob_gap": gap, "graphs": stats.graphs, "steps": stats.steps}
    found["replayed"] = stats.replayed_steps
    # spans differ, so that sums are taken in another order: a rare draw may flip
    if same < 0.9 * total or gap > 1e-3 or stats.replayed_steps < stats.steps / 2:
        raise GateError(f"graphs and eager steps disagree, or graphs were not used: {found}")
    model.to(torch.float32 if rehearsal else torch.bfloat16)
    for name, one in made.items():
        one.generate(prompts, params, samples_per_prompt=8)
        found[f"tokens_per_s {name}"] = round(one.stats.new_tokens / one.stats.seconds, 1)
    return found


def fsdp(device: torch.device, rehearsal: bool) -> Found:
    """An SFT step under FSDP2 at one rank against the same without it, then samples from the gathered model."""
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        plain = pc.Decoder(_config(rehearsal=rehearsal)).initialise(0, std=0.05).to(device)
        sharded = deepcopy(plain)
        sharder(make_mesh(ShardingConfig(), 1, device), torch.float32)(sharded)
        ids = [[(i * 31 + row) % 199 + 1 for i in range(40 + row)] for row in range(4)]
        rows = [Encoded(row, [i >= 10 for i in range(len(row))], "") for row in ids]
        for model in (plain, sharded):
            # eps 1: the update follows the gradient, while AdamW's sign of a gradient of about 0 is chance
            optimizer = Optimizer(model, OptimizerConfig(lr=1.0, eps=1.0), 1)
            sft_step(model, optimizer, rows, SftConfig(4), Runtime(0, 1, device))
        gaps = [
            float((a.detach() - b.full_tensor().detach()).abs().max())
            for a, b in zip(plain.parameters(), sharded.parameters(), strict=True)
        ]
        letters: Any = Letters(plain.config.vocab_size)
        params = pc.SamplingParams(max_new_tokens=8 if rehearsal else 64, temperature=0, ignore_stop=True)
        texts = []
        for model in (plain, sharded):
            one = pc.Sampler(model, letters)
            with gathered(model) if model is sharded else nullcontext():
                texts.append([group.rollouts[0].token_ids for group in one.generate(ids, params)])
        same = sum(a == b for a, b in zip(*texts, strict=True))
        found = {"largest_gap": max(gaps), "same_samples": same, "of": len(ids), "replayed": one.stats.replayed_steps}
        if max(gaps) > 1e-4 or same < len(ids) - 1:
            raise GateError(f"FSDP2's step differs from the plain one: {found}")
        return found
    finally:
        dist.destroy_process_group()


def _config(rehearsal: bool = True, **changes: Any) -> pc.ModelConfig:
    """Qwen2.5-0.5B's shape with fewer layers, or a tiny one."""
    shape: dict[str, Any] = {"family": "qwen2", "vocab_size": 211, "width": 48, "layers": 2, "query_heads": 6}
    shape |= {"key_value_heads": 2, "head_dim": 8, "feed_forward_width": 80, "qkv_bias": True}
    if not rehearsal:
        shape |= {"vocab_size": 32_000, "width": 896, "layers": 12, "query_heads": 14, "head_dim": 64}
        shape |= {"feed_forward_width": 4864}
    return pc.ModelConfig(**(shape | changes))
