from __future__ import annotations

import json
import random
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import LOW_CONTRAST, chromium, complaints, resize
from test_review_page import HOSTILE

from psychecore.curate.assemble import Provenance, Sources, assemble
from psychecore.curate.charts import Node, Part, bars, flow, histogram, quantile
from psychecore.curate.divide import DivideConfig, divide
from psychecore.curate.report import write_report
from psychecore.curate.report_data import EXAMPLES, read_folder

AREAS = (
    "learning",
    "memory",
    "emotion",
    "abnormal psychology",
    "development",
    "social psychology",
    "测量",
    "assessment",
)


def question(number: int, rng: random.Random) -> dict[str, Any]:
    return {
        "id": f"q{number}",
        "question": "Which of these " + "words " * rng.randint(3, 40) + "fits?",
        "options": {"A": "Praise", "B": "Blame", "C": "Rest", "D": "None"},
        "answer": rng.choice("ABCD"),
        "kind": "single",
        "area": AREAS[min(int(rng.expovariate(0.5)), len(AREAS) - 1)],
        "language": "en",
        "passage_id": f"p{number // 3}",
    }


def write(folder: Path, name: str, rows: list[dict[str, Any]], rejects: list[dict[str, Any]] | None = None) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if rejects is not None:
        (folder / f"{name}.rejects.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rejects))


def curated(folder: Path, size: int = 120) -> dict[str, int]:
    """A folder as recipes/curate.py leaves it, with texts as hostile as they come; returns counts to look for."""
    rng = random.Random(0)
    passages = [
        {"id": f"p{i}", "text": "Text. " * rng.randint(20, 200), "area": "learning", "language": "en"}
        for i in range(40)
    ]
    links = [{**passages[i], "reason": "too_short", "detail": f"{i} characters, below 80"} for i in range(3)]
    write(folder, "clean", passages[3:], links)
    questions = [question(i, rng) for i in range(size)]
    raw = {"raw": HOSTILE, "reason": "no_quote", "detail": HOSTILE}
    faults = [{"id": f"x{i}", **raw} for i in range(9)] + [{"id": "y", "raw": "?", "reason": HOSTILE, "detail": ""}]
    write(folder, "questions", questions, faults)
    benchmarked = [
        {**questions[i], "reason": "benchmark_near", "detail": f"0.9 like pceb.json item {i}"} for i in range(4)
    ]
    same = [{**questions[4], "reason": "holds_benchmark", "detail": "0.8 of the case of exam.jsonl line 3"}]
    near = [{**questions[i], "reason": "near_duplicate", "detail": "0.83 like q40"} for i in range(5, 12)]
    write(folder, "dedupe", questions[12:], benchmarked + same + near)
    low = [{**one, "reason": "low_key", "detail": "key is 2, below 4"} for one in questions[12:30]]
    write(folder, "quality", questions[30:], low)
    models = {"SmolLM2-135M": 0.3, "SmolLM2-135M-sft": 0.6, "Qwen2.5-0.5B": 0.45}
    matrix, sft, grpo = [], [], []
    for one in questions[30:]:
        right = {name: int(rng.random() < chance) for name, chance in models.items()}
        easy = any(right.values())
        (sft if easy else grpo).append({**one, "rationale": "Because " * rng.randint(5, 60)})
        letters = {name: [one["answer"] if got else None] for name, got in right.items()}
        kind = "sft" if easy else "grpo"
        matrix.append(
            {"id": one["id"], "area": one["area"], "letters": letters, "right": right, "kind": kind, "set": kind}
        )
    write(folder, "questions_sft", sft)
    write(folder, "questions_grpo", grpo)
    write(folder, "matrix", matrix)
    (folder / "divide.rejects.jsonl").write_text("")
    pair = {"selectors": ["Qwen2.5-0.5B", "SmolLM2-135M"], "letters": {"agreement": 0.5, "kappa": 0.123}}
    (folder / "selection.json").write_text(json.dumps({"agreement": [pair]}))
    posts = [{"id": f"d{i}", "post": "I feel low. " * 5, "reply": "Go out. " * 4, "language": "en"} for i in range(30)]
    write(folder, "clean_posts", posts)
    talks = [
        {
            "id": f"d{i}",
            "messages": [
                {"role": "user", "content": "我很难过"},
                {"role": "assistant", "content": "听起来" * rng.randint(9, 50)},
            ],
            "risk": None,
        }
        for i in range(22)
    ]
    lost = [{**posts[i], "reason": "advice_lost", "detail": "the reply said 'go out'"} for i in range(22, 30)]
    write(folder, "dialogue", talks, lost)
    final = [
        {"id": one["id"], "area": one["area"], "messages": talks[0]["messages"], "kind": "question"} for one in sft
    ]
    write(folder, "sft", final + [{**one, "kind": "dialogue"} for one in talks])
    write(folder, "grpo", grpo)
    write(folder, "heldout", [question(1000 + i, rng) for i in range(8)])
    (folder / "assemble.rejects.jsonl").write_text("")
    stages = [
        {"name": "clean", "rows": 40, "kept": 37, "rejected": {"too_short": 3}},
        {"name": "questions", "rows": 37, "kept": size, "rejected": {}},
    ]
    inputs = {f"benchmark/{i}": {"file": name} for i, name in enumerate(("pceb.json", "cpsy.json"))}
    manifest = {
        "stages": stages,
        "inputs": inputs,
        "outputs": {"sft.jsonl": {"file": "sft.jsonl", "sha256": "ab" * 32}},
        "models": {"judge": "SmolLM2-135M", "selectors": list(models)},
        "prompts": {"quality.toml": 1},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return {"sft": len(sft), "grpo": len(grpo), "quality": len(questions) - 30}


class Tags(HTMLParser):
    """Every element of a page, in order, with the text of the page; raises where tags are not nested."""

    VOID = ("meta", "link", "br", "img", "input", "hr")

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.seen: Counter[str] = Counter()
        self.words: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] += 1
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_counts_and_reasons_stand_in_the_page(tmp_path: Path) -> None:
    counts = curated(tmp_path / "run")
    write_report(tmp_path / "run", tmp_path / "out" / "report.html")
    said = " ".join(Tags((tmp_path / "out" / "report.html").read_text(encoding="utf-8")).words)
    for words in (
        "40 rows in, 37 kept, 3 dropped",
        f"{counts['sft']} SFT, {counts['grpo']} GRPO",
        f"{counts['quality']} kept, 18 dropped",
        "near duplicate 7",
        "low key 18",
        "22 kept, 8 dropped",
        "the reply said 'go out'",
    ):
        assert words in re.sub(r"\s+", " ", said)


def test_hostile_text_stays_text_and_tags_are_nested(tmp_path: Path) -> None:
    curated(tmp_path / "run")
    write_report(tmp_path / "run", tmp_path / "report.html")
    page = Tags((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.seen["script"] == page.seen["img"] == page.seen["link"] == 0
    assert HOSTILE.strip() in " ".join(page.words)


def test_selectors_are_counted_from_the_matrix(tmp_path: Path) -> None:
    curated(tmp_path / "run")
    found = read_folder(tmp_path / "run").selectors
    rows = [json.loads(line) for line in (tmp_path / "run" / "matrix.jsonl").read_text().splitlines()]
    for place, name in enumerate(found.names):
        alone = [row["right"] for row in rows]
        assert found.right[name] == sum(right[name] for right in alone)
        assert found.answers[name] == len(rows)
        got = sum(count for pattern, count in found.patterns.items() if pattern[place])
        assert got == sum(right[name] > 0 for right in alone)
    one, other = "Qwen2.5-0.5B", "SmolLM2-135M-sft"
    assert found.same[one, other] == sum(bool(r["right"][one]) == bool(r["right"][other]) for r in rows)
    none = tuple(False for _ in found.names)
    assert found.sets[none] == Counter(grpo=found.patterns[none])


def test_without_a_matrix_the_answers_in_the_rows_are_counted(tmp_path: Path) -> None:
    answers = {"m": [{"letters": "A", "right": True}, {"letters": None, "right": False}], "n": [{"right": False}] * 2}
    write(tmp_path, "select", [{**question(1, random.Random(0)), "area": "x", "answers": answers}], [])
    found = read_folder(tmp_path).selectors
    assert (found.right["m"], found.answers["m"], found.right["n"]) == (1, 2, 0)
    assert found.got_by_area == {("x", "m"): 1, ("x", "n"): 0}


def test_what_divide_and_assemble_really_write_is_understood(tmp_path: Path) -> None:
    rng = random.Random(1)
    rows = []
    for place in range(30):
        one = {**question(place, rng), "rationale": "It follows.", "passage_id": f"p{place}"}
        given = {name: [{"text": "", "letters": "B", "right": rng.random() < 0.4}] for name in ("m", "n")}
        rows.append({**one, "answers": given})
    write(tmp_path, "select", rows, [])
    divide(tmp_path / "select.jsonl", tmp_path, DivideConfig())
    talk = {"id": "d", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bc"}]}
    write(tmp_path, "dialogue", [{**talk, "source": "posts", "risk": None, "post_id": "1"}], [])
    names = ("questions_sft.jsonl", "questions_grpo.jsonl", "dialogue.jsonl")
    stages = [{"name": "select", "read": 31, "kept": 30, "rejected": {}}]
    assemble(Sources(*(tmp_path / name for name in names)), tmp_path, 0, Provenance(stages=stages))
    data = read_folder(tmp_path)
    easy = sum(any(answer[0]["right"] for answer in row["answers"].values()) for row in rows)
    assert [stage.name for stage in data.stages] == ["dialogue", "select", "divide", "assemble"]
    select, divided, final = data.stages[1:]
    assert select.read == 31
    assert divided.kept == {"questions_sft.jsonl": easy, "questions_grpo.jsonl": 30 - easy}
    assert final.kept == {"sft.jsonl": easy + 1, "grpo.jsonl": 30 - easy}
    assert final.kinds["sft.jsonl"] == {"questions": easy, "dialogues": 1}
    assert final.areas["sft.jsonl"].total() == easy
    assert final.lengths["reply of a dialogue", "en"] == Counter({2: 1})
    assert final.lengths["worked answer", "en"].total() == easy
    assert divided.lengths["question", "en"].total() == 30
    assert ("question", "en") not in final.lengths  # only the hard ones are questions still
    matrix = data.selectors.sets
    assert sum((sets for sets in matrix.values()), Counter()) == Counter(sft=easy, grpo=30 - easy)
    assert set(data.selectors.kappa) == {("m", "n")}
    write_report(tmp_path, tmp_path / "report.html")


def test_what_was_decontaminated_is_told_by_benchmark(tmp_path: Path) -> None:
    curated(tmp_path / "run")
    data = read_folder(tmp_path / "run")
    assert data.contaminated == {
        "pceb.json": Counter(benchmark_near=4),
        "exam.jsonl": Counter(holds_benchmark=1),
        "cpsy.json": Counter(),  # named in the manifest, and nothing of it was found
    }


@pytest.mark.parametrize(
    "absent", ["clean", "questions", "dedupe", "quality", "dialogue", "clean_posts", "matrix", "sft", "questions_sft"]
)
def test_a_stage_may_be_absent(tmp_path: Path, absent: str) -> None:
    curated(tmp_path / "run")
    for path in (tmp_path / "run").glob(f"{absent}.*"):
        path.unlink()
    write_report(tmp_path / "run", tmp_path / "report.html")
    Tags((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_one_stage_without_rejects_and_manifest_is_enough(tmp_path: Path) -> None:
    write(tmp_path / "run", "quality", [question(1, random.Random(0))])
    write_report(tmp_path / "run", tmp_path / "report.html")
    assert "1 kept, 0 dropped" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_counts_come_from_the_manifest_where_files_are_gone(tmp_path: Path) -> None:
    stage = {"name": "quality", "counts": {"read": 9, "kept": 5, "rejected": {"low_key": 4}}}
    (tmp_path / "manifest.json").write_text(json.dumps({"stages": [stage]}))
    (found,) = read_folder(tmp_path).stages
    assert (found.name, found.read, found.kept_count, found.rejected) == ("quality", 9, 5, {"low_key": 4})


def test_an_empty_folder_and_damaged_rows_are_errors_that_name_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no stage's files"):
        write_report(tmp_path, tmp_path / "report.html")
    (tmp_path / "quality.jsonl").write_text('{"id": "a"}\n{broken\n')
    with pytest.raises(ValueError, match=r"quality\.jsonl line 2: not a JSON object"):
        write_report(tmp_path, tmp_path / "report.html")


def test_the_same_folder_gives_the_same_page_and_few_examples(tmp_path: Path) -> None:
    curated(tmp_path / "run")
    for name in ("first", "second"):
        write_report(tmp_path / "run", tmp_path / f"{name}.html")
    assert (tmp_path / "first.html").read_bytes() == (tmp_path / "second.html").read_bytes()
    dedupe = read_folder(tmp_path / "run").stage("dedupe")
    assert dedupe is not None
    assert {reason: len(examples.rows()) for reason, examples in dedupe.examples.items()} == {
        "benchmark_near": EXAMPLES,
        "holds_benchmark": 1,
        "near_duplicate": EXAMPLES,
    }


def rects(svg: str, style: str) -> list[tuple[float, float, float]]:
    """(x, width, height) of the rectangles of a class."""
    found = re.findall(rf'<rect class="{style}" x="([\d.]+)" y="[\d.]+" width="([\d.]+)" height="([\d.]+)"', svg)
    return [(float(x), float(width), float(height)) for x, width, height in found]


def test_widths_in_a_flow_are_proportional_to_counts() -> None:
    nodes = [
        Node("one", 100, [Part("kept", 75, "kept"), Part("dropped", 25, "dropped")]),
        Node("two", 75, [Part("kept", 50, "kept"), Part("dropped", 25, "dropped")]),
    ]
    svg = flow(nodes, "flow")
    kept, dropped = rects(svg, "kept"), rects(svg, "dropped")
    assert kept[0][1] / dropped[0][1] == pytest.approx(3, rel=0.01)
    assert kept[0][1] / kept[1][1] == pytest.approx(1.5, rel=0.01)
    assert dropped[1][0] == pytest.approx(kept[1][0] + kept[1][1], abs=0.2)


def test_a_histogram_holds_every_text_and_its_median() -> None:
    lengths = Counter({10: 50, 20: 30, 35: 19, 5000: 1})
    svg = histogram(lengths, "x")
    assert sum(int(n.replace(",", "")) for n in re.findall(r": ([\d,]+)</title>", svg)) == 100
    assert "median 10<" in svg
    assert max(height for _, _, height in rects(svg, "kept")) == 90


@pytest.mark.parametrize("lengths", [Counter({0: 1}), Counter({7: 3}), Counter({1: 1, 10**7: 1}), Counter(range(1000))])
def test_histograms_of_any_spread_stay_in_their_frame(lengths: Counter[int]) -> None:
    found = rects(histogram(lengths, "x"), "kept")
    assert found
    assert all(x >= 0 and x + width <= 360.01 for x, width, _ in found)
    assert len(found) <= 25


def test_quantiles() -> None:
    lengths = Counter({1: 1, 2: 1, 3: 1, 4: 1})
    assert [quantile(lengths, q) for q in (0, 0.25, 0.5, 0.51, 1)] == [1, 1, 2, 3, 4]


def test_names_in_charts_are_escaped() -> None:
    assert "<b>" not in bars([("<b>", [Part("<b>", 1, "kept")])], "<b>")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_reads_and_runs_nothing(driver: Any, tmp_path: Path, width: int, dark: bool) -> None:
    curated(tmp_path / "run")
    write_report(tmp_path / "run", tmp_path / "report.html")
    resize(driver, width, dark=dark)
    driver.get((tmp_path / "report.html").as_uri())
    driver.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
    overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert driver.execute_script(overflow) == 0
    assert driver.execute_script(LOW_CONTRAST) == []
    # chart text must not leave its chart, nor shrink below what can be read
    outside = """return [...document.querySelectorAll('svg text')].filter(one => {
      const box = one.getBoundingClientRect(), frame = one.ownerSVGElement.getBoundingClientRect();
      return box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.height < 10;
    }).map(one => one.textContent)"""
    assert driver.execute_script(outside) == []
    assert driver.title == "Curation report"
    assert complaints(driver) == []


def test_held_out_rows_are_not_dropped_ones(tmp_path: Path) -> None:
    rng = random.Random(0)
    for name, numbers in (("rest", range(8)), ("held_out", range(8, 10))):
        write(tmp_path, name, [question(number, rng) for number in numbers])
    counts = {"name": "hold_out", "read": 10, "kept": 8, "rejected": {"held_out": 2}}
    (tmp_path / "manifest.json").write_text(json.dumps({"stages": [counts]}))
    [stage] = [stage for stage in read_folder(tmp_path).stages if stage.name == "hold_out"]
    assert stage.kept == {"rest.jsonl": 8, "held_out.jsonl": 2}
    assert stage.rejected.total() == 0


def test_stages_stand_in_the_order_in_which_they_ran(tmp_path: Path) -> None:
    order = ["clean", "clean_posts", "questions", "pool", "dedupe", "quality", "review", "hold_out", "rationale"]
    order += ["dialogue", "select_1", "select_2", "select", "divide", "assemble"]
    for name in sorted(order):
        (tmp_path / f"{name}.rejects.jsonl").touch()
    assert [stage.name for stage in read_folder(tmp_path).stages] == order
