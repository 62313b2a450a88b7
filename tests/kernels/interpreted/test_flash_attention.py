"""Flash attention in Triton's interpreter against softmax in float64 over one mask of all queries and keys."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from psychecore.data.packing import pack
from psychecore.kernels import flash_attention_backward, flash_attention_forward
from psychecore.kernels.flash_attention import flash_attention, flash_attention_reference
from psychecore.kernels.flash_attention_forward import Blocks, forward
from psychecore.model.attention import PackedAttention, set_backend
from psychecore.model.decoder import Decoder

SEGMENTS = {  # (queries, keys) of each segment
    "packed prompts of odd and prime lengths": [(13, 13), (1, 1), (37, 37), (17, 17)],
    "a group's answers on one prompt": [(23, 23), (5, 28), (19, 42), (1, 24)],
    "empty segments": [(0, 0), (5, 5), (0, 7), (3, 0), (0, 0)],
    "queries before the first key": [(41, 3), (2, 2)],
    "one query": [(1, 53)],
}


def dense(q_TNH: Tensor, k_IKH: Tensor, v_IKH: Tensor, segments: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp [N, T] with every query against every key, what isn't seen at -inf."""
    seen_TI = torch.zeros(len(q_TNH), len(k_IKH), dtype=torch.bool)
    q_start = k_start = 0
    for queries, keys in segments:
        for i in range(queries):
            seen_TI[q_start + i, k_start : k_start + max(i + 1 + keys - queries, 0)] = True
        q_start, k_start = q_start + queries, k_start + keys
    sharing = q_TNH.shape[1] // k_IKH.shape[1]
    k_INH, v_INH = (x.repeat_interleave(sharing, 1) for x in (k_IKH, v_IKH))
    scores_NTI = torch.einsum("tnh,inh->nti", q_TNH, k_INH) / math.sqrt(q_TNH.shape[2])
    scores_NTI = scores_NTI.masked_fill(~seen_TI, -math.inf)
    sees_T = seen_TI.any(1)
    weights_NTI = torch.zeros_like(scores_NTI)
    weights_NTI[:, sees_T] = scores_NTI[:, sees_T].softmax(-1)
    return torch.einsum("nti,inh->tnh", weights_NTI, v_INH), scores_NTI.logsumexp(-1)


def heads(segments: Sequence[tuple[int, int]], query: int, shared: int, width: int, scale: float = 1.0) -> list[Tensor]:
    """Random q, k, v and a gradient of the output, in float64 with few bits, so that narrower types hold them."""
    generator = torch.Generator().manual_seed(len(segments) + query + width)
    queries, keys = (sum(lengths) for lengths in zip(*segments, strict=True))
    shapes = [(queries, query, width), (keys, shared, width), (keys, shared, width), (queries, query, width)]
    parts = [torch.randn(*shape, generator=generator).to(torch.bfloat16).double() for shape in shapes]
    return [parts[0] * scale, parts[1] * scale, *parts[2:]]


