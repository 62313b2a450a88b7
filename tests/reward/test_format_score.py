"""The format score accepts one shape and nothing that only looks like it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychecore.reward.format import format_score


@pytest.mark.parametrize(
    "text",
    [
        "<think>reason</think>B",
        " \n<think>\nreason\n</think>\n\nB. Term\n",
        "<think>推理</think>答案：B",
        "<think>2 + 2</think>4",
        "<think>" + "x" * 1_000_000 + "</think>B",
        "<think>1 < 2 and <b>bold</b></think>B",
    ],
)
def test_one_block_and_an_answer_score_one(text: str) -> None:
    assert format_score(text) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "B",
        "reason</think>B",
        "<think>reason B",
        "<think>reason</think>",
        "<think>reason</think> \n",
        "<think></think>B",
        "<think> \n\t</think>B",
        "<think>\u200b\u2060\x00</think>B",  # invisible is empty
        "<think>...</think>B",
        "<think>reason</think>.",
        "<think>reason</think>\u200b",
        "B <think>reason</think>B",
        "\x00<think>reason</think>B",
        "</think>reason<think>B",
        "<think>a</think><think>b</think>B",
        "<think><think>a</think>B",
        "<think>a</think>B</think>",
        "<think>a</think>B<think>",
        "<THINK>reason</THINK>B",
        "< think>reason</ think>B",
        "＜think＞reason＜/think＞B",
        "<think>" * 100_000,
    ],
)
def test_all_else_scores_zero(text: str) -> None:
    assert format_score(text) == 0.0


PIECES = st.sampled_from(["<think>", "</think>", "a", " ", "\n", "\u200b", ".", "理", "\ud800"])


@given(st.lists(PIECES, max_size=8).map("".join))
def test_it_agrees_with_one_regular_expression(text: str) -> None:
    inner = r"(?:(?!</?think>).)*"
    shape = rf"\s*<think>({inner})</think>({inner})"
    match = re.fullmatch(shape, text, re.DOTALL)
    expected = match is not None and all(re.search(r"[a理]", part) for part in match.groups())
    assert format_score(text) == float(expected)
