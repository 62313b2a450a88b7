"""Local generators and the cache: the same request gives the same reply, whatever else is asked, and is paid once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import psychecore as pc
from psychecore.curate.generator import CachedGenerator, LocalGenerator, Receive, Reply, Request


class Letters:
    """A tokenizer whose chat is its letters."""

    stop_ids = frozenset([0])
    valid_ids = (True,) * 61

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(ord("a") + i) for i in ids)

    def render_chat(self, messages: list[Any], add_generation_prompt: bool = False) -> Any:
        return type("Encoded", (), {"ids": [ord(c) % 60 + 1 for m in messages for c in m["content"]]})


class Counting:
    """A generator that says what it was asked, and can fail at one request."""

    name = "counting"

    def __init__(self, fail_at: int | None = None):
        self.asked: list[str] = []
        self.fail_at = fail_at

    def generate(self, requests: Sequence[Request], receive: Receive | None = None) -> list[Reply]:
        replies = []
        for place, request in enumerate(requests):
            if place == self.fail_at:
                raise RuntimeError("lost")
            self.asked.append(request.messages[-1]["content"])
            replies.append(Reply(f"said {self.asked[-1]} {request.sample}\u2028", -1.5))
            if receive is not None:
                receive(place, replies[-1])
        return replies


def ask(*texts: str, **options: Any) -> list[Request]:
    return [Request([{"role": "user", "content": text}], **options) for text in texts]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_local_reply_depends_on_its_request_alone(temperature: float, tiny_model: Callable[..., pc.Decoder]) -> None:
    local = LocalGenerator("tiny", tiny_model(), Letters(), max_slots=3)  # type: ignore[arg-type]
    requests = ask("one", "two", "three", "four", max_new_tokens=8, temperature=temperature)
    together = local.generate(requests)
    alone = [local.generate([request])[0] for request in reversed(requests)]
    assert [reply.text for reply in together] == [reply.text for reply in alone[::-1]]
    assert [reply.logprob for reply in together] == pytest.approx([reply.logprob for reply in alone[::-1]])
    assert all(reply.logprob is not None and reply.logprob < 0 for reply in together)
    if temperature:
        samples = local.generate([Request(requests[0].messages, 8, 1.0, sample=n) for n in range(6)])
        assert len({reply.text for reply in samples}) > 1


def test_the_real_model_answers(smollm2_folder: Path) -> None:
    model, tokenizer = pc.load_model(smollm2_folder, torch.float32), pc.load_tokenizer(smollm2_folder)
    local = LocalGenerator("SmolLM2", model, tokenizer)
    heard: list[int] = []
    (reply,) = local.generate(ask("What is the capital of France?", max_new_tokens=12), lambda n, _: heard.append(n))
    assert "Paris" in reply.text
    assert heard == [0]


def test_equal_requests_are_paid_once_in_a_run_and_over_runs(tmp_path: Path) -> None:
    first = CachedGenerator(Counting(), tmp_path / "c.jsonl")
    replies = first.generate(ask("a", "b", "a") + ask("a", sample=1))
    assert [reply.text for reply in replies] == ["said a 0\u2028", "said b 0\u2028", "said a 0\u2028", "said a 1\u2028"]
    assert (first.asked, first.found) == (3, 1)
    second = CachedGenerator(Counting(), tmp_path / "c.jsonl")
    assert second.generate(ask("a", "b", "a") + ask("a", sample=1)) == replies
    assert second.generator.asked == []
    assert second.generate(ask("a", temperature=0.5)) != []
    assert second.generator.asked == ["a"]


def test_replies_before_a_failure_are_kept(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="lost"):
        CachedGenerator(Counting(fail_at=2), tmp_path / "c.jsonl").generate(ask("a", "b", "c"))
    again = CachedGenerator(Counting(), tmp_path / "c.jsonl")
    again.generate(ask("a", "b", "c"))
    assert again.generator.asked == ["c"]


def test_a_line_that_a_kill_cut_off_is_dropped_and_a_bad_one_told(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    CachedGenerator(Counting(), path).generate(ask("a", "b"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    again = CachedGenerator(Counting(), path)
    again.generate(ask("a", "b"))
    assert again.generator.asked == ["b"]
    assert path.read_bytes() == whole
    path.write_bytes(b"{}\n" + whole)
    with pytest.raises(ValueError, match="byte 0 begins a line that is no reply"):
        CachedGenerator(Counting(), path)
    assert [json.loads(line)["logprob"] for line in whole.splitlines()] == [-1.5, -1.5]
