"""Answer parsing and its scores: no text makes them raise, and their time is linear in the text."""

from __future__ import annotations

import pytest
from growth import cpu_seconds, growth
from hypothesis import example, given
from hypothesis import strategies as st

from psychecore.data.records import Question
from psychecore.evaluate.choice import score_choice
from psychecore.reward import answer as answer_module
from psychecore.reward.answer import parse_answer
from psychecore.reward.correctness import correctness_score
from psychecore.reward.format import format_score
from psychecore.text.chat import split_think

PIECES = [
    "<think>",
    "</think>",
    "（",
    "）",
    "A",
    "B.",
    "E",
    "J",
    "answer",
    "The answer is ",
    "答案：",
    "选",
    "不选",
    "是",
    " ",
    "\n",
]
PIECES += [
    ", ",
    "、",
    "and",
    "or",
    "\\boxed{",
    "}",
    "**",
    "⟦",
    "⟧",
    "\u200b",
    "\u0301",
    "\ud800",
    "\0",
    "not ",
    "(",
    ")",
    "Ａ",
    "Ⓐ",
]
PIECES += [
    " is correct",
    " is wrong",
    "正确",
    "错误",
    ": ",
    "；",
    "1. ",
    "- ",
    "-",
    "\x85",
    "\u2028",
    "<answer>",
    "would be ",
]
TEXTS = st.text(st.characters(exclude_categories=[])) | st.lists(st.sampled_from(PIECES) | st.text(max_size=2)).map(
    "".join
)
QUESTION = Question("q", "?", {"A": "x", "B": "y", "C": "z"}, "AC", "multiple")


@given(text=TEXTS, letters=st.sampled_from(["AB", "ABC", "ABCD", "ABCDEFGHIJ"]))
@example(text="\ud800" * 3, letters="AB")
@example(text="ﷺ" * 16_000, letters="AB")  # NFKC makes 18 characters of each
@example(text="⟦A⟧" * 100, letters="AB")
def test_any_text_is_parsed_or_given_a_reason(text: str, letters: str) -> None:
    parsed = parse_answer(text, letters)
    if parsed.letters is None:
        assert parsed.reason
    else:
        assert parsed.letters == "".join(sorted(set(parsed.letters)))
        assert set(parsed.letters) <= set(letters)
    assert parse_answer(text, letters) == parsed


@given(text=TEXTS)
def test_any_text_has_scores_between_0_and_1(text: str) -> None:
    for rule in ("strict", "elastic", "jaccard"):
        assert 0 <= correctness_score(text, QUESTION, rule) <= 1
    assert format_score(text) in (0.0, 1.0)
    report = score_choice([QUESTION], [text])
    assert report.unparsable in (0.0, 1.0)
    thinking, rest = split_think(text)
    assert (thinking is None) == ("</think>" not in text)
    assert rest in text


ADVERSARIAL = {
    **{f"runs of {piece!r}": piece for piece in [*PIECES, "A.", ",", "A, ", "A and ", "A、", "A或", "A is ", "A. B. "]},
    "statements": "The answer is A\n",
    "statements without letters": "the answer is ",
    "negations": "not not not A ",
    "hedges": "answer is A or B ",
    "marks": "A. x; B. y; ",
    "rejected": "A and B and C is wrong. ",
    "rejected lists": "A、B、C、",
    "cues": "the answer to the the the the question",
    "adverbs": "choose the the the ",
    "blanks and lines": " \n \n",
    "dots": "A.B.C.",
    "options in brackets": "(A) (B) ",
    "initials": "B. F. Skinner ",
    "words": "ABACADAE ",
    "marked, never rejected": "A. " + "x" * 190 + "(",
}


@pytest.mark.parametrize("family", ADVERSARIAL)
def test_time_grows_linearly_on_adversarial_text(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_module, "MAX_ANSWER", 10**9)  # the bound hides the growth, so it is lifted

    def work(n: int) -> None:
        parse_answer("<think></think>" + (ADVERSARIAL[family] * n)[:n], "ABCDEFGHIJ")

    assert growth(work, 4_000, 8) < 24  # quadratic is 64


@pytest.mark.parametrize(
    "text", ["<think>" * 200_000, "</think>" * 200_000, "<think>" + " " * 2_000_000, "A" * 2_000_000]
)
def test_a_very_long_text_takes_well_below_a_second(text: str) -> None:
    assert parse_answer(text, "ABCD").letters is None
    assert cpu_seconds(lambda: (parse_answer(text, "ABCD"), format_score(text), split_think(text))) < 1
    assert format_score(text) == 0.0
