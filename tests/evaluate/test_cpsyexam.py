"""CPsyExam from a zip and from a folder that follow the published form; worked examples; the submission file."""

from __future__ import annotations

import json
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
from tests_replies import said

from psychecore.evaluate import cpsyexam
from psychecore.evaluate.answers import read_replies
from psychecore.evaluate.cpsyexam import read_cpsyexam, submission, task_weights
from psychecore.evaluate.likelihood import likelihood_messages
from psychecore.evaluate.scores import macro_score, tally

TASKS = {"KG-PCE-三级-单项选择题": "single", "CA-心理诊断-单项选择题": "single", "CA-心理诊断-多项选择题": "multi"}


def row(task: str, number: int, split: str) -> dict[str, Any]:
    answer = "" if split == "test" else "A" if TASKS[task] == "single" else "AB"
    options = {"A": "甲", "B": "乙", "C": "丙", "D": "丁", "E": ""}
    return {
        "subject_name": task.split("-")[1],
        "question_type": TASKS[task],
        "kind": "知识",
        "question": f"{task} 第{number}题",
        "options": options,
        "answer": answer,
        "explanation": f"解析{number}",
        "id": number,
    }


def tree() -> dict[str, bytes]:
    """Files by name; dev's first question of each task stands in train as well."""
    sizes = {"train": 7, "dev": 3, "test": 2}
    return {
        f"{split}/{task}.json": json.dumps([row(task, n, split) for n in range(size)], ensure_ascii=False).encode()
        for split, size in sizes.items()
        for task in TASKS
    }


