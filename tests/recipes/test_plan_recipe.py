"""The planner as a user meets it, and the warning before a run that can't fit."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import plan
import planning
import pytest
import torch
from cli import load_config
from sft import SftRecipe

from psychecore.model.config import ModelConfig
from psychecore.model.decoder import Decoder
from psychecore.rollout.kv_cache import KVCache
from psychecore.runtime import Runtime
from psychecore.train.plan import GIB, rollout_moments

REPO = Path(__file__).resolve().parents[2]


def planner(*flags: str) -> plan.Planner:
    return load_config(plan.Planner, ["--config", str(plan.PRESET), *flags], None, skip=plan.OTHERS)


def test_the_built_in_models_have_their_published_sizes() -> None:
    published = (0.49, 1.54, 3.09, 7.62, 14.8, 32.8, 72.7)  # billions, Qwen2.5's model cards
    for config, billions in zip(plan.MODELS.values(), published, strict=True):
        assert config.parameters / 1e9 == pytest.approx(billions, rel=0.01)
    assert plan.MODELS["Qwen2.5-7B"].parameters == 7_615_616_512  # the safetensors' own count
    assert plan.find_model("Qwen/Qwen2.5-7B-Instruct") == plan.MODELS["Qwen2.5-7B"]


def test_the_command_prints_both_stages_and_names_a_wrong_gpu() -> None:
    command = [sys.executable, str(REPO / "recipes" / "plan.py"), "--model", "Qwen2.5-0.5B", "--ranks", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "0.494B parameters on 1 x H100-80" in done.stdout
    assert done.stdout.count("  fits: ") == 2
    assert "key/value cache" in done.stdout
    assert "Predicted, not measured: 40%" in done.stdout
    done = subprocess.run([*command, "--gpu", "H99"], capture_output=True, text=True)
    assert done.returncode == 2
    for name in plan.GPUS:
        assert name in done.stderr


def test_a_run_that_cannot_fit_says_what_would_make_it_fit(capsys: pytest.CaptureFixture[str]) -> None:
    plan.main(planner("--model", "Qwen2.5-7B", "--ranks", "2"))
    text = capsys.readouterr().out
    assert "DOES NOT FIT" in text
    assert "would fit with 4 ranks" in text
    plan.main(planner("--model", "Qwen2.5-7B", "--ranks", "4"))  # and it is true
    assert "DOES NOT FIT" not in capsys.readouterr().out


def test_a_model_larger_than_the_gpu_cannot_sample_at_any_number_of_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    plan.main(planner("--model", "Qwen2.5-72B", "--ranks", "64"))
    assert "no number of ranks makes it fit, since every rank holds the whole model" in capsys.readouterr().out


def test_settings_of_gpu_and_work_are_read() -> None:
    numbers = ("memory_gib", "tflops", "bandwidth_gb_s", "link_gb_s", "network_gb_s")
    flags = [f"--custom.{name}=10" for name in numbers]
    assert planner("--gpu", "custom", *flags).machine.peak == 1e13
    with pytest.raises(ValueError, match=r"--custom\.link_gb_s above 0"):
        _ = planner("--gpu", "custom", *[f for f in flags if "link" not in f]).machine
    with pytest.raises(ValueError, match="give --gpu custom"):
        planner(*flags)
    with pytest.raises(ValueError, match="leave out --model and --ranks"):
        planner("--table", "true", "--ranks", "3")
    with pytest.raises(ValueError, match="there is one rank"):
        planner("--ranks", "1", "--sft.sharding.cpu_offload", "true")
    with pytest.raises(FileNotFoundError, match=r"built in are Qwen2\.5-0\.5B"):
        plan.find_model("Qwen2.5-8B")
    config = load_config(
        plan.Planner, ["--config", str(REPO / "recipes" / "presets" / "demo.toml")], None, skip=plan.OTHERS
    )
    assert config.grpo.sampling.max_slots == 96


def test_settings_beyond_any_machine_are_named_or_planned() -> None:
    for flag, value in (("ranks", "9223372036854775807"), ("grpo.data.max_prompt_tokens", "0")):
        with pytest.raises(ValueError, match=flag.rpartition(".")[2]):
            planner(f"--{flag}", value)
    flags = ("--grpo.train.prompts_per_step", "1000000000000", "--grpo.sampling.max_slots", "1000000")
    assert planning.plan_run(planner(*flags).grpo, plan.MODELS["Qwen2.5-0.5B"], 1, torch.bfloat16, True).rollouts


def test_the_table_has_a_row_for_each_model_and_the_fewest_gpus() -> None:
    rows = [line.strip("| ").split(" | ") for line in plan.table(planner("--table", "true")).splitlines()[2:]]
    assert [row[0] for row in rows] == list(plan.MODELS)
    assert rows[3][1] == "2"  # 7.6B x 16 bytes of masters, gradients and moments are 113 GiB: not on one GPU of 79
    assert rows[6][5] == "none"  # 145 GB of bf16 weights on each rank while sampling


def test_half_the_efficiency_takes_twice_the_time() -> None:
    fast, slow = planner("--model", "Qwen2.5-3B"), planner("--efficiency.mfu", "0.2")
    model = plan.MODELS["Qwen2.5-3B"]
    speeds = [plan.speed(c.sft, plan.make_plan(c.sft, model, 1), c)[0] for c in (fast, slow)]
    assert speeds[0] / speeds[1] == pytest.approx(2, rel=0.02)  # the optimizer's own time is bandwidth
    # by hand: 6 x 2.77e9 weights of the layers, the head for 70 %, attention, a third more to recompute
    c = model
    head = c.vocab_size * c.width
    flops = 8 * (c.parameters - head + 0.7 * head) + 8 * c.query_heads * c.head_dim * 600 * c.layers
    assert speeds[0] == pytest.approx(0.4 * 989e12 / flops, rel=0.02)


def test_decoding_without_cuda_graphs_is_planned_slower() -> None:
    rates = {}
    for graphs in ("true", "false"):
        config = planner("--model", "Qwen2.5-1.5B", "--ranks", "1", "--grpo.sampling.cuda_graphs", graphs)
        model_plan = plan.make_plan(config.grpo, plan.MODELS["Qwen2.5-1.5B"], 1)
        rates[graphs] = plan.speed(config.grpo, model_plan, config)[0]
    assert rates["false"] < 0.5 * rates["true"]  # of a step alone an H100 took 6.7 and 36.6 ms


def test_the_cache_is_what_the_sampler_would_allocate() -> None:
    recipe, model = planner().grpo, plan.MODELS["Qwen2.5-0.5B"]
    made = plan.make_plan(recipe, model, 8)
    rollouts = made.rollouts
    assert rollouts is not None
    assert (rollouts.slots, rollouts.rows) == (80, 16)  # 16 prompts x 5 samples a rank, below 128 slots
    sizes = (rollouts.rows, rollouts.prompt_length, rollouts.slots, rollouts.answer_length)
    cache = KVCache(model, *sizes, torch.bfloat16, torch.device("meta"))
    allocated = sum(value.nbytes for value in vars(cache).values() if isinstance(value, torch.Tensor))
    said = 80 * 1024 * 12  # ids and log-probs
    assert rollout_moments(made)["decoding"]["key/value cache"] == allocated + said


def test_a_recipe_warns_before_a_run_that_cannot_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = ModelConfig("llama", 4096, 512, 4, 8, 2, 64, 2048).to_hf()
    (tmp_path / "config.json").write_text(json.dumps(raw))
    flags = {"model.path": tmp_path, "model.dtype": "float32", "data.train": "x", "run.folder": "y"}
    flags |= {"train.token_budget": 65_536}
    config = load_config(SftRecipe, [f"--{name}={value}" for name, value in flags.items()], None)
    here: Any = Runtime(0, 1, torch.device("cpu"))

    monkeypatch.setattr(planning, "device_memory", lambda device: 100.0 * GIB)
    assert not planning.warn_if_too_large(config, here)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(planning, "device_memory", lambda device: 8.0 * GIB)
    assert planning.warn_if_too_large(config, here)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert "of the 8.0 GiB there are" in lines[0]
    assert "activations" in lines[0]
    assert "--train.token_budget 32768" in lines[0]
    # at one rank nothing later would refuse this
    with pytest.raises(ValueError, match="1 ranks cannot be split into 2 equal replicas"):
        planning.warn_if_too_large(replace(config, sharding=replace(config.sharding, replicas=2)), here)
    # the way out is one
    smaller = replace(config, train=replace(config.train, token_budget=32_768))
    assert not planning.warn_if_too_large(smaller, here)


def test_a_checkpoint_that_the_host_has_no_memory_for_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ModelConfig("llama", 4096, 512, 4, 8, 2, 64, 2048)
    (tmp_path / "config.json").write_text(json.dumps(model.to_hf()))
    flags = {"model.path": tmp_path, "model.dtype": "bfloat16", "data.train": "x", "run.folder": "y"}
    config = load_config(SftRecipe, [f"--{name}={value}" for name, value in flags.items()], None)
    numbers = sum(p.numel() for p in Decoder(model).parameters())
    monkeypatch.setattr(planning, "resolve_backend", lambda device, dtype: "flash_attn")

    def said(host: float, ranks: str) -> str:
        memory = {"cuda": 100.0 * GIB, "cpu": host}
        monkeypatch.setattr(planning, "device_memory", lambda device: memory[device.type])
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert not planning.warn_if_too_large(config, Runtime(0, 1, torch.device("cuda")))
        return capsys.readouterr().out

    assert said(12.1 * numbers, "1") == ""  # masters and two moments, four bytes each
    assert "of host memory, for checkpoints" in said(11.9 * numbers, "1")
    assert said(24.1 * numbers, "2") == ""
    assert "of host memory, for checkpoints" in said(24.1 * numbers, "3")


def test_answers_that_leave_a_short_context_little_room_are_no_error_of_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ModelConfig("llama", 4096, 512, 4, 8, 2, 64, 2048, max_positions=2048)
    (tmp_path / "config.json").write_text(json.dumps(model.to_hf()))
    flags = {"model.path": tmp_path, "model.dtype": "float32", "data.train": "x", "run.folder": "y"}
    flags |= {"evaluation.files": "heldout.jsonl", "evaluation.max_new_tokens": 1600}
    config = load_config(SftRecipe, [f"--{name}={value}" for name, value in flags.items()], None)
    monkeypatch.setattr(planning, "device_memory", lambda device: 100.0 * GIB)
    assert not planning.warn_if_too_large(config, Runtime(0, 1, torch.device("cpu")))


def test_the_memory_of_this_machine_is_found() -> None:
    assert 0.1 < planning.device_memory(torch.device("cpu")) / GIB < 100_000
