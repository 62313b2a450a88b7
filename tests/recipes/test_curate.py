"""The curation recipe: killed with SIGKILL at 20 random moments it writes the same bytes; errors name file and line."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import curate
import curate_models
import pytest
from cli import load_config
from curate_options import STAGES, CurateRecipe
from forked import in_a_fork

from psychecore.curate.generator import Arrived, Reply, Request
from psychecore.data.records import read_conversations, read_questions

KILLS = int(os.environ.get("CURATE_KILLS", "12"))
REPO = Path(__file__).resolve().parents[2]
DATA = REPO / "recipes" / "data"
NOT_COMPARED = {"timings.jsonl"}  # seconds
WRITES = {"open", "os.rename", "os.remove", "os.mkdir", "os.truncate"}


class Scripted:
    """A model by rule: what it says depends on a hash of the request, and is often wrong, as a model's words are."""

    def __init__(self, name: str):
        self.name, self.identity = name, f"scripted {name}"

    def generate_each(self, requests: Sequence[Request], arrived: Arrived) -> None:
        for start in range(0, len(requests), 3):
            part = range(start, min(start + 3, len(requests)))
            arrived({number: Reply(self.say(requests[number]), -1.0) for number in part})

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        return [Reply(self.say(request), -1.0) for request in requests]

    def close(self) -> None:
        pass

    def say(self, request: Request) -> str:
        text = request.messages[-1]["content"]
        lot = int.from_bytes(hashlib.sha256(f"{self.name}{text}{request.sample}".encode()).digest()[:4], "big")
        if "Passage:" in text and "Quote:" in text:
            passage = text.rpartition("Passage:")[2]
            sentences = [part.strip() + "." for part in passage.split(".") if part.strip()]
            return "\n\n".join(self.question(sentence, lot + n) for n, sentence in enumerate(sentences[:2]))
        if "answerable: score" in text:
            return "\n".join(
                f"{criterion}: {5 if (lot >> n) % 8 else 2} - a reason"
                for n, criterion in enumerate(("answerable", "unambiguous", "key", "sound"))
            )
        if "counsellor replied" in text.lower() or "A counsellor" in text:
            reply = text.partition("counsellor replied:")[2].partition("Rewrite the")[0].strip()
            return (
                f"Thank you for writing. It sounds exhausting, and it makes sense that you feel alone with it. {reply}"
            )
        return f"<think>Because of what is known, {lot}.</think>{'ABCD'[lot % 4]}"

    def question(self, sentence: str, lot: int) -> str:
        words = ["memory of place", "a habit of years", "the first rule", "one fixed order", "no effect at all"]
        options = [f"{letter}. {words[(lot + n) % 5]} {n}" for n, letter in enumerate("ABCD")]
        stem, key = f"Question: What follows from it in case {lot % 97}?", f"Answer: {'ABCDX'[lot % 5]}"
        return "\n".join([f"Quote: {sentence}", stem, "Type: single", *options, key])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with small sources, in which recipes/curate.py runs with scripted models."""
    monkeypatch.setattr(curate_models, "make_generator", lambda spec, options: Scripted(spec))
    (tmp_path / "texts").mkdir()
    for number, line in enumerate((DATA / "passages_en.jsonl").read_text("utf-8").splitlines()[:6]):
        (tmp_path / "texts" / f"chapter{number}.md").write_text("# A chapter\n\n" + json.loads(line)["text"], "utf-8")
    posts = (DATA / "posts_en.jsonl").read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "posts.jsonl").write_text("".join(posts[::4]), "utf-8")
    from compose import main as compose_main

    compose_main(["--out", str(tmp_path / "data"), "--kinds", "field"])
    rows = (tmp_path / "data" / "train.jsonl").read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "given.jsonl").write_text("".join(rows[:40]), "utf-8")
    return tmp_path


def recipe(folder: Path, *flags: str) -> CurateRecipe:
    options = {
        "run.folder": folder / "out",
        "run.batch_size": 7,
        "sources.texts": folder / "texts",
        "sources.posts": folder / "posts.jsonl",
        "sources.questions": folder / "given.jsonl",
        "models.author": "author",
        "models.selectors": "one,two",
        "hold_out.share": 0.1,
        "rationale.keep_authored": "false",
        "divide.grpo_minimum": 2,
        "divide.sft_minimum": 2,
        "divide.short": "move",
    }
    argv = [f"--{name}={value}" for name, value in options.items()]
    return load_config(CurateRecipe, [*argv, *flags], None)


def counting(work: Callable[[], object], kill_at: int, told: Path) -> Callable[[], None]:
    """`work`, during which every file operation, flush to disk and reply is a moment; SIGKILL comes at `kill_at`."""

    def run() -> None:
        moments = 0
        inside = False

        def moment() -> None:
            nonlocal moments
            moments += 1
            if moments == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        def audit(event: str, arguments: tuple[Any, ...]) -> None:
            if inside and event in WRITES and (event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR)):
                moment()

        flush, say = os.fsync, Scripted.say

        def counted_flush(descriptor: int) -> None:
            moment()  # what was written before is in the file, but the journal does not speak of it yet
            flush(descriptor)

        def counted_say(self: Scripted, request: Request) -> str:
            moment()
            return say(self, request)

        os.fsync, Scripted.say = counted_flush, counted_say  # type: ignore[assignment,method-assign]
        sys.addaudithook(audit)
        inside = True
        work()
        inside = False
        os.fsync = flush
        told.write_text(str(moments))

    return run


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a curation by name; the cache's lines in order, since a killed run may keep them in another."""
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in NOT_COMPARED}
    found["config.toml"] = found["config.toml"].replace(str(folder.parent).encode(), b"")
    lines = [json.loads(line) for line in found.pop("cache.jsonl").splitlines()]
    assert len({line["key"] for line in lines}) == len(lines)  # nothing was asked twice and kept twice
    found["cache.jsonl"] = json.dumps(sorted((line["key"], line["text"]) for line in lines)).encode()
    return found


