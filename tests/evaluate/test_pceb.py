"""PCEB as published, its dirt, and its floors computed a second way from the raw files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from tests_replies import said

from psychecore.evaluate.answers import read_replies
from psychecore.evaluate.item import clean_letters
from psychecore.evaluate.pceb import COLUMNS, column_weights, read_pceb, without_points
from psychecore.evaluate.scores import by_group, choice_scores, macro_score, tally
from psychecore.reward.correctness import credit

OPTIONS = {"A": "⼈格", "B": "二", "C": "三", "D": "四"}


def row(answer: Any = "A", options: Any = None, **more: Any) -> dict[str, Any]:
    return {"id": 1, "question": "问题", "options": options or OPTIONS, "answer": answer, **more}


def write(folder: Path, path: str, rows: Any) -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(json.dumps(rows, ensure_ascii=False), "utf-8")


def test_dirt_is_survived_and_what_is_dropped_has_file_row_and_reason(tmp_path: Path) -> None:
    single = [
        row("B\u2003"),
        row("\u00a0b\n"),
        row(""),
        row("BCD"),
        row("E"),
        row("甲"),
        row("A", {"A": "x", "B": ""}),
        "no object",
        row("B", {"C": "三", "A": "一", "B": "二"}),
        row(7),
        row("A", {"A": "x", "a": "y", "B": "z"}),
        row("A", {"A": "x", "B": "y", "C": None}),
        row("A", ["x", "y"]),
    ]
    write(tmp_path, "theory/single/third/a.json", single)
    case = {"identifier": 1, "general_info": "女性", "case_introduction": "经过"}
    parts = [row("AC", question="多选：1．甲"), row("D", question="【单选】乙"), row("A", question="丙"), row("D")]
    parts[3]["question"] = "多选：丁"
    cases = [{**case, "questions_and_answers": parts}, {"questions_and_answers": []}]
    cases.append({**case, "general_info": ["女性"], "questions_and_answers": parts})
    write(tmp_path, "cases/mix/second/b.json", cases)
    essay = {"question": "简述？（20分）", "answer": "（1）甲（2分）。\n（2）⼄（每点1分，共3分）。"}
    write(tmp_path, "cases/essay/third/c.json", [{**case, "questions_and_answers": [essay, {"question": "x"}]}])
    write(tmp_path, "notes/d.json", [row()])
    found = read_pceb(tmp_path)
    assert [(item.question.answer, item.groups["column"]) for item in found.items] == [
        *(("AC", "case multiple"), ("D", "case single"), ("D", "case multiple")),
        *(("B", "theory single"), ("B", "theory single"), ("BCD", "theory single"), ("B", "theory single")),
    ]
    assert found.items[0].question.context == "女性\n经过"
    assert found.items[0].question.question == "1.甲"
    assert found.items[0].question.options["A"] == "人格"
    assert list(found.items[-1].question.options) == ["A", "B", "C"]
    assert found.items[0].groups["tier"] == "second"
    assert found.essays[0].gold == "（1）甲。\n（2）乙。"
    assert [item.groups.get("case") for item in found.items] == ["cases/mix/second/b.json row 1"] * 3 + [None] * 4
    assert found.essays[0].groups["case"] == "cases/essay/third/c.json row 1"
    absent = [one.reason for one in found.problems if one.file == tmp_path.name]
    assert absent == [
        f"no question of the column {column!r}" for column in ("moral single", "moral multiple", "theory multiple")
    ]
    problems = [one for one in found.problems if one.file != tmp_path.name]
    reasons = {(one.file.split("/")[-1], one.row): one.reason for one in problems if one.dropped}
    assert {place: reason.split(",")[0].split("'")[0] for place, reason in reasons.items()} == {
        ("a.json", "row 3"): "the answer is empty",
        ("a.json", "row 5"): "the answer E names E",
        ("a.json", "row 6"): "the answer ",
        ("a.json", "row 7"): "it has 1 options that hold text",
        ("a.json", "row 8"): "a str",
        ("a.json", "row 10"): "the answer 7 is no set of option letters",
        ("a.json", "row 11"): "option A stands twice",
        ("a.json", "row 12"): "option ",
        ("a.json", "row 13"): "options is [",
        ("b.json", "row 1 question 3"): "the question starts with neither 单选 nor 多选",
        ("b.json", "row 2"): "it holds neither general_info nor case_introduction",
        ("b.json", "row 3"): "general_info is [",
        ("c.json", "row 1 question 2"): "the answer is empty",
        ("d.json", ""): "it stands in no folder of the published layout",
    }
    kept = [(one.row, one.reason) for one in found.problems if not one.dropped]
    assert ("row 4", "a single-choice question with the answer BCD") in kept
    assert ("row 1 question 4", "a multiple-choice question with the answer D") in kept
    assert ("row 2", "the same question as theory/single/third/a.json row 1") in kept


@pytest.mark.parametrize(("content", "match"), [("{", "not JSON"), ("{}", "a dict"), ("[NaN]", "NaN")])
def test_a_file_that_is_no_list_of_rows_is_named(content: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "theory" / "single").mkdir(parents=True)
    (tmp_path / "theory" / "single" / "x.json").write_text(content)
    with pytest.raises(ValueError, match=rf"x\.json: .*{match}"):
        read_pceb(tmp_path)


def test_a_folder_that_is_no_pceb_and_a_link_out_of_it_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no PCEB folder"):
        read_pceb(tmp_path)
    (tmp_path / "pceb" / "theory" / "single").mkdir(parents=True)
    write(tmp_path, "secret.json", [row()])
    (tmp_path / "pceb" / "theory" / "single" / "x.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(ValueError, match="a link out of its folder"):
        read_pceb(tmp_path / "pceb")
    (tmp_path / "pceb" / "moral").symlink_to(tmp_path / "pceb" / "theory")
    with pytest.raises(ValueError, match="moral is a link, which is not followed"):
        read_pceb(tmp_path / "pceb")


@pytest.mark.parametrize(
    ("gold", "plain"),
    [
        ("诊断（2分），", "诊断，"),
        ("甲(10分)乙【5 分】", "甲乙"),
        ("（每点1分，共3分）甲", "甲"),
        ("得（分）与（3分钟）不变", "得（分）与（3分钟）不变"),
        ("满分（100）", "满分（100）"),
        ("甲（3点，共6分）乙（写出任意3点即可，每点2分，共6分）", "甲乙"),
        ("甲（任答3点得6分）乙（酌情给1-2分）丙（2～3分）丁［2分］", "甲乙丙丁"),
        *[
            (text, text)
            for text in ("较高（65分，重度抑郁）", "（该量表总分72分）", "（60分以上为外向）", "原始分（26分）")
        ],
    ],
)
def test_point_marks_go_and_nothing_else(gold: str, plain: str) -> None:
    assert without_points(gold) == plain


def test_a_key_is_read_in_any_dress() -> None:
    assert [clean_letters(key) for key in ("ＡＣ", "c、a", "A, C", "AAC", None, " ")] == [
        "AC",
        "AC",
        "AC",
        "AC",
        "",
        "",
    ]


def raw_keys(folder: Path) -> Iterator[tuple[str, str]]:
    """(column, key) by another way than the reader's."""
    for path in folder.rglob("*.json"):
        area, form = path.relative_to(folder).parts[:2]
        for entry in json.loads(path.read_text("utf-8")) if form != "essay" else []:
            for part in entry.get("questions_and_answers", [entry]):
                kind = {"单": "single", "多": "multiple"}[part["question"][0]] if form == "mix" else form
                yield f"{'case' if area == 'cases' else area} {kind}", part["answer"].strip()


