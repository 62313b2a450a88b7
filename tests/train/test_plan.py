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
from measure_memory import Job, run

from psychecore.model.config import ModelConfig
from psychecore.model.decoder import Decoder
from psychecore.runtime import Runtime
from psychecore.train.optimizer import Optimizer, OptimizerConfig
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
from psychecore.train.run_state import Checkpoints
from psychecore.train.sharding import ShardingConfig

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


def in_a_process(script: str, argument: Any) -> Any:
    """What a script beside this file prints, as JSON."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # freed: gone
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, str(Path(__file__).with_name(script)), json.dumps(argument)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def total(kinds: dict[str, float]) -> float:
    return sum(kinds.values())


@pytest.mark.slow  # the update below is measured in the same way
@pytest.mark.parametrize(("name", "checkpoint"), [("tied", False), ("untied", True), ("qk norm", False)])
def test_an_sft_step_takes_the_planned_memory(name: str, checkpoint: bool) -> None:
    job = {"recipe": "sft", "dtype": "float32", "model": MODELS[name], "checkpoint": checkpoint}
    measured = in_a_process("measure_memory.py", job | {"sequences": 3, "length": 64})["update"]
    plan = Plan(
        ModelConfig(**MODELS[name]),
        torch.float32,
        checkpoint_activations=checkpoint,
        flash=False,
        micro_batch=MicroBatch(192, 189),
    )
    _, kinds = peak(plan)
    assert measured["live"] == pytest.approx(total(kinds), rel=0.03)
    assert measured["resident"] == pytest.approx(total(kinds), rel=0.10)


@pytest.mark.parametrize("name", ["tied", *(pytest.param(n, marks=pytest.mark.slow) for n in MODELS if n != "tied")])
def test_a_rollout_and_a_grpo_update_take_the_planned_memory(name: str) -> None:
    sizes = {"prompts": 2, "prompt": 48, "samples": 4, "answer": 16, "slots": 16}
    job = {"recipe": "grpo", "dtype": "float32", "model": MODELS[name], "reference": True}
    measured = in_a_process("measure_memory.py", job | sizes)
    groups = 2
    plan = Plan(
        ModelConfig(**MODELS[name]),
        torch.float32,
        flash=False,
        micro_batch=MicroBatch(groups * (48 + 4 * 16), groups * 4 * 16, groups * (48 + 4 * 64)),
        reference="same",
        rollouts=RolloutPlan(16, 4, 64, 32, 4 * 48),
    )
    for phase, moments in (("update", update_moments(plan)), ("rollout", rollout_moments(plan))):
        planned = max(map(total, moments.values()))
        assert measured[phase]["live"] == pytest.approx(planned, rel=0.02)
        assert measured[phase]["resident"] == pytest.approx(planned, rel=0.10)


SMALL = {"family": "llama", "layers": 2, "query_heads": 4, "key_value_heads": 2, "head_dim": 16}


WIDE_LAYERS = {"vocab_size": 64, "width": 64, "feed_forward_width": 512}
MANY_TIED_WORDS = {"vocab_size": 60_000, "width": 64, "feed_forward_width": 64, "tied_head": True}
MANY_WORDS = {"vocab_size": 17_000, "width": 16, "feed_forward_width": 32}
FEW_WORDS = {"vocab_size": 900, "width": 16, "feed_forward_width": 32}


@pytest.mark.parametrize(
    ("moment", "dtype", "shape", "sizes", "checkpoint"),
    [
        ("layer backward", "float32", WIDE_LAYERS, (8, 64), True),  # what a layer recomputes is the most
        ("layer backward", "bfloat16", WIDE_LAYERS, (8, 32), True),
        ("embedding backward", "float32", MANY_TIED_WORDS, (1, 2), False),
        ("head backward", "bfloat16", MANY_WORDS, (2, 24), False),  # two chunks of the vocabulary
        ("head forward", "float32", FEW_WORDS, (30, 71), False),  # 2,100 labels: two chunks of rows
    ],
)
def test_each_moment_of_an_update_is_planned(
    moment: str, dtype: str, shape: dict[str, Any], sizes: tuple[int, int], checkpoint: bool
) -> None:
    model = SMALL | shape
    job = {"recipe": "sft", "dtype": dtype, "model": model, "checkpoint": checkpoint}
    sequences, length = sizes
    measured: dict[str, Any] = {}
    run(Job(job | {"sequences": sequences, "length": length}), measured)
    batch = MicroBatch(sequences * length, sequences * (length - 1))
    plan = Plan(
        ModelConfig(**model),
        getattr(torch, dtype),
        checkpoint_activations=checkpoint,
        flash=False,
        micro_batch=batch,
    )
    name, kinds = peak(plan)
    assert name == moment
    assert measured["update"]["live"] == pytest.approx(total(kinds), rel=0.10)


def test_a_reference_pass_a_prefill_and_a_decoding_step_over_many_words_are_planned() -> None:
    sizes = {"prompts": 2, "prompt": 40, "samples": 4, "answer": 32, "slots": 16}
    for shape, peaks in (
        ({"vocab_size": 64, "width": 32, "feed_forward_width": 1024}, ("layer backward", "prefill")),
        ({"vocab_size": 64, "width": 256, "feed_forward_width": 32}, ("reference forward", "prefill")),
        ({"vocab_size": 24_000, "width": 16, "feed_forward_width": 32}, ("head backward", "decoding")),
    ):
        job = {"recipe": "grpo", "dtype": "float32", "model": SMALL | shape, "reference": True}
        measured: dict[str, Any] = {}
        run(Job(job | sizes), measured)
        plan = Plan(
            ModelConfig(**(SMALL | shape)),
            torch.float32,
            flash=False,
            micro_batch=MicroBatch(2 * 168, 2 * 128, 2 * (40 + 4 * 72)),
            reference="same",
            rollouts=RolloutPlan(16, 4, 64, 32, 160),
        )
        for phase, expected, moments in zip(
            ("update", "rollout"), peaks, (update_moments(plan), rollout_moments(plan)), strict=True
        ):
            name = max(moments, key=lambda key: total(moments[key]))
            assert measured[phase]["live"] == pytest.approx(total(moments[name]), rel=0.10), (phase, name)
            assert expected == name


UNEVEN = MODELS["tied"] | {"vocab_size": 10_001, "width": 300, "feed_forward_width": 1000, "layers": 3}


@pytest.mark.parametrize(
    "cases",
    [[(8, 1, True), (64, 8, True)], pytest.param([(64, 1, False), (1024, 1, False)], marks=pytest.mark.slow)],
    ids=["8 and 64 ranks", "64 and 1,024 ranks"],
)
def test_fsdp2_on_fake_ranks_holds_what_is_planned(cases: list[tuple[int, int, bool]]) -> None:
    """What rank 0 of FSDP2 holds, 16 tokens a micro-batch."""
    asked = [[ranks, replicas, 16, UNEVEN | {"tied_head": tied}] for ranks, replicas, tied in cases]
    for case, found in zip(cases, in_a_process("fake_ranks.py", asked), strict=True):
        compare_with_fake_ranks(*case, found)


def compare_with_fake_ranks(ranks: int, replicas: int, tied: bool, found: dict[str, int]) -> None:
    model = ModelConfig(**UNEVEN | {"tied_head": tied})
    batch = MicroBatch(16, 1)
    plan = Plan(model, torch.bfloat16, ranks, ShardingConfig(replicas), flash=False, micro_batch=batch)
    layer, root = sharded_parameters(model, ranks // replicas)
    numbers = model.layers * layer + root
    moments = update_moments(plan)
    assert found["parameters"] == found["tracked_parameters"] == 4 * numbers == moments["layer backward"]["masters"]
    assert found["gradients"] == found["tracked_gradients"] == 4 * numbers
    assert moments["layer backward"]["optimizer"] == 8 * numbers
    # rank 0 holds at most one row more of each parameter than its even share
    assert 0 <= numbers - model.parameters * replicas / ranks <= (model.layers * 8 + 3) * model.feed_forward_width
    # the tracker ran the layers only, without the head's chunks and without an optimizer
    del moments["head backward"]
    planned = max(total(kinds) - kinds["optimizer"] for kinds in moments.values())
    assert found["peak"] == pytest.approx(planned, rel=0.02)


@pytest.mark.parametrize("background", [False, True])
def test_the_copy_of_a_checkpoint_is_planned(background: bool, tmp_path: Path) -> None:
    config = ModelConfig(**{**MODELS["untied"], "layers": 1})
    model = Decoder(config)
    optimizer = Optimizer(model, OptimizerConfig(), 1)
    model.logits(torch.tensor([[1, 2]])).sum().backward()
    optimizer.step()
    live = {tensor.data_ptr() for tensor in optimizer.state_tensors().values()}
    checkpoints = Checkpoints(tmp_path, Runtime(0, 1, torch.device("cpu")), background=background)
    tensors, rows = checkpoints._snapshot(optimizer)
    copied = sum(tensors[name].nbytes for name in rows if tensors[name].data_ptr() not in live)
    plan = Plan(config, torch.float32)
    assert host_bytes(plan, cuda=False, background=background) == copied
    assert host_bytes(plan, cuda=True, background=background) == sum(tensors[name].nbytes for name in rows)
