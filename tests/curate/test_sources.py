"""What a curation starts from: texts divided into passages, posts in several forms, ready questions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychecore.curate.sources import PassageConfig, divide_text, read_given, read_passages, read_posts

SMALL = PassageConfig(least=40, most=120)
paragraphs = st.lists(st.text("abc 心理。.\n#", min_size=0, max_size=300), max_size=6).map("\n\n".join)


@given(paragraphs)
def test_passages_are_bounded_and_hold_every_word_in_order(text: str) -> None:
    passages = divide_text(text, SMALL)
    assert all(0 < len(passage) <= SMALL.most for passage in passages)
    assert "".join("".join(passages).split()) == "".join(text.split())


def test_a_text_is_divided_at_paragraphs_then_at_sentences_and_a_heading_starts_anew() -> None:
    short, long = "One short paragraph here.", "A sentence of some forty characters, so. " * 5
    passages = divide_text(f"# First\n\n{short}\n\n## Second\n\n{long.strip()}", SMALL)
    assert passages[0] == f"# First\n\n{short}"
    assert passages[1].startswith("## Second\n\nA sentence")
    assert all(passage.endswith("so.") for passage in passages[1:])


def test_a_long_paragraph_loses_nothing_between_its_sentences() -> None:
    said = 'He said "stop." Then he left (see Fig. 2.) She has a Ph.D. in it. '
    for paragraph in (said * 9, "他说：“停。”（见图2。）He ran. She ran. 她有博士学位！" * 9):
        passages = divide_text(paragraph.strip(), SMALL)
        assert len(passages) > 2
        assert " ".join(passages).replace(" ", "") == paragraph.replace(" ", "")
        assert all(passage in paragraph for passage in passages)


def test_a_folder_of_texts_and_rows_is_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.txt").write_text("﻿记忆是心理学的重要概念。" * 3, "utf-8")
    (tmp_path / "a.md").write_text("# Memory\r\n\r\nWhat was learnt is kept for a while.", "utf-8")
    row = {"id": "r1", "text": "Shaping rewards steps towards a goal.", "area": "general", "title": "A book"}
    (tmp_path / "c.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    (tmp_path / "notes.pdf").write_bytes(b"not read")
    rows = list(read_passages(tmp_path, PassageConfig()))
    assert [(row["id"], row["language"], row["source"]) for row in rows] == [
        ("a.md", "en", "a.md"),
        ("b/two.txt", "zh", "b/two.txt"),
        ("r1", "en", "A book"),
    ]
    assert rows[0]["text"] == "# Memory\n\nWhat was learnt is kept for a while."
    assert rows[2]["area"] == "general"


def test_texts_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "gbk.txt").write_bytes("心理学".encode("gb18030"))
    with pytest.raises(ValueError, match=r"gbk.txt: not UTF-8 .*iconv"):
        list(read_passages(tmp_path, SMALL))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no .txt, .md, .jsonl"):
        list(read_passages(tmp_path / "empty", SMALL))
    with pytest.raises(FileNotFoundError):
        list(read_passages(tmp_path / "absent.txt", SMALL))


def test_posts_are_read_in_our_form_and_in_counsel_chats(tmp_path: Path) -> None:
    ours = {"id": "p1", "post": "I can't sleep.", "reply": "Get up at seven.", "topic": "sleep", "language": "en"}
    theirs = [
        {"question": "我总是睡不着。", "answer": "每天七点起床。", "topic": "睡眠", "title": "失眠"},
        {
            "questionID": 7,
            "questionTitle": "Sleep",
            "questionText": "I lie awake.",
            "answerText": "One.",
            "topics": "s",
        },
        {
            "questionID": 7,
            "questionTitle": "Sleep",
            "questionText": "I lie awake.",
            "answerText": "Two.",
            "topics": "s",
        },
    ]
    (tmp_path / "ours.jsonl").write_text(json.dumps(ours) + "\n", "utf-8")
    (tmp_path / "theirs.json").write_text(json.dumps(theirs), "utf-8")
    (tmp_path / "theirs.csv").write_text('question,answer,topic,title\n"a, b","yes\nno",t,\n', "utf-8")
    assert list(read_posts(tmp_path / "ours.jsonl")) == [ours | {"source": "ours.jsonl"}]
    first, second, third = read_posts(tmp_path / "theirs.json")
    assert (first["post"], first["reply"], first["language"]) == ("失眠\n我总是睡不着。", "每天七点起床。", "zh")
    assert (second["id"], third["id"], third["reply"]) == ("7", "7-2", "Two.")
    (row,) = read_posts(tmp_path / "theirs.csv")
    assert (row["post"], row["reply"]) == ("a, b", "yes\nno")


def test_posts_without_ids_may_have_several_replies(tmp_path: Path) -> None:
    rows = [{"post": "p", "reply": reply} for reply in ("one", "two", "two")]
    (tmp_path / "posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    first, *others = read_posts(tmp_path / "posts.jsonl")
    assert [row["id"] for row in others] == [f"{first['id']}-2", f"{first['id']}-3"]


def test_wrong_posts_are_named_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "posts.jsonl"
    row = {"id": "x", "post": "p", "reply": "r"}
    path.write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n", "utf-8")
    with pytest.raises(ValueError, match=r"posts.jsonl line 2: id 'x' stands twice"):
        list(read_posts(path))
    path.write_text('{"question": "q", "answer": ""}\n', "utf-8")
    with pytest.raises(ValueError, match=r"posts.jsonl line 1: no reply; it may be named reply, answer"):
        list(read_posts(path))


def test_a_spreadsheet_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "posts.csv").write_bytes("post,reply\n心理,好\n".encode("gb18030"))
    with pytest.raises(ValueError, match=r"posts.csv: not UTF-8 .*iconv"):
        list(read_posts(tmp_path / "posts.csv"))
    (tmp_path / "posts.csv").write_text(f"post,reply\nlow,{'x' * 140_000}\n", "utf-8")
    with pytest.raises(ValueError, match=r"posts.csv after line 1: field larger than"):
        list(read_posts(tmp_path / "posts.csv"))


@pytest.mark.parametrize(("given", "expected"), [({}, "zh"), ({"language": "en"}, "en")])
def test_a_ready_question_that_names_no_language_has_its_own(tmp_path: Path, given: dict, expected: str) -> None:
    row = {
        "id": "1",
        "question": "下列属于防御机制的是？",
        "options": {"A": "升华", "B": "强化"},
        "answer": "A",
        "kind": "single",
    }
    (tmp_path / "given.jsonl").write_text(json.dumps(row | given) + "\n", "utf-8")
    assert [row["language"] for row in read_given(tmp_path / "given.jsonl")] == [expected]


def test_ready_questions_keep_their_notes_and_are_marked(tmp_path: Path) -> None:
    row = {
        "id": "q",
        "question": "?",
        "options": {"A": "a", "B": "b"},
        "answer": "A",
        "kind": "single",
        "passage_id": "p",
    }
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    (found,) = read_given(tmp_path / "q.jsonl")
    assert (found["passage_id"], found["given"], found["language"]) == ("p", True, "en")


def test_what_an_earlier_curation_noted_does_not_come_back(tmp_path: Path) -> None:
    row = {"id": "q", "question": "Which?", "options": {"A": "x", "B": "y"}, "answer": "A", "kind": "single"}
    notes = {"answers": {"one": []}, "quality": {"mean": 5}, "review": {"decision": "accept"}, "rationale_history": []}
    (tmp_path / "select.jsonl").write_text(json.dumps(row | notes | {"mine": 1}) + "\n", "utf-8")
    [found] = read_given(tmp_path / "select.jsonl")
    assert found.keys().isdisjoint(notes)
    assert found["mine"] == 1
