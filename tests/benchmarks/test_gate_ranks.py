"""The gate's check of two ranks: what it takes for equal, and what it does not. test_gpu_gate.py rehearses it whole."""

from __future__ import annotations

import json
from pathlib import Path

import gate_ranks
import pytest
import torch
from gate_parts import GateError
from safetensors.torch import save_file
from torch import Tensor

UPDATE = torch.tensor([0.0, 0.5, -1.0])


def two_shards(update: Tensor, logprob: float, tokens: list[int], dtype: str) -> dict[str, object]:
    """What two ranks came to in this dtype; in the other they agree with one."""
    return {"update": update, "logprob": logprob, "tokens": tokens, "dtype": dtype}


def check(monkeypatch: pytest.MonkeyPatch, wrong: dict[str, object]) -> dict[str, object]:
    """Run the check on files that say this."""

    def start(world_size: int, folder: Path, *_: object) -> None:
        for dtype in gate_ranks.LIMITS:
            off = world_size > 1 and dtype == wrong["dtype"]
            update = wrong["update"] if off else UPDATE
            assert isinstance(update, Tensor)
            rows = [wrong["tokens"] if off else [1, 2, 3], [-1.0, -1.0, wrong["logprob"] if off else -1.0]]
            for number, shard in enumerate(update.tensor_split(world_size)):
                tensors = {f"{kind}/weight": shard.clone() for kind in ("sft", "grpo")}
                save_file(tensors, folder / f"{dtype}-{world_size}-{number}.safetensors")
                prompts = len(range(number, gate_ranks.PROMPTS, world_size))
                text = json.dumps([[rows] * gate_ranks.SAMPLES] * prompts)
                (folder / f"{dtype}-{world_size}-{number}.json").write_text(text)

    monkeypatch.setattr(gate_ranks, "start", start)
    return gate_ranks.ranks(torch.device("cpu"), rehearsal=True)


def test_equal_ranks_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    found = check(monkeypatch, two_shards(UPDATE, -1.0, [1, 2, 3], "float32"))
    assert found["float32"] == found["bfloat16"]
    assert found["float32"] == {
        "gaps": {"sft": 0, "grpo": 0},
        "same": 20,
        "of": 20,
        "agreed": 1,
        "largest_logprob_gap": 0,
        "mean_logprob_gap": 0,
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "update", [UPDATE / 2, UPDATE * torch.nan, UPDATE.flip(0)], ids=["of half the ranks", "NaN", "shards exchanged"]
)
def test_another_update_does_not_pass(update: Tensor, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GateError, match="two ranks differ from one"):
        check(monkeypatch, two_shards(update, -1.0, [1, 2, 3], dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_tokens_from_the_first_on_do_not_pass(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GateError, match="two ranks differ from one"):
        check(monkeypatch, two_shards(UPDATE, -1.0, [4, 2, 3], dtype))


@pytest.mark.parametrize(
    ("logprob", "dtype"), [(-1.002, "float32"), (-1.2, "bfloat16"), (torch.nan, "float32"), (torch.nan, "bfloat16")]
)
def test_another_log_prob_at_the_end_does_not_pass(logprob: float, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GateError, match="log-probs of two ranks differ"):
        check(monkeypatch, two_shards(UPDATE, logprob, [1, 2, 3], dtype))


def test_a_rank_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"2 ranks ended with \[(1, None|None, 1|1, 1)\]"):
        gate_ranks.start(2, tmp_path, "no device", True)
