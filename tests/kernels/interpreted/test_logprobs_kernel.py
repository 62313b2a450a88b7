"""kernels/token_logprobs.py in Triton's interpreter, against the dense float64 formula and its autograd."""

import pytest
import torch

import psychecore.kernels.token_logprobs as module
from psychecore.kernels.token_logprobs import token_logprobs, token_logprobs_reference
from psychecore.model import fused
from psychecore.train.token_logprobs import token_logprobs as trained_logprobs

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles, groups and chunks at sizes that the interpreter is quick with."""
    monkeypatch.setattr(module, "TILE", {"BLOCK_T": 16, "BLOCK_V": 32, "BLOCK_D": 16, "GROUP": 2})
    monkeypatch.setattr(module, "MERGE", {"BLOCK_T": 16, "BLOCK_N": 2})
    monkeypatch.setattr(module, "CHUNK_ROWS", 32)
    monkeypatch.setattr(module, "CHUNK_COLUMNS", 64)


def inputs(tokens, vocabulary, width, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(tokens + vocabulary)
    hidden, head = (torch.randn(n, width, generator=generator).mul_(scale).to(dtype) for n in (tokens, vocabulary))
    labels = torch.randint(vocabulary, (tokens,), generator=generator)
    labels[-1], labels[0] = 0, vocabulary - 1  # the first column, and the last of the last tile
    ups = [torch.randn(tokens, generator=generator) for _ in range(2)]
    return hidden.requires_grad_(), head.requires_grad_(), labels, ups


def check(hidden, head, labels, ups, temperature, tolerance):
    wide = [x.detach().double().requires_grad_() for x in (hidden, head)]
    results = token_logprobs(hidden, head, labels, temperature)
    expected = token_logprobs_reference(*wide, labels, temperature)
    losses = [sum((x * up).sum() for x, up in zip(pair, ups, strict=True)) for pair in (results, expected)]
    pairs = [*zip(results, expected, strict=True)]
    pairs += zip(torch.autograd.grad(losses[0], (hidden, head)), torch.autograd.grad(losses[1], wide), strict=True)
    for ours, theirs in pairs:
        assert (ours.double() - theirs).abs().max() < tolerance * theirs.abs().max().clamp(min=1)


@pytest.mark.parametrize(
    ("tokens", "vocabulary", "width"),
    [
        (1, 1, 1),
        (1, 33, 16),  # one row; one column in the last tile
        (37, 101, 13),  # primes: partial tiles everywhere, two row chunks, two column chunks
        (64, 128, 48),  # all tiles full
        (70, 31, 17),  # the vocabulary is less than a tile
    ],
)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_values_and_gradients_equal_the_float64_formula(tokens, vocabulary, width, temperature):
    check(*inputs(tokens, vocabulary, width), temperature, TOLERANCE[torch.float32])


def test_fp16_inputs_are_summed_in_fp32():
    hidden, head, labels, ups = inputs(37, 101, 13, torch.float16)
    check(hidden, head, labels, ups, 1.3, TOLERANCE[torch.float16])  # the gradients are rounded to fp16
    logprobs, _ = token_logprobs(hidden, head, labels, 1.0)
    expected, _ = token_logprobs_reference(hidden.double(), head.double(), labels, 1.0)
    assert (logprobs - expected).abs().max() < 2e-5  # the log-probs are not


@pytest.mark.parametrize("at", ["largest", "smallest"])
def test_logits_of_ten_thousand_stay_finite_and_right(at):
    hidden = torch.tensor([[1e4], [-1e4], [0.0]], requires_grad=True)
    head = torch.linspace(-1, 1, 97)[:, None].requires_grad_()
    labels = torch.tensor([96, 0, 5] if at == "largest" else [0, 96, 7])
    check(hidden, head, labels, [torch.ones(3), torch.ones(3)], 1.0, 1e-6)


def test_strided_views_give_the_same_as_their_copies():
    generator = torch.Generator().manual_seed(3)
    hidden, head = torch.randn(2 * 19, 24, generator=generator)[::2, :21], torch.randn(21, 70, generator=generator).T
    labels = torch.randint(70, (38,), generator=generator)[::2]
    grad = torch.randn(2, generator=generator)[:1].expand(19)  # an upstream gradient of stride 0
    results = []
    for h, w, y, up in ((hidden, head, labels, grad), tuple(x.contiguous() for x in (hidden, head, labels, grad))):
        h, w = h.detach().requires_grad_(), w.detach().requires_grad_()
        logprobs, entropy = token_logprobs(h, w, y, 0.8)
        results.append((logprobs, entropy, *torch.autograd.grad((logprobs, entropy), (h, w), (up, -up))))
    for strided, copied in zip(*results, strict=True):
        assert torch.equal(strided, copied)


@pytest.mark.parametrize("which", [0, 1])
def test_one_result_without_a_gradient_counts_as_zero(which):
    hidden, head, labels, ups = inputs(5, 40, 8)
    ups[1 - which] = torch.zeros(5)
    (expected,) = torch.autograd.grad((token_logprobs(hidden, head, labels, 1.0)[which] * ups[which]).sum(), hidden)
    check(hidden, head, labels, ups, 1.0, TOLERANCE[torch.float32])
    both = token_logprobs(hidden, head, labels, 1.0)
    assert torch.equal(torch.autograd.grad(both, hidden, tuple(ups))[0], expected)


def test_a_token_has_the_same_bits_alone_and_in_any_batch():
    hidden, head, labels, _ = inputs(37, 101, 13)
    hidden, head = hidden.detach().round(), head.detach().round()  # numpy's products of fractions depend on the row
    together = token_logprobs(hidden, head, labels, 0.7)
    for rows in (slice(0, 1), slice(17, 18), slice(20, 37)):
        alone = token_logprobs(hidden[rows], head, labels[rows], 0.7)
        assert all(torch.equal(part, whole[rows]) for part, whole in zip(alone, together, strict=True))


def test_a_label_outside_the_vocabulary_gives_nan_and_no_other_row_suffers():
    hidden, head, _, _ = inputs(4, 33, 8)
    logprobs, entropy = token_logprobs(hidden, head, torch.tensor([33, -1, 5, 63]), 1.0)  # 33 and 63: in a padded tile
    assert logprobs.isnan().tolist() == [True, True, False, True]
    assert entropy.isfinite().all()


def test_a_label_beyond_32_bits_gives_nan_too():
    hidden, head, _, _ = inputs(3, 33, 8)
    logprobs, _ = token_logprobs(hidden, head, torch.tensor([2**32 + 3, 3 - 2**32, 3]), 1.0)
    assert logprobs.isnan().tolist() == [True, True, False]


def test_no_rows_give_no_rows_and_gradients_of_zero():
    hidden, head = torch.zeros(0, 8, requires_grad=True), torch.ones(70, 8, requires_grad=True)
    logprobs, entropy = token_logprobs(hidden, head, torch.zeros(0, dtype=torch.int64), 1.0)
    (logprobs.sum() + entropy.sum()).backward()
    assert hidden.grad.shape == (0, 8)
    assert not head.grad.any()


def test_training_gets_the_same_from_the_kernel_as_from_torch(monkeypatch):
    hidden, head, labels, ups = inputs(37, 101, 13)
    results = []
    for takes in (False, True):
        monkeypatch.setattr(fused, "takes_token_logprobs", lambda hidden, takes=takes: takes)
        pair = trained_logprobs(hidden, head, labels, 0.9)
        results.append([*pair, *torch.autograd.grad(pair, (hidden, head), tuple(ups))])
    for by_torch, by_kernel in zip(*results, strict=True):
        assert not torch.equal(by_torch, by_kernel)  # or the switch is dead
        assert torch.allclose(by_torch, by_kernel, atol=1e-4)