def test_killed_at_random_moments_it_writes_the_same_bytes(place: Path) -> None:
    config, out = recipe(place), place / "out"
    log, told = place / "log", place / "moments"
    assert in_a_fork(counting(lambda: curate.main(config), 0, told), log) == 0, log.read_text()
    expected, moments = contents(out), int(told.read_text())
    assert moments > 200
    assert len(read_conversations(out / "sft.jsonl")) > 5  # it was no empty run
    assert len(read_questions(out / "grpo.jsonl")) > 2
    draw = random.Random(7)
    for kill in sorted(draw.sample(range(1, moments + 1), KILLS)):
        for path in out.iterdir():
            path.unlink()
        assert in_a_fork(counting(lambda: curate.main(config), kill, told), log) == -signal.SIGKILL
        again = draw.randrange(1, moments)  # and once more while it recovers, if it lasts that long
        assert in_a_fork(counting(lambda: curate.main(config), again, told), log) in (0, -signal.SIGKILL)
        assert in_a_fork(lambda: curate.main(config), log) == 0, log.read_text()
        found = contents(out)
        assert sorted(found) == sorted(expected), f"killed at moment {kill}"
        assert [name for name in expected if found[name] != expected[name]] == [], f"killed at moment {kill}"


def test_all_stages_at_once_or_one_by_one_give_the_same(place: Path) -> None:
    curate.main(recipe(place))
    expected = contents(place / "out")
    for path in (place / "out").iterdir():
        path.unlink()
    for stage in STAGES:
        curate.main(recipe(place, f"--run.stage={stage}"))
    found = contents(place / "out")
    found["config.toml"] = expected["config.toml"]  # it says which stage was run last
    assert found == expected


