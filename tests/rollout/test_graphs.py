"""Captured decoding steps against eager ones, by a stand-in for CUDA graphs (recorded_step.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from recorded_step import CaptureError, Pool, RecordedCapture
from torch import Tensor, nn

import psychecore as pc
from psychecore.rollout.engine import Engine, Sample
from psychecore.rollout.graphs import StepGraphs, whole
from psychecore.rollout.kv_cache import Shape
from psychecore.rollout.sampling import stream_key

PROMPTS = [[*range(1, 41)], [4, 5, 6], [11], [*range(1, 30), 50, 51]]


def captured_engine(model: pc.Decoder, params: pc.SamplingParams, slots: int = 6) -> tuple[Engine, RecordedCapture]:
    """An engine over PROMPTS, three samples each, whose steps are recorded and replayed."""
    waiting = [
        Sample(p, g, stream_key(params.seed, p, g), params.max_new_tokens)
        for p in range(len(PROMPTS))
        for g in range(3)
    ]
    capture = RecordedCapture(lambda: fixed(engine))
    engine = Engine(model, PROMPTS, waiting, params, slots, 4, [0], [True] * 60 + [False], capture)
    return engine, capture


def fixed(engine: Engine) -> list[Tensor]:
    state, cache = engine.state, engine.cache
    return [
        *(getattr(state, field.name) for field in fields(state)),
        *(tensor for tensor in vars(cache).values() if isinstance(tensor, Tensor)),
    ]


@torch.no_grad()
@pytest.mark.parametrize(
    "filters",
    [{"temperature": 1.4}, {"temperature": 0.0}, {"top_k": 9, "top_p": 0.9, "min_p": 0.02, "temperature": 1.4}],
)
def test_replayed_steps_say_what_eager_ones_say(filters: dict[str, Any], tiny_model: Callable[..., pc.Decoder]) -> None:
    model = tiny_model()
    params = pc.SamplingParams(max_new_tokens=40, seed=5, **filters)
    engine, capture = captured_engine(model, params)
    eager = Engine(model, PROMPTS, list(engine.waiting), params, 6, 4, [0], [True] * 60 + [False])
    replayed = {said.sample: said for said in engine.run()}
    expected = {said.sample: said for said in eager.run()}
    assert len(replayed) == 12
    for entry, said in expected.items():
        assert replayed[entry].token_ids == said.token_ids
        assert replayed[entry].logprobs == pytest.approx(said.logprobs, abs=1e-9)
    assert engine.stats.replayed_steps == engine.stats.steps - capture.warm_ups > capture.warm_ups
    assert engine.stats.graphs == len(capture.programs)
    assert eager.stats.graphs == eager.stats.replayed_steps == 0


@torch.no_grad()
def test_a_step_that_reads_a_number_on_the_host_can_not_be_recorded(tiny_model: Callable[..., pc.Decoder]) -> None:
    engine, capture = captured_engine(tiny_model(), pc.SamplingParams(max_new_tokens=8))
    with pytest.raises(CaptureError, match="_local_scalar_dense"):
        capture.record(lambda: engine.state.token_B.fill_(int(engine.state.count_B[0])))
    with pytest.raises(CaptureError, match="lift_fresh"):
        capture.record(lambda: engine.state.token_B.add_(torch.tensor(1)))


@torch.no_grad()
def test_the_stand_in_replays_on_old_addresses_as_a_graph_does() -> None:
    weight, out = nn.Parameter(torch.ones(3)), torch.zeros(3)
    replay = RecordedCapture(lambda: [out]).record(lambda: out.copy_(weight * 2))
    assert out.tolist() == [0, 0, 0]  # recording does nothing
    weight.fill_(4)  # in place
    replay()
    assert out.tolist() == [8, 8, 8]
    weight.data = torch.zeros(3)
    replay()
    assert out.tolist() == [8, 8, 8]


SHAPES = [Shape(n, 1, 1, 32, 32) for n in range(1, 9)]


class CountingCapture:
    """Keeps no program: a replay does the step again. Writes down what was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.renew()

    def renew(self) -> None:
        self.pool = Pool()

    def warm_up(self, step: Callable[[], None]) -> None:
        self.asked.append("warm up")
        step()

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        self.asked.append("record")
        return self.pool.add(lambda: step())


def test_the_first_step_of_a_shape_runs_eagerly_the_second_is_captured_the_rest_replayed() -> None:
    capture, done = CountingCapture(), []
    graphs = StepGraphs(nn.Linear(2, 2), capture)
    for number in range(5):
        graphs.run(SHAPES[0], lambda: done.append(0))
        assert len(done) == number + 1  # every step is done once
    assert capture.asked == ["warm up", "record"]
    assert (graphs.captured, graphs.replayed) == (1, 4)


