from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychecore.curate.review import (
    Decision,
    ReviewConfig,
    merge_decisions,
    read_decisions,
    review_file,
    row_hash,
    sample_rows,
)
from psychecore.curate.review_csv import read_csv, write_csv


def row(id_: str = "q1", **changes: Any) -> dict[str, Any]:
    return {
        "id": id_,
        "question": "What makes an act more frequent?",
        "options": {"A": "Punishment", "B": "Reinforcement", "C": "Extinction"},
        "answer": "B",
        "kind": "single",
        "language": "en",
        "span": "reinforcement",
        "quality": {"answerable": {"score": 4, "reason": "stated"}},
        **changes,
    }


def said(of: dict[str, Any], decision: str, where: str = "d.jsonl line 1", **more: Any) -> Decision:
    return Decision.from_row({"id": of["id"], "hash": row_hash(of), "decision": decision, **more}, where)


def test_each_decision_does_what_it_says() -> None:
    rows = [row("a"), row("r"), row("e"), row("none")]
    new = {"question": "Which of these makes an act more frequent?"}
    decisions = [
        said(rows[0], "accept"),
        said(rows[1], "reject", reason="trivial"),
        said(rows[2], "edit", edited=new),
    ]
    merged = merge_decisions(rows, decisions)
    accepted, rejected, edited, untouched = merged.outcomes
    assert accepted.kept == [{**rows[0], "review": {"decision": "accept"}}]
    assert [(one.row, one.reason, one.detail) for one in rejected.rejected] == [
        (rows[1], "rejected_by_reviewer", "trivial")
    ]
    assert rejected.kept == []
    note = {"decision": "edit", "reason": "", "before": {"question": rows[2]["question"]}}
    assert edited.kept == [{**rows[2], **new, "review": note}]
    assert untouched.kept == [rows[3]]
    assert merged.undecided == ["none"]
    assert merged.notes == []


@pytest.mark.parametrize(
    "edited", [{"answer": "A"}, {"question": "Which?"}, {"options": {"A": "Reward", "B": "Habit"}}]
)
def test_an_edited_question_loses_the_rationale_that_argued_for_the_old_one(edited: dict[str, Any]) -> None:
    old = row(rationale="Reinforcement makes acts more frequent.")
    [outcome] = merge_decisions([old], [said(old, "edit", edited=edited)]).outcomes
    assert outcome.kept[0]["rationale"] is None
    [outcome] = merge_decisions([old], [said(old, "edit", edited={})]).outcomes
    assert outcome.kept[0]["rationale"] == old["rationale"]


def test_undecided_questions_can_be_rejected() -> None:
    merged = merge_decisions([row()], [], undecided="reject")
    assert merged.outcomes[0].kept == []
    assert merged.outcomes[0].rejected[0].reason == "not_reviewed"


@pytest.mark.parametrize(
    "change",
    [
        {"question": "Another"},
        {"answer": "C"},
        {"options": {"A": "x", "B": "y", "C": "z"}},
        {"kind": "multiple"},
        {"span": "else"},
        {"context": "A case"},
    ],
)
def test_a_changed_question_is_asked_again(change: dict[str, Any]) -> None:
    merged = merge_decisions([row(**change)], [said(row(), "reject")])
    assert merged.undecided == ["q1"]
    assert merged.outcomes[0].kept == [row(**change)]
    assert merged.notes == ["d.jsonl line 1: question 'q1' has changed since, so it is asked again"]


def test_scores_and_other_notes_may_change_without_asking_again() -> None:
    merged = merge_decisions([row(quality={"answerable": 1}, cluster="7")], [said(row(), "reject")])
    assert merged.undecided == []


def test_decisions_for_unknown_questions_are_reported() -> None:
    merged = merge_decisions([row()], [said(row(), "accept"), said(row("gone"), "accept", "d.jsonl line 2")])
    assert merged.notes == ["d.jsonl line 2: no question has the id 'gone'"]


def test_the_later_of_two_decisions_holds_with_a_note_only_where_they_differ() -> None:
    first, second = said(row(), "accept", "d.jsonl line 1"), said(row(), "reject", "d.jsonl line 2")
    merged = merge_decisions([row()], [first, second])
    assert merged.outcomes[0].kept == []
    assert merged.notes == ["d.jsonl line 2: question 'q1': reject overrules accept (d.jsonl line 1)"]
    assert merge_decisions([row()], [first, first]).notes == []


