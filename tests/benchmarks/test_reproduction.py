"""The reproduction: nothing held out trains, the sets are what their names say, the page has its places."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS / "reproduction"))

import pages  # noqa: E402
import run  # noqa: E402
from arms import ARMS, MAIN, SEEDS, plan  # noqa: E402
from run import match_answers, reletter, same_number  # noqa: E402
from tasks import CHARACTERS, POST, Task, field_task, topic_task  # noqa: E402

COUNSEL_CHAT = BENCHMARKS.parents[1] / "shared" / "data" / "counsel_chat" / "counsel_chat.jsonl"


@pytest.fixture(scope="module", params=["field", "topic"])
def task(request: pytest.FixtureRequest) -> Task:
    if request.param == "field":
        return field_task(42)
    if not COUNSEL_CHAT.exists():
        pytest.skip("../shared/data/counsel_chat is not there")
    return topic_task(42, COUNSEL_CHAT)


def described(question) -> str:  # type: ignore[no-untyped-def]
    return question.context or question.question


def test_no_held_out_text_trains(task: Task) -> None:
    train = {described(question) for question in (*task.warmup, *task.pool)}
    assert len(task.warmup) + len(task.pool) == len(train)
    for questions in task.heldout.values():
        assert not train & {described(question) for question in questions}
    posts = {row.messages[0]["content"] for row in task.dialogues}
    assert not posts & {row.messages[0]["content"] for row in task.heldout_dialogues}
    for post in (row.messages[0]["content"][:100] for row in task.heldout_dialogues):
        assert not any(text.startswith(post) for text in train)


def test_what_sft_trains_on_has_ids_of_its_own(task: Task) -> None:  # data/records.py refuses a file where it does not
    ids = [row.id for row in (*task.warmup, *task.pool, *task.dialogues)]
    assert len(ids) == len(set(ids))


def test_texts_are_cut_and_the_gold_letter_is_spread(task: Task) -> None:
    for row in (*task.dialogues, *task.heldout_dialogues):
        assert all(0 < len(message["content"]) <= CHARACTERS for message in row.messages)
    for questions in (task.pool, *task.heldout.values()):
        assert all(question.context is None or len(question.context) <= POST for question in questions)
        for letter in "ABCD":
            assert 0.1 < sum(question.answer == letter for question in questions) / len(questions) < 0.4


def test_a_seed_draws_another_task_and_one_seed_the_same() -> None:
    assert field_task(42) == field_task(42)
    assert {q.id for q in field_task(42).pool} != {q.id for q in field_task(1).pool}


def test_hard_random_and_easy_questions_are_equally_many_and_of_the_pool() -> None:
    pool = field_task(42).pool
    sets = {"easy": pool[:150], "hard": pool[150:]}
    drawn = same_number(sets, 42)
    assert {len(rows) for rows in drawn.values()} == {150}
    for side, rows in sets.items():
        assert {q.id for q in drawn[side]} <= {q.id for q in rows}
        assert {q.id for q in rows} & {q.id for q in drawn["random"]}


def test_every_arm_is_planned_the_main_ones_with_every_seed() -> None:
    planned = plan(("field", "topic"))
    assert len(planned) == len(set(planned))
    assert {arm for _, arm, _ in planned} == set(ARMS)
    for arm in MAIN:
        assert {(task, seed) for task, name, seed in planned if name == arm} == {
            (task, seed) for task in ("field", "topic") for seed in SEEDS
        }


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--arm", "kl_0"], [("field", "kl_0", 42)]),
        (["--arm", "kl_0", "--seed", "1"], [("field", "kl_0", 1)]),  # not in the plan, but asked for
        (["--arm", "paper", "--seed", "2", "--task", "field"], [("field", "paper", 2)]),
        (["--arm", "sft", "--task", "field"], [("field", "sft", seed) for seed in SEEDS]),
    ],
)
def test_what_is_asked_for_is_run(
    flags: list[str], expected: list[tuple[str, str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, str, int]] = []
    monkeypatch.setattr(run, "run_arm", lambda task, arm, seed, *_: ran.append((task, arm, seed)))
    monkeypatch.setattr(sys, "argv", ["run.py", "--folder", str(tmp_path), *flags])
    run.main()
    assert ran == expected  # what is committed is no reason to leave an arm out
    (tmp_path / "results").mkdir()
    for task, arm, seed in expected[1:]:
        (tmp_path / "results" / f"{task}-{arm}-{seed}.json").write_text("{}", encoding="utf-8")
    run.main()
    assert ran[len(expected) :] == expected[:1]


def test_a_model_of_other_settings_is_not_taken_for_this_arm_s(tmp_path: Path) -> None:
    (tmp_path / "sft" / "export").mkdir(parents=True)
    (tmp_path / "sft.settings").write_text("others", encoding="utf-8")
    with pytest.raises(ValueError, match="sft holds a model of other settings or data: remove it"):
        run.recipe("sft", tmp_path / "sft", 1, field_task(1).dialogues)


def test_relettering_keeps_the_question_and_frees_its_letter(task: Task) -> None:
    fresh = [reletter(question, 1) for question in task.pool]
    for old, new in zip(task.pool, fresh, strict=True):
        assert new.options[new.answer] == old.options[old.answer]
        assert sorted(new.options.values()) == sorted(old.options.values())
        assert list(new.options) == list(old.options)
    kept = sum(new.answer == old.answer for old, new in zip(task.pool, fresh, strict=True)) / len(fresh)
    assert 0.15 < kept < 0.35
    biased = [reletter(replace(question, answer="A"), 1).answer for question in task.pool]
    assert all(biased.count(letter) > len(biased) / 6 for letter in "ABCD")


def test_matched_answers_are_those_of_the_other_set_with_questions_of_the_hard_one(task: Task) -> None:
    hard, like = task.pool[:100], task.pool[100:]
    found = match_answers(hard, like, 1)
    assert len({question.id for question in found}) == len(found) > len(like) / 2
    texts = [described(question) for question in hard]
    assert all(described(question) in texts for question in found)
    counts, wanted = (Counter(q.options[q.answer] for q in rows) for rows in (found, like))
    able = {question.options[question.answer] for question in hard}
    assert counts == {answer: count for answer, count in wanted.items() if answer in able}


def test_the_page_gets_tables_and_charts_from_result_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arm, right in (("base", "0010"), ("sft", "0110"), ("paper", "1110")):
        sets = {"heldout": {"accuracy": right.count("1") / 4, "format_rate": 1.0, "right": right}}
        row = {"task": "field", "arm": arm, "seed": 42, "heldout": sets, "perplexity": 9.0, "minutes": {}}
        if arm == "paper":
            names = ("reward_correct", "informative", "length", "kl")
            row["minutes"] = {"sft": 2.0, "paper": 3.0}
            row["curves"] = {name: [0.25, 0.5, 0.75, 1.0] for name in names}
        (tmp_path / f"field-{arm}-42.json").write_text(json.dumps(row), encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(pages.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(pages, "RESULTS", tmp_path)
    monkeypatch.setattr(pages, "PAGE", page)
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- reproduction -->\nold\n<!-- end -->\nafter\n", encoding="utf-8")
    monkeypatch.setattr(pages, "README", readme)
    for _ in range(2):  # a second time replaces the tables
        pages.main()
    text = page.read_text(encoding="utf-8")
    assert text.count("| field | SFT only | 1 | heldout | **50.0** (15.0 to 85.0) | 50.0 | 100% | 9.0 |") == 1
    assert text.count("| field | SFT only | 1 | heldout | +25.0 (+0.0 to +75.0) |") == 1
    assert "| field | GRPO | 1 | 3.0 | 3 |" in text
    lines = readme.read_text(encoding="utf-8").splitlines()
    assert "| SFT only | **50.0** (15.0 to 85.0), n 4 |" in lines
    assert "old" not in lines
    for chart in ("reproduction_field.svg", "reproduction_field_reward_correct.svg", "reproduction_field_kl.svg"):
        ElementTree.parse(tmp_path / chart)