def test_the_graph_used_longest_ago_makes_room() -> None:
    capture = CountingCapture()
    graphs = StepGraphs(nn.Linear(2, 2), capture, limit=2)

    def run(*shapes: int) -> int:
        before = graphs.captured
        for shape in shapes:
            graphs.run(SHAPES[shape], lambda: None)
        return graphs.captured - before

    assert run(0, 0, 1, 1, 0) == 2
    assert run(2, 2) == 1  # drops 1, not 0, which was used later
    assert run(0, 2) == 0
    assert run(1) == 1  # its kernels are warm: captured at once
    assert len(graphs._graphs) == 2


@torch.no_grad()
def test_a_pool_never_loses_its_last_graph_while_it_is_captured_into() -> None:
    graphs = StepGraphs(nn.Linear(2, 2), CountingCapture(), limit=1)
    for shape in (0, 0, 1, 1, 0):
        graphs.run(SHAPES[shape], lambda: None)
    assert graphs.captured == 3
    assert len(graphs._graphs) == 1


def test_weights_at_other_addresses_are_captured_anew_and_weights_changed_in_place_are_not() -> None:
    model, capture = nn.Linear(2, 2), CountingCapture()
    graphs = StepGraphs(model, capture)
    for _ in range(2):
        graphs.run(SHAPES[0], lambda: None)
    with torch.no_grad():
        model.weight.zero_()
    graphs.run(SHAPES[0], lambda: None)
    assert capture.asked == ["warm up", "record"]
    model.weight.data = torch.ones(2, 2)
    for _ in range(3):
        graphs.run(SHAPES[0], lambda: None)
    assert capture.asked == ["warm up", "record"] * 2


def test_a_sharded_model_is_never_captured() -> None:
    class Shard(Tensor):
        """As DTensor is: a tensor that stands for a part of a parameter."""

    model, capture = nn.Linear(2, 2), CountingCapture()
    assert whole(model)
    model.weight = nn.Parameter(torch.ones(2, 2).as_subclass(Shard))
    assert not whole(model)
    graphs = StepGraphs(model, capture)
    for _ in range(3):
        graphs.run(SHAPES[0], lambda: None)
    assert capture.asked == ["warm up"] * 3


def test_hooks_run_in_eager_steps_and_not_in_captured_ones() -> None:
    model, seen = nn.Sequential(nn.Linear(2, 2)), []
    model[0].register_forward_pre_hook(lambda *_: seen.append("before"))
    model[0].register_forward_hook(lambda *_: seen.append("after"))
    graphs = StepGraphs(model, RecordedCapture(list))
    out = torch.zeros(1, 2)
    with torch.no_grad():
        for _ in range(3):
            graphs.run(SHAPES[0], lambda: out.copy_(model(torch.ones(1, 2))))
            assert torch.equal(out, nn.functional.linear(torch.ones(1, 2), model[0].weight, model[0].bias))
    assert seen == ["before", "after"]
    model(out)
    assert len(seen) == 4


def test_new_weights_between_calls_give_the_new_weights_samples(
    tiny_model: Callable[..., pc.Decoder], letter_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Engine] = []
    keep = Engine.__init__

    def init(self: Engine, *arguments: Any) -> None:
        keep(self, *arguments)
        made.append(self)

    monkeypatch.setattr(Engine, "__init__", init)
    monkeypatch.setattr(pc.Sampler, "_capture", lambda self: RecordedCapture(lambda: fixed(made[-1])))
    model, other = tiny_model(), tiny_model(seed=9)
    sampler, params = pc.Sampler(model, letter_tokenizer), pc.SamplingParams(max_new_tokens=20, ignore_stop=True)

    def tokens(sampler: pc.Sampler) -> list[list[int]]:
        return [group.rollouts[0].token_ids for group in sampler.generate(PROMPTS, params)]

    first = tokens(sampler)
    assert sampler.stats.replayed_steps > 10
    model.load_state_dict(other.state_dict())  # in place, as an optimizer step does
    second = tokens(sampler)
    model.embed.weight.data = tiny_model().embed.weight.data  # at another address, as FSDP2 gathers
    third = tokens(sampler)
    monkeypatch.undo()
    other_tokens = tokens(pc.Sampler(other, letter_tokenizer))
    assert first != second == other_tokens
    assert third == tokens(pc.Sampler(model, letter_tokenizer)) != second


def test_graphs_are_off_on_a_cpu_and_asking_for_them_there_is_an_error(
    tiny_model: Callable[..., pc.Decoder], letter_tokenizer: Any
) -> None:
    sampler = pc.Sampler(tiny_model(), letter_tokenizer)
    sampler.generate(PROMPTS[:1], pc.SamplingParams(max_new_tokens=4))
    assert (sampler.stats.graphs, sampler.stats.replayed_steps) == (0, 0)
    with pytest.raises(ValueError, match="cuda_graphs is True, but the model is on cpu: leave it None, or use a GPU"):
        pc.Sampler(tiny_model(), letter_tokenizer, cuda_graphs=True)
