"""Question files in our schema and in the plain one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from psychecore.data.records import Question, write_rows
from psychecore.evaluate.item import Item
from psychecore.evaluate.question_files import first_of_each, read_question_file


def plain(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def test_rows_of_our_schema_come_back_as_they_were_written(tmp_path: Path) -> None:
    question = Question("q", "Which?", {"A": "x", "B": "y"}, "AB", "multiple", area="memory")
    write_rows(tmp_path / "x.jsonl", [question])
    assert read_question_file(tmp_path / "x.jsonl") == [Item(question, {"kind": "multiple", "area": "memory"})]


def test_a_row_of_our_schema_without_a_language_is_asked_in_what_it_is_written_in(tmp_path: Path) -> None:
    row = {
        "id": "q",
        "question": "下列属于强化的是",
        "options": {"A": "甲", "B": "乙"},
        "answer": "AB",
        "kind": "multiple",
    }
    rows = [row, row | {"id": "r", "language": "en"}]
    assert [item.question.language for item in read_question_file(plain(tmp_path / "x.jsonl", *rows))] == ["zh", "en"]


@pytest.mark.parametrize("count", [2, 3, 4, 5])
@pytest.mark.parametrize("case", [str.lower, str.upper])
def test_two_to_five_options_in_either_case(count: int, case: Any, tmp_path: Path) -> None:
    letters = "ABCDE"[:count]
    row = {
        "question": "Which?",
        "options": {case(letter): f"text {letter}" for letter in letters},
        "answer": case(letters[-1]),
    }
    (item,) = read_question_file(plain(tmp_path / "x.jsonl", row))
    assert list(item.question.options) == list(letters)
    assert (item.question.answer, item.question.kind, item.question.language) == (letters[-1], "single", "en")


def test_several_letters_make_a_multiple_choice_question_and_chinese_is_asked_in_chinese(tmp_path: Path) -> None:
    row = {"id": 3, "question": "下列哪项正确？", "options": {"b": "乙", "a": "甲", "c": ""}, "answer": "b、a"}
    (item,) = read_question_file(plain(tmp_path / "x.jsonl", row))
    assert item.question == Question("3", "下列哪项正确？", {"A": "甲", "B": "乙"}, "AB", "multiple", language="zh")


def test_a_number_is_an_option_like_any_other(tmp_path: Path) -> None:
    row = {"question": "How many?", "options": {"a": "one", "b": 2, "c": 0, "d": 2.5}, "answer": "c"}
    (item,) = read_question_file(plain(tmp_path / "x.jsonl", row))
    assert item.question.options == {"A": "one", "B": "2", "C": "0", "D": "2.5"}


GOOD = {"question": "Which?", "options": {"a": "x", "b": "y"}, "answer": "a"}


@pytest.mark.parametrize(
    ("row", "match"),
    [
        (GOOD | {"answer": "c"}, "answer is 'c', but must name options out of AB"),
        (GOOD | {"answer": ""}, "must name options"),
        (GOOD | {"options": {"a": "x"}}, "a choice needs two"),
        (GOOD | {"options": {"a": "x", "c": "y"}}, "without gaps"),
        (GOOD | {"options": ["x", "y"]}, r"options is \['x', 'y'\], but must be texts by letter, as in \{\"A\""),
        ({"question": "Which?", "answer": "a"}, "options is None, but must be texts by letter"),
        *(
            (GOOD | {"options": {"a": "x", "b": "y", "c": value}}, f"option 'c' is {match}, but must be a text or a n")
            for value, match in [(None, "None"), ([1], r"\[1\]"), (True, "True"), ({}, r"\{\}")]
        ),
        (GOOD | {"context": ["a case"]}, r"context is \['a case'\], but must be a text"),
        (GOOD | {"area": 3}, "area is 3, but must be a text"),
        (GOOD | {"question": " "}, "must be a text"),
        (GOOD | {"id": "one"}, "already stands on line 1"),
        (GOOD | {"kind": "single"}, "options are lettered"),
    ],
)
def test_a_wrong_row_is_an_error_with_file_and_line(row: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"x\.jsonl line 2: .*{match}"):
        read_question_file(plain(tmp_path / "x.jsonl", GOOD | {"id": "one"}, row))


def test_a_limit_takes_the_first_of_each_group(tmp_path: Path) -> None:
    rows = [GOOD | {"id": str(n), "area": "ab"[n % 2]} for n in range(6)]
    items = read_question_file(plain(tmp_path / "x.jsonl", *rows))
    assert [item.question.id for item in first_of_each(items, "area", 2)] == ["0", "1", "2", "3"]
    assert first_of_each(items, "area", 0) == items
