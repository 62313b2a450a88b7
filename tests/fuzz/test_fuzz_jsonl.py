"""JSONL readers: whatever a file holds, it is read or refused by a ValueError with file and line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attempt import attempt
from growth import growth
from hypothesis import example, given
from hypothesis import strategies as st

from psychecore.data import records
from psychecore.data.prompts import question_messages
from psychecore.data.records import read_conversations, read_jsonl, read_questions, write_rows

QUESTION: dict[str, Any] = {
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
TALK: dict[str, Any] = {
    "id": "c1",
    "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
    "source": "test",
}
GOOD = {"questions": json.dumps(QUESTION), "conversations": json.dumps(TALK)}
READERS: dict[str, Callable[[Path], Any]] = {"questions": read_questions, "conversations": read_conversations}

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
CHUNKS = [b"9" * 5000, b"NaN", b"-Infinity", b'"\\ud800"', b'"\\udfff"', b"\xff", b"\xef\xbb\xbf", b"\0", b"\r", b"\n"]
CHUNKS += [
    b"[" * 5000,
    b'{"a":' * 5000,
    b'"id": 1, ',
    b'"A": "x", ',
    b"1e999",
    b'"\\u0000"',
    b"\xed\xa0\x80",
    b"\\",
    b'"',
]


def check(read: Callable[[Path], Any], path: Path) -> Any:
    """The rows, or None; anything but a one-line ValueError that names file and line fails the test."""
    rows, refusal = attempt(lambda: read(path), limit=len(str(path)) + 500)
    assert rows is not None or refusal.startswith((f"{path} line ", f"{path}: no rows")), refusal
    return rows


def check_usable(kind: str, rows: Any, folder: Path) -> None:
    """What was read can be shown to a model, written and read again."""
    for row in rows:
        json.dumps(row.to_row(), ensure_ascii=False).encode()
        if kind == "questions":
            question_messages(row)
    write_rows(folder / "again.jsonl", rows)
    assert READERS[kind](folder / "again.jsonl") == rows


@pytest.mark.parametrize("kind", READERS)
@given(data=st.binary(max_size=300))
@example(data=b"")
@example(data=b"\xef\xbb\xbf\xef\xbb\xbf{}")
@example(data=b"\0\0\n{}")
def test_any_bytes_are_refused_with_file_and_line(kind: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(data)
    check(READERS[kind], tmp_path / "rows.jsonl")


@pytest.mark.parametrize("kind", READERS)
@given(
    place=st.integers(0, 400),
    cut=st.integers(0, 20),
    chunk=st.sampled_from(CHUNKS)
    | st.binary(max_size=6)
    | st.text(max_size=4).map(lambda t: t.encode("utf-8", "replace")),
)
def test_a_damaged_row_is_read_or_refused(kind: str, place: int, cut: int, chunk: bytes, tmp_path: Path) -> None:
    row = GOOD[kind].encode()
    place %= len(row)
    (tmp_path / "rows.jsonl").write_bytes(row[:place] + chunk + row[place + cut :] + b"\n")
    rows = check(READERS[kind], tmp_path / "rows.jsonl")
    if rows is not None:
        check_usable(kind, rows, tmp_path)


@pytest.mark.parametrize("kind", READERS)
@given(data=st.data())
def test_a_row_with_a_foreign_value_is_read_or_refused(kind: str, data: st.DataObject, tmp_path: Path) -> None:
    row = json.loads(GOOD[kind])
    place: Any = row
    while True:  # walk down to some value of the row
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(JSON_VALUES)
    if isinstance(place, dict) and data.draw(st.booleans()):
        place[data.draw(st.text(max_size=3) | st.sampled_from("ABCDEFGHIJKa"))] = data.draw(JSON_VALUES)
    text = json.dumps(row, ensure_ascii=data.draw(st.booleans()))
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8", errors="surrogatepass")
    rows = check(READERS[kind], tmp_path / "rows.jsonl")
    if rows is not None:
        check_usable(kind, rows, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"AC"', "9" * 5000, "a number of 5,000 digits is too long"),
        ('"test"', "NaN", "NaN is no JSON number"),
        ("null", "-Infinity", "-Infinity is no JSON number"),
        ("null", "-1e999", "-1e999 is too large for a number"),
        ('"area"', '"id"', "key 'id' stands twice"),
        ('"C": "anchoring"', '"A": "anchoring"', "key 'A' stands twice"),
        ('"q1"', r'"\ud800"', "lone surrogate"),
        ('"q1"', r'"\uDFFF\ud800"', "lone surrogate"),
        ('"shaping"', r'"\udfff"', "lone surrogate"),
        ('"test"', "[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('"AC"', '"' + "A" * 100_000 + '"', "answer is 'AAA"),
        ('"multiple"', '"' + "m" * 100_000 + '"', "kind is 'mmm"),
        ('"A"', '"' + "A" * 100_000 + '"', "options are lettered 'AAA"),
        ('"A"', '"a"', "options are lettered 'aBC'"),
        ('"A"', '"Ａ"', "options are lettered 'ＡBC'"),
        ('"test"}', '"test"}\0', "Extra data"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(old: str, new: str, says: str, tmp_path: Path) -> None:
    bad = GOOD["questions"].replace(old, new, 1).replace("q1", "q2")
    assert bad != GOOD["questions"].replace("q1", "q2")
    (tmp_path / "g.jsonl").write_text(GOOD["questions"] + "\n" + bad, encoding="utf-8")
    with pytest.raises(ValueError, match=r"g\.jsonl line 2: ") as error:
        read_questions(tmp_path / "g.jsonl")
    assert says in str(error.value)
    assert len(str(error.value)) < len(str(tmp_path)) + 300


def test_pairs_of_surrogate_escapes_are_characters(tmp_path: Path) -> None:
    (tmp_path / "g.jsonl").write_text(GOOD["questions"].replace("shaping", r"\ud83d\ude00 \\ud800"))
    assert read_questions(tmp_path / "g.jsonl")[0].options["A"] == "😀 \\ud800"


def test_repeated_ids_are_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "g.jsonl").write_text((GOOD["questions"].replace("q1", "q" * 100_000) + "\n") * 2)
    with pytest.raises(ValueError, match=r"line 2: id 'qqq.* already stands on line 1") as error:
        read_questions(tmp_path / "g.jsonl")
    assert len(str(error.value)) < 500


def test_a_line_without_end_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_LINE", 1000)
    with open(tmp_path / "g.jsonl", "wb") as file:
        file.write(b'{"a": 1}\n')
        file.truncate(1 << 40)  # a tebibyte of zeros, which takes no room on disk
    rows = read_jsonl(tmp_path / "g.jsonl")
    assert next(rows) == (1, {"a": 1})
    with pytest.raises(ValueError, match=r"g\.jsonl line 2: longer than 1,000 bytes"):
        next(rows)


def test_the_time_to_read_is_linear_in_the_file(tmp_path: Path) -> None:
    def file(n: int) -> Path:
        path = tmp_path / f"{n}.jsonl"
        long = GOOD["questions"].replace("Both fit.", r"\ud83d\ude00 \"" * n)
        path.write_text("\n".join([long, *(GOOD["questions"].replace("q1", f"r{i}") for i in range(n // 10))]))
        return path

    files = {n: file(n) for n in (5_000, 40_000)}
    assert growth(lambda n: read_questions(files[n]), 5_000, 8) < 24  # quadratic is 64


def test_an_absent_file_is_not_found(tmp_path: Path) -> None:
    for read in READERS.values():
        with pytest.raises(FileNotFoundError, match=r"absent\.jsonl"):
            read(tmp_path / "absent.jsonl")
