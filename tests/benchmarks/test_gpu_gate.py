"""The gate says plainly that there is no GPU, rehearses on a CPU, and a part that fails leaves the others alone."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gate_parts
import gpu_gate
import pytest
import torch
from kernel_cases import CASES, KernelCase
from torch import Tensor

import psychecore as pc
from psychecore.kernels import rms_norm
from psychecore.kernels.decode_attention import decode_attention_reference
from psychecore.kernels.flash_attention import flash_attention_reference
from psychecore.model import attention as facade

GATE = Path(gpu_gate.__file__).with_suffix(".sh")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: run benchmarks/gpu_gate.sh itself")
def test_without_a_gpu_it_says_so_and_exits_with_2() -> None:
    done = subprocess.run([GATE], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no CUDA device here, so nothing was checked" in done.stdout


def test_a_rehearsal_goes_through_the_script_and_leaves_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gpu_gate.TIMEOUTS, "attention", 300)  # a busy machine may take a minute to import torch
    assert gpu_gate.main(["--cpu", "--parts", "attention", "--out", str(tmp_path / "gate.json")]) == 0
    result = json.loads((tmp_path / "gate.json").read_text())
    assert result["rehearsal"]
    assert result["passed"]
    gaps = result["parts"]["attention"]["found"]["segments torch"]
    assert len(gaps) == 4
    assert all(0 < gap < 1e-5 for gap in gaps)  # of fp32, from float64


@pytest.mark.parametrize(
    "part",
    [
        *sorted(gpu_gate.TIMEOUTS.keys() - {"attention", "ranks"}),
        pytest.param("ranks", marks=pytest.mark.slow),  # three processes that import torch; see test_gate_ranks.py
    ],
)
def test_every_part_can_be_rehearsed(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_gate.run_part(part, rehearsal=True) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    if part == "sampler":
        assert all(row["replayed"] > row["steps"] / 2 for row in found.values())


def test_a_kernel_that_is_two_percent_off_does_not_pass() -> None:
    case, device = CASES[0], torch.device("cpu")
    (sizes,) = gate_parts.odd_sizes(rehearsal=True)
    right = gate_parts.errors(case, case.reference(), sizes, device)
    wrong = gate_parts.errors(case, lambda *inputs: 1.02 * case.reference()(*inputs), sizes, device)
    assert max(right.values()) < 1 < max(wrong.values())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_kernel_that_gives_nan_does_not_pass(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    right = rms_norm.rms_norm_reference
    monkeypatch.setattr(
        rms_norm,
        "rms_norm_reference",
        lambda x, *rest: right(x, *rest) * (value if x.dtype == torch.bfloat16 else 1),  # float64 is the reference
    )
    monkeypatch.setattr(gate_parts, "CASES", tuple(c for c in CASES if c.name == "rms_norm" or c.decoding))
    with pytest.raises(gate_parts.GateError, match=r"'rms_norm D=72': \{'0': (nan|inf)"):
        gate_parts.kernels(torch.device("cpu"), True)


def test_decoding_kernels_meet_ragged_lengths_and_tokens_without_a_slot() -> None:
    (sizes,) = gate_parts.odd_sizes(rehearsal=True)
    ragged, scattered = (
        case.inputs(sizes, torch.float32, torch.device("cpu")) for case in gate_parts.uneven_cases().values()
    )
    assert ragged[3].tolist() == [1, 19, 37]
    assert sorted(scattered[4].tolist()) == [-1] * 5 + [slot for slot in range(15) if slot % 3 != 1]


def wrong_flash_attn(wrong: float) -> SimpleNamespace:
    """A flash-attn whose results are torch's times a number, over segments and over a cache."""

    def varlen(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, *rest: int, causal: bool) -> Tensor:
        return wrong * flash_attention_reference(q, k, v, cu_q, cu_k)

    def kvcache(q: Tensor, k: Tensor, v: Tensor, *, cache_seqlens: Tensor, **_: object) -> tuple[Tensor, Tensor]:
        out, lse = decode_attention_reference(q, k.transpose(1, 2), v.transpose(1, 2), cache_seqlens)
        return wrong * out, lse.transpose(1, 2)

    return SimpleNamespace(flash_attn_varlen_func=varlen, flash_attn_with_kvcache=kvcache)


@pytest.mark.parametrize("wrong", [1, 1.05, torch.nan])
def test_every_back_end_is_held_against_torch_over_segments_and_a_cache(
    wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facade, "flash_attn", lambda: wrong_flash_attn(wrong))
    monkeypatch.setattr(gate_parts, "back_ends", lambda device, cached: ["torch", "flash"])
    if wrong == 1:
        found = gate_parts.attention(torch.device("cpu"), True)
        assert max(*found["segments flash"], *found["cache flash"]) < 1e-5
        assert len(found["segments flash"]) == 4
    else:
        with pytest.raises(gate_parts.GateError, match=r"segments flash.*cache flash"):
            gate_parts.attention(torch.device("cpu"), True)


def test_on_a_gpu_all_installed_back_ends_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, there in (("flash_attn", None), ("varlen_attn", print), ("has_triton", True)):
        monkeypatch.setattr(gate_parts, name, lambda there=there: there)
    gpu = torch.device("cuda")
    assert gate_parts.back_ends(gpu, cached=False) == ["varlen", "triton"]
    assert gate_parts.back_ends(gpu, cached=True) == ["triton"]
    monkeypatch.setattr(gate_parts, "flash_attn", lambda: print)
    assert gate_parts.back_ends(gpu, cached=True) == ["flash", "triton"]