def test_a_decision_about_an_older_version_is_history_once_the_new_one_is_decided() -> None:
    merged = merge_decisions([row()], [said(row(answer="A"), "reject"), said(row(), "accept")])
    assert merged.notes == []
    assert merged.outcomes[0].kept[0]["review"] == {"decision": "accept"}


@pytest.mark.parametrize(
    ("edited", "message"),
    [
        ({"answer": "E"}, "answer 'E' names option E, but the question has A-C"),
        ({"answer": "AB"}, "a question of kind 'single' has one right letter"),
        ({"question": "  "}, "question is"),
        ({"options": {"A": "x", "C": "y"}}, "options are lettered 'AC'"),
    ],
)
def test_an_edit_that_makes_no_valid_question_names_file_line_and_value(
    tmp_path: Path, edited: dict[str, Any], message: str
) -> None:
    path = tmp_path / "decisions.jsonl"
    line = {"id": "q1", "hash": row_hash(row()), "decision": "edit", "edited": edited}
    path.write_text("\n" + json.dumps(line))
    with pytest.raises(ValueError, match="as edited") as error:
        merge_decisions([row()], read_decisions(path))
    assert str(error.value).startswith(f"{path} line 2: question 'q1' as edited: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decision": "maybe"}, "decision is 'maybe', but must be one of accept, reject, edit"),
        ({"decision": ["accept"]}, "decision is"),
        ({"hash": ""}, "hash is ''"),
        ({"id": 7}, "id is 7"),
        ({"reason": 3}, "reason is 3"),
        ({"decision": "edit"}, "edited is None"),
        ({"edited": {"answer": "A"}}, "edited is"),
        ({"decision": "edit", "edited": {"id": "x"}}, "edited is"),
    ],
)
def test_a_damaged_decision_names_file_and_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "decisions.jsonl"
    path.write_text(json.dumps({"id": "q1", "hash": "00", "decision": "accept", **change}) + "\n")
    with pytest.raises(ValueError, match="line 1") as error:
        read_decisions(path)
    assert message in str(error.value)


def test_ids_that_stand_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="'q1' stands twice"):
        merge_decisions([row(), row()], [])


def test_samples_are_nested_seeded_and_in_file_order() -> None:
    rows = [row(f"q{i}") for i in range(200)]
    small, large = (sample_rows(rows, ReviewConfig(sample=n)) for n in (10, 50))
    assert (len(small), len(large)) == (10, 50)
    assert [one for one in large if one in small] == small
    assert [one["id"] for one in large] == sorted((one["id"] for one in large), key=lambda id_: int(id_[1:]))
    assert sample_rows(rows, ReviewConfig(sample=10, seed=1)) != small
    assert sample_rows(rows, ReviewConfig()) == rows
    # half of the rows gone: what is left of the sample stays in it
    left = sample_rows(rows[::2], ReviewConfig(sample=10))
    assert [one for one in small if one in rows[::2]] == [one for one in left if one in small]


def test_a_rerun_gives_the_same_files(tmp_path: Path) -> None:
    source = tmp_path / "quality.jsonl"
    rows = [row(f"q{i}") for i in range(3)]
    source.write_text("".join(json.dumps(one) + "\n" for one in rows))
    decisions = [said(rows[1], "reject", reason="trivial"), said(rows[2], "edit", edited={"answer": "C"})]
    written = []
    for run in ("first", "second"):
        review_file(source, decisions, tmp_path / run, ReviewConfig())
        written.append({path.name: path.read_bytes() for path in (tmp_path / run).iterdir()})
    assert written[0] == written[1]
    assert sorted(written[0]) == ["review.jsonl", "review.rejects.jsonl"]
    kept = [json.loads(line) for line in written[0]["review.jsonl"].splitlines()]
    assert [(one["id"], one["answer"]) for one in kept] == [("q0", "B"), ("q2", "C")]
    rejected = json.loads(written[0]["review.rejects.jsonl"])
    assert rejected == {**rows[1], "reason": "rejected_by_reviewer", "detail": "trivial"}


# ---- the spreadsheet