def test_the_shared_part_is_read_whole_and_its_floor_is_that_of_brute_force(shared_folder: Path) -> None:
    found = read_pceb(shared_folder / "data" / "pceb")
    keys: dict[str, list[str]] = {}
    for column, key in raw_keys(shared_folder / "data" / "pceb"):
        keys.setdefault(column, []).append(key)
    assert not [problem for problem in found.problems if problem.dropped]
    assert (len(found.items), len(found.essays)) == (1866, 40)
    items = tally(read_replies(found.items, said([""] * len(found.items)), 1))
    weights = column_weights({column: len(members) for column, members in by_group(items, "column").items()})
    assert sorted(weights) == sorted(COLUMNS)
    sets = ["".join(chosen) for size in (1, 2, 3, 4) for chosen in combinations("ABCD", size)]
    for elastic, published in ((False, 23.84), (True, 31.5)):
        best = []
        for column in COLUMNS:
            rule: Any = "elastic" if elastic and "multiple" in column else "strict"
            best.append(max(sum(credit(one, key, rule) for key in keys[column]) / len(keys[column]) for one in sets))
        score = macro_score(items, "column", weights, elastic)
        assert score.constant == pytest.approx(sum(best) / 6)
        assert 100 * sum(best) / 6 == pytest.approx(published, abs=0.5)  # the paper's is of the whole benchmark


def test_the_averages_are_plain_means_of_the_six_columns(tmp_path: Path) -> None:
    right = {"case single": 3, "case multiple": 1, "moral single": 4, "moral multiple": 0, "theory single": 2}
    right["theory multiple"] = 2
    texts: list[str] = []
    for column, count in right.items():
        area, kind = column.split()
        key = "ABC" if kind == "multiple" else "B"
        partly = "AB" if kind == "multiple" else "A"
        if area == "case":
            stem = {"single": "单选：甲", "multiple": "多选：乙"}[kind]
            parts = [row(key, question=f"{stem}{n}") for n in range(4)]
            entry = {"general_info": "女", "questions_and_answers": parts}
            write(tmp_path, f"cases/mix/third/{kind}.json", [entry])
        else:
            write(tmp_path, f"{area}/{kind}/third/x.json", [row(key, question=str(n)) for n in range(4)])
        right[column] = count
        texts += [f"<think>x</think>{key if n < count else partly}" for n in range(4)]
    items = read_pceb(tmp_path).items
    by_column = {column: texts[4 * n : 4 * n + 4] for n, column in enumerate(right)}
    replies = [by_column[item.groups["column"]].pop(0) for item in items]
    tallied = tally(read_replies(items, said(replies), 1))
    weights = column_weights(dict.fromkeys(COLUMNS, 4))
    shares = {column: count / 4 for column, count in right.items()}
    assert macro_score(tallied, "column", weights).value == pytest.approx(sum(shares.values()) / 6)
    soft = {c: share if "single" in c else share + (1 - share) * 2 / 3 for c, share in shares.items()}
    assert macro_score(tallied, "column", weights, elastic=True).value == pytest.approx(sum(soft.values()) / 6)
    assert choice_scores(tallied).accuracy.value == pytest.approx(sum(right.values()) / 24)
