"""The memory plan against what a process measures, and against FSDP2's own shards on up to 1,024 fake ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from psychecore.model.config import ModelConfig
from psychecore.train.plan import (
    MicroBatch,
    Plan,
    RolloutPlan,
    host_bytes,
    peak,
    rollout_moments,
    sharded_parameters,
    update_moments,
)
from psychecore.train.sharding import ShardingConfig

MEASURE = Path(__file__).with_name("measure_memory.py")
MODELS: dict[str, dict[str, Any]] = {
    # a tied head over two chunks of the vocabulary, few key/value heads, biases
    "tied": {
        "family": "qwen2",
        "vocab_size": 20_000,
        "width": 384,
        "layers": 6,
        "query_heads": 6,
        "key_value_heads": 2,
        "head_dim": 64,
        "feed_forward_width": 1152,
        "tied_head": True,
        "qkv_bias": True,
    },
    # an untied head over one chunk, wide feed-forward, every head its own keys
    "untied": {
        "family": "llama",
        "vocab_size": 8_000,
        "width": 512,
        "layers": 5,
        "query_heads": 8,
        "key_value_heads": 8,
        "head_dim": 64,
        "feed_forward_width": 2048,
    },
    # deep and narrow, norms on queries and keys, heads wider than the model
    "qk norm": {
        "family": "qwen3",
        "vocab_size": 12_000,
        "width": 256,
        "layers": 12,
        "query_heads": 8,
        "key_value_heads": 4,
        "head_dim": 64,
        "feed_forward_width": 768,
        "tied_head": True,
        "qk_norm": True,
    },
}


def measure(job: dict[str, Any]) -> dict[str, dict[str, float]]:
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, str(MEASURE), json.dumps(job)], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def total(kinds: dict[str, float]) -> float:
    return sum(kinds.values())


@pytest.mark.parametrize(
    ("name", "checkpoint"),
    [
        ("tied", False),
        ("untied", True),
        ("qk norm", False),
    ],
)
def test_an_sft_step_takes_the_planned_memory(name: str, checkpoint: bool) -> None:
    job = {"recipe": "sft", "dtype": "float32", "model": MODELS[name], "checkpoint": checkpoint}
    measured = measure(job | {"sequences": 4, "length": 64})["update"]
    plan = Plan(
        ModelConfig(**MODELS[name]),
        torch.float32,
        checkpoint_activations=checkpoint,
        flash=False,
        micro_batch=MicroBatch(256, 252),
    )
    moment, kinds = peak(plan)
    print(moment, {k: round(v / 1e6, 1) for k, v in kinds.items()}, total(kinds) / 1e6, measured)
    assert measured["live"] == pytest.approx(total(kinds), rel=0.10)
    assert measured["resident"] == pytest.approx(total(kinds), rel=0.10)


@pytest.mark.parametrize("name", MODELS)
def test_a_rollout_and_a_grpo_update_take_the_planned_memory(name: str) -> None:
    sizes = {"prompts": 2, "prompt": 64, "samples": 4, "answer": 32, "slots": 16}
    measured = measure({"recipe": "grpo", "dtype": "float32", "model": MODELS[name], "reference": True} | sizes)
    groups, mask = 2, 2 * 4 * 32 * 96
    plan = Plan(
        ModelConfig(**MODELS[name]),
        torch.float32,
        flash=False,
        micro_batch=MicroBatch(groups * (64 + 4 * 32), groups * 4 * 32, groups * (64 + 4 * 96), mask),
        reference="same",
        rollouts=RolloutPlan(16, 4, 64, 32, 256),
    )
    for phase, moments in (("update", update_moments(plan)), ("rollout", rollout_moments(plan))):
        name = max(moments, key=lambda key: total(moments[key]))
        kinds = moments[name]
        print(phase, name, {k: round(v / 1e6, 1) for k, v in kinds.items()}, total(kinds) / 1e6, measured[phase])
    for phase, moments in (("update", update_moments(plan)), ("rollout", rollout_moments(plan))):
        planned = max(map(total, moments.values()))
        assert measured[phase]["live"] == pytest.approx(planned, rel=0.10)
        assert measured[phase]["resident"] == pytest.approx(planned, rel=0.10)
