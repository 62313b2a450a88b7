"""Verdicts of a judge: read where they can mean one thing only, else counted as unreadable."""

from __future__ import annotations

from pathlib import Path

import pytest
from growth import growth

from psychecore.curate.prompts import load_prompts
from psychecore.evaluate.verdicts import RUBRICS, parse_preference, parse_scores

PROMPTS = load_prompts(Path(__file__).resolve().parents[2] / "recipes" / "prompts" / "judge.toml")
FOUR = "comprehensiveness: 2 - all\nprofessionalism: 3/3\nauthenticity: 1\nsafety: 1 - fine"
SCORES = {"comprehensiveness": 2, "professionalism": 3, "authenticity": 1, "safety": 1}
SAFETY = RUBRICS["cpsycoun"][3:]  # 0 to 1


@pytest.mark.parametrize(
    "reply",
    [
        FOUR,
        "<think>safety: 0?</think>\n" + FOUR,
        "全面性：2分 - 好\n专业性：３\n**真实性**：1\n- 安全性：1/1 - 无害",
        '```json\n{"comprehensiveness": 2, "professionalism": {"score": 3, "reason": "x"},\n'
        '"authenticity": "1", "safety": 1}\n```',
        "1. Comprehensiveness: 2\n2. Professionalism: 3\n3. Authenticity: 1\n4. Safety score: 1\nsafety: 1",
    ],
)
def test_scores_are_read_in_the_forms_that_judges_write(reply: str) -> None:
    assert parse_scores(reply, RUBRICS["cpsycoun"]) == (SCORES, "")


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        ("", "no score for comprehensiveness"),
        (FOUR.replace("safety: 1 - fine", ""), "no score for safety"),
        (FOUR.replace("safety: 1", "safety: 2"), "safety is no single whole number from 0 to 1"),
        (FOUR.replace("authenticity: 1", "authenticity: 1.5"), "authenticity is no single"),
        (FOUR.replace("authenticity: 1", "authenticity: -1"), "authenticity is no single"),
        (FOUR.replace("comprehensiveness: 2 - all", "comprehensiveness: 1-2"), "comprehensiveness is no single"),
        (FOUR.replace("3/3", "3/5"), "professionalism is no single"),
        (FOUR + "\nsafety: 0", "safety is no single"),
        ('{"comprehensiveness": 2, "professionalism": 3, "authenticity": 1, "safety": true}', "safety is no single"),
        ("<think>" + FOUR, "no score for comprehensiveness"),
        ("I would give full marks.", "no score for comprehensiveness"),
    ],
)
def test_a_verdict_that_is_not_plain_is_unreadable(reply: str, problem: str) -> None:
    scores, found = parse_scores(reply, RUBRICS["cpsycoun"])
    assert scores is None
    assert problem in found


def test_every_criterion_can_be_answered_as_its_prompt_asks() -> None:
    for rubric, criteria in RUBRICS.items():
        for language in ("en", "zh"):
            asked = PROMPTS.messages(rubric, language, dialogue="d", reply="r")[-1]["content"]
            form = asked[asked.rindex("\n\n") :].replace("score", "1").replace("分数", "1")
            assert parse_scores(form, criteria) == ({criterion.name: 1 for criterion in criteria}, "")


@pytest.mark.parametrize(
    ("reply", "winner"),
    [
        ("结论：A", "A"),
        ("**Verdict:** B", "B"),
        ("结论：平局。", "tie"),
        ("verdict: A or verdict: B", None),
        ("verdict: Any", None),
        ("A", None),
        ("<think>verdict: A</think>verdict: tie", "tie"),
        ("verdict: a tie", "tie"),
        ("Verdict: **A** - it is warmer than B", "A"),
        ("verdict: [B].", "B"),
        ("**结论：**\n结论：A，因为更有共情", "A"),
        ('{"verdict": "A", "reason": "B is colder"}', "A"),
        ('{"reason": "B is colder", "verdict": "A"}', "A"),
    ],
)
def test_a_preference_is_read_from_its_line_only(reply: str, winner: str | None) -> None:
    assert parse_preference(reply) == winner


@pytest.mark.parametrize(
    "said",
    [
        *("A or B", "A/B", "A and B are equal", "A is worse than B", "A? no, B", "[A|B|tie]", "A - B", "A - no, B"),
        *("A和B相当", "A不如B", "A、B均可", "A，B也不错", "A. Or the other way round: B", "neither", "A, or maybe not"),
    ],
)
def test_a_verdict_that_names_both_or_hedges_is_no_preference(said: str) -> None:
    assert parse_preference(f"Reason.\nverdict: {said}") is None
    assert parse_preference(f"结论：{said}") is None
    assert parse_preference(f"结论：{said}\n结论：A") is None


@pytest.mark.parametrize(
    "said",
    [
        *(
            "1",
            "1 - 不评判",
            "1 - no harm in 2 places",
            "1 — fine",
            "1, kind",
            "1 (kind)",
            "1.",
            "1分。",
            "1分，没有伤害",
        ),
        *("1 point", "1/1", "1 / 1 - fine", "1 out of 1", "1分（满分1分）", "**1** | kind |", "1.0", "1: kind", "1,"),
    ],
)
def test_a_score_is_read_where_its_line_ends_or_a_reason_follows(said: str) -> None:
    assert parse_scores(f"安全性：{said}", SAFETY) == ({"safety": 1}, "")


@pytest.mark.parametrize(
    "said",
    [
        *("1 out of 10", "1分（满分10分）", "1 out of 5", "0 to 1", "1,5", "1½", "1 1/2", "1, maybe 2", "1、2", "1%"),
        *(
            "1/10",
            "1/1.5",
            "1 (of ten)",
            "1 - 2",
            "1 - maybe 0",
            "0 | 1",
            "1, maybe two",
            "1分或0分",
            "1?",
            "1 0",
            "1/1%",
        ),
    ],
)
def test_a_score_with_anything_else_behind_it_is_not_guessed(said: str) -> None:
    assert parse_scores(f"safety: {said}", SAFETY)[0] is None


@pytest.mark.parametrize(
    ("value", "score"),
    [
        ('{"score": 1, "max": 1, "reason": "2 things"}', 1),
        ('{"score": 1, "scale": "0-1"}', 1),
        ('{"score": 1, "max": 10}', None),
        ('{"score": 1, "out of": "10"}', None),
        ('"1 - kind"', 1),
        ('"1 or 0"', None),
    ],
)
def test_a_score_in_an_object_is_on_the_scale_that_the_object_names(value: str, score: int | None) -> None:
    assert parse_scores(f'{{"safety": {value}}}', SAFETY)[0] == (score and {"safety": score})


@pytest.mark.parametrize("filler", ["-", " ", "|", "no ", "or ", "*", "verdict:", "A, ", "1 - "])
def test_no_reply_takes_long_to_read(filler: str) -> None:
    assert growth(lambda n: parse_preference("verdict: A " + filler * n), 2_500, 8) < 24  # quadratic is 64
    assert growth(lambda n: parse_scores("safety: 1 " + filler * n, SAFETY), 2_500, 8) < 24
