"""Two and four gloo processes against one, and against dense float64 formulas: loss, gradients, weights, rollouts.

Each number of ranks is started once and takes the step of every case (rank_cases.py); the tests read what it wrote.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forked
import pytest
import rank_cases
import torch
from rank_cases import SLEEP, Case, Result, cases
from safetensors.torch import load_file
from test_steps import dense_logprobs, written_out_loss
from torch import Tensor

import psychecore as pc
from psychecore.runtime import Runtime
from psychecore.train.grpo import GrpoConfig
from psychecore.train.sft import SftConfig

CASES, WORLD_SIZES = cases(), [2, 4]
ALONE = Runtime(0, 1, torch.device("cpu"))
EXACT = [name for name, case in CASES.items() if case.dtype == torch.float64 and not case.late]
ONE_STEP = [name for name in EXACT if isinstance(CASES[name].train, SftConfig) or CASES[name].train.mini_batches == 1]


@dataclass
class Ranks:
    """What `world_size` ranks wrote: a row a rank, and their shards of the tensors of each case."""

    folder: Path
    world_size: int
    rows: list[dict[str, Any]]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Whole tensors, named STEP/PARAMETER and weight/PARAMETER; what several replicas hold is the same."""
        found: dict[str, dict[int, Tensor]] = {}
        for rank in range(self.world_size):
            number = list(CASES).index(name)
            for key, rows in load_file(self.folder / f"{self.world_size}-{rank}-{number}.safetensors").items():
                step, first, parameter = key.split("/")
                if len(rows):
                    place = found.setdefault(f"{step}/{parameter}", {})
                    assert torch.equal(place.setdefault(int(first), rows), rows), f"replicas differ in {key}"
        return {key: torch.cat([place[first] for first in sorted(place)]) for key, place in found.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    rank_cases.prepare(folder)
    return folder


@pytest.fixture(scope="module")
def finished(folder: Path) -> None:
    """All ranks of each number have left their files."""
    worker = Path(rank_cases.__file__).with_name("rank_worker.py")
    command = [sys.executable, str(worker), str(folder), *map(str, WORLD_SIZES)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(forked.__file__).parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module", params=WORLD_SIZES, ids=[f"{size} ranks" for size in WORLD_SIZES])
def ranks(request: pytest.FixtureRequest, folder: Path, finished: None) -> Ranks:
    files = [folder / f"{request.param}-rank-{rank}.json" for rank in range(request.param)]
    return Ranks(folder, request.param, [json.loads(file.read_text()) for file in files])


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Result]:
    return {name: rank_cases.run(case, folder, ALONE) for name, case in CASES.items()}


def assert_close(ours: Tensor, theirs: Tensor, dtype: torch.dtype, what: str) -> None:
    """Equal up to the rounding of sums in another order; in bf16 every product and every part of a sum is rounded."""
    if dtype == torch.bfloat16:
        # a tensor's gradient is rounded (by 2^-9) on its way through some 20 operations and in each micro-batch
        error, size = float((ours.double() - theirs.double()).norm()), float(theirs.double().norm())
        assert error <= 20**0.5 * 2**-8 * size, f"{what}: off by {error:.2g} of {size:.2g}"
    else:
        rtol, atol = (1e-8, 1e-11) if dtype == torch.float64 else (1e-4, 2e-6)
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol, msg=lambda text: f"{what}: {text}")


@pytest.mark.parametrize("name", CASES)
def test_ranks_take_the_step_of_one(name: str, ranks: Ranks, alone: dict[str, Result]) -> None:
    expected, found, dtype = alone[name], ranks.tensors(name), CASES[name].dtype
    steps = len(expected.gradients)
    assert len(found) == (steps + 1) * len(expected.weights)
    for step, gradients in enumerate(expected.gradients):
        for key, gradient in gradients.items():
            assert_close(found[f"{step}/{key}"], gradient, dtype, f"gradient {step} of {key}")
    for key, weight in expected.weights.items():
        assert_close(found[f"weight/{key}"], weight, dtype, f"weight {key}")
    for row in ranks.rows:
        metrics = row[name]["metrics"]
        assert metrics.keys() == expected.metrics.keys()
        for key in metrics.keys() - {"tokens"}:  # a prompt stands once for each rank that has samples of it
            rel = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 0.02}[dtype]  # some sums are fp32
            assert metrics[key] == pytest.approx(expected.metrics[key], rel=rel, abs=rel / 100), key


