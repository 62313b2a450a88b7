"""Selectors answer what the policy will be asked, and are read as the reward reads the policy."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import pytest

from psychecore.curate.generator import Reply, Request
from psychecore.curate.select import SelectConfig, SelectStage
from psychecore.curate.stage import run_stage
from psychecore.data.prompts import question_messages
from psychecore.data.records import Question


class Scripted:
    """A selector that answers by a rule and notes what it was asked."""

    def __init__(self, name: str, rule: Callable[[Request], str]):
        self.name, self.rule, self.asked = name, rule, list[Request]()

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        self.asked += requests
        return [Reply(self.rule(request), None) for request in requests]


def question(number: int, answer: str = "B", **more: str) -> dict:
    row = {
        "id": f"q{number}",
        "question": f"Stem {number}?",
        "options": {"A": "Ad", "B": "Bd", "C": "Cd"},
        "answer": answer,
        "kind": "single" if len(answer) == 1 else "multiple",
        "language": "en",
        "passage_id": f"p{number}",
    }
    return row | more


def says(text: str) -> Callable[[Request], str]:
    return lambda request: text


def test_a_selector_is_asked_what_the_policy_is_asked() -> None:
    rows = [question(1), question(2, "AC", context="A case.", language="zh")]
    selector = Scripted("s", says("B"))
    SelectStage([selector], SelectConfig(max_new_tokens=77, seed=5)).batch(rows)
    assert [asdict(request) for request in selector.asked] == [
        {
            "messages": question_messages(Question.from_row(row)),
            "max_new_tokens": 77,
            "temperature": 0.0,
            "seed": 5,
            "sample": 0,
            "top_p": 1.0,
        }
        for row in rows
    ]


@pytest.mark.parametrize(
    ("gold", "text", "letters", "right"),
    [
        ("B", "<think>A tempts.</think>\nB. Bd", "B", True),
        ("B", "The answer is (B).", "B", True),
        ("B", "<think>B, surely", None, False),  # cut while thinking
        ("B", "D. something", None, False),  # no such option
        ("B", "A and B are correct", "AB", False),
        ("AC", "答案：AC", "AC", True),
        ("AC", "答案：A", "A", False),  # a part of the letters is not right
    ],
)
def test_an_answer_is_right_when_its_letters_are_the_gold_ones(gold: str, text: str, letters: str, right: bool) -> None:
    [outcome] = SelectStage([Scripted("s", says(text))]).batch([question(1, gold)])
    [row] = outcome.kept
    [answer] = row["answers"]["s"]
    assert (answer["letters"], answer["right"]) == (letters, right)


def test_a_selector_without_room_for_a_question_says_so() -> None:
    selector = Scripted("s", says(""))
    selector.generate = lambda requests: [Reply("", None, refused=True) for _ in requests]  # type: ignore[method-assign]
    [outcome] = SelectStage([selector]).batch([question(1)])
    assert outcome.kept[0]["answers"]["s"] == [{"text": "", "letters": None, "right": False, "refused": True}]


def test_every_selector_answers_every_question_with_every_sample_in_its_place() -> None:
    def rule(request: Request) -> str:
        stem = int(request.messages[-1]["content"].split()[1].rstrip("?"))
        return "ABC"[(stem + request.sample) % 3]

    rows = [question(number) for number in range(7)]
    stage = SelectStage([Scripted("s", rule), Scripted("t", says("no idea"))], SelectConfig(samples=3, temperature=1.0))
    outcomes = stage.batch(rows)
    for number, (row, outcome) in enumerate(zip(rows, outcomes, strict=True)):
        [kept] = outcome.kept
        assert {key: kept[key] for key in row} == row
        letters = ["ABC"[(number + sample) % 3] for sample in range(3)]
        assert kept["answers"]["s"] == [{"text": x, "letters": x, "right": x == "B"} for x in letters]
        assert [answer["letters"] for answer in kept["answers"]["t"]] == [None] * 3
    assert outcomes == [outcome for row in rows for outcome in stage.batch([row])]


def test_beginning_and_end_of_a_long_answer_are_kept_without_its_thinking() -> None:
    [outcome] = SelectStage([Scripted("s", says("<think>why</think>" + "x" * 50 + " so B"))]).batch([question(1)])
    assert outcome.kept[0]["answers"]["s"][0]["text"] == "x" * 50 + " so B"
    for keep, kept in ((9, "xxxxx … so B"), (55, "x" * 50 + " so B"), (1, "x … "), (0, " … ")):
        stage = SelectStage([Scripted("s", says("x" * 50 + " so B"))], SelectConfig(keep_characters=keep))
        assert stage.batch([question(1)])[0].kept[0]["answers"]["s"][0]["text"] == kept


def test_a_row_that_is_no_question_is_rejected_and_the_others_keep_their_answers() -> None:
    rows = [question(1), question(2) | {"answer": "E"}, question(3)]
    selector = Scripted("s", lambda request: "B" if "Stem 3" in request.messages[-1]["content"] else "A")
    outcomes = SelectStage([selector]).batch(rows)
    assert [len(outcome.kept) for outcome in outcomes] == [1, 0, 1]
    assert [outcome.kept[0]["answers"]["s"][0]["right"] for outcome in outcomes if outcome.kept] == [False, True]
    [rejection] = outcomes[1].rejected
    assert (rejection.row, rejection.reason) == (rows[1], "invalid_question")
    assert "answer 'E' names option E, but the question has A-C" in rejection.detail


def test_a_held_out_row_reaches_no_selector() -> None:
    selector = Scripted("s", says("B"))
    stage = SelectStage([selector], held_out=frozenset({"q2"}))
    with pytest.raises(ValueError, match="question 'q2' is held out"):
        stage.batch([question(1), question(2)])
    assert selector.asked == []


def test_one_pass_a_model_gives_what_one_pass_with_all_gives() -> None:
    rows = [question(number) for number in range(3)]
    one, two = Scripted("one", says("A")), Scripted("two", says("B"))
    first = [outcome.kept[0] for outcome in SelectStage([one]).batch(rows)]
    assert SelectStage([two]).batch(first) == SelectStage([one, two]).batch(rows)
    with pytest.raises(ValueError, match="'q0' has answers of 'one' already"):
        SelectStage([one]).batch(first)


def test_a_selector_that_loses_replies_is_an_error() -> None:
    class Short(Scripted):
        def generate(self, requests: Sequence[Request]) -> list[Reply]:
            return super().generate(requests)[:-1]

    with pytest.raises(RuntimeError, match="selector 's' gave 1 replies to 2 requests"):
        SelectStage([Short("s", says("B"))]).batch([question(1), question(2)])


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(ValueError, match="3 samples at temperature 0 are all the same"):
        SelectConfig(samples=3)
    with pytest.raises(ValueError, match="samples 0"):
        SelectConfig(samples=0)
    with pytest.raises(ValueError, match="a name of its own"):
        SelectStage([Scripted("s", says("A")), Scripted("s", says("B"))])
    with pytest.raises(ValueError, match="must be one or more"):
        SelectStage([])


def test_a_selection_that_was_killed_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    source = tmp_path / "questions.jsonl"
    source.write_text("".join(json.dumps(question(number)) + "\n" for number in range(10)))
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    run_stage(SelectStage([Scripted("s", says("B"))]), source, tmp_path / "whole", batch_size=2)

    class Dies(Scripted):
        def generate(self, requests: Sequence[Request]) -> list[Reply]:
            if len(self.asked) == 6:
                raise KeyboardInterrupt
            return super().generate(requests)

    with pytest.raises(KeyboardInterrupt):
        run_stage(SelectStage([Dies("s", says("B"))]), source, tmp_path / "killed", batch_size=2)
    rest = Scripted("s", says("B"))
    run_stage(SelectStage([rest]), source, tmp_path / "killed", batch_size=2)
    assert len(rest.asked) == 4
    assert (tmp_path / "killed" / "select.jsonl").read_bytes() == (tmp_path / "whole" / "select.jsonl").read_bytes()