def cumulative(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def check(
    segments: Sequence[tuple[int, int]], inputs: Sequence[Tensor], dtype: torch.dtype, rtol: float, atol: float
) -> None:
    """Output, log-sum-exp and the three gradients of the kernels, given `inputs` in `dtype`, are the oracle's."""
    wide = [x.double().requires_grad_() for x in inputs[:3]]
    out, lse = dense(*wide, segments)
    gradients = torch.autograd.grad(out, wide, inputs[3].double())
    narrow = [x.detach().to(dtype) if x.dtype != dtype else x.detach() for x in inputs]
    lengths = [list(lengths) for lengths in zip(*segments, strict=True)]
    cu_q, cu_k = (cumulative(numbers) for numbers in lengths)
    own = [x.requires_grad_() for x in narrow[:3]]
    own_out = flash_attention(*own, cu_q, cu_k, max(lengths[0]), max(lengths[1]))
    own_gradients = torch.autograd.grad(own_out, own, narrow[3])
    _, own_lse = forward(*(x.detach() for x in own), cu_q, cu_k, max(lengths[0]))
    torch.testing.assert_close(own_lse.double(), lse, rtol=max(rtol, 1e-5), atol=max(1e-5, atol / 10))
    for mine, right in zip((own_out, *own_gradients), (out, *gradients), strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), right, rtol=rtol, atol=atol)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 16 and 16: many tiles, masked and not, in sequences that the interpreter can walk in seconds."""
    for module, name in (
        (flash_attention_forward, "FORWARD_BLOCKS"),
        (flash_attention_backward, "KEY_VALUE_BLOCKS"),
        (flash_attention_backward, "QUERY_BLOCKS"),
    ):
        monkeypatch.setattr(module, name, dict.fromkeys((64, 128, 256), Blocks(16, 16, 4, 1)))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS.keys())
def test_every_kind_of_segment_and_its_gradients(segments: list[tuple[int, int]]) -> None:
    check(segments, heads(segments, 2, 1, 16), torch.float32, 2e-5, 2e-5)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("query", "shared", "width"), [(7, 1, 16), (4, 2, 8), (3, 3, 24), (1, 1, 80)])
def test_grouped_heads_and_head_dimensions_that_are_no_power_of_two(query: int, shared: int, width: int) -> None:
    segments = [(19, 19), (3, 11)]
    check(segments, heads(segments, query, shared, width), torch.float32, 2e-5, 2e-5)


@pytest.mark.parametrize(
    ("width", "dtype", "tolerance"),
    [(64, torch.float16, 6e-3), (128, torch.bfloat16, 5e-2), (80, torch.float32, 3e-5)],
)
def test_the_blocks_that_are_launched_on_a_gpu(width: int, dtype: torch.dtype, tolerance: float) -> None:
    segments = [(131, 131), (37, 168)]  # across the first 128 queries and keys, and a diagonal off the blocks' corners
    if dtype == torch.float32:  # whose tiles are of 32
        segments = [(35, 35), (7, 70)]
    check(segments, heads(segments, 2, 1, width), dtype, tolerance, tolerance)


@pytest.mark.usefixtures("small_blocks")
def test_scores_of_hundreds_stay_finite_and_right() -> None:
    segments = [(29, 29), (7, 36)]
    check(segments, heads(segments, 2, 1, 16, scale=20.0), torch.float32, 1e-3, 2e-3)


@pytest.mark.usefixtures("small_blocks")
def test_slices_of_a_fused_projection_and_a_transposed_gradient_need_no_copy() -> None:
    segments = [(21, 21), (10, 10)]
    q, k, v, dout = (x.float() for x in heads(segments, 4, 2, 16))
    fused = torch.cat([q, k, v], dim=1)
    views = fused.split([4, 2, 2], dim=1)
    turned = dout.transpose(0, 1).contiguous().transpose(0, 1)
    assert not any(x.is_contiguous() for x in (*views, turned))
    check(segments, [*views, turned], torch.float32, 2e-5, 2e-5)
    expanded = dout[:, :, :1].expand(dout.shape)  # as the gradient of a sum over the last dimension
    check(segments, [*views, expanded], torch.float32, 2e-5, 2e-5)


@pytest.mark.usefixtures("small_blocks")
def test_keys_whose_last_dimension_is_not_contiguous_are_copied() -> None:
    q, k, v, _ = (x.float() for x in heads([(9, 9)], 2, 1, 16))
    cu = cumulative([9])
    turned = k.transpose(0, 2).contiguous().transpose(0, 2)
    assert turned.stride(2) != 1
    expected, _ = dense(q.double(), k.double(), v.double(), [(9, 9)])
    torch.testing.assert_close(flash_attention(q, turned, v, cu, cu, 9, 9).double(), expected, rtol=2e-5, atol=2e-5)


def test_the_reference_is_softmax_too() -> None:
    for segments in SEGMENTS.values():
        q, k, v, dout = heads(segments, 4, 2, 16)
        inputs = [x.requires_grad_() for x in (q, k, v)]
        cu_q, cu_k = (cumulative(lengths) for lengths in zip(*segments, strict=True))
        expected, _ = dense(*inputs, segments)
        ours = flash_attention_reference(*inputs, cu_q, cu_k)
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
        for mine, right in zip(
            torch.autograd.grad(ours, inputs, dout), torch.autograd.grad(expected, inputs, dout), strict=True
        ):
            torch.testing.assert_close(mine, right, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_a_whole_model_through_the_kernels_has_the_cpu_path_s_states_and_gradients(
    family: str, tiny_model: Callable[..., Decoder]
) -> None:
    model = tiny_model(torch.float32, family=family, qk_norm=family == "qwen3", tied_head=True, layers=1)
    prompt = list(range(1, 21))
    sequences = [[*prompt, 30], [*prompt, 31, 32, 33], [7, 8]]
    batch = pack([(ids, [False] * len(ids)) for ids in sequences], min_shared=2)
    attention = PackedAttention(batch.cu_q, batch.cu_k, batch.key_index_I, model.device)
    slope_TD = torch.randn(batch.tokens, 24, generator=torch.Generator().manual_seed(0))
    results = []
    for backend, dtype in (("triton", torch.float32), ("torch", torch.float64)):
        model.to(dtype)
        set_backend(backend)  # type: ignore[arg-type]
        hidden_TD = model(batch.tokens_T, batch.positions_T, attention)
        set_backend(None)
        results.append([hidden_TD, *torch.autograd.grad(hidden_TD, list(model.parameters()), slope_TD.to(dtype))])
    for ours, right in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": (3, 2, 8)}, r"\(3, 2, 8\)"),
        ({"k": (3, 3, 16), "v": (3, 3, 16)}, "4 query heads can't share 3"),
        ({"dtype": torch.float64}, "float64"),
        ({"q": (3, 4, 320), "k": (3, 2, 320), "v": (3, 2, 320)}, "320"),
        ({"cu": torch.int64}, "int64"),
    ],
)
def test_inputs_that_do_not_fit_are_named(changes: dict, message: str) -> None:  # type: ignore[type-arg]
    given = {"q": (3, 4, 16), "k": (3, 2, 16), "v": (3, 2, 16), "dtype": torch.float32, "cu": torch.int32} | changes
    q, k, v = (torch.zeros(*given[name], dtype=given["dtype"]) for name in "qkv")
    cu = torch.tensor([0, 3], dtype=given["cu"])
    with pytest.raises(ValueError, match=message):
        flash_attention(q, k, v, cu, cu, 3, 3)
