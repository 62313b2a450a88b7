"""Choice accuracy by hand, its interval against published values and inversion, its floor against brute force."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psychecore.data.prompts import question_messages
from psychecore.data.records import Question
from psychecore.evaluate.choice import evaluate_choice, score_choice
from psychecore.evaluate.statistics import Z_95, wilson_interval
from psychecore.rollout.sampling import SamplingParams
from psychecore.rollout.trajectory import Group, Rollout
from psychecore.text.chat import Message


def question(answer: str, kind: str | None = None, options: str = "ABCD") -> Question:
    kind = kind or ("single" if len(answer) == 1 else "multiple")
    return Question(f"q-{answer}", "Which?", dict.fromkeys(options, "text"), answer, kind)  # type: ignore[arg-type]


QUESTIONS = [question(answer) for answer in ("A", "B", "B", "ACD", "AC")]
TEXTS = ["<think>x</think>A", "B. text", "<think>x</think>C", "<think>x</think>A, C", "<think>x</think>no idea"]


class FakeSampler:
    """Answers each prompt with the next of its texts, and keeps what it was asked."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts, self.calls = texts, []  # type: ignore[var-annotated]

    def generate(
        self, prompts: Sequence[Sequence[Message]], params: SamplingParams, samples_per_prompt: int = 1
    ) -> list[Group]:
        self.calls.append((prompts, params, samples_per_prompt))
        return [Group([1], [Rollout([2], [-0.1], text, "stop")]) for text in self.texts]


def test_the_figures_by_hand() -> None:
    report = score_choice(QUESTIONS, TEXTS)
    assert (report.n, report.accuracy, report.format_rate, report.unparsable) == (5, 0.4, 0.8, 0.2)
    assert report.elastic == pytest.approx((1 + 1 + 0 + 2 / 3 + 0) / 5)
    assert (report.constant_answer, report.constant) == ("B", 0.4)
    assert report.constant_elastic == pytest.approx(0.4)
    single, multiple = report.by_kind["single"], report.by_kind["multiple"]
    assert (single.n, single.accuracy, single.elastic) == (3, pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert (multiple.n, multiple.accuracy, multiple.elastic) == (2, 0.0, pytest.approx(1 / 3))
    assert (multiple.constant_answer, multiple.constant) == ("AC", 0.5)
    assert multiple.constant_elastic == pytest.approx((1 + 2 / 3) / 2)


def test_evaluating_asks_each_question_once_and_reports_like_scoring() -> None:
    sampler = FakeSampler(TEXTS)
    params = SamplingParams(temperature=0.0)
    report, predictions = evaluate_choice(sampler, QUESTIONS, params)
    assert sampler.calls == [([question_messages(item) for item in QUESTIONS], params, 1)]
    assert report == score_choice(QUESTIONS, TEXTS)
    assert [item.letters for item in predictions] == ["A", "B", "C", "AC", None]
    assert [item.accuracy for item in predictions] == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert predictions[4].reason
    assert json.loads(json.dumps(predictions[3].to_row()))["text"] == TEXTS[3]


def test_the_row_is_json_and_the_text_is_one_line() -> None:
    report = score_choice(QUESTIONS, TEXTS)
    assert json.loads(json.dumps(report.to_row()))["by_kind"]["multiple"]["n"] == 2
    assert str(report) == (
        "accuracy 40.0% [11.8, 76.9], n 5, always B 40.0%; format 80.0%, unparsable 20.0%; "
        "single 66.7%, n 3; multiple 0.0% (elastic 33.3%), n 2"
    )
    assert str(score_choice(QUESTIONS[:1], TEXTS[:1])).endswith("unparsable 0.0%")


@pytest.mark.parametrize(("questions", "texts"), [(QUESTIONS, TEXTS[:4]), (QUESTIONS[:4], TEXTS), ([], [])])
def test_texts_must_match_questions(questions: list[Question], texts: list[str]) -> None:
    with pytest.raises(ValueError, match="questions"):
        score_choice(questions, texts)


LETTER_SETS = ["".join(subset) for size in range(1, 6) for subset in combinations("ABCDE", size)]


@settings(deadline=None)  # 31 reports an example
@given(st.lists(st.sampled_from(LETTER_SETS), min_size=1, max_size=12))
def test_the_floor_is_the_best_of_all_constant_answers(golds: list[str]) -> None:
    questions = [question(gold, options="ABCDE") for gold in golds]
    report = score_choice(questions, [""] * len(golds))
    constants = [score_choice(questions, [letters] * len(golds)) for letters in LETTER_SETS]
    assert report.constant == pytest.approx(max(constant.accuracy for constant in constants))
    assert report.constant_elastic == pytest.approx(max(constant.elastic for constant in constants))
    always = score_choice(questions, [report.constant_answer] * len(golds))
    assert always.accuracy == pytest.approx(report.constant)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe (1998), Two-sided confidence intervals for the single proportion, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_has_published_values(successes: int, n: int, low: float, high: float) -> None:
    assert [round(bound, 4) for bound in wilson_interval(successes, n)] == [low, high]


@given(st.integers(1, 400), st.floats(0, 1))
def test_the_interval_inverts_the_score_test(n: int, share: float) -> None:
    successes = round(share * n)
    low, high = wilson_interval(successes, n)

    def rejected(p: float) -> bool:
        return abs(successes / n - p) > Z_95 * math.sqrt(p * (1 - p) / n)

    assert 0 <= low <= successes / n <= high <= 1
    inside, outside = 1e-9, 1e-6
    assert not rejected(min(low + inside, 1.0))
    assert not rejected(max(high - inside, 0.0))
    assert low < outside or rejected(low - outside)
    assert high > 1 - outside or rejected(high + outside)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (2, 1), (-1, 5)])
def test_an_impossible_count_is_refused(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(successes, n)
