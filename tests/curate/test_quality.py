"""Judges' replies: the scores that are read, the ones that are not guessed, and which questions pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from growth import growth
from hypothesis import given, settings
from hypothesis import strategies as st

from psychecore.curate.generator import Reply, Request
from psychecore.curate.prompts import load_prompts
from psychecore.curate.quality import Quality, QualityConfig
from psychecore.curate.verdicts import CRITERIA, MAX_REPLY, parse_verdict

PROMPTS = load_prompts(Path(__file__).resolve().parents[2] / "recipes/prompts/quality.toml")
QUESTION: dict[str, Any] = {
    "id": "q1",
    "passage_id": "p1",
    "question": "What ends when rewards stop?",
    "options": {"A": "Memory", "B": "The behaviour", "C": "Sleep", "D": "Hunger"},
    "answer": "B",
    "kind": "single",
    "language": "en",
}
MULTIPLE = QUESTION | {"id": "q2", "kind": "multiple", "answer": "AC", "language": "zh", "question": "哪些？"}


class Judge:
    def __init__(self, rule: Callable[[Request], str], name: str = "judge"):
        self.rule, self.name = rule, name
        self.asked: list[Request] = []

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        self.asked += requests
        return [Reply(self.rule(request), None) for request in requests]


def lines(*scores: int) -> str:
    return "\n".join(f"{name}: {score} - because of {name}" for name, score in zip(CRITERIA, scores, strict=True))


def judged(*replies: str, config: QualityConfig | None = None, row: dict[str, Any] = QUESTION) -> Any:
    judges = [Judge(lambda _, reply=reply: reply, f"judge{number}") for number, reply in enumerate(replies)]
    return Quality(config or QualityConfig(), judges, PROMPTS).batch([row])[0]


S = (4, 5, 3, 2)
VERDICTS = [
    ("answerable: 4 - r\nunambiguous: 5 - s\nkey: 3 - t\nsound: 2 - u", S),
    ("Answerable: 4/5\nUnambiguous: 5/5\nKey: 3/5\nSound: 2 / 5", S),
    ("**Answerable:** 4 — clear\n**Unambiguous:** 5\n**Key:** 3\n**Sound:** 2", S),
    ("Here is my review:\n\n1. Answerable: 4. Yes.\n2. Unambiguous: 5.\n3. Key: 3\n4. Sound: 2\n\n"
     "Overall fine.", S),
    ("- answerable (4): r\n- unambiguous (5): s\n- key (3): t\n- sound (2): u", S),
    ("answerable: 4, unambiguous: 5, key: 3, sound: 2", S),
    ("| criterion | score | reason |\n|---|---|---|\n| answerable | 4 | r |\n| unambiguous | 5 | s |\n| key | 3 | t |\n"
     "| sound | 2 | u |", S),
    ("Answerable\nScore: 4\nReason: r\n\nUnambiguous\nScore: 5\n\n"
     "Key right\nScore: 3\n\nPsychologically sound\nScore: 2", S),
    ("Psychologically sound: 2\nkey right: 3 out of 5\nunambiguity = 5\nAnswerability - 4 points", S),
    ("可回答：4 - 好\n无歧义：5分\n答案正确：3/5，存疑\n合乎心理学：2", S),
    ("可回答：４分。\n无歧义：５分。\n答案正确：３分。\n合乎心理学：２分。", S),
    ("<think>key: 1 or 2?</think>\n" + lines(4, 5, 3, 2), S),
    ('{"answerable": 4, "unambiguous": 5, "key": 3, "sound": 2}', S),
    ('```json\n{"answerable": {"score": 4, "reason": "r"}, "unambiguous": {"score": 5}, '
     '"key": {"score": 3}, "sound": {"score": 2},}\n```', S),
    ('{"scores": {"answerable": 4, "unambiguous": 5, "key": 3, "sound": 2}, '
     '"reasons": {"answerable": "r", "key": "t"}}', S),
    ('[{"criterion": "answerable", "score": 4}, {"criterion": "unambiguous", "score": 5}, '
     '{"criterion": "key", "score": 3}, {"criterion": "sound", "score": 2}]', S),
    ("{'answerable': '4/5', 'unambiguous': 5.0, 'key': '3 - it's so', 'sound': 2,}", S),
    ('{"answerable_score": 4, "answerable_reason": "2 facts", "unambiguous": 5, "key": 3, "sound": 2}', S),
    ('{"可回答": 4, "无歧义": 5, "答案正确": 3, "合乎心理学": 2}', S),
    (lines(4, 5, 3, 2) + "\nkey: 3 (again)", S),
    ("Key: the answer B is right.\n" + lines(4, 5, 3, 2), S),
]  # fmt: skip
UNPARSABLE = [
    ("", "no score for answerable, unambiguous, key, sound"),
    ("This is a good question.", "no score"),
    ("answerable: 4\nunambiguous: 5\nkey: 3", "no score for sound"),
    (lines(4, 5, 3, 6), "sound is '6'"),
    (lines(0, 5, 3, 2), "answerable is '0'"),
    (lines(4, 5, 3, -2), "sound is '-2'"),
    (lines(4, 5, 3, 2) + "\nkey: 4", "key is 3 and then 4"),
    ("answerable: 4.5\nunambiguous: 5\nkey: 3\nsound: 2", "4.5"),
    ("answerable: 8/10\nunambiguous: 5\nkey: 3\nsound: 2", "8/10"),
    ("answerable: 4/10\nunambiguous: 5\nkey: 3\nsound: 2", "4/10"),
    ("answerable: 80%\nunambiguous: 5\nkey: 3\nsound: 2", "80"),
    ("answerable: 3-4\nunambiguous: 5\nkey: 3\nsound: 2", "3-4"),
    ("answerable: 5 of 10\nunambiguous: 5\nkey: 3\nsound: 2", "5 of 10"),
    ("answerable: 3 or 4\nunambiguous: 5\nkey: 3\nsound: 2", "3 or 4"),
    ("answerable: 5e1\nunambiguous: 5\nkey: 3\nsound: 2", "5e1"),
    ("可回答：3或4\n无歧义：5\n答案正确：5\n专业性：4", "3或4"),
    ("answerable: 45\nunambiguous: 5\nkey: 3\nsound: 2", "45"),
    ("answerable: ~4\nunambiguous: 5\nkey: 3\nsound: 2", "~4"),
    ("answerable: four\nunambiguous: 5\nkey: 3\nsound: 2", "no score for answerable"),
    ("answerable: score - reason\nunambiguous: score - reason\nkey: score - reason\nsound: score - reason", "no score"),
    ("answerable: <1-5>\nunambiguous: <1-5>\nkey: <1-5>\nsound: <1-5>", "1-5"),
    ("<think>" + lines(4, 4, 4, 4), "no score"),
    ('{"answerable": 4, "unambiguous": 5, "key": 3, "sound": 2', "breaks off"),
    ('{"answerable": 4, "unambiguous": 5, "key": 3, "so', "breaks off"),
    ('{"answerable": true, "unambiguous": 5, "key": 3, "sound": 2}', "True"),
    ('{"answerable": null, "unambiguous": 5, "key": 3, "sound": 2}', "no whole number"),
    ('{"answerable": 4, "answerable": 5, "unambiguous": 5, "key": 3, "sound": 2}', "no whole number"),
    ('{"answerable": {"score": 4, "score": 5}, "unambiguous": 5, "key": 3, "sound": 2}', "no whole number"),
    ('{"answerable": 4, "unambiguous": 5, "key": 3, "sound": 2}\n{"key": 5}', "key is 3 and then 5"),
    ('{"answerable": [4], "unambiguous": 5, "key": 3, "sound": 2}', "no whole number"),
]  # fmt: skip


@pytest.mark.parametrize(("reply", "scores"), VERDICTS)
def test_scores_are_read(reply: str, scores: tuple[int, ...]) -> None:
    verdict = parse_verdict(reply)
    assert (tuple(verdict.scores.values()), tuple(verdict.scores), verdict.problem) == (scores, CRITERIA, "")


@pytest.mark.parametrize(("reply", "problem"), UNPARSABLE)
def test_a_score_is_never_guessed(reply: str, problem: str) -> None:
    verdict = parse_verdict(reply)
    assert (verdict.scores, verdict.reasons) == ({}, {})
    assert problem in verdict.problem
    outcome = judged(reply)
    assert outcome.kept == []
    (rejection,) = outcome.rejected
    assert (rejection.reason, rejection.row["raw"], rejection.row["id"]) == ("unparsable_verdict", reply, "q1")
    assert "judge0" in rejection.detail


@pytest.mark.parametrize("reply", [VERDICTS[0][0], VERDICTS[6][0], VERDICTS[14][0]])
def test_reasons_are_kept(reply: str) -> None:
    reasons = parse_verdict(reply).reasons
    assert (reasons["answerable"], reasons["key"]) == ("r", "t")


def test_a_reason_may_hold_numbers_and_colons() -> None:
    verdict = parse_verdict(lines(4, 4, 4, 4).replace("because of key", "options 1: and 2 differ by 50%; see note: 3"))
    assert verdict.reasons["key"] == "options 1: and 2 differ by 50%; see note: 3"


# ---------------------------------------------------------------------------------------------- the stage
@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ((4, 4, 4, 4), None),
        ((5, 5, 5, 5), None),
        ((3, 5, 5, 5), "low_answerable"),
        ((5, 3, 5, 5), "low_unambiguous"),
        ((5, 5, 3, 5), "low_key"),
        ((5, 5, 5, 3), "low_sound"),
        ((1, 1, 1, 1), "low_answerable"),
    ],
)
def test_each_criterion_has_its_threshold(scores: tuple[int, ...], reason: str | None) -> None:
    outcome = judged(lines(*scores))
    assert [rejection.reason for rejection in outcome.rejected] == ([reason] if reason else [])
    row = outcome.kept[0] if outcome.kept else outcome.rejected[0].row
    assert row["quality"]["scores"] == dict(zip(CRITERIA, map(float, scores), strict=True))
    assert row["quality"]["mean"] == sum(scores) / 4
    (verdict,) = row["quality"]["verdicts"]
    assert (verdict["judge"], verdict["sample"], verdict["reasons"]["key"]) == ("judge0", 0, "because of key")
    assert row["quality"]["prompts"] == PROMPTS.version
    assert {key: value for key, value in row.items() if key != "quality"} == QUESTION


def test_the_mean_has_a_threshold_of_its_own() -> None:
    config = QualityConfig(answerable=3, unambiguous=3, key=3, sound=3, mean=4)
    assert [rejection.reason for rejection in judged(lines(3, 4, 4, 4), config=config).rejected] == ["low_mean"]
    assert judged(lines(3, 4, 4, 5), config=config).kept


def test_several_judges_are_combined_by_the_median() -> None:
    outcome = judged(lines(4, 5, 1, 4), lines(4, 4, 4, 4), lines(1, 5, 5, 4))
    assert outcome.kept[0]["quality"]["scores"] == {"answerable": 4.0, "unambiguous": 5.0, "key": 4.0, "sound": 4.0}
    assert [verdict["judge"] for verdict in outcome.kept[0]["quality"]["verdicts"]] == ["judge0", "judge1", "judge2"]
    (rejection,) = judged(lines(4, 4, 3, 4), lines(4, 4, 4, 4)).rejected
    assert (rejection.reason, rejection.row["quality"]["scores"]["key"]) == ("low_key", 3.5)


def test_one_unreadable_judge_among_several_rejects() -> None:
    (rejection,) = judged(lines(5, 5, 5, 5), "I like it", lines(5, 5, 5, 5)).rejected
    assert (rejection.reason, rejection.row["raw"]) == ("unparsable_verdict", "I like it")
    assert [("scores" in verdict) for verdict in rejection.row["quality"]["verdicts"]] == [True, False, True]


def test_repeats_are_asked_by_sample_and_stand_with_their_question() -> None:
    judge = Judge(lambda r: lines(*([5 if "哪些" in r.messages[-1]["content"] else r.sample + 2] * 4)))
    config = QualityConfig(samples=3, temperature=0.5, seed=7, max_new_tokens=55)
    outcomes = Quality(config, [judge], PROMPTS).batch([QUESTION, MULTIPLE])
    assert outcomes[0].rejected[0].row["quality"]["scores"]["key"] == 3.0
    assert outcomes[1].kept[0]["quality"]["scores"]["key"] == 5.0
    assert [r.sample for r in judge.asked] == [0, 1, 2] * 2
    assert {(r.temperature, r.seed, r.max_new_tokens) for r in judge.asked} == {(0.5, 7, 55)}


def test_the_judge_sees_the_passage_or_else_case_or_span_and_the_whole_question() -> None:
    judge = Judge(lambda _: lines(5, 5, 5, 5))
    stage = Quality(QualityConfig(), [judge], PROMPTS, {"p1": "The passage {question} itself."})
    case = QUESTION | {"passage_id": None, "context": "A woman of 30 comes to the clinic."}
    quoted = MULTIPLE | {"passage_id": "p2", "span": "引用的句子"}
    bare = QUESTION | {"passage_id": None}
    stage.batch([QUESTION, case, quoted, bare])
    texts = [request.messages[-1]["content"] for request in judge.asked]
    assert "The passage {question} itself." in texts[0]
    assert "A woman of 30" in texts[1]
    assert "引用的句子" in texts[2]
    assert "Passage:" not in texts[3]
    for text in (texts[0], texts[1], texts[3]):
        assert "What ends when rewards stop?\nA. Memory\nB. The behaviour\nC. Sleep\nD. Hunger\nKey: B\n" in text
    assert "给定答案：A、C\n" in texts[2]
    assert "多选" in texts[2]


def test_a_row_that_is_no_question_is_named() -> None:
    with pytest.raises(ValueError, match=r"q1.*answer"):
        judged(lines(5, 5, 5, 5), row=QUESTION | {"answer": "E"})


@pytest.mark.parametrize("keys", [{"key": 0.5}, {"mean": 5.1}, {"samples": 0}, {"samples": 2}, {"max_new_tokens": 0}])
def test_a_config_out_of_range_is_refused_by_name(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"quality.{next(iter(keys))}"):
        QualityConfig(**keys)


def test_no_judge_is_refused() -> None:
    with pytest.raises(ValueError, match="judge"):
        Quality(QualityConfig(), [], PROMPTS)


# ---------------------------------------------------------------------------------------------- hostile replies
PIECES = [
    *CRITERIA,
    "可回答",
    "：",
    ":",
    " ",
    "\n",
    "4",
    "5",
    "-3",
    "4/5",
    "分",
    "{",
    "}",
    '"',
    "score",
    "Reason:",
    "|",
    ",",
    "[",
]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=50).map("".join))
def test_no_reply_raises_and_scores_are_all_or_none(reply: str) -> None:
    verdict = parse_verdict(reply)
    assert tuple(verdict.scores) == (() if verdict.problem else CRITERIA)
    assert all(score in (1, 2, 3, 4, 5) for score in verdict.scores.values())


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([reply for reply, _ in VERDICTS]), st.data())
def test_a_verdict_cut_anywhere_gives_the_same_scores_or_none(reply: str, data: st.DataObject) -> None:
    cut = parse_verdict(reply[: data.draw(st.integers(0, len(reply)))])
    assert cut.problem or cut.scores == parse_verdict(reply).scores


@pytest.mark.parametrize(
    "piece",
    ["answerable: ", "key", "key: 4 ", "key: 4\n", "key 4 - ", "4", "-", "{", '{"key": ', "[", '"', " ", "| ", "1. ",
     "(",
     "key:4,", "心理学", "<think>"],
)  # fmt: skip
def test_time_is_linear_in_the_reply(piece: str) -> None:
    assert growth(lambda length: parse_verdict((piece * length)[:length]), MAX_REPLY // 8, 8) < 24  # quadratic is 64