def fill(path: Path, cells: dict[str, dict[str, str]], delimiter: str = ",") -> None:
    """Change cells by id, as a person does in a spreadsheet."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        lines = [line | cells.get(line["id"], {}) for line in reader]
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(reader.fieldnames or ()), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(lines)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_decisions_come_back_from_a_spreadsheet(tmp_path: Path, delimiter: str) -> None:
    path, rows = tmp_path / "review.csv", [row(f"q{i}") for i in range(4)]
    write_csv(path, rows)
    cells = {
        "q0": {"decision": "a"},
        "q1": {"decision": "Reject", "reason": "trivial; dull"},
        "q2": {"decision": "edit", "C": "", "A": "Praise", "answer": "AB", "kind": "multiple"},
    }
    fill(path, cells, delimiter)
    decisions = read_csv(path, rows)
    assert [(one.id, one.decision, one.reason, one.edited) for one in decisions] == [
        ("q0", "accept", "", None),
        ("q1", "reject", "trivial; dull", None),
        (
            "q2",
            "edit",
            "",
            {"options": {"A": "Praise", "B": "Reinforcement"}, "answer": "AB", "kind": "multiple"},
        ),
    ]
    assert merge_decisions(rows, decisions).undecided == ["q3"]


TEXTS = st.text(alphabet=st.sampled_from("=+-@＝'\"\t\r\n ,;aé中"), min_size=1, max_size=6).filter(str.strip)


@given(TEXTS, TEXTS, TEXTS)
def test_no_cell_is_a_formula_and_every_text_comes_back(
    tmp_path_factory: Any, stem: str, option: str, id_: str
) -> None:
    path = tmp_path_factory.mktemp("csv") / "review.csv"
    rows = [row(id_, question=stem, options={"A": option, "B": "x"}, span=stem, context=option)]
    write_csv(path, rows, decisions=[said(rows[0], "edit", edited={}, reason=option)])
    with open(path, encoding="utf-8-sig", newline="") as file:
        for cells in csv.reader(file):
            assert not [cell for cell in cells if cell.lstrip()[:1] and cell.lstrip()[0] in "=+-@＝"]
    decision = read_csv(path, rows)[0]
    assert decision.id == id_
    assert decision.reason == option.replace("\r\n", "\n").strip()
    assert decision.edited == {}  # so question and options are what they were, whatever they begin with


def test_a_text_changed_without_edit_is_an_error_with_file_and_line(tmp_path: Path) -> None:
    path, rows = tmp_path / "review.csv", [row("q0", question="Two\nlines"), row("q1")]
    write_csv(path, rows)
    fill(path, {"q1": {"decision": "accept", "answer": "C"}})
    with pytest.raises(ValueError, match=r"review.csv line 4: answer changed, but the decision is 'accept'"):
        read_csv(path, rows)


def test_a_spreadsheet_of_older_questions_is_only_reported(tmp_path: Path) -> None:
    path = tmp_path / "review.csv"
    write_csv(path, [row("q0"), row("q1")])
    fill(path, {"q0": {"decision": "edit", "question": "Mine"}, "q1": {"decision": "accept"}})
    now = [row("q0", question="Rewritten upstream")]
    merged = merge_decisions(now, read_csv(path, now))
    assert merged.undecided == ["q0"]
    assert [note.partition(": ")[2] for note in merged.notes] == [
        "question 'q0' has changed since, so it is asked again",
        "no question has the id 'q1'",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id,decision,question,A,B,answer\n", "line 1: column 'hash' is missing"),
        ("id,decision\nq1,拒绝".encode("gbk"), "not UTF-8"),
        (b"", "line 1: column 'id' is missing"),
        (b"id,decision,question,A,B,answer,hash\nq1,perhaps,s,x,y,A,00\n", "line 2: decision is 'perhaps'"),
    ],
)
def test_a_damaged_spreadsheet_says_what_is_wrong(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "review.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"review\.csv") as error:
        read_csv(path, [row()])
    assert message in str(error.value)


def test_earlier_decisions_are_filled_in_where_they_hold(tmp_path: Path) -> None:
    path, rows = tmp_path / "review.csv", [row("q0"), row("q1", question="Changed")]
    write_csv(path, rows, decisions=[said(row("q0"), "reject", reason="dull"), said(row("q1"), "accept")])
    decisions = read_csv(path, rows)
    assert [(one.id, one.decision, one.reason) for one in decisions] == [("q0", "reject", "dull")]
