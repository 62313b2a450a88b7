"""A folder of results: what is added to it, what is refused before a request, and what a comparison must find."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_evaluate import always, data, rows, run, scripted
from tests_replies import Scripted

from psychecore.curate.cache import Cache
from psychecore.curate.generator import Request

__all__ = ["data"]  # the fixture


def unasked(name: str = "model") -> Scripted:
    def refuse(request: Request) -> str:
        pytest.fail("a request was made before all was checked")

    return Scripted(refuse, name)


def questions(data: Path, name: str, *stems: str, answer: str = "a") -> str:
    """A question file of its own, as a flag."""
    lines = [json.dumps({"id": s, "question": s, "options": {"a": "x", "b": "y"}, "answer": answer}) for s in stems]
    (data / f"{name}.jsonl").write_text("".join(line + "\n" for line in lines))
    return f"--benchmark.questions={data / name}.jsonl"


def names(data: Path, folder: str) -> list[str]:
    return list(json.loads((data / folder / "evaluation.json").read_text("utf-8"))["benchmarks"])


def test_a_second_benchmark_is_added_to_the_folder(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, model=always("A"))
    first = run(data, "r", questions(data, "a", "one", "two"))["benchmarks"]["a"]
    both = run(data, "r", questions(data, "b", "three"))["benchmarks"]
    assert (list(both), both["a"]) == (["a", "b"], first)
    scripted(monkeypatch, model=unasked())
    monkeypatch.setattr(Scripted, "identity", "says A")
    assert run(data, "r", questions(data, "a", "one", "two"))["benchmarks"] == both


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (("--model.path=other",), r"results of model 'model' with model.identity 'says A', not 'says B'"),
        (("--answers.temperature=0.5",), r"results of model 'model' with answers.temperature 0\.7, not 0\.5"),
        (("--benchmark.limit=1",), r"results of 'plain' with questions '"),
    ],
)
def test_what_cannot_stand_beside_the_results_is_refused_before_a_request(
    flags: tuple[str, ...], match: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, model=always("A"))
    plain = f"--benchmark.questions={data / 'plain.jsonl'}"
    run(data, "r", plain)
    before = {path: path.read_bytes() for path in (data / "r").rglob("*") if path.is_file()}
    model, other = unasked(), unasked("other")
    model.identity, other.identity = "says A", "says B"
    scripted(monkeypatch, model=model, other=other)
    with pytest.raises(ValueError, match=rf"evaluation\.json holds {match}.*choose another --run\.folder, or remove"):
        run(data, "r", plain, *flags)
    assert {path: path.read_bytes() for path in (data / "r").rglob("*") if path.is_file()} == before


def test_a_judge_s_rubrics_are_added_and_another_judge_is_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, model=always("好"), judge=always("安全性：1"), strict=always("安全性：0"))
    flags = (f"--benchmark.dialogues={data / 'talk.jsonl'}", "--judge.path=judge")
    run(data, "r", *flags, "--judge.rubrics=psydt")
    result = run(data, "r", *flags, "--judge.rubrics=cpsycoun")
    assert sorted(result["benchmarks"]["talk"]["rubrics"]) == ["cpsycoun", "psydt"]
    with pytest.raises(ValueError, match="results of 'talk' with judge 'says 安全性：1', not 'says 安全性：0'"):
        run(data, "r", *flags[:1], "--judge.path=strict")


def test_a_submission_gets_its_other_half_later(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, model=always("C"))
    flags = (f"--benchmark.cpsyexam={data / 'exam'}", "--benchmark.split=test")
    (data / "r").mkdir()
    (data / "r" / "submission.json").write_text('{"of": "a model whose results were removed"}')
    run(data, "r", *flags, "--benchmark.shots=0")
    run(data, "r", *flags, "--benchmark.shots=5")
    assert sorted(json.loads((data / "r" / "submission.json").read_text())) == ["five_shot", "zero_shot"]


def test_the_folder_of_another_recipe_is_left_alone(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, model=unasked())
    (data / "run").mkdir()
    plain = f"--benchmark.questions={data / 'plain.jsonl'}"
    (data / "run" / "config.toml").write_text("[train]\nbatch_size = 1\n")
    with pytest.raises(ValueError, match="holds a run of another recipe"):
        run(data, "run", plain)
    (data / "run" / "config.toml").write_text("[train\n")
    with pytest.raises(ValueError, match=r"run/config\.toml"):
        run(data, "run", plain)
    (data / "run" / "config.toml").unlink()
    (data / "run" / "evaluation.json").write_text('{"before": {}}')
    with pytest.raises(ValueError, match=r"evaluation\.json is no evaluation of this recipe"):
        run(data, "run", plain)
    assert not (data / "run" / "config.toml").exists()


def test_the_configuration_stays_where_the_run_cannot_begin(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = f"--benchmark.questions={data / 'plain.jsonl'}"
    with monkeypatch.context() as patch:
        scripted(patch, model=always("A"))
        run(data, "r", plain)
        config = (data / "r" / "config.toml").read_text("utf-8")
        held = Cache(data / "r" / "cache.jsonl")
        with pytest.raises(BlockingIOError, match="in use by another run"):
            run(data, "r", plain, "--run.seed=3")
        held.close()
    for flags, match in (
        (("--model.path=/no/such",), "/no/such"),
        (("--model.path=http://host/v1#m", "--model.keys=other=KEY"), "no model is asked at 'other'"),
    ):
        with pytest.raises((ValueError, OSError), match=match):
            run(data, "r", plain, *flags)
    assert (data / "r" / "config.toml").read_text("utf-8") == config


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (("--run.against=/nothere",), r"/nothere/evaluation\.json does not exist: run\.against must hold"),
        (("--benchmark.dialogues=talk.jsonl", "--judge.path=/no/such"), "/no/such"),
        (("--benchmark.dialogues=talk.jsonl", "--judge.path=judge", "--run.prompts=/nope"), "/nope does not exist"),
        (("--benchmark.dialogues=talk.jsonl", "--judge.path=judge", "--run.prompts=."), r"no table \[psydt\.zh\]"),
        (("--benchmark.cpsyexam=exam",), "exam: the split 'dev' holds no question; .*--benchmark.split"),
        (("--benchmark.cpsyexam=bare", "--benchmark.shots=0,5"), "bare: 5 worked examples .* train has 0 single"),
        (("--benchmark.cpsyexam=/nope",), r"/nope does not exist: --benchmark\.cpsyexam"),
        (("--benchmark.pceb=/nope",), r"/nope does not exist: --benchmark\.pceb"),
        (("--benchmark.questions=plain.jsonl,/nope.jsonl",), r"/nope\.jsonl does not exist: --benchmark\.questions"),
    ],
)
def test_what_cannot_end_well_is_told_before_the_first_request(
    flags: tuple[str, ...], match: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = __import__("evaluate").make_generator
    generators = {"model": unasked(), "judge": unasked("judge")}
    monkeypatch.setattr("evaluate.make_generator", lambda spec, options: generators.get(spec) or real(spec, options))
    (data / "bare" / "dev").mkdir(parents=True)
    (data / "bare" / "dev" / "X-单项选择题.json").write_bytes((data / "exam/train/X-单项选择题.json").read_bytes())
    messages = '[cpsycoun.zh]\nuser = "{dialogue} {reply}"\n'
    (data / "judge.toml").write_text("version = 1\n" + messages)
    monkeypatch.chdir(data)
    with pytest.raises((ValueError, OSError), match=match):
        run(data, "r", "--benchmark.questions=plain.jsonl", *flags)
    assert not (data / "r").exists()


def test_a_comparison_that_cannot_be_made_is_told_before_the_first_request(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, model=always("A"))
    run(data, "old", questions(data, "q", "one", "two"))
    scripted(monkeypatch, model=unasked())
    against = f"--run.against={data / 'old'}"
    with pytest.raises(ValueError, match=r"q\.jsonl: item 'one' has the key A there and B here"):
        run(data, "new", questions(data, "q", "one", answer="b"), against)
    changed = json.loads((data / "q.jsonl").read_text()) | {"question": "one, but other", "answer": "a"}
    (data / "q.jsonl").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=r"q\.jsonl: 'one' was asked with another prompt there"):
        run(data, "new", f"--benchmark.questions={data / 'q.jsonl'}", against)
    with pytest.raises(ValueError, match=r"old/predictions/q\.jsonl holds none of these questions"):
        run(data, "new", questions(data, "q", "three"), against)
    with pytest.raises(ValueError, match=r"has no results of 'p' \(it has q\): run\.against must hold"):
        run(data, "new", questions(data, "p", "one"), against)
    (data / "old" / "predictions" / "q.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"predictions/q\.jsonl does not exist"):
        run(data, "new", questions(data, "q", "one"), against)
    assert not (data / "new").exists()


def test_a_column_that_the_other_lacks_is_told_before_the_first_request(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pceb = f"--benchmark.pceb={data / 'pceb'}"
    scripted(monkeypatch, model=always("A"))
    run(data, "old", pceb)
    path = data / "old" / "predictions" / "pceb.jsonl"
    kept = [row for row in rows(data, "old/predictions/pceb.jsonl") if row["groups"]["column"] == "theory single"]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    scripted(monkeypatch, model=unasked())
    with pytest.raises(ValueError, match=r"pceb\.jsonl holds no question of column 'moral multiple'"):
        run(data, "new", pceb, f"--run.against={data / 'old'}")


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ({"id": "1/1"}, "text is None, but must be a text"),
        ({"id": 3, "text": "x"}, "id is 3, but must be a text"),
        ('{"id": "1/1", "te', "not a JSON object"),
        ({"id": "2/1", "text": "x"}, "stands there twice"),
    ],
)
def test_damaged_replies_of_the_other_are_named_with_their_line(
    line: Any, match: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (f"--benchmark.dialogues={data / 'talk.jsonl'}", "--judge.path=judge")
    scripted(monkeypatch, model=always("好"), judge=always("x", "judge"))
    run(data, "old", *flags)
    text = line if isinstance(line, str) else json.dumps(line)
    (data / "old/predictions/talk.replies.jsonl").write_text('{"id": "2/1", "text": "y"}\n' + text + "\n")
    scripted(monkeypatch, model=unasked(), judge=unasked("judge"))
    with pytest.raises(ValueError, match=rf"talk\.replies\.jsonl line 2: .*{match}"):
        run(data, "new", *flags, f"--run.against={data / 'old'}")


def test_replies_to_another_dialogue_are_not_compared(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = (f"--benchmark.dialogues={data / 'talk.jsonl'}", "--judge.path=judge")
    scripted(monkeypatch, model=always("好"), judge=always("x", "judge"))
    run(data, "old", *flags)
    (data / "talk.jsonl").write_text(json.dumps({"id": 1, "messages": [{"role": "user", "content": "我考试没考好"}]}))
    with pytest.raises(ValueError, match=r"talk\.replies\.jsonl: '1/1' was asked with another prompt there"):
        run(data, "new", *flags, f"--run.against={data / 'old'}")


def test_empty_replies_are_counted(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted(monkeypatch, model=always("<think>what"), judge=always("安全性：1", "judge"))
    found = run(data, "r", f"--benchmark.dialogues={data / 'talk.jsonl'}", "--judge.path=judge")
    assert found["benchmarks"]["talk"]["empty"] == 1
    assert "100.0% of the replies are empty" in capsys.readouterr().out


def test_a_comparison_of_other_figures_does_not_stay(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, model=always("A"), other=always("B"))
    flags = ("--model.path=other", questions(data, "q", "one", "two", "three"))
    run(data, "old", "--model.path=model", flags[1])
    assert "against" in run(data, "new", *flags, f"--run.against={data / 'old'}")["benchmarks"]["q"]
    assert "against" in run(data, "new", *flags)["benchmarks"]["q"]  # the same figures
    k = ("--answers.samples=2", "--answers.pass_k=1")
    run(data, "old-k", "--model.path=model", *k, flags[1])
    run(data, "new-k", *flags, *k, f"--run.against={data / 'old-k'}")
    assert "against" in run(data, "new-k", *flags, *k)["benchmarks"]["q"]  # k is a text in the file
    path = data / "new" / "evaluation.json"
    found = json.loads(path.read_text())
    found["benchmarks"]["q"]["all"]["empty"] = 0.5  # as after another max_length
    path.write_text(json.dumps(found))
    assert run(data, "new", *flags)["benchmarks"]["q"].keys().isdisjoint({"against", "compared_with"})


def test_the_figures_are_kept_when_the_comparison_fails(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = (f"--benchmark.dialogues={data / 'talk.jsonl'}", "--judge.path=judge")
    scripted(monkeypatch, model=always("好"), other=always("嗯"), judge=always("安全性：1", "judge"))
    run(data, "old", *flags)

    def away(request: Request) -> str:
        if "结论" in str(request.messages):  # the prompt that compares
            raise ConnectionError("the server is away")
        return "安全性：1"

    leaving = Scripted(away, "judge")
    leaving.identity = "says 安全性：1"
    scripted(monkeypatch, other=always("嗯"), judge=leaving)
    with pytest.raises(ConnectionError):
        run(data, "new", "--model.path=other", *flags, f"--run.against={data / 'old'}")
    assert names(data, "new") == ["talk"]
