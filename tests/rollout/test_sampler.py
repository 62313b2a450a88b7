"""The sampler against transformers' greedy decoding, the training forward, and itself in other batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import psychecore as pc
from psychecore.data.packing import pack
from psychecore.train.token_logprobs import batch_logprobs

QUESTIONS = [
    "What is cognitive behavioural therapy?",
    "Name one defence mechanism.",
    "Which theorist described the zone of proximal development, and what does it mean for teaching in schools?",
]
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11], [12, 13, 14, 15]]


@pytest.fixture(scope="module")
def smollm2(smollm2_folder: Path) -> tuple[pc.Decoder, pc.Tokenizer]:
    return pc.load_model(smollm2_folder, dtype=torch.float32), pc.load_tokenizer(smollm2_folder)


def test_greedy_equals_transformers_token_by_token(
    smollm2: tuple[pc.Decoder, pc.Tokenizer], smollm2_folder: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    model, tokenizer = smollm2
    oracle = transformers.AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32)
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS]
    groups = pc.Sampler(model, tokenizer).generate(prompts, pc.SamplingParams(temperature=0, max_new_tokens=24))
    for prompt, group in zip(prompts, groups, strict=True):
        ids = tokenizer.render_chat(prompt, add_generation_prompt=True).ids
        assert group.prompt_ids == ids
        out = oracle.generate(
            torch.tensor([ids]), max_new_tokens=24, do_sample=False, eos_token_id=sorted(tokenizer.stop_ids)
        )
        assert group.rollouts[0].token_ids == out[0, len(ids) :].tolist()
        assert group.rollouts[0].text == tokenizer.decode(group.rollouts[0].token_ids)


def training_logprobs(model: pc.Decoder, group: pc.Group, temperature: float) -> list[torch.Tensor]:
    sequences = [
        (group.prompt_ids + r.token_ids, [False] * len(group.prompt_ids) + [True] * len(r.token_ids))
        for r in group.rollouts
    ]
    with torch.no_grad():
        logprobs_R, _ = batch_logprobs(model, pack(sequences), temperature)
    return list(logprobs_R.split([len(r.token_ids) for r in group.rollouts]))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_recorded_logprobs_are_the_training_forward_s_in_fp32(
    smollm2: tuple[pc.Decoder, pc.Tokenizer], temperature: float
) -> None:
    model, tokenizer = smollm2
    params = pc.SamplingParams(temperature=temperature, max_new_tokens=12, seed=3)
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS]
    for group in pc.Sampler(model, tokenizer).generate(prompts, params, samples_per_prompt=3):
        for rollout, logprobs in zip(group.rollouts, training_logprobs(model, group, temperature), strict=True):
            torch.testing.assert_close(torch.tensor(rollout.logprobs), logprobs, rtol=0, atol=1e-4)


def test_recorded_logprobs_in_bf16_stay_within_the_measured_bound(
    tiny_model: Callable[..., pc.Decoder], letter_tokenizer: Any
) -> None:
    # measured: on this model largest 0.20 nats, mean 0.02; on SmolLM2 0.24 and 0.044, since bf16 rounds logits of 16
    # to steps of 0.06
    model = tiny_model(torch.bfloat16)
    gaps = []
    params = pc.SamplingParams(max_new_tokens=24, ignore_stop=True)
    for group in pc.Sampler(model, letter_tokenizer).generate(PROMPTS, params, samples_per_prompt=8):
        for rollout, logprobs in zip(group.rollouts, training_logprobs(model, group, 1.0), strict=True):
            gaps.append((torch.tensor(rollout.logprobs) - logprobs).abs())
    gap = torch.cat(gaps)
    assert gap.max() < 0.4
    assert gap.mean() < 0.04


def test_filters_shift_the_recorded_logprob_to_what_was_sampled_from(
    tiny_model: Callable[..., pc.Decoder], letter_tokenizer: Any
) -> None:
    model = tiny_model()
    params = pc.SamplingParams(top_k=3, temperature=0.8, max_new_tokens=6, ignore_stop=True)
    (group,) = pc.Sampler(model, letter_tokenizer).generate([PROMPTS[0]], params, samples_per_prompt=4)
    for rollout in group.rollouts:
        for i, (token, logprob) in enumerate(zip(rollout.token_ids, rollout.logprobs, strict=True)):
            logits_V = model.logits(torch.tensor([group.prompt_ids + rollout.token_ids[:i]]))[0, -1].detach() / 0.8
            top = logits_V.topk(3)
            assert token in top.indices
            assert logprob == pytest.approx(float(logits_V[token] - top.values.logsumexp(0)), abs=1e-6)


def tokens(groups: list[pc.Group]) -> list[list[list[int]]]:
    return [[rollout.token_ids for rollout in group.rollouts] for group in groups]


def test_a_sample_depends_on_neither_slots_nor_neighbours_nor_order(
    tiny_model: Callable[..., pc.Decoder], letter_tokenizer: Any
) -> None:
    model = tiny_model()  # float64, so that rounding can't flip a draw
    params = pc.SamplingParams(max_new_tokens=12, seed=5)

    def run(prompts: list[list[int]], keys: list[int] | None = None, slots: int = 64) -> list[list[list[int]]]:
        sampler = pc.Sampler(model, letter_tokenizer, max_slots=slots)
        return tokens(sampler.generate(prompts, params, samples_per_prompt=5, prompt_keys=keys))

    expected = run(PROMPTS)
    assert len({tuple(ids) for group in expected for ids in group}) > 10
    for slots in (1, 2, 3, 7):
        assert run(PROMPTS, slots=slots) == expected
    order = [2, 0, 3, 1]
    assert run([PROMPTS[i] for i in order], keys=order, slots=4) == [expected[i] for i in order]
    assert [run([PROMPTS[i]], keys=[i])[0] for i in range(4)] == expected


def test_more_samples_leave_the_first_ones_as_they_are(
    tiny_model: Callable[..., pc.Decoder], letter_tokenizer: Any
) -> None:
    sampler = pc.Sampler(tiny_model(), letter_tokenizer, max_slots=3)
    params = pc.SamplingParams(max_new_tokens=8)
    few, many = (tokens(sampler.generate(PROMPTS, params, samples_per_prompt=n)) for n in (2, 6))
    assert [group[:2] for group in many] == few


def test_seeds_differ_and_repeat(tiny_model: Callable[..., pc.Decoder], letter_tokenizer: Any) -> None:
    sampler = pc.Sampler(tiny_model(), letter_tokenizer)
    runs = [
        tokens(sampler.generate(PROMPTS, pc.SamplingParams(max_new_tokens=10, seed=seed), samples_per_prompt=4))
        for seed in (0, 1, 0)
    ]
    assert runs[0] == runs[2]
    assert runs[0] != runs[1]
    assert len({tuple(ids) for ids in runs[0][0]}) > 1


def test_sampling_ends_with_the_stop_token_or_at_the_limit(
    tiny_model: Callable[..., pc.Decoder], letter_tokenizer: Any
) -> None:
    sampler = pc.Sampler(tiny_model(), letter_tokenizer, max_slots=4)
    params = pc.SamplingParams(temperature=3.0, max_new_tokens=30)
    rollouts = [r for g in sampler.generate(PROMPTS, params, samples_per_prompt=16) for r in g.rollouts]
    assert {r.finish_reason for r in rollouts} == {"stop", "length"}
    for rollout in rollouts:
        assert len(rollout.logprobs) == len(rollout.token_ids)
        assert 0 not in rollout.token_ids[:-1]
        assert (rollout.token_ids[-1] == 0) == (rollout.finish_reason == "stop")
        assert rollout.finish_reason == "stop" or len(rollout.token_ids) == 30
    free = sampler.generate(PROMPTS, replace(params, ignore_stop=True), samples_per_prompt=4)
    assert {len(r.token_ids) for g in free for r in g.rollouts} == {30}


def test_ids_above_the_tokenizer_s_size_are_never_sampled(
    tiny_model: Callable[..., pc.Decoder], letter_tokenizer: Any
) -> None:
    letter_tokenizer.valid_ids = (True,) * 5
    params = pc.SamplingParams(temperature=5.0, max_new_tokens=20, ignore_stop=True)
    groups = pc.Sampler(tiny_model(), letter_tokenizer).generate(PROMPTS, params, samples_per_prompt=8)
    sampled = {token for group in groups for rollout in group.rollouts for token in rollout.token_ids}
    assert sampled == set(range(5))


def test_new_weights_never_meet_an_old_cache(tiny_model: Callable[..., pc.Decoder], letter_tokenizer: Any) -> None:
    model, other = tiny_model(), tiny_model(seed=9)
    sampler = pc.Sampler(model, letter_tokenizer)
    params = pc.SamplingParams(max_new_tokens=8)
    sampler.generate(PROMPTS, params)
    model.load_state_dict(other.state_dict())
    assert tokens(sampler.generate(PROMPTS, params)) == tokens(
        pc.Sampler(other, letter_tokenizer).generate(PROMPTS, params)
    )


def test_what_is_said_in_a_block_that_the_prompt_opened_begins_with_its_tag(
    smollm2: tuple[pc.Decoder, pc.Tokenizer],
) -> None:
    """Templates of Qwen3-Thinking and QwQ end the prompt so; rewards and readers look for both tags."""
    model, tokenizer = smollm2
    asked = tokenizer.render_chat([{"role": "user", "content": "Why?"}], add_generation_prompt=True).text
    prompts = [tokenizer.encode(asked + end) for end in ("<think>\n", "")]
    params = pc.SamplingParams(temperature=0, max_new_tokens=6)
    opened, plain = pc.Sampler(model, tokenizer).generate(prompts, params)
    assert opened.texts == ["<think>" + tokenizer.decode(opened.rollouts[0].token_ids)]
    assert plain.texts == [tokenizer.decode(plain.rollouts[0].token_ids)]
    # the user's own tag, behind which a template's header is special tokens and white space only
    theirs = [
        *tokenizer.encode("What does this tag do: <think>"),
        tokenizer.specials["<|im_end|>"],
        *tokenizer.encode("\n"),
    ]
    assert not pc.Sampler(model, tokenizer).generate([theirs], params)[0].texts[0].startswith("<think>")


def test_every_slot_finds_a_row_though_each_holds_the_last_sample_of_a_group(
    tiny_model: Callable[..., pc.Decoder], letter_tokenizer: Any
) -> None:
    sampler = pc.Sampler(tiny_model(), letter_tokenizer, max_slots=64)
    params = pc.SamplingParams(max_new_tokens=4)
    assert sampler._plan([[1, 2]] * 100, params, 8) == (64, 72)
    assert sampler._plan([[1, 2]] * 60, params, 8) == (64, 60)
    assert sampler._plan([[1, 2]] * 3, params, 8) == (24, 3)


def test_slot_use_counts_the_steps_in_which_few_samples_run_long(
    tiny_model: Callable[..., pc.Decoder], letter_tokenizer: Any
) -> None:
    sampler = pc.Sampler(tiny_model(torch.float32), letter_tokenizer, max_slots=6)
    params = pc.SamplingParams(max_new_tokens=40, seed=2)
    groups = sampler.generate([[3, 1, 4], [1, 5]], params, samples_per_prompt=3)
    lengths = [len(r.token_ids) for group in groups for r in group.rollouts]
    stats = sampler.stats
    assert len(set(lengths)) > 1
    # a sample's first token comes from its prompt
    assert stats.slot_use == pytest.approx((sum(lengths) - 6) / (6 * (max(lengths) - 1)))
    assert stats.slot_use < stats.occupancy == 1


def test_no_prompts_give_no_groups(tiny_model: Callable[..., pc.Decoder], letter_tokenizer: Any) -> None:
    assert pc.Sampler(tiny_model(), letter_tokenizer).generate([], pc.SamplingParams()) == []


@pytest.mark.parametrize(
    ("prompt", "named"),
    [([], "prompt 1 is empty"), ([61], r"prompt 1 .*0\.\.60"), ([1] * 50, "prompt 1 has 50 tokens; .* max_length 64")],
)
def test_a_prompt_that_cannot_run_is_refused_with_its_number(
    prompt: list[int], named: str, tiny_model: Callable[..., pc.Decoder], letter_tokenizer: Any
) -> None:
    sampler = pc.Sampler(tiny_model(), letter_tokenizer, max_length=64)
    with pytest.raises(ValueError, match=named):
        sampler.generate([[1], prompt], pc.SamplingParams(max_new_tokens=16))


def test_no_sampler_goes_past_the_models_positions(
    tiny_model: Callable[..., pc.Decoder], letter_tokenizer: Any
) -> None:
    model = tiny_model(max_positions=100)
    assert pc.Sampler(model, letter_tokenizer).max_length == 100
    assert pc.Sampler(model, letter_tokenizer, max_length=100).max_length == 100
    with pytest.raises(ValueError, match="max_length is 101, but the model has 100 positions"):
        pc.Sampler(model, letter_tokenizer, max_length=101)


def test_what_is_no_prompt_is_refused_and_tensors_are_prompts(
    tiny_model: Callable[..., pc.Decoder], letter_tokenizer: Any
) -> None:
    sampler = pc.Sampler(tiny_model(), letter_tokenizer)
    for prompts in (["Hello"], [{"role": "user", "content": "Hello"}], [["Hello"]], [[1.5]]):
        with pytest.raises(ValueError, match="a prompt must be a list of messages or of token ids"):
            sampler.generate(prompts, pc.SamplingParams(max_new_tokens=2))  # type: ignore[arg-type]
    params = pc.SamplingParams(max_new_tokens=4)
    assert tokens(sampler.generate(torch.tensor([[1, 2]]), params)) == tokens(sampler.generate([[1, 2]], params))
