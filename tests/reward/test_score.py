"""The group's scores: names, weights, independence of siblings, and a configuration that is checked."""

from __future__ import annotations

import math
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychecore.data.records import Question
from psychecore.reward.score import RewardConfig, score_group

QUESTION = Question("q", "?", {"A": "Shaping", "B": "Priming", "C": "Extinction"}, "AC", "multiple")
TEXTS = ["<think>x</think>A. Shaping; C. Extinction", "<think>x</think>A. Shaping", "A, C", "<think>x</think>?", ""]


def test_scores_of_a_group_by_hand() -> None:
    scores = score_group(TEXTS, QUESTION, RewardConfig(0.25, 2.0, "elastic"))
    assert scores == [
        {"format": 1.0, "correct": 1.0, "total": 2.25},
        {"format": 1.0, "correct": 0.5, "total": 1.25},
        {"format": 0.0, "correct": 1.0, "total": 2.0},
        {"format": 0.0, "correct": 0.0, "total": 0.0},
        {"format": 0.0, "correct": 0.0, "total": 0.0},
    ]


def test_the_credit_rule_is_the_configured_one() -> None:
    correct = {
        rule: [score["correct"] for score in score_group(["A", "ABC"], QUESTION, RewardConfig(multiple_credit=rule))]  # type: ignore[arg-type]
        for rule in ("strict", "elastic", "jaccard")
    }
    assert correct == {"strict": [0.0, 0.0], "elastic": [0.5, 0.0], "jaccard": [0.5, 2 / 3]}


def test_a_caller_s_own_alarm_is_put_back() -> None:
    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    timer = signal.setitimer(signal.ITIMER_REAL, 100.0)
    try:
        score_group(TEXTS, QUESTION, RewardConfig(timeout_seconds=5.0))
        left, interval = signal.getitimer(signal.ITIMER_REAL)
        assert 90 < left < 100
        assert interval == 0
        signal.raise_signal(signal.SIGALRM)
        assert rung == [signal.SIGALRM]
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def test_a_perfect_sample_has_total_one_by_default() -> None:
    assert score_group(TEXTS[:1], QUESTION, RewardConfig())[0]["total"] == pytest.approx(1.0)


@given(st.lists(st.one_of(st.text(), st.sampled_from(TEXTS))))
def test_any_group_scores_finitely_and_each_sample_alone_scores_the_same(texts: list[str]) -> None:
    scores = score_group(texts, QUESTION, RewardConfig())
    assert scores == [score_group([text], QUESTION, RewardConfig())[0] for text in texts]
    for score in scores:
        assert list(score) == ["format", "correct", "total"]
        assert all(0 <= value <= 1.0000001 for value in score.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format_weight": -0.1}, "format_weight is -0.1"),
        ({"correct_weight": math.nan}, "correct_weight is nan"),
        ({"correct_weight": math.inf}, "correct_weight is inf"),
        ({"format_weight": 0.0, "correct_weight": 0.0}, "both 0"),
        ({"multiple_credit": "lenient"}, "'lenient', but must be one of strict, elastic, jaccard"),
    ],
)
def test_a_bad_configuration_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardConfig(**options)