@pytest.mark.parametrize("name", ONE_STEP)
def test_ranks_have_the_gradient_of_the_written_out_loss(name: str, ranks: Ranks, folder: Path) -> None:
    case = CASES[name]
    model = pc.load_model(folder / "policy", torch.float64)
    loss = oracle(case, model, folder)
    gradients = [torch.zeros_like(p) for p in model.parameters()]
    if loss is not None:
        gradients = list(torch.autograd.grad(loss, list(model.parameters())))
    assert ranks.rows[0][name]["metrics"]["loss"] == pytest.approx(0.0 if loss is None else loss.item(), rel=1e-5)
    found = ranks.tensors(name)
    for (key, _), gradient in zip(model.named_parameters(), gradients, strict=True):
        # the loss weights and advantages are fp32
        torch.testing.assert_close(found[f"0/{key}"], gradient, rtol=1e-5, atol=1e-7, msg=lambda t, k=key: f"{k}: {t}")


def oracle(case: Case, model: pc.Decoder, folder: Path) -> Tensor | None:
    """The loss of all items by dense float64 formulas, one forward a sequence; None where nothing is left to train."""
    if isinstance(case.train, GrpoConfig):
        groups = rank_cases.stored_groups(case, folder)
        if case.train.loss.mask_overlong and all(r.finish_reason == "length" for g in groups for r in g.rollouts):
            return None
        reference = None
        if case.train.loss.kl_coefficient:
            reference = pc.load_model(folder / "reference", torch.float64).requires_grad_(False)
        return written_out_loss(model, reference, groups, rank_cases.advantages(groups, case.train), case.train.loss)
    terms = []
    for row in rank_cases.conversations(case.items):
        first = row.loss_mask.index(True)
        terms.append(-dense_logprobs(model, row.ids[:first], row.ids[first:]))
    if case.train.normalisation == "token":
        return torch.cat(terms).mean()
    return torch.stack([term.mean() for term in terms]).mean()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.uneven])
def test_every_rank_takes_part_in_the_same_collectives(name: str, ranks: Ranks) -> None:
    first, *others = (row[name]["collectives"] for row in ranks.rows)
    assert all(other == first for other in others)
    assert all(any(kind in call for call in first) for kind in ("allreduce_", "allgather", "reduce_scatter"))


def test_ranks_that_come_late_do_the_same_job(ranks: Ranks) -> None:
    for row in ranks.rows:  # the results themselves are compared with one rank's above
        late = row["grpo late ranks"]
        assert late["seconds"] > 2 * SLEEP  # also the ranks that slept for less had to wait
        before, after = late["before_and_after_rollouts"]
        assert before == after > 0  # gathering came before; sampling itself waits for nobody


def test_rollouts_do_not_depend_on_the_number_of_ranks(ranks: Ranks, folder: Path) -> None:
    policy = pc.load_model(folder / "policy", torch.float64)
    expected = rank_cases.sample(policy, [*range(len(rank_cases.PROMPTS))])
    found = {int(i): group for row in ranks.rows for i, group in row["rollouts"].items()}
    assert sorted(found) == [*range(len(expected))]
    for i, group in enumerate(expected):
        for ours, theirs in zip(found[i]["rollouts"], group.rollouts, strict=True):
            assert ours["token_ids"] == theirs.token_ids
            assert (ours["text"], ours["finish_reason"]) == (theirs.text, theirs.finish_reason)
            assert ours["logprobs"] == pytest.approx(theirs.logprobs, rel=1e-12)


def test_the_cases_reach_what_they_name(alone: dict[str, Result], folder: Path) -> None:
    clipped = {name for name, result in alone.items() if 0 < result.metrics.get("clip_fraction", 0) < 1}
    assert {name for name in CASES if "two" in name} <= clipped
    for name, result in alone.items():
        if " capped" in name:
            assert 0.5 < result.metrics["importance"] < 0.95
    for name in ("sft clipped gradient", "grpo clipped gradient"):
        assert alone[name].metrics["gradient_norm"] > CASES[name].max_grad_norm
    assert alone["grpo all truncated"].metrics["gradient_norm"] == 0 < alone["grpo 1 prompts"].metrics["gradient_norm"]
    reasons = {r.finish_reason for g in rank_cases.stored_groups(Case(rank_cases.UPDATE), folder) for r in g.rollouts}
    assert reasons == {"stop", "length"}
