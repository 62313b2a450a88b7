"""Packing against the plain dense forward: same log-probs, same gradients, whatever is shared."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psychecore.data.packing import pack, plan_micro_batches
from psychecore.train.token_logprobs import batch_logprobs


def dense_logprobs(model, sequences):
    """Oracle: each sequence alone through model.logits and torch's log_softmax."""
    rows = []
    for ids, mask in sequences:
        table = model.logits(torch.tensor([ids]))[0].log_softmax(-1)
        rows += [table[p - 1, ids[p]] for p in range(1, len(ids)) if mask[p]]
    return torch.stack(rows)


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.parameters()))


def random_family(seed, prompts, samples):
    """Prompts with a common system part, several completions each, some prompts prefixes of others."""
    draw = random.Random(seed)
    system = [draw.randrange(61) for _ in range(draw.randrange(0, 6))]
    sequences = []
    for _ in range(prompts):
        prompt = system + [draw.randrange(61) for _ in range(draw.randrange(1, 7))]
        for _ in range(samples):
            completion = [draw.randrange(3) for _ in range(draw.randrange(1, 6))]
            sequences.append((prompt + completion, [False] * len(prompt) + [True] * len(completion)))
    return sequences


def test_the_worked_example_of_the_module():
    batch = pack([([5, 6, 7, 8], [0, 0, 1, 1]), ([5, 6, 9], [0, 0, 1])], min_shared=2)
    assert batch.tokens_T.tolist() == [5, 6, 7, 8, 9]
    assert batch.positions_T.tolist() == [0, 1, 2, 3, 2]
    assert (batch.cu_q, batch.cu_k) == ([0, 2, 4, 5], [0, 2, 6, 9])
    assert batch.key_index_I.tolist() == [0, 1, 0, 1, 2, 3, 0, 1, 4]
    assert (batch.predict_from_R.tolist(), batch.labels_R.tolist()) == ([1, 2, 1], [7, 8, 9])
    assert batch.sequence_R.tolist() == [0, 0, 1]


@pytest.mark.parametrize("min_shared", [1, 2, 4, 1000])
@pytest.mark.parametrize(("prompts", "samples"), [(1, 1), (1, 5), (4, 1), (3, 4)])
def test_packed_equals_separate_sequences_in_logprobs_and_gradients(tiny_model, min_shared, prompts, samples):
    model = tiny_model(torch.float32)
    sequences = random_family(prompts * 10 + samples, prompts, samples)
    packed = batch_logprobs(model, pack(sequences, min_shared))[0]
    separate = dense_logprobs(model, sequences)
    assert (packed - separate).abs().max() < 1e-5
    weights = torch.randn(len(packed), generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(
        gradients(model, (packed * weights).sum()), gradients(model, (separate * weights).sum()), strict=True
    ):
        assert (ours - theirs).abs().max() < 1e-5 * max(1.0, float(theirs.abs().max()))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), min_shared=st.integers(1, 5))
def test_every_sequence_can_be_read_back_along_its_places(seed, min_shared):
    sequences = random_family(seed, 3, 3)
    batch = pack(sequences, min_shared)
    for (ids, _), places in zip(sequences, batch.places, strict=True):
        assert batch.tokens_T[places].tolist() == list(ids)
        assert batch.positions_T[places].tolist() == list(range(len(ids)))
    assert batch.tokens <= sum(len(ids) for ids, _ in sequences)


def test_a_shared_prompt_stands_once():
    prompt = list(range(20))
    sequences = [([*prompt, 30 + i], [False] * 20 + [True]) for i in range(8)]
    assert pack(sequences).tokens == 20 + 8
    assert pack(sequences, min_shared=21).tokens == 8 * 21


def test_an_empty_batch_has_one_token_no_labels_and_gradients_of_zero(tiny_model):
    model = tiny_model()
    batch = pack([])
    logprobs, _ = batch_logprobs(model, batch)
    assert (batch.tokens, len(logprobs)) == (1, 0)
    logprobs.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_a_mask_of_another_length_is_refused():
    with pytest.raises(ValueError, match="sequence 1 has 2 ids and a label mask of 1"):
        pack([([1], [True]), ([1, 2], [True])])


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), max_size=40), budget=st.integers(1, 120))
def test_micro_batches_hold_each_item_once_within_budget_longest_first(lengths, budget):
    plan = plan_micro_batches(lengths, budget)
    assert sorted(i for batch in plan for i in batch) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in batch) for batch in plan]
    assert all(load <= budget or len(batch) == 1 for load, batch in zip(loads, plan, strict=True))
    assert loads == sorted(loads, reverse=True)
