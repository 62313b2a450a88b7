"""The optimizer against torch's own AdamW, the schedule against its formula, and what must never happen."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from psychecore.model.decoder import Decoder
from psychecore.train.finite import NonFiniteError
from psychecore.train.optimizer import Optimizer, OptimizerConfig, learning_rate

IDS_BS = torch.arange(1, 17).reshape(2, 8)


def test_the_rate_warms_up_then_falls_as_a_cosine() -> None:
    config = OptimizerConfig(lr=1.0, schedule="cosine", warmup_steps=2)
    rates = [learning_rate(config, step, 6) for step in range(7)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.5 * (1 + math.cos(math.pi / 4)), 0.5, 0.146447, 0.0], abs=1e-6)


def test_the_rate_stays_constant_after_the_warm_up() -> None:
    config = OptimizerConfig(lr=1.0, warmup_ratio=0.25)
    assert [learning_rate(config, step, 8) for step in range(8)] == [0.5] + [1.0] * 7
    assert [learning_rate(config, step, 9) for step in range(4)] == pytest.approx([1 / 3, 2 / 3, 1, 1])  # rounded up


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_equal_torch_s_adamw_on_fp32_masters(dtype: torch.dtype, tiny_model: Callable[..., Decoder]) -> None:
    model = tiny_model(dtype)
    config = OptimizerConfig(lr=3e-3, beta1=0.8, beta2=0.95, eps=1e-5, weight_decay=0.1, max_grad_norm=0.5)
    optimizer = Optimizer(model, config, total_steps=3)
    twins = {name: p.detach().float().clone().requires_grad_() for name, p in model.named_parameters()}
    matrices, vectors = ([t for t in twins.values() if (t.ndim >= 2) is wanted] for wanted in (True, False))
    oracle = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=3e-3,
        betas=(0.8, 0.95),
        eps=1e-5,
        foreach=False,
    )
    for _ in range(3):
        gradients = {name: torch.zeros_like(twin) for name, twin in twins.items()}
        for ids_BS in (IDS_BS[:1], IDS_BS[1:]):  # two micro-batches: gradients add up in fp32
            (model.logits(ids_BS).float().square().mean()).backward()
            for name, parameter in model.named_parameters():
                if dtype == torch.float32:
                    gradients[name] = parameter.grad.clone()
        if dtype == torch.bfloat16:
            gradients = {name: optimizer.masters[name].grad.clone() for name in twins}
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
        for name, twin in twins.items():
            twin.grad = gradients[name] * min(1.0, 0.5 / (norm + 1e-6))
        assert optimizer.step() == pytest.approx(norm, rel=1e-5)
        oracle.step()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(optimizer.masters[name].detach(), twins[name].detach(), rtol=1e-5, atol=1e-6)
            assert torch.equal(parameter.detach(), optimizer.masters[name].detach().to(dtype))


def test_micro_batch_gradients_of_a_bf16_model_add_up_in_fp32(tiny_model: Callable[..., Decoder]) -> None:
    model = tiny_model(torch.bfloat16)
    optimizer = Optimizer(model, OptimizerConfig(), total_steps=1)
    model.norm.weight.backward(torch.full_like(model.norm.weight, 256.0))
    model.norm.weight.backward(torch.full_like(model.norm.weight, 1.0))  # 257 does not exist in bf16
    assert optimizer.masters["norm.weight"].grad.tolist() == [257.0] * 24
    assert model.norm.weight.grad is None


def test_updates_too_small_for_bf16_are_not_lost(tiny_model: Callable[..., Decoder]) -> None:
    model = tiny_model(torch.bfloat16)
    optimizer = Optimizer(model, OptimizerConfig(lr=1e-5), total_steps=1000)
    for _ in range(1000):  # each step moves a weight of 1 by 1e-5, where bf16 resolves 4e-3
        model.norm.weight.backward(torch.ones_like(model.norm.weight))
        optimizer.step()
    assert model.norm.weight.float().mean().item() == pytest.approx(0.99, abs=2e-3)


def test_decay_leaves_norms_and_biases_alone(tiny_model: Callable[..., Decoder]) -> None:
    model = tiny_model(torch.float32)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = Optimizer(model, OptimizerConfig(lr=0.1, weight_decay=0.5), total_steps=1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = before[name] * (0.95 if parameter.ndim >= 2 else 1.0)
        torch.testing.assert_close(parameter.detach(), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float, tiny_model: Callable[..., Decoder]) -> None:
    model = tiny_model(torch.bfloat16)
    optimizer = Optimizer(model, OptimizerConfig(), total_steps=5)
    model.logits(IDS_BS).float().sum().backward()
    optimizer.step()
    before = {name: tensor.clone() for name, tensor in optimizer.state_tensors().items()}
    model.logits(IDS_BS).float().sum().backward()
    optimizer.masters["layers.1.down.weight"].grad[3, 3] = bad
    message = r"optimizer step 1, nothing was updated: rank 0: gradient layers.1.down.weight \(1 values\)"
    with pytest.raises(NonFiniteError, match=message):
        optimizer.step()
    after = optimizer.state_tensors()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert optimizer.steps == 1
    assert all(master.grad is None for master in optimizer.masters.values())


@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_a_loss_or_weight_that_is_not_finite_is_named(nonfinite: str, tiny_model: Callable[..., Decoder]) -> None:
    model = tiny_model(torch.float32)
    optimizer = Optimizer(model, OptimizerConfig(nonfinite=nonfinite), total_steps=5)
    if nonfinite == "stop":
        with pytest.raises(NonFiniteError, match="rank 0: loss is inf"):
            optimizer.step(float("inf"))
    with torch.no_grad():
        model.embed.weight[60, 3] = float("nan")  # a token that no batch holds: no gradient shows it
    model.logits(IDS_BS)[..., :60].sum().backward()
    model.embed.weight.grad[60] = 0
    with pytest.raises(NonFiniteError, match=r"weight embed.weight \(1 values\)"):
        optimizer.step()


def test_skipping_leaves_everything_and_gives_up_after_five_in_a_row(tiny_model: Callable[..., Decoder]) -> None:
    model = tiny_model(torch.float32)
    optimizer = Optimizer(model, OptimizerConfig(nonfinite="skip"), total_steps=50)
    before = {name: tensor.clone() for name, tensor in optimizer.state_tensors().items()}
    for _ in range(2):
        for _ in range(5):
            assert math.isnan(optimizer.step(float("nan")))
        if not optimizer.steps:
            after = optimizer.state_tensors()
            assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
            model.logits(IDS_BS).sum().backward()
            assert optimizer.step(1.0) > 0  # a good step, and counting begins anew
    with pytest.raises(NonFiniteError, match="loss is nan"):
        optimizer.step(float("nan"))
    assert optimizer.steps == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", 0.0), ("beta2", 1.0), ("eps", 0.0), ("max_grad_norm", 0.0), ("weight_decay", -1.0), ("warmup_ratio", 2.0)],
)
def test_bad_settings_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        OptimizerConfig(**{name: value})