@pytest.fixture(params=["folder", "zip", "zip with a folder", "zip in GBK"])
def benchmark(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "folder":
        for name, raw in tree().items():
            (tmp_path / "exam" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "exam" / name).write_bytes(raw)
        return tmp_path / "exam"
    with zipfile.ZipFile(tmp_path / "exam.zip", "w") as archive:
        for name, raw in tree().items():
            info = zipfile.ZipInfo(("cpsyexam/" if "folder" in request.param else "") + name)
            archive.writestr(info, raw)
    if request.param == "zip in GBK":
        in_gbk(tmp_path / "exam.zip")
    return tmp_path / "exam.zip"


def in_gbk(path: Path) -> None:
    """Names as a Chinese Windows writes them: GBK bytes, and no flag that says so."""

    class Gbk(zipfile.ZipInfo):
        def _encodeFilenameFlags(self) -> tuple[bytes, int]:
            return self.filename.encode("gbk"), self.flag_bits & ~0x800

    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in tree().items():
            archive.writestr(Gbk(name), raw)


def test_every_form_of_the_benchmark_reads_the_same(benchmark: Path) -> None:
    exam = read_cpsyexam(benchmark)
    assert {split: len(items) for split, items in exam.splits.items()} == {"train": 21, "dev": 9, "test": 6}
    assert not exam.problems
    one = next(item for item in exam.splits["dev"] if item.groups["task"] == "KG-PCE-三级-单项选择题")
    assert list(one.question.options) == ["A", "B", "C", "D"]
    assert one.groups == {
        "task": "KG-PCE-三级-单项选择题",
        "kind": "single",
        "subject": "KG-PCE-三级",
        "question_id": "0",
    }
    assert {item.question.answer for item in exam.splits["test"]} == {""}


def test_worked_examples_are_of_the_same_task_and_never_the_question_itself(tmp_path: Path) -> None:
    exam = read_cpsyexam(write(tmp_path, tree()))
    items = exam.with_shots("dev", 5, seed=1)
    for item in items:
        assert len({shot.id for shot in item.shots}) == 5
        assert all(item.groups["task"] in shot.id for shot in item.shots)
        assert item.question.question not in {shot.question for shot in item.shots}
    assert items == exam.with_shots("dev", 5, seed=1)
    assert items != exam.with_shots("dev", 5, seed=2)
    roles = [message["role"] for message in items[0].messages()]
    assert roles == ["system", *["user", "assistant"] * 5, "user"]
    assert items[0].messages()[2]["content"].startswith("<think>解析")
    assert items[0].messages()[2]["content"].endswith(("A. 甲", "A. 甲；B. 乙"))
    exam = read_cpsyexam(write(tmp_path, {name: raw for name, raw in tree().items() if "单项" in name}))
    mixed = exam.with_shots("dev", 10)[0]  # seven of its own task, one of them itself, then others of its type
    assert len({shot.id for shot in mixed.shots}) == 10
    assert {shot.kind for shot in mixed.shots} == {mixed.question.kind} == {"single"}
    with pytest.raises(ValueError, match="20 worked examples are asked for, but train has 13"):
        exam.with_shots("dev", 20)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(folder / "x.zip", "w") as archive:
        for name, raw in files.items():
            archive.writestr(name, raw)
    return folder / "x.zip"


def test_the_figures_are_means_over_tasks(tmp_path: Path) -> None:
    files = tree()
    task = "KG-PCE-三级-单项选择题"
    files[f"dev/{task}.json"] = json.dumps([row(task, n, "dev") for n in range(30)], ensure_ascii=False).encode()
    items = read_cpsyexam(write(tmp_path, files)).splits["dev"]
    texts = ["B" if item.groups["task"] == task else "A" for item in items]  # wrong in 30, right in 3, wrong in 3
    tallied = tally(read_replies(items, said(texts), 1))
    figures = {name: macro_score(tallied, "task", each).value for name, each in task_weights(items).items()}
    assert figures == {"MCQA": pytest.approx(0.5), "MRQA": 0.0, "Avg": pytest.approx(0.25)}


def test_the_submission_is_what_the_benchmarks_script_reads(tmp_path: Path) -> None:
    items = read_cpsyexam(write(tmp_path, tree())).splits["test"]
    letters: dict[str, str | None] = {item.question.id: "AC" for item in items}
    letters[items[0].question.id] = None
    both = submission(items, letters, 0) | submission(items, letters, 5)
    assert sorted(both) == ["five_shot", "zero_shot"]
    assert sorted(both["zero_shot"]) == sorted(TASKS)
    said_of_first = both["five_shot"][items[0].groups["task"]]
    assert said_of_first == [{"question_id": "0", "prediction": ""}, {"question_id": "1", "prediction": "AC"}]
    assert not tally(read_replies(items, said(["A"] * len(items)), 1))


@pytest.mark.parametrize("name", ["../dev/a-单项选择题.json", "/dev/a-单项选择题.json", "x\\..\\..\\dev\\a.json"])
def test_a_member_that_leaves_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leads out of the folder"):
        read_cpsyexam(write(tmp_path, {name: b"[]"}))
    assert [path.name for path in tmp_path.rglob("*")] == ["x.zip"]


def test_archives_that_are_too_large_damaged_or_foreign_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, tree())
    with monkeypatch.context() as patch:
        patch.setattr("psychecore.evaluate.cpsyexam.MAX_JSON", 100)
        with pytest.raises(ValueError, match="at most 10,000, 1,000,000,000 and 100 are read"):
            read_cpsyexam(path)
    raw = path.read_bytes()
    for damaged in (raw[:100], raw[: len(raw) // 2], b"", raw[:60] + bytes(200) + raw[260:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"x\.zip"):
            read_cpsyexam(path)
    with pytest.raises(ValueError, match="is no CPsyExam"):
        read_cpsyexam(write(tmp_path, {"readme.txt": b"hello"}))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_header_that_lies_about_the_size_unpacks_no_bomb(method: int, tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("dev/a-单项选择题.json", bytes(50_000_000))
    real, claimed = struct.pack("<L", 50_000_000), struct.pack("<L", 100)
    path.write_bytes(path.read_bytes().replace(real, claimed))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"x\.zip: dev/a-单项选择题\.json: (damaged|packed by method 1[24])"):
        read_cpsyexam(path)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_every_damaged_byte_is_an_error_that_names_the_file_or_does_no_harm(method: int, tmp_path: Path) -> None:
    path, raw = tmp_path / "x.zip", json.dumps([row("CA-心理诊断-单项选择题", 0, "dev")]).encode()
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("dev/CA-心理诊断-单项选择题.json", raw)
    whole, refused = path.read_bytes(), list[str]()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            read_cpsyexam(path)
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > len(raw) / 2
    assert all(message.startswith(str(path)) for message in refused)


def test_unpacking_stops_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpsyexam, "MAX_JSON", 100)
    with (
        zipfile.ZipFile(write(tmp_path, tree())) as archive,
        pytest.raises(ValueError, match="x: it unpacks to more than 100 bytes"),
    ):
        cpsyexam._unpacked(archive, archive.infolist()[0], "x")


def test_a_single_choice_question_with_several_right_letters_is_no_worked_example(tmp_path: Path) -> None:
    files, task = tree(), "KG-PCE-三级-单项选择题"
    rows = [row(task, n, "train") | ({"answer": "AB"} if n == 3 else {}) for n in range(7)]
    files[f"train/{task}.json"] = json.dumps(rows).encode()
    exam = read_cpsyexam(write(tmp_path, files))
    assert [item.question.answer for item in exam.splits["train"]].count("AB") == 1 + 7
    for item in exam.with_shots("train", 6):
        assert all(len(shot.answer) == 1 for shot in item.shots if shot.kind == "single")
        assert likelihood_messages(item, "text")


def test_a_task_that_stands_in_two_places_is_an_error_that_names_both(tmp_path: Path) -> None:
    task = "KG-PCE-三级-单项选择题"
    for name in (f"dev/{task}.json", f"old/dev/{task}.json"):
        (tmp_path / "exam" / name).parent.mkdir(parents=True)
        (tmp_path / "exam" / name).write_bytes(tree()[f"dev/{task}.json"])
    with pytest.raises(ValueError, match=rf"exam: dev/{task}\.json and old/dev/{task}\.json both hold dev's {task}"):
        read_cpsyexam(tmp_path / "exam")
    path = write(tmp_path, tree())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(f"dev/{task}.json", tree()[f"dev/{task}.json"])
    with pytest.raises(ValueError, match=rf"x\.zip: dev/{task}\.json and dev/{task}\.json both hold"):
        read_cpsyexam(path)


OPTIONS = [{"options": {"A": "1", "B": 2, "C": 3.5}}, {"options": {"A": "1", "B": "2", "C": None}}]


def test_a_row_that_cannot_be_scored_is_reported_with_its_file(tmp_path: Path) -> None:
    files = tree()
    task = "KG-PCE-三级-单项选择题"
    rows = [
        row(task, n, "dev") | change
        for n, change in enumerate([{}, {"answer": ""}, {"answer": "E"}, {"answer": "AB"}, *OPTIONS])
    ]
    files[f"dev/{task}.json"] = json.dumps(rows).encode()
    problems = read_cpsyexam(write(tmp_path, files)).problems
    dropped = [("row 2", True), ("row 3", True), ("row 4", False), ("row 6", True)]
    assert [(one.row, one.dropped) for one in problems] == dropped
    assert "option 'C' is None, but must be a text or a number" in problems[-1].reason
    assert problems[0].file == f"dev/{task}.json"
