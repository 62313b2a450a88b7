"""A GRPO update whose groups share their prompt against our own update of separate sequences, on equal samples.

    python benchmarks/shared_prompt.py        # a prompt of 600 tokens, 8 completions of 100

Both pack, both build no padding; only the second stores the prompt once for each completion. The gradients are
compared too, in fp32.
"""

from __future__ import annotations

import time

import torch
from measure import MODEL, named, race, save, summary

import psychecore as pc
from psychecore.data.packing import PackedBatch, pack
from psychecore.model.products import fast_dtype
from psychecore.train.token_logprobs import batch_logprobs

PROMPT, COMPLETIONS, LENGTH = 600, 8, 100


def main() -> None:
    """Time both updates and write benchmarks/results/shared_prompt.json."""
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(100, 40_000, (PROMPT,), generator=generator).tolist()
    sequences = [
        (
            prompt + torch.randint(100, 40_000, (LENGTH,), generator=generator).tolist(),
            [False] * PROMPT + [True] * LENGTH,
        )
        for _ in range(COMPLETIONS)
    ]
    shared, separate = pack(sequences), pack(sequences, min_shared=10**9)
    gap = gradient_gap(pc.load_model(MODEL, torch.float32), shared, separate)
    print(
        f"tokens {shared.tokens} against {separate.tokens}; largest gradient difference {gap:.1e} of the largest entry"
    )
    model = pc.load_model(MODEL, fast_dtype(torch.device("cpu")))

    def rate(batch: PackedBatch) -> float:
        start = time.perf_counter()
        update(model, batch)
        return COMPLETIONS * LENGTH / (time.perf_counter() - start)

    rates = race({"shared": lambda: rate(shared), "separate": lambda: rate(separate)}, rounds=3)
    result = summary(rates, "shared") | {"unit": "completion tokens / s", "dtype": str(model.dtype)}
    print(result["times_faster"])
    file = named("shared_prompt", model.dtype, model.device)
    save(file, result | {"tokens": [shared.tokens, separate.tokens], "largest_gradient_difference": gap})


def update(model: pc.Decoder, batch: PackedBatch) -> None:
    """Forward and backward of the mean log-prob."""
    logprobs_R, _ = batch_logprobs(model, batch)
    (-logprobs_R.mean()).backward()
    for parameter in model.parameters():
        parameter.grad = None


def gradient_gap(model: pc.Decoder, first: PackedBatch, second: PackedBatch) -> float:
    """The largest difference of any gradient, relative to that parameter's largest entry."""
    found = []
    for batch in (first, second):
        logprobs_R, _ = batch_logprobs(model, batch)
        (-logprobs_R.mean()).backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
        model.zero_grad()
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*found, strict=True))


if __name__ == "__main__":
    main()
