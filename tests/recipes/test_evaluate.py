"""The evaluation recipe from end to end on a tiny model: figures, predictions, a kill in between, another model."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cli
import evaluate
import pytest
from evaluate_options import EvaluateRecipe
from evaluate_tasks import read_tasks
from tests_replies import Scripted

from psychecore.curate.generator import LocalGenerator, Reply, Request
from psychecore.evaluate import text_overlap
from psychecore.evaluate.answers import with_thinking_opened


def question(answer: str = "B", stem: str = "问题") -> dict[str, Any]:
    return {"id": 1, "question": stem, "options": dict(zip("ABC", "甲乙丙", strict=True)), "answer": answer}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    files: dict[str, Any] = {
        "pceb/theory/single/third/a.json": [question("B", f"甲{n}") for n in range(3)] + [question("")],
        "pceb/moral/multiple/third/b.json": [question("AB", f"乙{n}") for n in range(2)],
        "exam/train/X-单项选择题.json": [question("A", f"训{n}") for n in range(5)],
        "exam/test/X-单项选择题.json": [question("", f"考{n}") for n in range(2)],
    }
    for name, rows in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(rows), "utf-8")
    rows = [{"question": f"Which {n}?", "options": {"a": "x", "b": "y"}, "answer": "ab"[n % 2]} for n in range(8)]
    (tmp_path / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    turns = [{"role": "user", "content": "我很难过"}]
    (tmp_path / "talk.jsonl").write_text(json.dumps({"id": 1, "messages": turns}) + "\n")
    return tmp_path


def run(data: Path, folder: str, *flags: str) -> dict[str, Any]:
    flags = ("--benchmark.essays=false", *flags, "--answers.max_new_tokens=6", f"--run.folder={data / folder}")
    if not any(flag.startswith("--model.path") for flag in flags):
        flags = ("--model.path=model", *flags)
    evaluate.main(cli.load_config(EvaluateRecipe, flags, None))
    found: dict[str, Any] = json.loads((data / folder / "evaluation.json").read_text("utf-8"))
    return found


def rows(data: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (data / name).read_text("utf-8").splitlines()]


def scripted(monkeypatch: pytest.MonkeyPatch, **models: Scripted) -> None:
    monkeypatch.setattr(evaluate, "make_generator", lambda spec, options: models[spec])


def always(text: str, name: str = "model") -> Scripted:
    model = Scripted(lambda request: text, name)
    model.identity = f"says {text}"
    return model


def test_a_folder_of_essays_only_has_no_choice_task_and_an_absent_package_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jieba")
    case = {"id": 1, "general_info": "女", "case_introduction": "失眠。"}
    row = case | {"questions_and_answers": [{"question": "简述？（5分）", "answer": "（1）甲（5分）。"}]}
    (tmp_path / "cases" / "essay" / "third").mkdir(parents=True)
    (tmp_path / "cases" / "essay" / "third" / "c.json").write_text(json.dumps([row]), "utf-8")
    flags = ["--model.path=m", "--run.folder=r", f"--benchmark.pceb={tmp_path}"]
    assert [task.name for task in read_tasks(cli.load_config(EvaluateRecipe, flags, None))] == ["pceb_essays"]
    with pytest.raises(ValueError, match=r"holds essays only, and benchmark.essays is false"):
        read_tasks(cli.load_config(EvaluateRecipe, [*flags, "--benchmark.essays=false"], None))
    monkeypatch.setitem(sys.modules, "jieba", None)
    text_overlap._load.cache_clear()
    with pytest.raises(ValueError, match=r"eval.*--benchmark.essays false"):
        read_tasks(cli.load_config(EvaluateRecipe, flags, None))
    text_overlap._load.cache_clear()


def test_the_recipe_scores_reports_and_keeps_every_prediction(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted(monkeypatch, model=always("<think>x</think>B"))
    result = run(data, "one", f"--benchmark.pceb={data / 'pceb'}", f"--benchmark.questions={data / 'plain.jsonl'}")
    pceb = result["benchmarks"]["pceb"]
    assert pceb["all"]["accuracy"]["value"] == pytest.approx(3 / 5)
    assert pceb["averages"]["standard (2 of 6)"]["value"] == pytest.approx(1 / 2)
    assert pceb["averages"]["elastic (2 of 6)"]["value"] == pytest.approx((1 + 1 / 2) / 2)
    first, *absent = [one["reason"] for one in pceb["problems"] if one["dropped"]]
    assert first == "the answer is empty, so nothing can be scored"
    assert len(absent) == 4
    assert absent[0] == "no question of the column 'case single'"
    assert result["benchmarks"]["plain"]["all"]["accuracy"]["value"] == 0.5
    (first, *_) = rows(data, "one/predictions/pceb.jsonl")
    assert (first["text"], first["parsed"], first["gold"], first["credit"]) == ("<think>x</think>B", "B", "AB", 0.0)
    assert first["prompt"][-1]["content"].startswith("乙0")
    printed = capsys.readouterr().out
    assert "average, elastic" in printed
    assert "5 dropped, 0 kept" in printed


def test_another_model_is_compared_item_by_item(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, model=always("A"), other=always("B"))
    flags = f"--benchmark.pceb={data / 'pceb'}", f"--benchmark.questions={data / 'plain.jsonl'}"
    run(data, "one", *flags)
    result = run(data, "two", "--model.path=other", f"--run.against={data / 'one'}", *flags)
    pceb, plain = (result["benchmarks"][name]["against"] for name in ("pceb", "plain"))
    assert pceb["accuracy"]["value"] == pytest.approx(3 / 5)
    assert (pceb["standard (2 of 6)"]["value"], pceb["elastic (2 of 6)"]["value"]) == (0.5, 0.5)
    assert plain["accuracy"]["value"] == 0
    assert plain["accuracy"]["low"] < 0 < plain["accuracy"]["high"]
    with pytest.raises(FileNotFoundError, match=r"run\.against must hold an evaluation"):
        run(data, "three", "--model.path=other", f"--run.against={data}", *flags)


def test_essays_are_compared_too(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jieba")
    case = {"id": 1, "general_info": "女", "case_introduction": "失眠。"}
    parts = [
        {"question": f"简述{n}？（5分）", "answer": f"（1）{gold}（5分）。"}
        for n, gold in enumerate(("一般心理问题", "严重"))
    ]
    (data / "pceb" / "cases" / "essay" / "third").mkdir(parents=True)
    path = data / "pceb" / "cases" / "essay" / "third" / "c.json"
    path.write_text(json.dumps([case | {"questions_and_answers": parts}]), "utf-8")
    scripted(monkeypatch, model=always("（1）一般心理问题。"), other=always("（1）无。"))
    flags = (f"--benchmark.pceb={data / 'pceb'}", "--benchmark.essays=true")
    run(data, "one", *flags)
    result = run(data, "two", "--model.path=other", f"--run.against={data / 'one'}", *flags)["benchmarks"][
        "pceb_essays"
    ]
    ours, theirs = (
        [row["rouge_1"] for row in rows(data, f"{n}/predictions/pceb_essays.jsonl")] for n in ("two", "one")
    )
    assert result["against"]["rouge_1"]["value"] == pytest.approx(sum(ours) / 2 - sum(theirs) / 2)
    assert result["against"]["rouge_1"]["value"] < 0
    # both essays are on one case, so nothing is known of how cases differ
    assert (result["figures"]["rouge_1"]["low"], result["figures"]["rouge_1"]["high"]) == (0, 100)
    path.write_text(json.dumps([case | {"case_introduction": "焦虑。", "questions_and_answers": parts}]), "utf-8")
    with pytest.raises(ValueError, match=r"pceb_essays\.jsonl: .* was asked with another prompt there"):
        run(data, "three", "--model.path=other", f"--run.against={data / 'one'}", *flags)


def test_a_server_s_thinking_that_was_cut_is_no_answer(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = Scripted(lambda request: "So far A" if "Which 0" in str(request.messages) else "B fits.</think>A", "model")
    scripted(monkeypatch, model=cut)
    run(data, "cut", f"--benchmark.questions={data / 'plain.jsonl'}")
    answers = rows(data, "cut/predictions/plain.jsonl")
    assert [row["parsed"] for row in answers] == [None] + ["A"] * 7
    assert answers[0]["reason"] == "the thinking is not closed"
    assert answers[1]["format"] == 1
    slip = Scripted(lambda request: "</think>A", "model")
    replies = [*slip.generate([Request([], 1)]), *[Reply("A", None)] * 10]
    assert with_thinking_opened(replies) == replies


class Dies(Scripted):
    """Answers one request at a time, and is killed when asked the fourth."""

    def generate_each(self, requests: Sequence[Request], arrived: Any) -> None:
        for number, request in enumerate(requests):
            if len(self.asked) == 3:
                raise KeyboardInterrupt
            self.asked.append(request)
            arrived({number: Reply(self.reply(request), None)})


def test_a_killed_run_goes_on_where_it_was_even_after_a_torn_line(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = (f"--benchmark.questions={data / 'plain.jsonl'}", "--answers.samples=2")
    scripted(monkeypatch, model=always("A"))
    whole = run(data, "whole", *flags)
    first = Dies(lambda request: "A", "model")
    first.identity = "says A"
    scripted(monkeypatch, model=first)
    with pytest.raises(KeyboardInterrupt):
        run(data, "killed", *flags)
    cache = data / "killed" / "cache.jsonl"
    cache.write_bytes(cache.read_bytes()[:-9])  # the third reply is torn
    again = always("A")
    scripted(monkeypatch, model=again)
    assert run(data, "killed", *flags) == whole
    assert len(again.asked) == 14  # of 16
    assert rows(data, "killed/predictions/plain.jsonl") == rows(data, "whole/predictions/plain.jsonl")
    run(data, "killed", *flags)
    assert len(again.asked) == 14
    (data / "killed" / "evaluation.json").unlink()
    run(data, "killed", *flags, "--answers.temperature=0.5")  # other parameters are other requests
    assert len(again.asked) == 30


def test_the_test_split_gives_a_submission_and_no_figures(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, model=always("C"))
    result = run(data, "one", f"--benchmark.cpsyexam={data / 'exam'}", "--benchmark.split=test")
    assert sorted(result["benchmarks"]) == ["cpsyexam_test_0_shot", "cpsyexam_test_5_shot"]
    assert "all" not in result["benchmarks"]["cpsyexam_test_0_shot"]
    sent = json.loads((data / "one" / "submission.json").read_text("utf-8"))
    assert [row["prediction"] for row in sent["five_shot"]["X-单项选择题"]] == ["C", "C"]
    assert sorted(sent) == ["five_shot", "zero_shot"]


def test_dialogue_is_answered_judged_and_compared(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Scripted(lambda request: "全面性：2\n专业性：1\n真实性：3\n安全性：1\n结论：A", "judge")
    scripted(monkeypatch, model=always("<think>t</think>听起来不容易"), other=always("好"), judge=judge)
    flags = (f"--benchmark.dialogues={data / 'talk.jsonl'}", "--judge.path=judge", "--judge.rubrics=cpsycoun,psydt")
    run(data, "one", *flags)
    result = run(data, "two", "--model.path=other", f"--run.against={data / 'one'}", *flags)["benchmarks"]["talk"]
    assert result["rubrics"]["cpsycoun"]["figures"]["authenticity"]["value"] == 3
    assert (result["rubrics"]["psydt"]["unparsable"], result["rubrics"]["psydt"]["figures"]) == (1.0, {})
    assert result["against"]["counts"] == {"first": 0, "second": 0, "tie": 0, "inconsistent": 1, "unparsable": 0}
    assert rows(data, "one/predictions/talk.replies.jsonl")[0]["text"] == "<think>t</think>听起来不容易"


def test_likelihood_asks_the_weights_once(data: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = (
        *("--answers.mode=likelihood", f"--model.path={workplace / 'model'}", "--model.dtype=float32"),
        f"--benchmark.questions={data / 'plain.jsonl'}",
    )
    once = run(data, "one", *flags)
    assert once["benchmarks"]["plain"]["all"]["unparsable"] == 0
    assert sorted(json.loads(rows(data, "one/predictions/plain.jsonl")[0]["text"])) == ["A", "B"]
    monkeypatch.setattr(LocalGenerator, "load", lambda self: pytest.fail("asked again"))
    assert run(data, "one", *flags, "--benchmark.limit=8") == once
    scripted(monkeypatch, model=always("A"))
    with pytest.raises(ValueError, match="needs the weights"):
        run(data, "two", *flags[:1], *flags[3:])


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ((), "nothing to evaluate on"),
        (("--benchmark.dialogues=x.jsonl",), "needs a judge"),
        (("--benchmark.pceb=.", "--judge.rubrics=warmth"), "'warmth'"),
        (("--benchmark.pceb=.", "--benchmark.shots=a"), "must be"),
        (("--benchmark.pceb=.", "--judge.rubrics="), "rubrics is empty, so nothing would be judged"),
        (("--benchmark.pceb=.", "--answers.temperature=nan"), "temperature is nan, which stands for no number"),
        (("--benchmark.questions=a/x.jsonl,b/x.jsonl",), "two files are named 'x'"),
        (("--benchmark.questions=a/x.jsonl", "--benchmark.dialogues=b/X.jsonl"), "two files are named 'x'"),
        (("--benchmark.questions=a/PCEB.jsonl",), "a/PCEB.jsonl: 'PCEB' is the name of results of our own"),
        (("--benchmark.questions=pceb_essays.jsonl",), "rename the file"),
        (("--benchmark.questions=cpsyexam_dev_5_shot.jsonl",), "rename the file"),
        (("--benchmark.questions=talk.replies.jsonl",), "rename the file"),
        (("--benchmark.dialogues=talk.psydt.json",), "rename the file"),
    ],
)
def test_an_evaluation_that_means_nothing_is_refused(flags: tuple[str, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        cli.load_config(EvaluateRecipe, ["--model.path=m", *flags], None)


def test_a_name_that_only_resembles_one_of_ours_is_taken() -> None:
    config = cli.load_config(
        EvaluateRecipe, ["--model.path=m", "--benchmark.questions=pceb_hard.jsonl,psydt.jsonl"], None
    )
    assert len(config.benchmark.questions) == 2
