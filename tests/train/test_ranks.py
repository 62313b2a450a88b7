"""Two gloo processes against one: loss, gradients and updated weights, at uneven and empty shares.

This file is also the worker: torchrun's environment is set by hand, and each worker leaves by os._exit, since torch
can abort at interpreter exit after all work is done (PyTorch issue 190489). Results are judged by the files written.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import psychecore as pc
from psychecore.data.stream import share
from psychecore.model.pretrained import gather_tensor
from psychecore.runtime import Runtime, runtime
from psychecore.text.tokenizer import Encoded
from psychecore.train.grpo import GrpoConfig, grpo_update
from psychecore.train.losses import LossConfig
from psychecore.train.optimizer import Optimizer, OptimizerConfig
from psychecore.train.sft import SftConfig, sft_step
from psychecore.train.sharding import ShardingConfig, gathered, make_mesh, sharder

SFT = SftConfig(batch_size=4, token_budget=40)
# a large eps makes AdamW all but linear in the gradient, and nothing is clipped: an error of scale would show
RATES = OptimizerConfig(lr=1.0, eps=10.0, max_grad_norm=1e9)
GRPO = GrpoConfig(3, 4, mini_batches=1, token_budget=50, loss=LossConfig(kl_coefficient=0.1, normalisation="sequence"))
CASES = [("sft", 5), ("sft", 1), ("grpo", 3), ("grpo", 1), ("grpo clipped", 3)]
CASES += [("sft replicated", 5), ("grpo replicated", 3), ("sft checkpointed", 5), ("grpo clipped", 2)]


class Letters:
    """Stands in for a tokenizer."""

    stop_ids = frozenset([0])
    valid_ids = (True,) * 61

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def conversations(count: int) -> list[Encoded]:
    generator = torch.Generator().manual_seed(3)
    rows = []
    for length in torch.randint(4, 30, (count,), generator=generator).tolist():
        ids = torch.randint(1, 61, (length,), generator=generator).tolist()
        rows.append(Encoded(ids, [i > length // 2 for i in range(length)], ""))
    return rows


def one_step(case: str, items: int, folder: Path, place: Runtime) -> dict[str, Any]:
    """One optimizer step of a case on this rank's share: weights afterwards, and metrics."""
    shard: Callable[[pc.Decoder], None] | None = None
    if place.world_size > 1:
        sharding = ShardingConfig(replicas=2 if "replicated" in case else 1)
        shard = sharder(make_mesh(sharding, place.world_size, place.device), torch.float32)
    policy = pc.load_model(folder / "policy", torch.float32, "cpu", shard)
    policy.checkpoint_activations = "checkpointed" in case
    optimizer = Optimizer(policy, RATES, 4)
    if case.startswith("sft"):
        metrics = sft_step(policy, optimizer, share(conversations(items), place.rank, place.world_size), SFT, place)
    else:
        prompts = [[*range(1, 21)], [5, 6, 7], [*range(1, 19), 40, 41, 42]][:items]
        mine = share(range(items), place.rank, place.world_size)
        with gathered(policy):
            sampler = pc.Sampler(policy, Letters())  # type: ignore[arg-type]
            params = pc.SamplingParams(max_new_tokens=9, seed=1)
            groups = sampler.generate([prompts[i] for i in mine], params, 4, prompt_keys=mine)
        rewards_PG = torch.tensor([[float(len(r.token_ids) + sum(r.token_ids)) for r in g.rollouts] for g in groups])
        reference = pc.load_model(folder / "reference", torch.float32)
        config = GRPO
        if case == "grpo clipped":
            loss = LossConfig(ratio="sequence", clip_low=1e-3, clip_high=1e-3, kl="k2", importance_cap=1.0)
            config = GrpoConfig(3, 4, mini_batches=2, token_budget=50, loss=loss)
        metrics = grpo_update(
            policy,
            optimizer,
            groups,
            pc.group_advantages(rewards_PG.view(len(groups), 4)),
            config,
            place,
            reference=reference,
        )
    names = [name for name, _ in policy.named_parameters()]
    tensors = {name: gather_tensor(p).clone() for name, p in zip(names, policy.parameters(), strict=True)}
    return {"tensors": tensors, "metrics": metrics}


def worker(folder: Path) -> None:
    with runtime("cpu") as place:
        for number, (case, items) in enumerate(CASES):
            result = one_step(case, items, folder, place)
            if place.first:
                save_file(result["tensors"], folder / f"{number}.safetensors")
                (folder / f"{number}.json").write_text(json.dumps(result["metrics"]))


def launch(script: Path, arguments: list[str], world_size: int, timeout: float = 240) -> list[str]:
    """Run `script` as that many ranks; returns each rank's output. Fails the test where one does not end well."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world_size),
        "OMP_NUM_THREADS": "1",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        outputs = [rank.communicate(timeout=timeout)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(outputs)
    return outputs


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    config = pc.ModelConfig("qwen2", 61, 24, 2, 3, 1, 8, 40, qkv_bias=True)
    for name, seed in (("policy", 0), ("reference", 1)):
        pc.save_model(pc.Decoder(config).initialise(seed, std=0.3), None, folder / name)
    launch(Path(__file__), [str(folder)], world_size=2)
    return folder


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{case} x {items}" for case, items in CASES])
def test_two_ranks_take_the_step_of_one(number: int, two_ranks: Path) -> None:
    alone = one_step(*CASES[number], two_ranks, Runtime(0, 1, torch.device("cpu")))
    metrics = json.loads((two_ranks / f"{number}.json").read_text())
    for name in ("loss", "gradient_norm", "entropy"):
        assert metrics[name] == pytest.approx(alone["metrics"][name], rel=1e-4, abs=1e-6), name
    for name, tensor in load_file(two_ranks / f"{number}.safetensors").items():
        # fp32 rounding of weights of about 1
        torch.testing.assert_close(tensor, alone["tensors"][name], rtol=1e-4, atol=2e-5, msg=name)


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)
