"""Local generators: the same request gives the same reply, whatever else is asked, and replies are told by chunks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from psychecore.curate.cache import Cache, CachedGenerator
from psychecore.curate.generator import LocalGenerator, Reply, Request


def ask(
    *texts: str, max_new_tokens: int = 8, temperature: float = 0.0, seed: int = 0, sample: int = 0
) -> list[Request]:
    return [Request([{"role": "user", "content": text}], max_new_tokens, temperature, seed, sample) for text in texts]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_reply_depends_on_its_request_alone(temperature: float, workplace: Path) -> None:
    local = LocalGenerator(str(workplace / "model"), slots=3)
    requests = [
        request
        for length, seed in ((8, 0), (5, 0), (8, 1))
        for request in ask("one", "two", "three and more", max_new_tokens=length, temperature=temperature, seed=seed)
    ]
    together = local.generate(requests)
    alone = [local.generate([request])[0] for request in reversed(requests)]
    assert [reply.text for reply in together] == [reply.text for reply in alone[::-1]]
    assert [reply.logprob for reply in together] == pytest.approx([reply.logprob for reply in alone[::-1]], abs=1e-4)
    assert all(reply.logprob is not None and reply.logprob < 0 for reply in together)
    if temperature:
        texts = [local.generate(ask("one", temperature=1.0, seed=s, sample=n))[0].text for s in (0, 1) for n in (0, 1)]
        assert len(set(texts)) > 1


def test_replies_are_told_chunk_by_chunk(workplace: Path) -> None:
    local = LocalGenerator(str(workplace / "model"), slots=1)
    heard: list[list[int]] = []
    local.generate_each(ask(*map(str, range(9))), lambda replies: heard.append(sorted(replies)))
    assert heard == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


def test_a_request_too_long_for_the_model_has_an_empty_reply(workplace: Path) -> None:
    local = LocalGenerator(str(workplace / "model"), max_length=64)
    replies: dict[int, Reply] = {}

    def keep(some: Mapping[int, Reply]) -> None:
        replies.update(some)

    local.generate_each(ask("short", "long " * 100, "short"), keep)
    assert replies[1] == Reply("", None, refused=True)
    assert replies[0] == replies[2]
    assert replies[0].logprob is not None


def with_positions(model: Path, folder: Path, positions: int, **changes: object) -> str:
    """A copy of a model folder whose config.json claims so many positions."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": positions} | changes))
    return str(folder)


def test_no_prompt_goes_past_the_models_own_positions_and_that_is_said_once(
    workplace: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = with_positions(workplace / "model", tmp_path / "short", 64)
    local = LocalGenerator(folder)
    assert LocalGenerator(folder).max_length == local.max_length == 64
    (said,) = caplog.messages
    assert "has a context of 64 tokens: max_length is that, not 4096" in said
    replies = local.generate(ask("short", "long " * 60))
    assert [reply.refused for reply in replies] == [False, True]
    assert LocalGenerator(folder, max_length=32).max_length == 32
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    assert LocalGenerator(with_positions(Path(folder), tmp_path / "yarn", 64, rope_scaling=yarn)).max_length == 256


def test_more_new_tokens_than_any_prompt_leaves_room_for_are_refused_before_the_weights_are_read(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = LocalGenerator(str(workplace / "model"), max_length=64)
    monkeypatch.setattr(local, "load", lambda: pytest.fail("the weights were read"))
    with pytest.raises(ValueError, match=r"max_new_tokens is 64, but model has a max_length of 64 tokens"):
        local.generate([*ask("a"), *ask("b", max_new_tokens=64)])


def test_what_did_not_fit_is_asked_again_where_there_is_more_room(workplace: Path, tmp_path: Path) -> None:
    cache, model, requests = Cache(tmp_path / "cache"), str(workplace / "model"), ask("short", "long " * 100)
    short = LocalGenerator(model, max_length=64)
    answered, refused = CachedGenerator(short, cache).generate(requests)
    assert refused == Reply("", None, refused=True)
    short.load = lambda: pytest.fail("the weights were read")  # type: ignore[method-assign, assignment]
    assert CachedGenerator(short, cache).generate(requests) == [answered, refused]
    roomy = CachedGenerator(LocalGenerator(model, max_length=512), cache)
    assert roomy.generate(requests)[0] == answered
    assert roomy.generate(requests)[1].logprob is not None
    assert (roomy.asked, roomy.found) == (1, 3)


def test_the_identity_is_that_of_the_weights_and_the_dtype(workplace: Path, smollm2_folder: Path) -> None:
    model = str(workplace / "model")
    assert LocalGenerator(model, name="a").identity == LocalGenerator(model, name="b").identity
    assert LocalGenerator(model, dtype=torch.bfloat16).identity != LocalGenerator(model).identity
    assert LocalGenerator(str(smollm2_folder)).identity != LocalGenerator(model).identity
    assert LocalGenerator(model).name == "model"


def test_the_real_model_answers(smollm2_folder: Path) -> None:
    (reply,) = LocalGenerator(str(smollm2_folder)).generate(ask("What is the capital of France?", max_new_tokens=12))
    assert "Paris" in reply.text
