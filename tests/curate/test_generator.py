"""Local generators: the same request gives the same reply, whatever else is asked, and replies are told by chunks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

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
    assert replies[1] == Reply("", None)
    assert replies[0] == replies[2]
    assert replies[0].logprob is not None


def test_the_identity_is_that_of_the_weights_and_the_dtype(workplace: Path, smollm2_folder: Path) -> None:
    model = str(workplace / "model")
    assert LocalGenerator(model, name="a").identity == LocalGenerator(model, name="b").identity
    assert LocalGenerator(model, dtype=torch.bfloat16).identity != LocalGenerator(model).identity
    assert LocalGenerator(str(smollm2_folder)).identity != LocalGenerator(model).identity
    assert LocalGenerator(model).name == "model"


def test_the_real_model_answers(smollm2_folder: Path) -> None:
    (reply,) = LocalGenerator(str(smollm2_folder)).generate(ask("What is the capital of France?", max_new_tokens=12))
    assert "Paris" in reply.text
