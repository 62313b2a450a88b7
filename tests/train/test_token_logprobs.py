"""token_logprobs against the dense float64 formula."""

import pytest
import torch

import psychecore.train.token_logprobs as module
from psychecore.model import products
from psychecore.train.token_logprobs import token_logprobs


def oracle(hidden, head, labels, temperature):
    table = torch.log_softmax(hidden @ head.T / temperature, -1)
    return table.gather(1, labels[:, None])[:, 0], -(table.exp() * table).sum(1)


@pytest.mark.parametrize(("rows", "columns"), [(5, 7), (64, 13), (23, 1000), (2048, 16384)])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_values_and_gradients_equal_the_float64_formula(monkeypatch, rows, columns, temperature):
    monkeypatch.setattr(module, "ROWS_PER_CHUNK", rows)
    monkeypatch.setattr(module, "VOCABULARY_PER_CHUNK", columns)
    generator = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(n, 8, generator=generator, dtype=torch.float64) for n in (23, 101))
    labels = torch.randint(101, (23,), generator=generator)
    up, down = (torch.randn(23, generator=generator, dtype=torch.float64) for _ in range(2))
    inputs = [hidden.requires_grad_(), head.requires_grad_()]
    for result, expected in zip(
        token_logprobs(*inputs, labels, temperature), oracle(*inputs, labels, temperature), strict=True
    ):
        assert (result - expected).abs().max() < 1e-12
    for part in (lambda p, h: p * up + h * down, lambda p, h: p * up, lambda p, h: h * down):
        losses = [
            part(*results).sum()
            for results in (token_logprobs(*inputs, labels, temperature), oracle(*inputs, labels, temperature))
        ]
        for ours, theirs in zip(*(torch.autograd.grad(loss, inputs) for loss in losses), strict=True):
            assert (ours - theirs).abs().max() < 1e-12


def test_gradients_pass_gradcheck():
    hidden = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    head = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h, w: token_logprobs(h, w, torch.tensor([0, 5, 2]), 1.3), (hidden, head))


def test_large_logits_stay_finite_and_right():
    hidden = torch.tensor([[300.0], [-300.0], [0.0]], requires_grad=True)
    head = torch.linspace(-1, 1, 33)[:, None].requires_grad_()
    labels = torch.tensor([32, 0, 5])
    logprobs, entropy = token_logprobs(hidden, head, labels)
    expected = oracle(hidden.double(), head.double(), labels, 1.0)
    assert torch.allclose(logprobs.double(), expected[0], atol=1e-4)
    assert torch.allclose(entropy.double(), expected[1], atol=1e-4)
    (logprobs.sum() + entropy.sum()).backward()
    assert torch.isfinite(hidden.grad).all()
    assert torch.isfinite(head.grad).all()


@pytest.mark.usefixtures("products_of_16_bits")
def test_bf16_inputs_accumulate_in_fp32():
    generator = torch.Generator().manual_seed(1)
    hidden, head = (torch.randn(n, 16, generator=generator).bfloat16() for n in (9, 50))
    labels = torch.arange(9)
    logprobs, _ = token_logprobs(hidden, head, labels)
    assert logprobs.dtype == torch.float32
    logits = hidden.double() @ head.double().T
    if not products.are_slow(hidden):  # torch's own product is rounded to bf16, all after it must not be
        logits = (hidden @ head.T).double()
    assert (logprobs.double() - logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]).abs().max() < 1e-5


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_above_0_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature is"):
        token_logprobs(torch.ones(1, 2), torch.ones(3, 2), torch.zeros(1, dtype=torch.int64), temperature)


@pytest.mark.parametrize("label", [-100, -1, 11])
def test_a_label_beyond_the_vocabulary_is_named(label):
    with pytest.raises(ValueError, match=f"label {label} of row 1 is not a token id in 0..10"):
        token_logprobs(torch.ones(3, 4), torch.ones(11, 4), torch.tensor([10, label, 99]))


def test_misshapen_inputs_are_refused():
    with pytest.raises(ValueError, match="must share a width"):
        token_logprobs(torch.ones(1, 2), torch.ones(3, 4), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"the head is torch\.float64: cast"):
        token_logprobs(torch.ones(1, 2), torch.ones(3, 2).double(), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="need as many labels"):
        token_logprobs(torch.ones(1, 2), torch.ones(3, 2), torch.zeros(2, dtype=torch.int64))
