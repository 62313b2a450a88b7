"""SFT and GRPO steps against dense float64 formulas: one forward per sequence, log-softmax over everything."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import psychecore as pc
from psychecore.runtime import Runtime
from psychecore.text.tokenizer import Encoded
from psychecore.train.grpo import GrpoConfig, accumulate_gradient, build_micro_batches, grpo_update
from psychecore.train.losses import LossConfig
from psychecore.train.optimizer import Optimizer, OptimizerConfig
from psychecore.train.sft import SftConfig, accumulate_sft_gradient, sft_step

ALONE = Runtime(0, 1, torch.device("cpu"))
PROMPTS = [[*range(1, 21)], [5, 6, 7], [*range(1, 19), 40, 41, 42]]
PLAIN = LossConfig(kl_coefficient=0.0)


def dense_logprobs(model: pc.Decoder, prompt: list[int], completion: list[int], temperature: float = 1.0) -> Tensor:
    logits_SV = model.logits(torch.tensor([prompt + completion]))[0] / temperature
    table_SV = logits_SV[len(prompt) - 1 : -1].log_softmax(-1)
    return table_SV.gather(1, torch.tensor(completion)[:, None])[:, 0]


@pytest.fixture
def groups(tiny_model: Callable[..., pc.Decoder], letter_tokenizer: Any) -> list[pc.Group]:
    sampler = pc.Sampler(tiny_model(), letter_tokenizer)
    groups = sampler.generate(PROMPTS, pc.SamplingParams(max_new_tokens=9, seed=1), samples_per_prompt=4)
    assert {r.finish_reason for g in groups for r in g.rollouts} == {"stop", "length"}
    return groups


@pytest.fixture
def advantages_PG() -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(4))


def written_out_loss(
    model: pc.Decoder,
    reference: pc.Decoder | None,
    groups: list[pc.Group],
    advantages_PG: Tensor,
    loss: LossConfig,
    old: list[list[Tensor]] | None = None,
    temperature: float = 1.0,
) -> Tensor:
    terms = []
    for p, group in enumerate(groups):
        for g, rollout in enumerate(group.rollouts):
            if loss.mask_overlong and rollout.finish_reason == "length":
                continue
            mine = dense_logprobs(model, group.prompt_ids, rollout.token_ids, temperature)
            before = mine.detach() if old is None else old[p][g]
            log_ratio = mine - before
            if loss.ratio == "sequence":
                log_ratio = log_ratio.mean().expand_as(mine)
            ratio, advantage = log_ratio.exp(), advantages_PG[p, g].double()
            clipped = ratio.clamp(1 - loss.clip_low, 1 + loss.clip_high)
            term = -torch.minimum(ratio * advantage, clipped * advantage)
            if loss.importance_cap is not None:
                gap = before - torch.tensor(rollout.logprobs, dtype=torch.float64)
                term = term * gap.exp().clamp(max=loss.importance_cap)
            if reference is not None:
                with torch.no_grad():
                    d = mine.detach() - dense_logprobs(reference, group.prompt_ids, rollout.token_ids, temperature)
                d = d - mine.detach() + mine
                term = term + loss.kl_coefficient * {"k1": d, "k2": d**2 / 2, "k3": (-d).exp() - 1 + d}[loss.kl]
            terms.append(term)
    if loss.normalisation == "token":
        return torch.cat(terms).sum() / sum(len(term) for term in terms)
    if loss.normalisation == "sequence":
        return torch.stack([term.mean() for term in terms]).mean()
    return torch.cat(terms).sum() / (loss.constant_length * len(terms))


def rows_of_metrics(
    model: pc.Decoder,
    reference: pc.Decoder,
    group: pc.Group,
    advantages_G: Tensor,
    loss: LossConfig,
    old: list[Tensor],
    temperature: float,
) -> Iterator[dict[str, float]]:
    """What each token of a group adds to the metrics of an update, one at a time."""
    for rollout, advantage, before in zip(group.rollouts, advantages_G.tolist(), old, strict=True):
        start = len(group.prompt_ids) - 1
        with torch.no_grad():
            logits_SV = model.logits(torch.tensor([group.prompt_ids + rollout.token_ids]))[0, start:-1] / temperature
            theirs = dense_logprobs(reference, group.prompt_ids, rollout.token_ids, temperature).tolist()
        table = logits_SV.log_softmax(-1)
        mine = [float(table[i, token]) for i, token in enumerate(rollout.token_ids)]
        mean = sum(m - float(b) for m, b in zip(mine, before, strict=True)) / len(mine)
        for i, said in enumerate(rollout.logprobs):
            ratio = math.exp(mean if loss.ratio == "sequence" else mine[i] - float(before[i]))
            clipped = min(max(ratio, 1 - loss.clip_low), 1 + loss.clip_high)
            d, gap = mine[i] - theirs[i], float(before[i]) - said
            yield {
                "ratio": ratio,
                "clip_fraction": clipped * advantage < ratio * advantage,
                "kl": math.exp(-d) - 1 + d,
                "entropy": -float((table[i].exp() * table[i]).sum()),
                "mismatch": abs(gap),
                "mismatch_kl": math.exp(gap) - 1 - gap,
            }


def gradients(model: pc.Decoder) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_equal_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor], atol: float = 1e-8) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-6, atol=atol, msg=name)


LOSSES = {
    "plain": PLAIN,
    "sequence mean": replace(PLAIN, normalisation="sequence"),
    "Dr. GRPO": replace(PLAIN, normalisation="constant", constant_length=9),
    "k1": LossConfig(kl_coefficient=0.3, kl="k1"),
    "k2": LossConfig(kl_coefficient=0.3, kl="k2"),
    "k3": LossConfig(kl_coefficient=0.3, kl="k3"),
    "overlong masked": replace(PLAIN, mask_overlong=True),
    "importance": replace(PLAIN, importance_cap=1.0),
    "GSPO": replace(PLAIN, ratio="sequence", clip_low=0.1, clip_high=0.3),
}


@pytest.mark.parametrize("budget", [1, 60, 10_000])
@pytest.mark.parametrize("case", LOSSES)
def test_a_group_with_its_prompt_stored_once_has_the_gradient_of_separate_sequences(
    case: str, budget: int, tiny_model: Callable[..., pc.Decoder], groups: list[pc.Group], advantages_PG: Tensor
) -> None:
    model, loss = tiny_model(seed=1), LOSSES[case]
    reference = tiny_model(seed=2) if loss.kl_coefficient else None
    config = GrpoConfig(3, 4, mini_batches=1, token_budget=budget, loss=loss)
    total = 0.0
    for micro in build_micro_batches(groups, advantages_PG, config, ALONE):
        total += accumulate_gradient(model, micro, loss, ALONE, reference=reference)["loss"]
    ours = gradients(model)
    expected = written_out_loss(model, reference, groups, advantages_PG, loss)
    expected.backward()
    assert total == pytest.approx(float(expected.detach()), rel=1e-6, abs=1e-7)
    assert_equal_gradients(ours, gradients(model))


@pytest.mark.parametrize(("old_logprobs", "temperature"), [("recompute", 1.0), ("recompute", 0.7), ("sampler", 1.0)])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_several_mini_batches_clip_against_the_policy_before_the_first(
    ratio: str,
    old_logprobs: str,
    temperature: float,
    tiny_model: Callable[..., pc.Decoder],
    groups: list[pc.Group],
    advantages_PG: Tensor,
) -> None:
    """And the metrics are what their names say, over all of it."""
    loss = LossConfig(kl_coefficient=0.1, ratio=ratio, clip_low=0.02, clip_high=0.03)  # type: ignore[arg-type]
    config = GrpoConfig(3, 4, 3, old_logprobs=old_logprobs, token_budget=60, loss=loss)  # type: ignore[arg-type]
    reference = tiny_model(seed=2)
    ours, theirs = tiny_model(), tiny_model()  # the model that sampled, so that both kinds of old log-probs agree
    rates = OptimizerConfig(lr=1e-2)
    metrics = grpo_update(
        ours,
        Optimizer(ours, rates, 3),
        groups,
        advantages_PG,
        config,
        ALONE,
        temperature=temperature,
        reference=reference,
    )
    with torch.no_grad():
        old = [[dense_logprobs(theirs, g.prompt_ids, r.token_ids, temperature) for r in g.rollouts] for g in groups]
    optimizer, losses, norms, rows = Optimizer(theirs, rates, 3), [], [], []
    for p in range(3):
        one, signs = groups[p : p + 1], advantages_PG[p : p + 1]
        rows += list(rows_of_metrics(theirs, reference, one[0], signs[0], loss, old[p], temperature))
        value = written_out_loss(theirs, reference, one, signs, loss, [old[p]], temperature)
        value.backward()
        losses.append(float(value.detach()))
        norms.append(optimizer.step())
    assert metrics["loss"] == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert metrics["gradient_norm"] == pytest.approx(sum(norms) / 3, rel=1e-5)
    expected = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    if old_logprobs == "sampler":
        expected = {name: value for name, value in expected.items() if "mismatch" not in name}
    for name, figure in expected.items():
        assert metrics[name] == pytest.approx(figure, rel=1e-4, abs=1e-6), name
    assert 0 < metrics["clip_fraction"] < 1
    sampled = sum(len(r.token_ids) for g in groups for r in g.rollouts)
    assert len(rows) == sampled
    # a prompt stands once in each piece of its group
    assert sampled + sum(map(len, PROMPTS)) <= metrics["tokens"] < sampled + 4 * sum(map(len, PROMPTS))
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(dict(ours.named_parameters())[name], parameter, rtol=1e-4, atol=1e-6)


def test_temperature_scales_the_logits_of_policy_and_reference(
    tiny_model: Callable[..., pc.Decoder], groups: list[pc.Group], advantages_PG: Tensor
) -> None:
    model, reference, loss = tiny_model(seed=1), tiny_model(seed=2), LossConfig(kl_coefficient=0.2)
    (micro,) = build_micro_batches(groups, advantages_PG, GrpoConfig(3, 4, 1, loss=loss), ALONE)
    accumulate_gradient(model, micro, loss, ALONE, temperature=0.7, reference=reference)
    ours = gradients(model)
    written_out_loss(model, reference, groups, advantages_PG, loss, temperature=0.7).backward()
    assert_equal_gradients(ours, gradients(model))


def test_groups_that_say_nothing_leave_the_policy_as_it_is(
    tiny_model: Callable[..., pc.Decoder], groups: list[pc.Group]
) -> None:
    model = tiny_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    advantages_PG = pc.group_advantages(torch.full((3, 4), 0.4))
    metrics = grpo_update(
        model,
        Optimizer(model, OptimizerConfig(lr=1.0), 1),
        groups,
        advantages_PG,
        GrpoConfig(3, 4, 1, loss=PLAIN),
        ALONE,
    )
    assert metrics["gradient_norm"] == 0
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_batch_of_truncated_samples_that_are_masked_trains_nothing(
    tiny_model: Callable[..., pc.Decoder], letter_tokenizer: Any
) -> None:
    model = tiny_model()
    params = pc.SamplingParams(max_new_tokens=3, ignore_stop=True)
    groups = pc.Sampler(model, letter_tokenizer).generate(PROMPTS, params, samples_per_prompt=4)
    config = GrpoConfig(3, 4, 1, loss=replace(PLAIN, mask_overlong=True))
    metrics = grpo_update(model, Optimizer(model, OptimizerConfig(), 1), groups, torch.ones(3, 4), config, ALONE)
    assert metrics["loss"] == metrics["gradient_norm"] == 0


def test_the_gap_between_sampler_and_trainer_is_a_metric(
    tiny_model: Callable[..., pc.Decoder], groups: list[pc.Group], advantages_PG: Tensor
) -> None:
    def mismatch(seed: int) -> float:
        model, config = tiny_model(seed=seed), GrpoConfig(3, 4, 1, loss=PLAIN)
        metrics = grpo_update(model, Optimizer(model, OptimizerConfig(), 1), groups, advantages_PG, config, ALONE)
        return metrics["mismatch"]

    assert mismatch(seed=0) < 1e-6  # the model that sampled
    assert mismatch(seed=1) > 0.1


def conversations() -> list[Encoded]:
    rows = [[*range(1, 20), 30, 31, 0], [*range(1, 20), 33, 0], [7, 8, 9, 0], [*range(1, 20), 30, 44, 45, 46, 0]]
    masks = [[False] * 18 + [True] * (len(ids) - 18) if len(ids) > 18 else [False, True, False, True] for ids in rows]
    return [Encoded(ids, mask, "") for ids, mask in zip(rows, masks, strict=True)]


@pytest.mark.parametrize("budget", [1, 30, 10_000])
@pytest.mark.parametrize("normalisation", ["token", "sequence"])
def test_packed_sft_has_the_loss_and_gradient_of_unpacked(
    normalisation: str, budget: int, tiny_model: Callable[..., pc.Decoder]
) -> None:
    model = tiny_model(seed=1)
    config = SftConfig(batch_size=4, token_budget=budget, normalisation=normalisation)  # type: ignore[arg-type]
    sums = accumulate_sft_gradient(model, conversations(), config, ALONE)
    ours = gradients(model)
    terms, entropy = [], 0.0
    for row in conversations():
        table_SV = model.logits(torch.tensor([row.ids]))[0].log_softmax(-1)
        labelled = [i - 1 for i, trained in enumerate(row.loss_mask) if i and trained]
        entropy -= float((table_SV[labelled].exp() * table_SV[labelled]).sum().detach())
        terms.append(-torch.stack([table_SV[i - 1, t] for i, t in enumerate(row.ids) if i and row.loss_mask[i]]))
    loss = torch.cat(terms).mean() if normalisation == "token" else torch.stack([t.mean() for t in terms]).mean()
    loss.backward()
    assert sums["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)
    assert sums["labels"] == sum(len(term) for term in terms)
    assert_equal_gradients(ours, gradients(model))
    step = sft_step(model, Optimizer(model, OptimizerConfig(lr=1e-9), 1), conversations(), config, ALONE)
    assert step["entropy"] == pytest.approx(entropy / sums["labels"], rel=1e-5)
    beginnings = {tuple(row.ids[:end]) for row in conversations() for end in range(1, len(row.ids) + 1)}
    alone = sum(len(row.ids) for row in conversations())
    assert len(beginnings) <= step["tokens"] <= alone
    assert budget < 10_000 or step["tokens"] < alone  # beginnings that rows share stand once in a micro-batch


def test_sft_steps_learn_a_row_by_heart(tiny_model: Callable[..., pc.Decoder]) -> None:
    model = tiny_model(torch.float32)
    optimizer = Optimizer(model, OptimizerConfig(lr=1e-2), 60)
    losses = [sft_step(model, optimizer, conversations(), SftConfig(4), ALONE)["loss"] for _ in range(60)]
    assert losses[-1] < 0.3 < losses[0]  # rows that begin alike go on differently, so the loss cannot reach 0
