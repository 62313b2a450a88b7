"""The local generator: a reply depends on its request alone, and the real model answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from psychecore.curate.generator import LocalGenerator, Request


def ask(*texts: str, **options: Any) -> list[Request]:
    return [Request([{"role": "user", "content": text}], **options) for text in texts]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_local_reply_depends_on_its_request_alone(temperature: float, smollm2_folder: Path) -> None:
    local = LocalGenerator(str(smollm2_folder), slots=2)
    requests = ask("Name a colour.", "Name a city.", "Count to three.", max_new_tokens=5, temperature=temperature)
    together = local.generate(requests)
    alone = [local.generate([request])[0] for request in reversed(requests)]
    assert [reply.text for reply in together] == [reply.text for reply in alone[::-1]]
    assert [reply.logprob for reply in together] == pytest.approx([reply.logprob for reply in alone[::-1]], abs=1e-3)
    if temperature:
        samples = local.generate([Request(requests[0].messages, 5, 1.0, sample=n) for n in range(5)])
        assert len({reply.text for reply in samples}) > 1


def test_the_real_model_answers_and_what_is_too_long_gets_no_text(smollm2_folder: Path) -> None:
    local = LocalGenerator(str(smollm2_folder), max_length=200)
    short, long = local.generate(ask("What is the capital of France?", "word " * 300, max_new_tokens=12))
    assert "Paris" in short.text
    assert short.logprob is not None
    assert short.logprob < 0
    assert (long.text, long.logprob) == ("", None)
