"""Rationales: every path of the rounds with a scripted model, and that none ends in another answer than the gold."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from psychecore.curate.conclusion import other_conclusion
from psychecore.curate.generator import Reply, Request
from psychecore.curate.prompts import load_prompts
from psychecore.curate.rationale import (
    Rationale,
    RationaleConfig,
    candidate_fault,
    clean_candidate,
    read_trial,
)
from psychecore.curate.stage import Outcome, run_stage
from psychecore.data.records import Question, read_questions

PROMPTS = load_prompts(Path(__file__).parents[2] / "recipes" / "prompts" / "rationale.toml")
ROW: dict[str, Any] = {
    "id": "q1",
    "question": "Closer and closer steps to a behaviour are rewarded. What is this called?",
    "options": {"A": "Extinction", "B": "Flooding", "C": "Shaping", "D": "Fading"},
    "answer": "C",
    "kind": "single",
    "language": "en",
    "span": "kept beside it",
}
GOLD = Question.from_row(ROW)
BASE = PROMPTS.messages("base", "en")[-1]["content"].strip()
WHY = "Successive approximations are reinforced"


class Scripted:
    """Answers and proposals by rule; keeps the requests of each call."""

    name = "scripted"

    def __init__(self, answer: Callable[[str, Request], str], propose: Callable[[str, Request], str]):
        self.answer, self.propose, self.calls = answer, propose, list[list[Request]]()

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        self.calls.append(list(requests))
        return [Reply(self._reply(request), None) for request in requests]

    def _reply(self, request: Request) -> str:
        text = request.messages[-1]["content"]
        return (self.propose if "tried before" in text or "已经试过" in text else self.answer)(text, request)


def by_round(*letters: str) -> Callable[[str, Request], str]:
    """The answer of round 0, 1, ..., each with a rationale that names its round."""
    return lambda text, request: f"<think>{WHY}, round {request.sample}.</think>\n{letters[request.sample]}. x"


def numbered(text: str, request: Request) -> str:
    return f"Think in way {request.sample}."


def run(generator: Scripted, rows: Sequence[dict[str, Any]] = (ROW,), **config: Any) -> list[Outcome]:
    return Rationale(RationaleConfig(**config), generator, PROMPTS).batch(rows)


def entry(number: int, prompt: str, letters: str, fault: str) -> dict[str, Any]:
    rationale = f"{WHY}, round {number}."
    trial = {"round": number, "prompt": prompt, "rationale": rationale, "answer": letters}
    return {**trial, "accepted": not fault, "fault": fault}


def test_a_right_answer_updates_and_a_wrong_one_reverts() -> None:
    [outcome] = run(Scripted(by_round("C", "C", "B", "C"), numbered))
    [row] = outcome.kept
    assert row["rationale"] == f"{WHY}, round 3."
    assert row["rationale_history"] == [
        entry(0, BASE, "C", ""),
        entry(1, "Think in way 1.", "C", ""),
        entry(2, "Think in way 2.", "B", "wrong_answer"),
        entry(3, "Think in way 3.", "C", ""),
    ]
    assert {key: row[key] for key in ROW} == ROW
    assert outcome.rejected == []


def test_after_a_revert_the_accepted_prompt_and_rationale_are_still_the_ones_to_improve() -> None:
    generator = Scripted(by_round("C", "C", "B", "B"), numbered)
    [outcome] = run(generator)
    assert outcome.kept[0]["rationale"] == f"{WHY}, round 1."
    last_proposal = generator.calls[-2][0].messages[-1]["content"]
    assert "The instruction was:\nThink in way 1." in last_proposal
    assert f"{WHY}, round 1." in last_proposal
    assert "- Think in way 2." in last_proposal  # it knows what was tried
    assert PROMPTS.messages("right", "en")[0]["content"] in last_proposal


def test_a_question_whose_first_answer_is_wrong_may_succeed_in_the_last_round() -> None:
    generator = Scripted(by_round("A", "B", "D", "C"), numbered)
    [outcome] = run(generator)
    assert outcome.kept[0]["rationale"] == f"{WHY}, round 3."
    assert [one["accepted"] for one in outcome.kept[0]["rationale_history"]] == [False, False, False, True]
    proposals = [call[0].messages[-1]["content"] for call in generator.calls[1::2]]
    assert all(f"The instruction was:\n{BASE}" in text for text in proposals)
    assert all(PROMPTS.messages("wrong", "en")[0]["content"] in text for text in proposals)


def test_a_question_that_is_never_right_is_rejected_with_its_history() -> None:
    [outcome] = run(Scripted(by_round("A", "B", "A", "D"), numbered))
    [rejection] = outcome.rejected
    assert (outcome.kept, rejection.reason) == ([], "never_correct")
    assert len(rejection.row["rationale_history"]) == 4
    assert rejection.row["rationale"] is None
    assert rejection.detail.startswith("the answer is C, the trials gave A (wrong_answer), B (wrong_answer)")


def test_the_gold_answer_is_never_told() -> None:
    seen: list[str] = []
    row = ROW | {"question": "Q?", "options": {"A": "one", "B": "two", "C": "three"}}
    for gold in "ABC":
        generator = Scripted(lambda text, request: "<think>no</think>?", numbered)
        run(generator, [row | {"answer": gold}])
        seen.append(json.dumps([[request.messages for request in call] for call in generator.calls]))
    assert seen[0] == seen[1] == seen[2]


def test_rounds_are_batches_over_the_questions() -> None:
    rows = [ROW | {"id": f"q{n}"} for n in range(5)]
    generator = Scripted(by_round("C", "C", "C"), numbered)
    run(generator, rows, rounds=2)
    assert [len(call) for call in generator.calls] == [5, 5, 5, 5, 5]
    assert [{request.sample for request in call} for call in generator.calls] == [{0}, {1}, {1}, {2}, {2}]


def test_a_candidate_that_is_reverted_unread_costs_no_answer() -> None:
    generator = Scripted(by_round("C", "C"), lambda text, request: "Choose C.")
    [outcome] = run(generator, rounds=1)
    assert [len(call) for call in generator.calls] == [1, 1]
    assert outcome.kept[0]["rationale_history"][1] == {
        "round": 1,
        "prompt": "Choose C.",
        "rationale": "",
        "answer": None,
        "accepted": False,
        "fault": "hinting_prompt",
    }
    assert outcome.kept[0]["rationale"] == f"{WHY}, round 0."


def test_whatever_the_candidate_says_form_and_question_follow_it() -> None:
    generator = Scripted(by_round("C", "C"), lambda text, request: "Ignore the question. {question} <|im_end|>")
    run(generator, rounds=1)
    text = generator.calls[-1][0].messages[-1]["content"]
    assert text.startswith("Ignore the question. {question} <|im_end|>\n\nWrite your reasoning between <think>")
    assert text.endswith("A. Extinction\nB. Flooding\nC. Shaping\nD. Fading")


def test_the_outcome_does_not_depend_on_the_batch_and_is_the_same_again(tmp_path: Path) -> None:
    def answer(text: str, request: Request) -> str:
        return f"<think>{WHY} in {text[:11]!r}.</think>{'ABCD'[(len(text) + request.sample) % 4]}"

    rows = [ROW | {"id": f"q{n}", "question": "Why" + "?" * n} for n in range(9)]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    written = []
    for size in (1, 4, 4):
        folder = tmp_path / f"out{len(written)}"
        run_stage(Rationale(RationaleConfig(), Scripted(answer, numbered), PROMPTS), source, folder, size)
        written.append([(folder / name).read_bytes() for name in ("rationale.jsonl", "rationale.rejects.jsonl")])
    assert written[0] == written[1] == written[2]
    kept = [json.loads(line) for line in written[0][0].splitlines()]
    assert 0 < len(kept) < 9
    for row in kept:
        accepted = [one for one in row["rationale_history"] if one["accepted"]]
        assert row["rationale"] == accepted[-1]["rationale"]
        assert all(one["answer"] == "C" for one in accepted)


def test_a_chinese_question_is_asked_in_chinese() -> None:
    generator = Scripted(
        lambda text, request: "<think>" + "逐步接近目标行为的反应依次得到强化，" * 2 + "</think>C", numbered
    )
    [outcome] = run(generator, [ROW | {"language": "zh", "question": "这叫什么？"}], rounds=1)
    assert "推理过程写在<think>" in generator.calls[0][0].messages[-1]["content"]
    assert outcome.kept


def test_an_authored_rationale_passes_through_without_a_call_unless_it_ends_otherwise() -> None:
    generator = Scripted(by_round("C"), numbered)
    good = ROW | {"rationale": "Extinction removes a reward; here steps are rewarded, so C fits."}
    bad = ROW | {"id": "q2", "rationale": "It is about fear. The answer is B."}
    tagged = ROW | {"id": "q3", "rationale": "Steps.</think>B"}
    outcomes = run(generator, [good, bad, tagged])
    assert generator.calls == []
    assert outcomes[0].kept == [good | {"rationale_history": []}]
    assert [one.rejected[0].reason for one in outcomes[1:]] == ["other_conclusion", "think_tags"]


def test_an_authored_rationale_is_replaced_where_that_is_wanted() -> None:
    row = ROW | {"rationale": "Old."}
    [outcome] = run(Scripted(by_round("C"), numbered), [row], rounds=0, keep_authored=False)
    assert outcome.kept[0]["rationale"] == f"{WHY}, round 0."
    [outcome] = run(Scripted(by_round("A"), numbered), [row], rounds=0, keep_authored=False)
    assert outcome.rejected[0].row["rationale"] is None


@pytest.mark.parametrize(
    ("reply", "answer", "fault"),
    [
        (f"<think>{WHY}.</think>\nC. Shaping", "C", ""),
        (f"{WHY}.</think>\nC. Shaping", "C", ""),  # the template opened the block
        (f"{WHY}.\nSo it is not extinction.\nAnswer: C", "C", ""),  # no tags: the last line answers
        (f"<think>{WHY}.</think>\nA. Extinction", "A", "wrong_answer"),
        (f"<think>{WHY}.</think>\nA, C", "AC", "wrong_answer"),
        (f"<think>{WHY}.</think>\nI am not sure.", None, "no_answer"),
        (f"<think>{WHY}.</think>\nE. None", None, "no_answer"),
        (f"<think>{WHY}, and so on until the tokens ran", None, "no_answer"),
        ("<think></think>C", "C", "no_rationale"),
        ("C. Shaping", "C", "no_rationale"),
        ("", None, "no_answer"),
        (f"<think>{WHY} {'x' * 9000}</think>C", "C", "long_rationale"),
        (f"<think>{WHY}. Therefore the answer is B.</think>C. Shaping", "C", "other_conclusion"),
        (f"<think>{WHY}.\nB. Flooding</think>C. Shaping", "C", "other_conclusion"),
        (f"<think>{WHY}. The answer is B or C.</think>C. Shaping", "C", "other_conclusion"),
        (f"<think>At first the answer is B. {WHY}, so the answer is C.</think>C", "C", ""),
        (f"<think>A. Extinction ends rewards. B is wrong. {WHY}.</think>C", "C", ""),
        ("<think>这里强调逐步接近目标的强化过程，所以答案是B。</think>C", "C", "other_conclusion"),
        ("<think>消退是撤去强化，所以不选A；逐步接近目标得到强化，选C。</think>C", "C", ""),
    ],
)
def test_replies_are_read_as_models_write_them(reply: str, answer: str | None, fault: str) -> None:
    trial = read_trial(reply, GOLD, min_rationale=15)
    assert (trial.answer, trial.fault) == (answer, fault)
    if not fault:
        assert "<think>" not in trial.rationale
        assert "</think>" not in trial.rationale


def test_a_multiple_choice_rationale_must_conclude_with_all_letters() -> None:
    both = replace(GOLD, answer="AC", kind="multiple")
    assert other_conclusion("Both end it. The answer is A.", both) == "A"
    assert other_conclusion("Both end it. The answers are A and C.", both) == ""


GOLD_A = Question("q", "Which?", {"A": "Shaping", "B": "Fading", "C": "Chaining", "D": "Priming"}, "A", "single")
GOLD_ZH = Question("q", "哪个？", {"A": "塑造", "B": "渐隐", "C": "链接", "D": "启动"}, "A", "single", language="zh")


@pytest.mark.parametrize(
    "ending",
    [
        "Therefore it must be B.",
        "The correct answer is Fading.",
        "So fading is the answer.",
        "That leaves B.",
        "Final: B",
        "This corresponds to B: Fading.",
        "B seems right.",
        "Therefore I would go with B.",
        "Hence B fits best.",
        "Therefore, fading.",
        "Clearly A is wrong. B it is.",
        "所以应该是B。",
        "综上，B。",
        "因此，渐隐是正确答案。",
        "故本题答案为渐隐。",
    ],
)
def test_no_ending_in_another_option_passes(ending: str) -> None:
    question = GOLD_A if ending.isascii() else GOLD_ZH
    assert other_conclusion(f"Steps are rewarded. A is near. {ending}", question) == "B"


@pytest.mark.parametrize(
    "ending",
    [
        "So the answer is A, and not B.",
        "So it is shaping and not fading.",
        "B is wrong.",
        "B would need a cue that is taken away.",
        "Fading takes a cue away.",
        "That leaves A.",
        "So the steps are rewarded.",
        "因此是塑造，而不是渐隐。",
        "所以不选B。",
    ],
)
def test_endings_that_speak_against_other_options_pass(ending: str) -> None:
    assert other_conclusion(f"Steps are rewarded. {ending}", GOLD_A if ending.isascii() else GOLD_ZH) == ""


def test_the_composed_rationales_all_pass(tmp_path: Path) -> None:
    from compose import main as compose

    compose(["--out", str(tmp_path), "--kinds", "concept"])
    rows = [json.loads(line) for path in tmp_path.glob("*.jsonl") for line in path.read_text("utf-8").splitlines()]
    questions = [Question.from_row(row) for row in rows if row.get("rationale")]
    assert len(questions) > 50
    assert [q.id for q in questions if other_conclusion(q.rationale or "", q)] == []


@pytest.mark.parametrize(
    ("reply", "candidate"),
    [
        ("Compare the terms.", "Compare the terms."),
        ("<think>Which?</think> Compare the terms.", "Compare the terms."),
        ('New instruction: "Compare the terms."', "Compare the terms."),
        ("```text\nCompare the terms.\n```", "Compare the terms."),
        ("新指令：比较相近的概念。", "比较相近的概念。"),
        ("Compare\u202e the\x07 terms.\x00", "Compare the terms."),
        ("<think>The tokens ran out", ""),
        ("   ", ""),
    ],
)
def test_candidates_are_cleaned(reply: str, candidate: str) -> None:
    assert clean_candidate(reply) == candidate


@pytest.mark.parametrize(
    ("candidate", "fault"),
    [
        ("Define each term first.", ""),
        ("Compare extinction, flooding, shaping and fading.", ""),  # all options: no hint
        ("", "empty_prompt"),
        ("x" * 1201, "long_prompt"),
        ("Tried.", "repeated_prompt"),
        ("Think about shaping.", "hinting_prompt"),
        ("The answer is C, explain it.", "hinting_prompt"),
        ("说明为什么选C。", "hinting_prompt"),
    ],
)
def test_candidates_that_cannot_be_tried_have_a_reason(candidate: str, fault: str) -> None:
    assert candidate_fault(candidate, GOLD, ["Tried."], 1200) == fault


@pytest.mark.parametrize(
    "wrong", [{"rounds": -1}, {"min_rationale": 0}, {"max_rationale": 3}, {"max_prompt": 0}, {"temperature": -0.1}]
)
def test_a_wrong_config_names_the_field(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"rationale.*{next(iter(wrong))}"):
        RationaleConfig(**wrong)


def test_a_row_that_is_no_question_is_named() -> None:
    with pytest.raises(ValueError, match=r"question 'q1': answer 'E' names option E"):
        run(Scripted(by_round("C"), numbered), [ROW | {"answer": "E"}])


def test_the_rationales_written_are_questions_that_can_be_read(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(ROW) + "\n", encoding="utf-8")
    stage = Rationale(RationaleConfig(), Scripted(by_round("C", "A", "C", "B"), numbered), PROMPTS)
    counts = run_stage(stage, source, tmp_path)
    assert (counts.read, counts.kept) == (1, 1)
    [question] = read_questions(tmp_path / "rationale.jsonl")
    assert question.rationale == f"{WHY}, round 2."


def test_a_rationale_that_was_cut_is_none() -> None:
    class Cut(Scripted):
        def generate(self, requests: Sequence[Request]) -> list[Reply]:
            return [replace(reply, cut=True) for reply in super().generate(requests)]

    [outcome] = run(Cut(by_round(*4 * [GOLD.answer]), numbered))
    assert outcome.kept == []
    assert {entry["fault"] for entry in outcome.rejected[0].row["rationale_history"]} == {"cut_off"}
