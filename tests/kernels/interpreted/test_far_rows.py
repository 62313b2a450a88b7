"""Rows that lie beyond 2^31 elements are found: their offsets are in 64 bits.

The far tensors are views with huge strides of memory that is reserved but, but for their own rows, never touched.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest
import torch
from torch import Tensor

import psychecore.kernels.token_logprobs as logprobs_module
from psychecore.kernels.cache_store import cache_store
from psychecore.kernels.decode_attention import decode_attention
from psychecore.kernels.flash_attention import flash_attention
from psychecore.kernels.rms_norm import rms_norm
from psychecore.kernels.rotary import rotary
from psychecore.kernels.swiglu import swiglu
from psychecore.kernels.token_logprobs import token_logprobs

STRIDE = 2**30 + 16  # the third row begins behind what int32 can say
Move = Callable[..., Tensor]


@pytest.fixture(scope="module")
def far() -> Move:
    """Moves a tensor's rows (along `dim`) STRIDE apart, in the middle: an offset that wraps finds memory there too."""
    try:
        storage = torch.empty(2**32 + 2**20, dtype=torch.float16)
    except RuntimeError:
        pytest.skip("this machine does not even reserve 8 GiB")
    place = count(2**31, 2**12)

    def move(x: Tensor, dim: int = 0, stride: int = STRIDE) -> Tensor:
        strides = list(x.stride())
        strides[dim] = stride
        return storage[next(place) :].as_strided(x.shape, strides).copy_(x)

    return move


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).half()


def same(operation: Callable[..., Tensor | tuple[Tensor, ...]], near: list[Tensor], moved: list[Tensor]) -> None:
    """Results and gradients of an operation are the same bits wherever its arguments lie."""
    found = []
    for inputs in (near, moved):
        leaves = [x.detach().requires_grad_() for x in inputs]
        outs = operation(*leaves)
        outs = outs if isinstance(outs, tuple) else (outs,)
        found.append([*outs, *torch.autograd.grad(outs, leaves, [torch.ones_like(x) for x in outs])])
    for here, there in zip(*found, strict=True):
        assert torch.equal(here, there)


def test_rms_norm(far: Move) -> None:
    x, heads, weight = rand(3, 20), rand(3, 2, 20), torch.ones(20).half()
    same(lambda x: rms_norm(x, weight, 1e-6), [x], [far(x)])
    same(lambda x: rms_norm(x, weight, 1e-6), [heads], [far(heads)])


def test_swiglu(far: Move) -> None:
    x = rand(3, 20)
    same(swiglu, [x], [far(x)])


def test_rotary(far: Move) -> None:
    q, k, cos, sin = rand(3, 2, 16), rand(3, 1, 16), rand(3, 8), rand(3, 8)
    same(lambda q, k: rotary(q, k, cos, sin), [q, k], [far(q), far(k)])
    same(lambda q, k: rotary(q, k, far(cos), far(sin)), [q, k], [q, k])


def test_flash_attention(far: Move) -> None:
    cu = torch.arange(4, dtype=torch.int32)
    near = [rand(3, heads, 16) for heads in (2, 1, 1)]
    same(lambda q, k, v: flash_attention(q, k, v, cu, cu, 1, 1), near, [far(x) for x in near])


def test_token_logprobs(far: Move, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs_module, "TILE", {"BLOCK_T": 16, "BLOCK_V": 16, "BLOCK_D": 16, "GROUP": 2})
    near, labels = [rand(17, 16), rand(17, 16)], torch.arange(17)
    moved = [far(x, stride=2**27 + 16) for x in near]  # a tile's own rows are within int32, its corner is not
    same(lambda hidden, head: token_logprobs(hidden, head, labels, 1.0), near, moved)


@pytest.mark.parametrize("dim", [0, 1])
def test_decode_attention(far: Move, dim: int) -> None:
    q, k, v, length = rand(3, 1, 6, 16), rand(3, 3, 20, 16), rand(3, 3, 20, 16), torch.tensor([20, 1, 7])
    near = decode_attention(q, k, v, length)
    for here, there in zip(near, decode_attention(q, far(k, dim), far(v, dim), length), strict=True):
        assert torch.equal(here, there)
    assert torch.equal(near[0], decode_attention(far(q), k, v, length)[0])


@pytest.mark.parametrize("slots", [None, torch.tensor([2, -1, 0])])
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_cache_store(far: Move, dim: int, slots: Tensor | None) -> None:
    k, v, place = rand(3, 3, 8), rand(3, 3, 8) + 1, torch.tensor([2, 0, 1])
    near = [torch.zeros(3, 3, 3, 8).half() for _ in range(2)]
    moved = [far(x, dim) for x in near]
    cache_store(k, v, *near, slots, place)
    cache_store(far(k), far(v), *moved, slots, place)
    for here, there in zip(near, moved, strict=True):
        assert torch.equal(here, there)
