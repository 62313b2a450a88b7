"""The cache of replies: nothing is asked twice, whatever was torn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from psychecore.curate.cache import Cache, CachedGenerator
from psychecore.curate.generator import Arrived, Reply, Request, request_key

REQUESTS = [Request([{"role": "user", "content": f"tell {i}\u2028 你"}]) for i in range(6)]


class Scripted:
    """Says its request back; two replies arrive at a time, and it may die after some."""

    name = "scripted"
    identity = "scripted 1"

    def __init__(self, dies_after: int = 100):
        self.asked: list[Request] = []
        self.dies_after = dies_after

    def generate_each(self, requests: Sequence[Request], arrived: Arrived) -> None:
        for start in range(0, len(requests), 2):
            if len(self.asked) >= self.dies_after:
                raise KeyboardInterrupt
            pair = requests[start : start + 2]
            self.asked += pair
            arrived({start + k: Reply(one.messages[0]["content"], -float(start + k)) for k, one in enumerate(pair)})

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        replies: dict[int, Reply] = {}
        self.generate_each(requests, replies.update)
        return [replies[n] for n in range(len(requests))]


def ask(path: Path, model: Scripted) -> list[Reply]:
    cache = Cache(path)
    try:
        return CachedGenerator(model, cache).generate(REQUESTS)
    finally:
        cache.close()


def test_a_killed_run_asks_only_what_it_has_no_reply_to(tmp_path: Path) -> None:
    whole = Scripted().generate(REQUESTS)
    killed, continued = Scripted(dies_after=4), Scripted()
    with pytest.raises(KeyboardInterrupt):
        ask(tmp_path / "cache", killed)
    replies = ask(tmp_path / "cache", continued)
    assert [reply.text for reply in replies] == [reply.text for reply in whole]
    assert killed.asked + continued.asked == REQUESTS


def test_any_torn_end_loses_no_more_than_what_arrived_together(tmp_path: Path) -> None:
    ask(tmp_path / "whole", Scripted())
    written = (tmp_path / "whole").read_bytes()
    ends = [i + 1 for i, byte in enumerate(written) if byte == ord("\n")][1::2]  # pairs are written together
    for length in range(0, len(written) + 1, 7):
        path = tmp_path / f"torn{length}"
        path.write_bytes(written[:length])
        model = Scripted()
        assert [r.text for r in ask(path, model)] == [r.messages[0]["content"] for r in REQUESTS]
        assert len(model.asked) == 6 - 2 * sum(end <= length for end in ends)
        assert [r.text for r in ask(path, Scripted(0))] == [r.messages[0]["content"] for r in REQUESTS]


def test_equal_requests_are_asked_once(tmp_path: Path) -> None:
    model = Scripted()
    cached = CachedGenerator(model, Cache(tmp_path / "cache"))
    replies = cached.generate([REQUESTS[0], REQUESTS[1], REQUESTS[0]])
    assert replies[0] == replies[2] != replies[1]
    assert len(model.asked) == 2
    assert (cached.asked, cached.found) == (2, 1)


@pytest.mark.parametrize("server", [False, True])
def test_answers_from_the_cache_are_said_once_and_a_servers_with_the_way_out(
    server: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, cache = Scripted(), Cache(tmp_path / "cache")
    if server:
        model.identity = "m at http://127.0.0.1:8000/v1"
    CachedGenerator(model, cache).generate([*REQUESTS[:2], REQUESTS[0]])
    assert capsys.readouterr().err == ""
    again = CachedGenerator(model, cache)
    again.generate([*REQUESTS[:4], REQUESTS[0]])
    again.generate(REQUESTS)
    (line,) = capsys.readouterr().err.splitlines()
    more = "; if another model is at http://127.0.0.1:8000/v1 now, remove that file" if server else ""
    assert line == f"scripted: 2 of 4 answers from {tmp_path / 'cache'}{more}"


@pytest.mark.parametrize(
    "change",
    [
        {"messages": [{"role": "user", "content": "other"}]},
        {"messages": [{"role": "system", "content": REQUESTS[0].messages[0]["content"]}]},
        {"max_new_tokens": 3},
        {"temperature": 0.5},
        {"seed": 1},
        {"sample": 1},
    ],
)
def test_whatever_the_reply_may_depend_on_is_in_the_key(change: Mapping[str, object]) -> None:
    assert request_key("m", replace(REQUESTS[0], **change)) != request_key("m", REQUESTS[0])
    assert request_key("n", REQUESTS[0]) != request_key("m", REQUESTS[0])


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    ask(tmp_path / "cache", Scripted())
    lines = (tmp_path / "cache").read_bytes().splitlines(keepends=True)
    (tmp_path / "cache").write_bytes(b"".join([lines[0], b"not json\n", *lines[2:]]))
    with pytest.raises(ValueError, match="cache line 2"):
        Cache(tmp_path / "cache")


@pytest.mark.parametrize(
    "change", [{"text": None}, {"text": 5}, {"left": "0"}, {"left": True}, {"logprob": "x"}, {"cut": 1}]
)
def test_a_row_that_is_no_reply_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    row = {"key": "00", "left": 0, "text": "x", "logprob": None}
    (tmp_path / "cache").write_text(json.dumps(row) + "\n")
    Cache(tmp_path / "cache").close()
    (tmp_path / "cache").write_text(json.dumps({k: v for k, v in (row | change).items() if v is not None}) + "\n")
    with pytest.raises(ValueError, match="cache line 1: no reply"):
        Cache(tmp_path / "cache")


def test_two_runs_cannot_share_a_cache(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    with pytest.raises(BlockingIOError, match="in use"):
        Cache(tmp_path / "cache")
    cache.close()
    Cache(tmp_path / "cache").close()


def test_what_was_cut_is_known_to_be_so_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    cache.add({"00": Reply("half a", None, cut=True), "01": Reply("whole.", None)})
    cache.close()
    again = Cache(tmp_path / "cache")
    assert [again.get(key) for key in ("00", "01")] == [Reply("half a", None, cut=True), Reply("whole.", None)]
    again.close()
