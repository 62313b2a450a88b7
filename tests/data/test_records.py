"""Rows on disk: what is written reads back, what is wrong is named with file and line."""

import json

import pytest

from psychecore.data.prompts import answer_text, question_messages, worked_conversation
from psychecore.data.records import Question, read_conversations, read_questions, write_rows

ROW = {
    "id": "q1",
    "question": "Which term fits?",
    "options": {"A": "shaping", "B": "priming", "C": "anchoring"},
    "answer": "AC",
    "kind": "multiple",
    "context": None,
    "rationale": "Both fit.",
    "area": "general",
    "language": "en",
    "source": "test",
}


def write(path, *rows):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows), encoding="utf-8")
    return path


def test_questions_and_conversations_read_back_equal(tmp_path):
    question = Question.from_row(ROW)
    write_rows(tmp_path / "q.jsonl", [question])
    assert read_questions(tmp_path / "q.jsonl") == [question]
    conversation = worked_conversation(question)
    write_rows(tmp_path / "c.jsonl", [conversation])
    assert read_conversations(tmp_path / "c.jsonl") == [conversation]
    assert json.loads((tmp_path / "q.jsonl").read_text()) == ROW


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "AE"}, "answer 'AE' names option E, but the question has A-C"),
        ({"answer": "CA"}, "letters in order"),
        ({"answer": ""}, "non-empty str"),
        ({"kind": "single"}, "has one right letter"),
        ({"kind": "several"}, "kind is 'several'"),
        ({"options": {"A": "x", "C": "y"}}, "options are lettered 'AC'"),
        ({"options": {"A": "x"}}, "options are lettered 'A'"),
        ({"options": {"A": "x", "B": " "}}, "option B is ' '"),
        ({"options": ["x", "y"]}, "options is"),
        ({"language": "fr"}, "language is 'fr'"),
        ({"context": 3}, "context is 3"),
        ({"id": None}, "id is None"),
    ],
)
def test_a_wrong_row_is_named_with_file_and_line(tmp_path, change, message):
    path = write(tmp_path / "grpo.jsonl", ROW, ROW | {"id": "q2"} | change)
    with pytest.raises(ValueError, match=r"grpo\.jsonl line 2: ") as error:
        read_questions(path)
    assert message in str(error.value)


@pytest.mark.parametrize("line", ["{", "[1]", "3", '{"id": "\xff"', "null"])
def test_a_line_that_is_no_object_is_named(tmp_path, line):
    with pytest.raises(ValueError, match=r"line 2: "):
        read_questions(write(tmp_path / "x.jsonl", ROW, line))


def test_repeated_ids_and_empty_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="line 2: id 'q1' already stands on line 1"):
        read_questions(write(tmp_path / "x.jsonl", ROW, ROW))
    with pytest.raises(ValueError, match="no rows"):
        read_questions(write(tmp_path / "y.jsonl", ""))


def test_a_conversation_without_an_assistant_is_refused(tmp_path):
    row = {"id": "c", "messages": [{"role": "user", "content": "hi"}], "source": ""}
    with pytest.raises(ValueError, match="line 1: messages hold no assistant turn"):
        read_conversations(write(tmp_path / "x.jsonl", row))


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"content": ""}, "message 2: the assistant says nothing"),
        ({"content": " \n"}, "message 2: the assistant says nothing"),
        ({"content": "B", "weight": 0}, r"no assistant turn \(of weight 1\)"),
        ({"content": "B", "weight": 0.5}, "message 2 has weight 0.5, but must be 0 or 1"),
    ],
)
def test_turns_that_teach_nothing_are_refused_or_say_so(turn, message, tmp_path):
    path = tmp_path / "c.jsonl"
    asked = {"role": "user", "content": "?"}
    row = {"id": "c", "messages": [asked, {"role": "assistant", **turn}]}
    path.write_text(json.dumps(row))
    with pytest.raises(ValueError, match=message):
        read_conversations(path)
    if turn.get("weight") == 0:
        row["messages"] += [asked, {"role": "assistant", "content": "C", "weight": 1}]
        path.write_text(json.dumps(row))
        assert read_conversations(path)[0].messages == row["messages"]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_thinking_beside_the_words_is_refused_since_it_would_not_be_trained(key, tmp_path):
    said = {"role": "assistant", "content": "B", key: "step by step"}
    row = {"id": "c", "messages": [{"role": "user", "content": "hi"}, said], "source": ""}
    with pytest.raises(ValueError, match=f"line 1: message 2: put its {key} into content, as <think>"):
        read_conversations(write(tmp_path / "x.jsonl", row))
    row["messages"][1][key] = ""
    assert len(read_conversations(write(tmp_path / "y.jsonl", row))) == 1


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.jsonl"
    write_rows(path, [Question.from_row(ROW)])
    before = path.read_bytes()

    def broken():
        yield Question.from_row(ROW)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_rows(path, broken())
    assert path.read_bytes() == before


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("case", [None, "A client writes."])
@pytest.mark.parametrize("answer", ["AC", "C"])
def test_prompts_name_every_option_and_the_answer_its_letters(answer, case, language):
    kind = "multiple" if len(answer) > 1 else "single"
    row = ROW | {"language": language, "context": case, "answer": answer, "kind": kind}
    question = Question.from_row(row)
    system, asked = question_messages(question)
    hint = {"en": "(More than one option is right.)", "zh": "（有多个正确选项。）"}[language] * (kind == "multiple")
    lines = [*([case] if case else []), question.question + hint, "A. shaping", "B. priming", "C. anchoring"]
    assert asked == {"role": "user", "content": "\n".join(lines)}
    assert system["role"] == "system"
    assert any("一" <= char <= "龥" for char in system["content"]) is (language == "zh")
    assert ("case" in system["content"] or "案例" in system["content"]) is bool(case)
    right = {"AC": ("A. shaping; C. anchoring", "A. shaping；C. anchoring"), "C": ("C. anchoring",) * 2}[answer]
    assert answer_text(question) == right[language == "zh"]
    reply = worked_conversation(question).messages[-1]["content"]
    assert reply == f"<think>Both fit.</think>\n{right[language == 'zh']}"


def test_a_byte_order_mark_blank_lines_and_windows_line_ends_are_read_over(tmp_path):
    row = {"id": "c", "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "B"}]}
    lines = ["\ufeff" + json.dumps(row), "", json.dumps(row | {"id": "d"}), "  "]
    (tmp_path / "c.jsonl").write_bytes("\r\n".join(lines).encode())
    assert [one.id for one in read_conversations(tmp_path / "c.jsonl")] == ["c", "d"]
