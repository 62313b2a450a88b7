"""The engine against a plain loop: same seeds, same tokens, whatever slots, rows, refill order or group size."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

import psychecore as pc
from psychecore.rollout.decode import decode_step
from psychecore.rollout.engine import Engine, Sample
from psychecore.rollout.sampling import sample, stream_key, uniform

PROMPTS = [[*range(1, 41)], [4, 5, 6], [11], [*range(1, 30), 50, 51], [12, 13, 14, 15], [2] * 70]
PARAMS = pc.SamplingParams(max_new_tokens=37, temperature=1.4, seed=5)  # beyond one span of cached positions


def plain_loop(model: pc.Decoder, params: pc.SamplingParams, samples: int) -> list[list[tuple[list[int], list[float]]]]:
    """One sequence at a time, the whole of it through the model for every token, no cache."""
    groups = []
    for p, prompt in enumerate(PROMPTS):
        group = []
        for g in range(samples):
            ids, logprobs = list(prompt), []
            key = torch.tensor([stream_key(params.seed, p, g)])
            for index in range(params.max_new_tokens):
                logits_1V = model.logits(torch.tensor([ids]))[:, -1]
                token, logprob = sample(logits_1V, params, uniform(key, torch.tensor([index])))
                ids.append(int(token))
                logprobs.append(float(logprob))
                if ids[-1] == 0:
                    break
            group.append((ids[len(prompt) :], logprobs))
        groups.append(group)
    return groups


@torch.no_grad()
@pytest.mark.parametrize("shape", [{}, {"qkv_bias": False, "qk_norm": True, "family": "qwen3", "key_value_heads": 3}])
def test_the_engine_says_what_a_plain_loop_says(
    shape: dict[str, Any], tiny_model: Callable[..., pc.Decoder], letter_tokenizer: Any
) -> None:
    model = tiny_model(**shape)
    expected = plain_loop(model, PARAMS, samples=3)
    lengths = [len(ids) for group in expected for ids, _ in group]
    assert min(lengths) < 20 < 37 == max(lengths)
    for slots, memory in ((64, None), (5, None), (2, None), (1, None), (64, 5e-4), (64, 2e-4)):
        sampler = pc.Sampler(model, letter_tokenizer, max_slots=slots, memory_gib=memory)
        for group, rows in zip(sampler.generate(PROMPTS, PARAMS, samples_per_prompt=3), expected, strict=True):
            for rollout, (ids, logprobs) in zip(group.rollouts, rows, strict=True):
                assert rollout.token_ids == ids, (slots, memory)
                assert rollout.logprobs == pytest.approx(logprobs, abs=1e-9)


def test_a_group_s_prompt_is_prefilled_once_and_common_beginnings_too(
    tiny_model: Callable[..., pc.Decoder], letter_tokenizer: Any
) -> None:
    sampler = pc.Sampler(tiny_model(), letter_tokenizer)
    sampler.generate(PROMPTS, PARAMS, samples_per_prompt=8)
    assert sampler.stats.prompt_tokens == sum(map(len, PROMPTS)) - 29  # PROMPTS[3] begins like PROMPTS[0]


def test_slots_stay_full_while_work_waits(tiny_model: Callable[..., pc.Decoder], letter_tokenizer: Any) -> None:
    sampler = pc.Sampler(tiny_model(torch.float32), letter_tokenizer, max_slots=6)
    groups = sampler.generate(PROMPTS, PARAMS, samples_per_prompt=8)
    lengths = [len(r.token_ids) for g in groups for r in g.rollouts]
    assert len(set(lengths)) > 10
    assert sampler.stats.occupancy > 0.95
    assert sampler.stats.new_tokens == sum(lengths)
    assert sampler.stats.steps < sum(lengths) / 6 * 1.35  # static batches of six would wait for the longest of each


def test_what_can_never_fit_the_memory_is_an_error_that_says_what_would(
    tiny_model: Callable[..., pc.Decoder], letter_tokenizer: Any
) -> None:
    sampler = pc.Sampler(tiny_model(), letter_tokenizer, memory_gib=1e-5)
    with pytest.raises(ValueError, match=r"one sequence needs 4\.\d+e-05 GiB .* memory_gib is 1e-05: raise it"):
        sampler.generate(PROMPTS, PARAMS)
    with pytest.raises(ValueError, match="memory_gib is 0"):
        pc.Sampler(tiny_model(), letter_tokenizer, memory_gib=0)


def test_streamed_pieces_join_to_what_generate_gives(
    tiny_model: Callable[..., pc.Decoder], letter_tokenizer: Any
) -> None:
    sampler = pc.Sampler(tiny_model(), letter_tokenizer, max_slots=4)
    groups = sampler.generate(PROMPTS, PARAMS, samples_per_prompt=2)
    said: dict[tuple[int, int], tuple[list[int], str, list[str | None]]] = {}
    order = []
    for piece in sampler.stream(PROMPTS, PARAMS, samples_per_prompt=2):
        assert torch.is_grad_enabled()  # a consumer's code runs as it would elsewhere
        ids, text, reasons = said.get((piece.prompt, piece.sample), ([], "", []))
        said[piece.prompt, piece.sample] = (ids + piece.token_ids, text + piece.text, [*reasons, piece.finish_reason])
        order.append((piece.prompt, piece.sample))
    for p, group in enumerate(groups):
        for g, rollout in enumerate(group.rollouts):
            ids, text, reasons = said[p, g]
            assert (ids, text) == (rollout.token_ids, rollout.text)
            assert reasons[-1] == rollout.finish_reason
            assert set(reasons[:-1]) <= {None}
    assert len(order) > 2 * len(said)
    assert order != sorted(order)  # samples are interleaved, as they run


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_decoding_step_is_one_full_graph_without_host_synchronisation(
    tiny_model: Callable[..., pc.Decoder], dtype: torch.dtype
) -> None:
    def engine() -> Engine:
        waiting = [Sample(p, g, stream_key(0, p, g), 37) for p in range(2) for g in range(3)]
        made = Engine(tiny_model(dtype), PROMPTS[:2], waiting, PARAMS, 6, 2, [0], [True] * 61)
        made._admit()
        return made

    eager, traced = engine(), engine()
    step = torch.compile(decode_step, fullgraph=True, backend="eager")  # raises at any .item() or data-dependent branch
    for _ in range(3):
        decode_step(eager.model, eager.cache, eager.state, eager._shape(), PARAMS)
        step(traced.model, traced.cache, traced.state, traced._shape(), PARAMS)
    assert torch.equal(eager.state.said_BM, traced.state.said_BM)
    assert eager.state.count_B.tolist() == traced.state.count_B.tolist()


@torch.no_grad()
def test_the_cache_goes_with_its_engine_and_waits_for_no_collector(tiny_model: Callable[..., pc.Decoder]) -> None:
    gc.collect()
    gc.disable()
    try:
        engine = Engine(tiny_model(), PROMPTS[:1], [Sample(0, 0, 1, 5)], PARAMS, 1, 1, [0], [True] * 61)
        assert len(list(engine.run())) == 1
        cache = weakref.ref(engine.cache)
        del engine
        assert cache() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_gives_nan_is_an_error_that_names_the_prompt(
    tiny_model: Callable[..., pc.Decoder], letter_tokenizer: Any, temperature: float
) -> None:
    model = tiny_model(tied_head=False)
    with torch.no_grad():
        model.embed.weight[9] = torch.nan
    params = pc.SamplingParams(temperature=temperature, max_new_tokens=4, ignore_stop=True)
    with pytest.raises(ValueError, match="prompt 1 are not finite"):
        pc.Sampler(model, letter_tokenizer).generate([[5, 6], [9, 5, 6]], params)


def test_a_stream_may_leave_the_inference_mode_in_which_it_began(
    tiny_model: Callable[..., pc.Decoder], letter_tokenizer: Any
) -> None:
    sampler, params = pc.Sampler(tiny_model(), letter_tokenizer), pc.SamplingParams(max_new_tokens=12, ignore_stop=True)
    (group,) = sampler.generate([[5, 6]], params)
    stream = sampler.stream([[5, 6]], params)
    with torch.inference_mode():
        pieces = [next(stream) for _ in range(4)]
    said = [token for piece in (*pieces, *stream) for token in piece.token_ids]
    assert said == group.rollouts[0].token_ids