def spoil(monkeypatch: pytest.MonkeyPatch, dtype: str, change: Callable[[pc.Rollout], None]) -> None:
    """Change what the sampler with graphs gives in this dtype."""
    right = pc.Sampler.generate

    def generate(self: pc.Sampler, *arguments: Any, **options: Any) -> list[pc.Group]:
        groups = right(self, *arguments, **options)
        if self._capture is gate_parts.Again and self.model.embed.weight.dtype == getattr(torch, dtype):
            for rollout in (rollout for group in groups for rollout in group.rollouts):
                change(rollout)
        return groups

    monkeypatch.setattr(pc.Sampler, "generate", generate)


@pytest.mark.parametrize("shift", [torch.nan, 1])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_graphs_whose_log_probs_are_others_do_not_pass(
    dtype: str, shift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(rollout: pc.Rollout) -> None:
        rollout.logprobs = [logprob + shift for logprob in rollout.logprobs]

    spoil(monkeypatch, dtype, change)
    with pytest.raises(gate_parts.GateError, match=f"none, in {dtype}" if shift != 1 else "steps disagree"):
        gate_parts.sampler(torch.device("cpu"), True)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_graphs_that_say_something_else_do_not_pass(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(rollout: pc.Rollout) -> None:
        rollout.token_ids[1:] = [0] * len(rollout.token_ids[1:])

    spoil(monkeypatch, dtype, change)
    with pytest.raises(gate_parts.GateError, match="steps disagree"):
        gate_parts.sampler(torch.device("cpu"), True)


def test_log_probs_are_compared_as_far_as_the_tokens_agree() -> None:
    def group(*rollouts: tuple[list[int], list[float]]) -> list[pc.Group]:
        return [pc.Group([1], [pc.Rollout(*rollout, "", "length") for rollout in rollouts])]

    eager = group(([4, 5, 6], [-1.0, -2.0, -3.0]), ([4, 5], [-1.0, -1.0]))
    replayed = group(([4, 7, 6], [-1.5, -8.0, -8.0]), ([4, 5], [-1.0, -1.25]))
    assert gate_parts.differences(eager, replayed) == (1, [0.5, 0.0, 0.25])


def test_an_fsdp_step_that_gives_nan_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    right = gate_parts.sft_step

    def step(model: pc.Decoder, *rest: Any) -> None:
        right(model, *rest)
        if type(model.embed.weight.data) is not Tensor:  # a shard
            model.embed.weight.data.to_local()[0] = torch.nan  # a token that no prompt has: the samples are right

    monkeypatch.setattr(gate_parts, "sft_step", step)
    with pytest.raises(gate_parts.GateError, match="'largest_gap': nan"):
        gate_parts.fsdp(torch.device("cpu"), True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_two_inputs_of_a_kernel_are_the_same_numbers(case: KernelCase) -> None:
    (sizes,) = gate_parts.odd_sizes(rehearsal=True)
    inputs = [x for x in case.inputs(sizes, torch.float32, torch.device("cpu")) if isinstance(x, Tensor)]
    for a, b in itertools.combinations([x for x in inputs if x.is_floating_point()], 2):
        assert a.shape != b.shape or not torch.equal(a, b)


def test_a_part_whose_last_words_are_not_json_fails_and_the_next_one_still_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "import sys; print('{}'); 'kernels' in sys.argv and print('NCCL: destroy_process_group() was not called')"
    (tmp_path / "gpu_gate.py").write_text(script)
    monkeypatch.setattr(gpu_gate, "HERE", tmp_path)
    assert gpu_gate.main(["--cpu", "--out", str(tmp_path / "gate.json"), "--parts", "kernels", "sampler"]) == 1
    parts = json.loads((tmp_path / "gate.json").read_text())["parts"]
    assert not parts["kernels"]["passed"]
    assert "NCCL: destroy_process_group()" in parts["kernels"]["error"]
    assert parts["sampler"]["passed"]


def test_a_part_that_fails_or_hangs_is_told_and_the_next_one_still_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "gpu_gate.py"
    script.write_text(
        "import sys, time\n"
        "part = sys.argv[sys.argv.index('--part') + 1]\n"
        "if part == 'kernels': raise ValueError('rms_norm is off by 3')\n"
        "if part == 'attention': time.sleep(60)\n"
        "print('a line before'); print('{\"same\": 32}')\n"
    )
    monkeypatch.setattr(gpu_gate, "HERE", tmp_path)
    monkeypatch.setitem(gpu_gate.TIMEOUTS, "attention", 1)
    code = gpu_gate.main(["--cpu", "--out", str(tmp_path / "gate.json"), "--parts", "kernels", "attention", "sampler"])
    parts = json.loads((tmp_path / "gate.json").read_text())["parts"]
    assert code == 1
    assert "rms_norm is off by 3" in parts["kernels"]["error"]
    assert parts["attention"] == {"passed": False, "error": "not done after 1 s"}
    assert parts["sampler"]["found"] == {"same": 32}
    assert "kernels     FAILED" in capsys.readouterr().out


def test_all_time_outs_together_are_within_ten_minutes() -> None:
    assert sum(gpu_gate.TIMEOUTS.values()) <= 600