def test_every_row_is_kept_or_dropped_with_a_reason_and_the_splits_are_apart(place: Path) -> None:
    curate.main(recipe(place))
    out = place / "out"
    manifest = json.loads((out / "manifest.json").read_text())
    for stage in manifest["stages"]:
        if stage["name"] not in ("questions",):  # a passage gives several
            assert stage["read"] == stage["kept"] + sum(stage["rejected"].values()), stage
    splits = {name: (out / f"{name}.jsonl").read_text().splitlines() for name in ("sft", "grpo", "heldout")}
    passages = {
        name: {row["passage_id"] for row in map(json.loads, rows) if row.get("passage_id")}
        for name, rows in splits.items()
    }
    assert not passages["sft"] & passages["grpo"]
    assert not (passages["sft"] | passages["grpo"]) & passages["heldout"]
    assert manifest["prompts"].keys() == {"questions.toml", "quality.toml", "rationale.toml", "dialogue.toml"}
    assert [one["name"] for one in manifest["models"]["selectors"]] == ["one", "two"]
    answered = [json.loads(line) for line in (out / "select.jsonl").read_text().splitlines()]
    assert all(set(row["answers"]) == {"one", "two"} for row in answered)


def test_a_changed_option_runs_only_the_stages_that_depend_on_it(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curate.main(recipe(place))
    before = {path.name: path.stat().st_mtime_ns for path in (place / "out").glob("*.done.json")}
    curate.main(recipe(place, "--select.seed=7"))
    changed = {p.name for p in (place / "out").glob("*.done.json") if p.stat().st_mtime_ns != before[p.name]}
    assert changed >= {"select_1.done.json", "select.done.json"}
    assert not changed & {"clean.done.json", "questions.done.json", "quality.done.json", "dialogue.done.json"}


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("given.jsonl", '{"id": "x", "question": "?"}', r"given.jsonl line 41: key 'options' is missing"),
        ("given.jsonl", "not json", r"given.jsonl line 41: "),
        ("posts.jsonl", '{"id": "x", "post": "p"}', r"posts.jsonl line \d+: no reply"),
        ("texts/more.jsonl", '{"id": "x", "text": 5}', r"more.jsonl line 1: text is 5"),
    ],
)
def test_a_wrong_row_is_named_by_file_and_line(place: Path, file: str, line: str, message: str) -> None:
    with open(place / file, "a", encoding="utf-8") as added:
        added.write(line + "\n")
    with pytest.raises(ValueError, match=message):
        curate.main(recipe(place))


def test_a_stage_without_what_it_needs_says_what_to_run(place: Path) -> None:
    with pytest.raises(ValueError, match=r"clean.jsonl is missing: run the stages before"):
        curate.main(recipe(place, "--run.stage=quality"))


def test_a_role_without_a_model_says_which_option_is_missing(place: Path) -> None:
    with pytest.raises(ValueError, match=r"models.author"):
        curate.main(recipe(place, "--models.author="))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--run.folder={place}"], r".* is no curation's .*given.jsonl, which a stage might replace"),
        (["--sources.posts={place}/out/posts.jsonl"], r"out/posts.jsonl lies in .*/out, whose files this run replaces"),
        (["--sources.texts={place}"], r"lies in .*/out, whose files this run replaces"),
        (["--sources.decisions={place}/none.csv"], r"none.csv does not exist: --sources.decisions"),
        (["--sources.questions={place}"], r"is a folder: --sources.questions must name a file"),
        (["--hold_out.file={place}/none.jsonl"], r"none.jsonl does not exist: --hold_out.file"),
        (["--run.prompts={place}"], r"questions.toml"),
        (["--models.selectors="], r"models.selectors"),
        (["--models.author="], r"models.author"),
        (
            ["--decontaminate.benchmarks={place}/zipped"],
            r"zipped holds no .json or .jsonl file, so nothing would be kept",
        ),
        (["--divide.selectors_needed=3"], r"selectors_needed is 3 of 2 models.selectors"),
        (["--divide.samples_needed=2"], r"samples_needed 2 of 1 select.samples"),
    ],
)
def test_what_must_fail_later_is_refused_before_anything_is_touched(
    place: Path, flags: list[str], message: str
) -> None:
    (place / "out").mkdir()
    (place / "out" / "config.toml").write_text("[sources]\n")  # an earlier curation's
    (place / "out" / "posts.jsonl").write_text((place / "posts.jsonl").read_text("utf-8"), "utf-8")
    (place / "zipped").mkdir()
    (place / "zipped" / "cpsyexam.zip").touch()
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        curate.main(recipe(place, *(flag.format(place=place) for flag in flags)))
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_another_runs_folder_is_left_alone(place: Path) -> None:
    (place / "out").mkdir()
    (place / "out" / "config.toml").write_text('[model]\npath = "x"\n')
    with pytest.raises(ValueError, match=r"holds a run that is no curation"):
        curate.main(recipe(place))
    assert sorted(path.name for path in (place / "out").iterdir()) == ["config.toml"]


