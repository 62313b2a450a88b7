"""Questions out of replies: what is read from real-looking ones, what is rejected and why, and where the options go."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from growth import growth
from hypothesis import given, settings
from hypothesis import strategies as st
from model_replies import EN, PASSAGES, REPLIES, ZH, Expected

from psychecore.curate.drafts import MAX_REPLY, read_drafts
from psychecore.curate.generator import Reply, Request
from psychecore.curate.options import read_key
from psychecore.curate.prompts import load_prompts
from psychecore.curate.questions import Questions, QuestionsConfig, SpanFinder, gives_away, shuffled
from psychecore.curate.replies import read_objects, without_thinking
from psychecore.data.records import Question

PROMPTS = load_prompts(Path(__file__).resolve().parents[2] / "recipes/prompts/questions.toml")
CONFIG = QuestionsConfig(count=4)
REASONS = {
    "unparsable", "empty_stem", "missing_options", "duplicate_options", "all_of_the_above", "wrong_letter",
    "wrong_kind", "too_long", "answer_in_stem", "span_not_in_passage", "wrong_language", "repeated", "over_limit",
}  # fmt: skip


class Scripted:
    """A generator that answers by rule and keeps what it was asked."""

    name = "scripted"

    def __init__(self, rule: Callable[[Request], str]):
        self.rule = rule
        self.asked: list[Request] = []

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        self.asked += requests
        return [Reply(self.rule(request), None) for request in requests]


def passage(language: str = "en", **keys: Any) -> dict[str, Any]:
    return {"id": "p", "text": PASSAGES[language], "area": "general", "language": language, "source": "book"} | keys


def ask(reply: str, language: str = "en", config: QuestionsConfig = CONFIG) -> Any:
    return Questions(config, Scripted(lambda _: reply), PROMPTS).batch([passage(language)])[0]


def item(
    stem: str = "What ends?", options: str = "A. Behaviour\nB. Memory\nC. Sleep\nD. Hunger", key: str = "A"
) -> str:
    return f"Quote: When rewards stop altogether\nQuestion: {stem}\n{options}\nAnswer: {key}\n"


def test_small_things_that_models_write_are_read() -> None:
    [draft] = read_drafts("1．（单选）题目：哪一项停止？\nA. 行为\nB. 记忆\n答案：A")
    assert draft.stem == "哪一项停止？"
    objects = [{"text": "x1"}, {"text": "x2"}, {"text": "x3"}]
    [draft] = read_drafts(json.dumps({"question": "Which?", "options": objects, "answer": ["x1", "x3"]}))
    assert draft.options == {"A": "x1", "B": "x2", "C": "x3"}
    assert read_key(draft.key, draft.options) == ("AC", "")


@pytest.mark.parametrize("label", ["Answers:\n1. B\n2. C", "Answer:\n1) (B)\n2) C", "答案：\n1．B\n2．C"])
def test_a_list_of_keys_at_the_end_is_not_the_key_of_the_last_question(label: str) -> None:
    one, two = (item(stem).rpartition("Answer:")[0] for stem in ("What ends?", "What goes on?"))
    outcome = ask(f"{one}\n{two}\n{label}")
    assert not outcome.kept
    assert {one.reason for one in outcome.rejected} == {"unparsable"}


@pytest.mark.parametrize(("language", "reply", "expected"), [case[1:] for case in REPLIES], ids=[c[0] for c in REPLIES])
def test_a_reply_gives_what_stands_in_it(language: str, reply: str, expected: Expected) -> None:
    outcome = ask(reply, language)
    read: dict[str, set[str] | str] = {
        row["id"]: {row["options"][letter] for letter in row["answer"]} for row in outcome.kept
    }
    read |= {rejection.row["id"]: rejection.reason for rejection in outcome.rejected}
    assert [read[f"p-q{number}"] for number in range(1, len(read) + 1)] == expected, outcome
    for row in outcome.kept:
        Question.from_row(row)
        assert row["span"] in PASSAGES[language]
        assert row["kind"] == ("single" if len(row["answer"]) == 1 else "multiple")
    for rejection in outcome.rejected:
        assert rejection.detail
        assert rejection.row["raw"].strip() in reply


def test_a_row_carries_what_the_passage_has_and_a_rejected_one_its_raw_text() -> None:
    outcome = ask(item() + "\n" + item("Which one?", key="F"))
    (row,) = outcome.kept
    assert {
        key: row[key] for key in ("id", "passage_id", "area", "language", "source", "span", "question", "kind")
    } == {
        "id": "p-q1",
        "passage_id": "p",
        "area": "general",
        "language": "en",
        "source": "book",
        "span": "When rewards stop altogether",
        "question": "What ends?",
        "kind": "single",
    }
    (rejection,) = outcome.rejected
    assert (rejection.row["id"], rejection.reason) == ("p-q2", "wrong_letter")
    assert rejection.row["raw"] == item("Which one?", key="F").strip()


def test_a_passage_without_a_source_is_its_own() -> None:
    row = {key: value for key, value in passage().items() if key != "source"}
    (outcome,) = Questions(CONFIG, Scripted(lambda _: item()), PROMPTS).batch([row])
    assert outcome.kept[0]["source"] == "p"


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (item(stem="What ends? " + "so " * 300), "too_long"),
        (item(options="A. Behaviour\nB. " + "Memory " * 40 + "\nC. Sleep\nD. Hunger"), "too_long"),
        (item(options="A. Behaviour\nB. Memory\nC. Sleep"), "missing_options"),
        (item(options="A. Behaviour\nB.\nC. Sleep\nD. Hunger"), "missing_options"),
        (item(options="A. Behaviour\nB. Memory\nC. Ｍｅｍｏｒｙ\nD. Hunger"), "duplicate_options"),
        (item(options="A. Behaviour\nB. Memory\nC. Sleep\nD. None of the above"), "all_of_the_above"),
        (item(options="A. Behaviour\nB. A and C\nC. Sleep\nD. Hunger"), "all_of_the_above"),
        (item(key="A or B"), "unparsable"),
        (item(key="one of them"), "unparsable"),
        (item(stem="?"), "empty_stem"),
        (item().replace("When rewards stop altogether", "rewards"), None),
        (item().replace("When rewards stop altogether", "taken"), "span_not_in_passage"),
    ],
)
def test_each_fault_has_its_reason(reply: str, reason: str | None) -> None:
    config = replace(CONFIG, min_span=6)
    assert [rejection.reason for rejection in ask(reply, config=config).rejected] == ([reason] if reason else [])


@pytest.mark.parametrize(
    "option", ["All of the participants", "Both parents", "Some of the time", "A and the self", "Vitamin A"]
)
def test_ordinary_options_speak_of_no_other_option(option: str) -> None:
    assert ask(item(options=f"A. {option}\nB. Memory\nC. Sleep\nD. Hunger")).kept


def test_options_that_refer_to_others_stay_in_their_order_where_they_are_kept() -> None:
    config = replace(CONFIG, keep_referring=True)
    for number in range(12):
        reply = item(f"What ends {'x' * number}?", "A. Behaviour\nB. Memory\nC. Both A and B\nD. All of the above", "C")
        stage = Questions(config, Scripted(lambda _, reply=reply: reply), PROMPTS)
        (row,) = stage.batch([passage(id=f"p{number}")])[0].kept
        assert list(row["options"].values()) == ["Behaviour", "Memory", "Both A and B", "All of the above"]
        assert row["answer"] == "C"
        (row,) = ask(item("Is option B right? Choose."), config=CONFIG).kept
        assert row["answer"] == "A"


# ---------------------------------------------------------------------------------------------- keys, stems, spans
OPTIONS = {"A": "Shaping", "B": "B. F. Skinner", "C": "Extinction", "D": "A rest"}


@pytest.mark.parametrize(
    ("key", "letters"),
    [
        ("C", "C"), ("c", "C"), ("Ｃ", "C"), ("C.", "C"), ("(C)", "C"), ("（C）", "C"), ("[C]", "C"), ('"C"', "C"),
        ("C. Extinction", "C"), ("C：Extinction", "C"), ("C) extinction.", "C"), ("Option C", "C"), ("选项C", "C"),
        ("C项", "C"), ("C (see the text)", "C"), ("C, because it fits", "C"), ("C - Extinction", "C"),
        ("c. Extinction", "C"),
        ("Extinction", "C"), ("extinction.", "C"), ("B. B. F. Skinner", "B"), ("A rest", "D"), ("rest", "D"),
        ("AC", "AC"), ("CA", "AC"), ("A, C", "AC"), ("a, c", "AC"), ("A、C", "AC"), ("A和C", "AC"), ("A and C", "AC"),
        ("(A) and (C)", "AC"), ("A, C, and D", "ACD"), ("A. Shaping; C. Extinction", "AC"), ("A & C", "AC"),
        ("A. Shaping\nC. Extinction", "AC"), ("A. Shaping\nC. It is wrong because", "A"), ("A；C", "AC"), ("E", "E"),
        ("A. Extinction", ""), ("A rewarded response", ""), ("a bad one", ""), ("", ""), ("one of A-D", ""), ("1", ""),
        ("A. Shaping or B. B. F. Skinner", ""), ("A is wrong, C", ""),
        ("A不对，选C", ""),
        ("C, not A", "C"), ("C. Extinction, not A or B", "C"), ("C (A or B would be wrong)", "C"),
        ("C because A or B fit", "C"),
        ("C is correct, but A is tempting", "C"), ("C. Extinction, or the end of reinforcement", "C"),
        ("the letter", ""), ("A or C", ""), ("ABCX", ""), ("C\0A", ""), ("C\0C", "C"),
    ],
)  # fmt: skip
def test_a_key_names_letters_or_none(key: str, letters: str) -> None:
    found, problem = read_key(key, OPTIONS)
    assert (found, bool(problem)) == (letters, not letters)


@pytest.mark.parametrize(
    ("stem", "right", "others", "given"),
    [
        ("What is negative reinforcement?", "Negative reinforcement", ["Shaping"], True),
        ("In NEGATIVE  reinforcement, what goes?", "negative reinforcement", ["Shaping"], True),
        ("What do negative reinforcements do?", "Negative reinforcement", ["Shaping"], False),
        ("Is it negative reinforcement or shaping?", "Negative reinforcement", ["Shaping"], False),
        ("What makes an act more frequent?", "more", ["less"], False),
        ("Which kind of memory lasts longest?", "Long-term memory", ["Working memory"], False),
        ("Which process concerns memory?", "Memory", ["Attention"], True),
        ("负强化的做法叫什么？", "负强化", ["正强化"], True),
        ("正强化属于哪一类？", "强化", ["惩罚"], False),
        ("负强化与正强化有何不同？", "负强化", ["正强化"], False),
    ],
)
def test_a_stem_gives_the_answer_away_only_with_its_whole_text(
    stem: str, right: str, others: list[str], given: bool
) -> None:
    options = dict(zip("ABCD", [right, *others], strict=False))
    assert bool(gives_away(stem, options, "A")) == given


@pytest.mark.parametrize(
    ("quotation", "span"),
    [
        ("In negative reinforcement, something unpleasant", "In negative reinforcement, something unpleasant"),
        ("“in negative  reinforcement，something\nunpleasant ...”", "In negative reinforcement, something unpleasant"),
        ("negativereinforcement", "negative reinforcement"),
        ("the act becomes more frequent.", "the act becomes more frequent"),
        ("the act … frequent", None),
        ("positive reinforcement", None),
        ("", None),
        ("...", None),
    ],
)
def test_a_span_is_found_as_it_stands_in_the_passage(quotation: str, span: str | None) -> None:
    assert SpanFinder(EN).find(quotation) == span


def test_a_span_in_other_widths_comes_back_as_in_the_passage() -> None:
    assert SpanFinder("前文。Ｉ　ｑ＝１００ 是均值，㎡不算。").find("iq=100是均值,m2") == "Ｉ　ｑ＝１００ 是均值，㎡"
    assert SpanFinder(ZH).find(" 后果可以分为两类:使行为增多 的叫强化,") == "后果可以分为两类：使行为增多的叫强化"


# ---------------------------------------------------------------------------------------------- letters
def test_options_change_places_with_their_key_and_each_id_has_its_own_order() -> None:
    options = {"A": "one", "B": "two", "C": "three", "D": "four"}
    places: Counter[str] = Counter()
    for number in range(2000):
        moved, answer = shuffled(options, "AC", f"0:p{number}")
        assert list(moved) == ["A", "B", "C", "D"]
        assert sorted(moved.values()) == sorted(options.values())
        assert {moved[letter] for letter in answer} == {"one", "three"}
        places[next(letter for letter in moved if moved[letter] == "one")] += 1
        assert shuffled(options, "AC", f"0:p{number}") == (moved, answer)
    assert all(abs(count - 500) < 5 * (2000 * 0.25 * 0.75) ** 0.5 for count in places.values())  # 5 sigma


def test_a_model_that_always_keys_a_gives_questions_with_all_letters() -> None:
    stage = Questions(CONFIG, Scripted(lambda _: item()), PROMPTS)
    outcomes = stage.batch([passage(id=f"p{number}") for number in range(80)])
    letters = Counter(outcome.kept[0]["answer"] for outcome in outcomes)
    assert set(letters) == set("ABCD")
    assert outcomes == stage.batch([passage(id=f"p{number}") for number in range(80)])


# ---------------------------------------------------------------------------------------------- the stage
def test_one_request_a_passage_and_sample_with_the_passage_in_it() -> None:
    model = Scripted(lambda _: item())
    config = QuestionsConfig(count=2, multiple=1, samples=2, temperature=0.7, seed=5, max_new_tokens=99)
    Questions(config, model, PROMPTS).batch([passage("en"), passage("zh")])
    assert [(r.sample, r.temperature, r.seed, r.max_new_tokens) for r in model.asked] == [
        (0, 0.7, 5, 99),
        (1, 0.7, 5, 99),
    ] * 2
    assert [EN in r.messages[-1]["content"] for r in model.asked] == [True, True, False, False]
    assert [ZH in r.messages[-1]["content"] for r in model.asked] == [False, False, True, True]
    assert all("{" not in message["content"] for request in model.asked for message in request.messages)


def test_numbers_run_through_the_samples_and_no_passage_gives_more_than_it_may() -> None:
    config = QuestionsConfig(count=1, multiple=0, samples=2, temperature=1.0)
    replies = [item("First?") + "\n" + item("First?"), item("Second?") + "\n" + item("Third?")]
    (outcome,) = Questions(config, Scripted(lambda r: replies[r.sample]), PROMPTS).batch([passage()])
    assert [row["id"] for row in outcome.kept] == ["p-q1", "p-q3"]
    assert [(r.row["id"], r.reason) for r in outcome.rejected] == [("p-q2", "repeated"), ("p-q4", "over_limit")]


def test_a_passage_that_is_too_long_is_not_asked_about() -> None:
    model = Scripted(lambda _: item())
    outcomes = Questions(CONFIG, model, PROMPTS).batch([passage(text="x" * 8001), passage()])
    assert [rejection.reason for rejection in outcomes[0].rejected] == ["passage_too_long"]
    assert len(model.asked) == 1
    assert len(outcomes[1].kept) == 1


@pytest.mark.parametrize("keys", [{"text": " "}, {"text": None}, {"id": 3}, {"language": "fr"}])
def test_a_row_that_is_no_passage_is_named(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(keys))):
        Questions(CONFIG, Scripted(lambda _: ""), PROMPTS).batch([passage() | keys])


@pytest.mark.parametrize(
    "keys",
    [{"count": 0}, {"multiple": 5}, {"samples": 2}, {"min_options": 1}, {"min_options": 11}, {"temperature": -1.0}],
)
def test_a_config_out_of_range_is_refused_by_name(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"questions.{next(iter(keys))}"):
        QuestionsConfig(**keys)


# ---------------------------------------------------------------------------------------------- hostile replies
PIECES = [
    "Question:", "Answer:", "Quote:", "Type: multiple", "1.", "2)", "A.", "B.", "(C)", "D、", "A. x B. y C. z D. w",
    "\n", " ",
    "题目：", "答案：", "原文：", "【答案】", "{", "}", "[", "]", '"', "'", ",", ":", "“", "\\u",
    "\\ud83d\\ude00", "\\",
    "<think>", "</think>", "```", "**", "---", "When rewards stop altogether", "以上都对", "Ａ．", "\0",
    "\ud800", "options",
    '"question":',
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=6)), max_size=60).map("".join))
def test_no_reply_raises_and_each_item_is_kept_or_rejected_with_a_known_reason(reply: str) -> None:
    outcome = ask(reply)
    assert outcome.kept or outcome.rejected
    assert {rejection.reason for rejection in outcome.rejected} <= REASONS
    json.dumps([outcome.kept, [rejection.row for rejection in outcome.rejected]], ensure_ascii=False).encode()
    for row in outcome.kept:
        Question.from_row(row)
        assert row["span"] in EN


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_reply_cut_anywhere_gives_no_question_that_the_whole_does_not(data: st.DataObject) -> None:
    _, language, reply, _ = data.draw(st.sampled_from([case for case in REPLIES if "JSON" not in case[0]]))
    cut = reply[: data.draw(st.integers(0, len(reply)))]
    stems = {row["question"] for row in ask(reply, language).kept}
    whole = {draft.stem for draft in read_drafts(reply)} | stems
    for row in ask(cut, language).kept:
        assert row["question"] in whole


HOSTILE = [
    "{", "[", '{"question":', '{"a":"', '"', "'", "\\", "A. ", "A.\n", "1. ", "1.\n", "Question: ", "Answer: A\n",
    "Answer: ",
    "<think>", "</think>", "**", "```", " ", "\n", "\n ", "、A", "A, ", "(A)", "of the ", "all ", "Quote: x\n", "“",
    "题目：",
    "｛“题目”：", "a b ", "- ", "\t", "A. B. C. D. ", "Options ", "A. x\nB. y\nC. z\nD. w\nAnswer: A\n1. q\n",
]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_time_is_linear_in_the_reply(piece: str) -> None:
    assert growth(lambda length: ask((piece * length)[:length]), MAX_REPLY // 8, 8) < 24  # quadratic is 64


def test_objects_are_read_as_json_reads_them_where_json_can() -> None:
    rng = random.Random(0)

    def value(depth: int) -> Any:
        if depth == 0 or rng.random() < 0.5:
            return rng.choice(["x", 'say "hi", ok', "it's {a: b}", "行\n\\", 3, -2.5, True, None, "", "\U0001f600"])
        if rng.random() < 0.5:
            return [value(depth - 1) for _ in range(rng.randrange(3))]
        return {rng.choice("abcdef") + str(n): value(depth - 1) for n in range(rng.randrange(4))}

    for _ in range(300):
        made = {"question": value(3), "more": value(3)}
        for text in (json.dumps(made), json.dumps(made, ensure_ascii=False, indent=2)):
            (found,) = read_objects(f"Here: {text} done", lambda found: "question" in found and "more" in found)
            assert (found.value, found.raw, found.whole) == (made, text, True)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("<think>a</think>b", "b"),
        ("a</think>b", "b"),
        ("b<think>a", "b"),
        ("<think>a</think>b<think>c</think>d", "bd"),
        ("<THINKING>a</thinking> b", "b"),
        ("a b", "a b"),
    ],
)
def test_thinking_is_dropped(reply: str, said: str) -> None:
    assert without_thinking(reply) == said


@pytest.mark.parametrize("right", ["正确", "错误", "错", "不正确"])
def test_an_option_that_is_a_verdict_is_a_key(right: str) -> None:
    options = {"A": "对" if right != "正确" else "正确", "B": right if right != "正确" else "错误"}
    letter = "A" if right == "正确" else "B"
    for key in (letter, f"{letter}. {right}", f"{letter}. {right}，因为样本太小。", f"{letter}. {right}。本题考查抽样"):
        assert read_key(key, options) == (letter, ""), key
