"""Runs one SFT step, or one rollout and GRPO update, in this fresh process and prints its peak memory as JSON.

    python measure_memory.py '{"recipe": "sft", "dtype": "float32", "model": {...}, ...}'

Two measures. `live`: the most bytes of tensor storage alive at a time, counted by watching every operator's outputs.
`resident`: growth of the process's resident memory (VmHWM) over that after a warm-up; it also sees what operators
allocate inside. Started with MALLOC_MMAP_THRESHOLD_ set, so that freed tensors go back to the system at once.
"""

from __future__ import annotations

import gc
import json
import sys
import weakref
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from psychecore.model.config import ModelConfig
from psychecore.model.decoder import Decoder
from psychecore.rollout.sampler import Sampler
from psychecore.rollout.sampling import SamplingParams
from psychecore.runtime import Runtime
from psychecore.text.tokenizer import Encoded
from psychecore.train.grpo import GrpoConfig, grpo_update
from psychecore.train.optimizer import Optimizer, OptimizerConfig
from psychecore.train.sft import SftConfig, sft_step

HERE = Runtime(0, 1, torch.device("cpu"))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operators made and that still live."""

    def __init__(self, existing: Iterable[Tensor]):
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0
        for tensor in existing:
            self.add(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return out

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.sizes:
            self.sizes[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.drop, storage._cdata)

    def drop(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


class Tokenizer:
    """Only what the sampler reads."""

    stop_ids: frozenset[int] = frozenset()

    def __init__(self, vocabulary: int):
        self.valid_ids = (True,) * vocabulary

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return ""


class Job:
    """A model with its optimizer in the steady state, and the work that the command line describes."""

    def __init__(self, job: dict[str, Any]):
        self.job, dtype = job, getattr(torch, job["dtype"])
        self.policy = Decoder(ModelConfig(**job["model"])).to(dtype).initialise(0)
        self.policy.checkpoint_activations = job.get("checkpoint", False)
        self.reference = None
        if job.get("reference"):
            self.reference = Decoder(ModelConfig(**job["model"])).to(dtype).initialise(1).requires_grad_(False)
        self.optimizer = Optimizer(self.policy, OptimizerConfig(), 10)
        self.optimizer.allocate_state(self.optimizer.counters() | {"steps": 1})

    def tensors(self) -> list[Tensor]:
        models = [m for m in (self.policy, self.reference) if m is not None]
        return [p for m in models for p in m.parameters()] + list(self.optimizer.state_tensors().values())

    def sft(self) -> None:
        """Two micro-batches of `sequences` conversations of `length` tokens."""
        job, vocabulary = self.job, self.policy.config.vocab_size
        count, length = 2 * job["sequences"], job["length"]
        ids = torch.randint(vocabulary, (count, length), generator=torch.Generator().manual_seed(0)).tolist()
        rows = [Encoded(row, [True] * length, "") for row in ids]
        sft_step(self.policy, self.optimizer, rows, SftConfig(count, job["sequences"] * length, length), HERE)

    def rollout(self) -> None:
        """Groups for two micro-batches, every sample of full length."""
        job, vocabulary = self.job, self.policy.config.vocab_size
        shape = (2 * job["prompts"], job["prompt"])
        prompts = torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(0)).tolist()
        sampler = Sampler(self.policy, Tokenizer(vocabulary), job["slots"], job["prompt"] + job["answer"])
        params = SamplingParams(max_new_tokens=job["answer"], ignore_stop=True)
        self.groups = sampler.generate(prompts, params, job["samples"])

    def update(self) -> None:
        job = self.job
        budget = job["prompts"] * (job["prompt"] + job["samples"] * job["answer"])
        config = GrpoConfig(2 * job["prompts"], job["samples"], mini_batches=1, token_budget=budget)
        advantages = torch.randn(len(self.groups), job["samples"], generator=torch.Generator().manual_seed(0))
        grpo_update(self.policy, self.optimizer, self.groups, advantages, config, HERE, reference=self.reference)


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (highest so far) of this process, bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


@contextmanager
def measured(job: Job, into: dict[str, float], name: str, baseline: int) -> Any:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    with LiveBytes(job.tensors()) as live:
        yield
    into[name] = {"live": live.peak, "resident": resident("VmHWM") - baseline}


def run(job: Job, into: dict[str, float], baseline: int = 0) -> None:
    if job.job["recipe"] == "sft":
        with measured(job, into, "update", baseline):
            job.sft()
    else:
        with torch.no_grad(), measured(job, into, "rollout", baseline):
            job.rollout()
        with measured(job, into, "update", baseline):
            job.update()


def main() -> None:
    job = json.loads(sys.argv[1])
    tiny = {"width": 32, "layers": 1, "feed_forward_width": 64, "vocab_size": 64}
    run(Job(job | {"model": job["model"] | tiny}), {})  # libraries load, thread pools start
    gc.collect()
    baseline, result = resident("VmRSS"), {}
    run(Job(job), result, baseline)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