def test_a_file_that_is_read_as_something_else_is_read_again(place: Path) -> None:
    curate.main(
        recipe(place, "--run.stage=sources", f"--sources.posts={place}/given.jsonl", "--sources.questions=none")
    )
    assert (place / "out" / "given.jsonl").read_bytes() == b""
    curate.main(recipe(place, "--run.stage=sources", "--sources.posts="))
    assert len((place / "out" / "given.jsonl").read_text("utf-8").splitlines()) == 40
    assert (place / "out" / "posts.jsonl").read_bytes() == b""


def test_another_max_length_and_fewer_selectors_leave_nothing_of_before(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(spec: str, options: Any) -> Scripted:
        made = Scripted(spec)
        made.max_length = options.max_length
        return made

    monkeypatch.setattr(curate_models, "make_generator", make)
    curate.main(recipe(place))
    assert (place / "out" / "select_1.jsonl").exists()
    before = (place / "out" / "rationale.done.json").read_bytes()
    curate.main(recipe(place, "--models.max_length=5000", "--models.selectors=one"))
    assert (place / "out" / "rationale.done.json").read_bytes() != before
    assert not list((place / "out").glob("select_1*"))


def test_a_server_that_refused_is_asked_again_by_the_same_command(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A local model's room is known, and another max_length runs its stages anew; a server's is not."""

    class Server(Scripted):
        room, asked = False, 0

        def generate_each(self, requests: Sequence[Request], arrived: Arrived) -> None:
            Server.asked += len(requests)
            tight = [n for n, one in enumerate(requests) if not Server.room and "counsellor" in str(one.messages)]
            arrived({n: Reply("", None, refused=True) for n in tight})
            rest = [n for n in range(len(requests)) if n not in tight]
            super().generate_each(
                [requests[n] for n in rest], lambda said: arrived({rest[n]: r for n, r in said.items()})
            )

    monkeypatch.setattr(curate_models, "make_generator", lambda spec, options: Server(spec))
    curate.main(recipe(place))
    assert "a server had no room for" in capsys.readouterr().out
    refused = (place / "out" / "dialogue.jsonl").read_bytes()
    Server.room, before = True, Server.asked
    curate.main(recipe(place))
    assert Server.asked > before
    assert (place / "out" / "dialogue.jsonl").read_bytes() != refused
    before = Server.asked
    curate.main(recipe(place))
    assert Server.asked == before
    assert "no room" not in capsys.readouterr().out


def test_the_author_judges_dialogues_where_nobody_else_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    class Judging(Scripted):
        def say(self, request: Request) -> str:
            if request.max_new_tokens == 128:
                heard.append(self.name)
                return "ADVICE: yes\nADDED: no\nFEELING: yes"
            return super().say(request)

    monkeypatch.setattr(curate_models, "make_generator", lambda spec, options: Judging(spec))
    curate.main(recipe(place, "--sources.judge_dialogues=true"))
    assert set(heard) == {"author"}


def test_an_unknown_stage_is_refused(place: Path) -> None:
    with pytest.raises(ValueError, match=r"stage is 'selection'"):
        recipe(place, "--run.stage=selection")


def stages(place: Path, names: str, *flags: str) -> Path:
    """Run some stages, in this order; the folder."""
    for name in names.split():
        curate.main(recipe(place, f"--run.stage={name}", *flags))
    return place / "out"


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.parametrize("words", [2, 3])
def test_benchmarks_are_compared_in_the_rows_own_shingles(place: Path, words: int) -> None:
    given = rows_of(place / "given.jsonl")[0]
    held = write_rows(
        place / "held.jsonl", [given | {"id": "b", "question": f"{given['question']} Say which one it is."}]
    )
    flags = f"--dedupe.en_words={words}", f"--decontaminate.benchmarks={held}"
    out = stages(place, "sources clean questions dedupe", *flags)
    dropped = {row["id"]: row["reason"] for row in rows_of(out / "dedupe.rejects.jsonl")}
    assert dropped[given["id"]] in ("benchmark_near", "holds_benchmark")


def test_ready_questions_are_cleaned_and_may_be_short(place: Path) -> None:
    given = rows_of(place / "given.jsonl")[0]
    short = {"question": "Why?? 😀", "options": {"A": "Fear", "B": "Joy"}, "answer": "A", "kind": "single"}
    twins = short | {"options": {"A": "Fear", "B": "Fear 😀"}}
    write_rows(place / "given.jsonl", [given | short | {"id": "short"}, given | twins | {"id": "twins"}])
    out = stages(place, "sources clean questions dedupe")
    assert [row["question"] for row in rows_of(out / "dedupe.jsonl") if row["id"] == "short"] == ["Why?"]
    assert [row["reason"] for row in rows_of(out / "clean_given.rejects.jsonl")] == ["duplicate_options"]


def test_twin_passages_are_asked_about_once_and_their_questions_stay_on_one_side(place: Path) -> None:
    text = (place / "texts" / "chapter0.md").read_text("utf-8")
    (place / "texts" / "copy.md").write_text(text, "utf-8")
    out = stages(place, "sources clean questions")
    assert [row["reason"] for row in rows_of(out / "dedupe_texts.rejects.jsonl")] == ["exact_duplicate"]
    assert all(row["passage_cluster"] for row in rows_of(out / "questions.jsonl"))


def test_posts_are_deduplicated_and_kept_out_of_benchmarks(place: Path) -> None:
    first, second, *_ = posts = rows_of(place / "posts.jsonl")
    write_rows(place / "posts.jsonl", [*posts, first | {"id": "again"}])
    held = write_rows(place / "held.jsonl", [second | {"id": "b"}])
    out = stages(place, "sources clean dialogue", f"--decontaminate.benchmarks={held}")
    dropped = {row["id"]: row["reason"] for row in rows_of(out / "dedupe_posts.rejects.jsonl")}
    assert dropped == {"again": "exact_duplicate", second["id"]: "benchmark_exact"}


def test_rows_of_one_source_stay_on_one_side_where_that_is_wanted(place: Path) -> None:
    rows = rows_of(place / "given.jsonl")
    write_rows(place / "given.jsonl", [row | {"source": f"book{n % 4}"} for n, row in enumerate(rows)])
    curate.main(recipe(place, "--split_by_source=true", "--hold_out.share=0.3"))
    found = [rows_of(place / "out" / f"{name}.jsonl") for name in ("sft", "grpo", "heldout")]
    sources = [{row["source"] for row in split} for split in found]
    assert all(sources)
    assert sum(map(len, sources)) == len(set.union(*sources))


def test_the_manifest_does_not_say_what_did_not_happen(place: Path) -> None:
    curate.main(recipe(place))
    before = (place / "out" / "manifest.json").read_bytes()
    with pytest.raises(
        ValueError, match=r"clean.done.json: stage 'clean' ran with settings.least 10, and now it is 77"
    ):
        stages(place, "assemble", "--clean.least=77")
    with pytest.raises(ValueError, match=r"stage 'quality' ran with settings\[0\].key"):
        stages(place, "assemble", "--quality.key=1.5")
    stages(place, "assemble")
    assert (place / "out" / "manifest.json").read_bytes() == before


def test_the_manifest_names_every_file_and_no_folder(place: Path) -> None:
    (place / "bench").mkdir()
    other = {"id": "b", "question": "Is it raining in the town today?", "options": {"A": "yes", "B": "no"}}
    write_rows(place / "bench" / "one.jsonl", [other | {"answer": "A", "kind": "single"}])
    out = stages(place, "sources clean questions dedupe quality")
    row = rows_of(out / "quality.jsonl")[0]
    flags = f"--decontaminate.benchmarks={place / 'bench'}", f"--sources.decisions={place / 'decisions.jsonl'}"
    kept = write_rows(place / "held.jsonl", [row])
    write_rows(place / "decisions.jsonl", [])
    curate.main(recipe(place, *flags, f"--hold_out.file={kept}"))
    manifest = json.loads((out / "manifest.json").read_text())
    names = {entry["file"] for entry in manifest["inputs"].values()}
    assert names >= {"one.jsonl", "decisions.jsonl", "held.jsonl", "chapter0.md", "posts.jsonl", "given.jsonl"}
    assert all(len(one["sha256"]) == 64 and one["version"] >= 1 for one in manifest["prompts"].values())
    assert str(place) not in json.dumps(manifest)


def test_the_spreadsheet_of_the_review_comes_back_as_decisions(place: Path) -> None:
    out = stages(place, "sources clean questions dedupe quality review")
    with open(out / "review.csv", encoding="utf-8-sig", newline="") as file:
        header, first, *others = csv.reader(file)
    first[header.index("decision")], first[header.index("reason")] = "r", "trivial"
    with open(place / "done.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, first, *others])
    stages(place, "review", f"--sources.decisions={place / 'done.csv'}")
    [rejected] = rows_of(out / "review.rejects.jsonl")
    assert (rejected["id"], rejected["detail"]) == (first[0], "trivial")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("OPENAI_API_KEY", r"'OPENAI_API_KEY', but each must be HOST=VARIABLE"),
        ("other=KEY", r"no model is asked at 'oth"),
    ],
)
def test_a_key_that_no_model_would_get_is_refused(place: Path, key: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        curate.main(recipe(place, "--models.author=http://127.0.0.1:8000/v1#m", f"--models.keys={key}"))
    curate_models.check_keys(
        ["127.0.0.1=KEY", "h:1=KEY"], ["x=http://127.0.0.1:8000/v1#m", "http://h:1/v1#m", "folder"]
    )


def test_a_run_that_finds_the_folder_busy_leaves_its_config_alone(place: Path) -> None:
    curate.main(recipe(place, "--run.stage=sources"))
    before = (place / "out" / "config.toml").read_bytes()
    running = curate.Cache(place / "out" / "cache.jsonl")
    with pytest.raises(BlockingIOError):
        curate.main(recipe(place, "--run.stage=clean"))
    running.close()
    assert (place / "out" / "config.toml").read_bytes() == before


def test_deduplication_tells_how_far_it_is(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from psychecore.curate import progress

    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    stages(place, "sources clean questions dedupe")
    assert "dedupe: 40 of " in capsys.readouterr().err


def test_what_a_limit_leaves_out_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--run.stage=sources", "--sources.passage_limit=2", "--sources.post_limit=1000"]
    curate.main(recipe(place, *flags, "--sources.question_limit=10"))
    said = capsys.readouterr().out
    assert "the first 2 only: sources.passage_limit" in said
    assert "the first 10 only: sources.question_limit" in said
    assert "post_limit" not in said
    assert len((place / "out" / "given.jsonl").read_text("utf-8").splitlines()) == 10
