"""What the report reads of a run folder: curves thinned, logs that grow, groups by page, damaged files by line."""

from __future__ import annotations

import json
import random
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from psychecore.report import evaluation
from psychecore.report.curves import POINTS, Curves, thin
from psychecore.report.evaluation import evaluation_rows
from psychecore.report.rollouts import PAGE, Rollouts
from psychecore.report.run_folder import RunFolder, open_runs


def append(path: Path, *rows: Any) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def metric(step: int, **values: Any) -> dict[str, Any]:
    return {"phase": "grpo", "step": step, "reward": step / 10, **values}


def group(step: int, *texts: str, totals: tuple[float, ...] = (0.0, 1.0)) -> dict[str, Any]:
    samples = [
        {"text": text, "finish_reason": "stop", "scores": {"total": total}}
        for text, total in zip(texts, totals, strict=False)
    ]
    return {"phase": "grpo", "step": step, "question": f"q{step}", "prompt": "Which?", "samples": samples}


def columns(curves: Curves) -> dict[str, tuple[list[int], list[float]]]:
    return {name: (steps, values) for _, name, steps, values in curves.columns()}


def test_a_log_is_followed_as_it_grows_and_a_half_written_line_waits(tmp_path: Path) -> None:
    curves, path = Curves(tmp_path), tmp_path / "metrics.jsonl"
    assert not curves.look()
    append(path, metric(1), metric(2), '{"phase": "grpo", "st')
    assert curves.look()
    assert columns(curves)["reward"] == ([1, 2], [0.1, 0.2])
    assert not curves.look()
    append(path, 'ep": 3, "reward": 0.5}\n')
    assert curves.look()
    assert columns(curves)["reward"] == ([1, 2, 3], [0.1, 0.2, 0.5])
    assert curves.last_step == 3


def test_a_resumed_run_takes_back_what_it_writes_again(tmp_path: Path) -> None:
    curves, path = Curves(tmp_path), tmp_path / "metrics.jsonl"
    append(path, *map(metric, range(1, 6)))
    curves.look()
    append(tmp_path / "new", metric(1), metric(2), metric(3, reward=9.0))
    (tmp_path / "new").replace(path)
    assert curves.look()
    assert columns(curves)["reward"] == ([1, 2, 3], [0.1, 0.2, 9.0])
    path.unlink()
    assert curves.look()
    assert columns(curves) == {}


def test_a_file_that_was_replaced_twice_counts_as_new_though_it_got_the_old_number(tmp_path: Path) -> None:
    """File systems give the number of a removed file to the next."""
    curves, path = Curves(tmp_path), tmp_path / "metrics.jsonl"
    append(path, *map(metric, range(1, 6)))
    curves.look()
    path.write_text("")  # the same file, as far as its number tells
    append(path, *(metric(step, reward=9.0) for step in range(1, 9)))
    assert curves.look()
    assert columns(curves)["reward"] == (list(range(1, 9)), [9.0] * 8)


def test_a_replaced_file_counts_as_new_though_its_first_line_is_damaged(tmp_path: Path) -> None:
    curves, path = Curves(tmp_path), tmp_path / "metrics.jsonl"
    append(path, *map(metric, range(1, 6)))
    curves.look()
    append(tmp_path / "new", "{damaged\n", metric(2))
    (tmp_path / "new").replace(path)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"metrics\.jsonl line 1: not a JSON object"):
            curves.look()
    append(tmp_path / "new", metric(1), metric(2))
    (tmp_path / "new").replace(path)
    curves.look()
    assert columns(curves)["reward"][0] == [1, 2]


def test_a_row_without_a_step_is_named_by_every_look(tmp_path: Path) -> None:
    append(tmp_path / "metrics.jsonl", metric(1), metric(-1), metric(2))
    curves = Curves(tmp_path)
    for _ in range(3):
        with pytest.raises(ValueError, match=r"metrics\.jsonl line 2: step is -1"):
            curves.look()
    assert columns(curves)["reward"][0] == [1]


def test_a_table_that_is_cut_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "MAX_ROWS", 2)
    sets = {name: {"accuracy": 0.5, "n": 4} for name in "abcd"}
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"before": {"step": 0, "sets": sets}}))
    assert [row["set"] for row in evaluation_rows(path)] == ["a", "b", "2 more in evaluation.json"]


def test_what_is_no_number_leaves_a_gap(tmp_path: Path) -> None:
    append(tmp_path / "metrics.jsonl", metric(1, kl=None, loss=True), metric(2, kl=0.5, loss="x"))
    curves = Curves(tmp_path)
    curves.look()
    assert columns(curves)["kl"] == ([2], [0.5])
    assert "loss" not in columns(curves)


def test_a_thinned_curve_keeps_mean_lowest_and_highest_of_each_stretch() -> None:
    rng = random.Random(0)
    values = [rng.gauss(0, 1) for _ in range(10_007)]
    steps = list(range(1, len(values) + 1))
    curve = thin(steps, values)
    assert len(curve["step"]) == POINTS
    assert curve["step"][-1] == steps[-1]
    start = 0
    for end, mean, low, high in zip(curve["step"], curve["mean"], curve["low"], curve["high"], strict=True):
        stretch = values[start : int(end)]
        assert 41 <= len(stretch) <= 42
        assert (mean, low, high) == pytest.approx((sum(stretch) / len(stretch), min(stretch), max(stretch)), rel=1e-4)
        start = int(end)
    assert start == len(values)
    assert thin(steps[:3], values[:3]).keys() == {"step", "mean", "last"}
    assert thin([], [])["step"] == []


def test_every_metric_has_a_place_and_times_stand_with_speed(tmp_path: Path) -> None:
    append(tmp_path / "metrics.jsonl", metric(1, reward_correct=1.0, novel=2.0, kl=0.1))
    append(tmp_path / "timings.jsonl", {"step": 1, "reward_seconds": 0.1, "memory_gib": 3.0, "rollout_seconds": 4.0})
    curves = Curves(tmp_path)
    curves.look()
    sections = {name: section for section, name, _, _ in curves.columns()}
    speed = dict.fromkeys(["memory_gib", "reward_seconds", "rollout_seconds"], "Speed and memory")
    assert sections == {"reward": "Reward", "reward_correct": "Reward", "kl": "Policy", "novel": "Other"} | speed


def test_groups_come_newest_first_in_pages_that_join_to_all(tmp_path: Path) -> None:
    append(tmp_path / "samples.jsonl", *(group(step, "a", "b") for step in range(1, 21)))
    rollouts = Rollouts(tmp_path)
    assert rollouts.look()
    seen: list[int] = []
    below = None
    while True:
        page = rollouts.page(below=below)
        seen += [one["step"] for one in page["groups"]]
        assert len(page["groups"]) <= PAGE
        below = page["next"]
        if below is None:
            break
    assert seen == list(range(20, 0, -1))


def test_a_search_finds_any_case_in_prompt_question_and_answer_and_filters_join(tmp_path: Path) -> None:
    append(
        tmp_path / "samples.jsonl",
        group(1, "<think>Extinction</think>A", "B"),
        group(1, "shaping", "shaping", totals=(1.0, 1.0)),
        group(2, "第一种情绪", "EXTINCTION"),
    )
    rollouts = Rollouts(tmp_path)
    rollouts.look()

    def steps(**query: Any) -> list[int]:
        return [one["number"] for one in rollouts.page(**query)["groups"]]

    assert steps(words="extinction") == [2, 0]
    assert steps(words="extinction", step=1) == [0]
    assert steps(words="情绪") == [2]
    assert steps(words="Q1") == [1, 0]
    assert steps(differ=True) == [2, 0]
    assert steps(words="nowhere") == []


def test_a_large_samples_file_is_read_in_bounded_memory(tmp_path: Path) -> None:
    text = "reasoning " * 600
    with open(tmp_path / "samples.jsonl", "w", encoding="utf-8") as file:
        for step in range(1, 1501):
            file.write(json.dumps(group(step, text, text)) + "\n")  # 18 MB
    tracemalloc.start()
    rollouts = Rollouts(tmp_path)
    rollouts.look()
    page, spread = rollouts.page(words="nowhere"), rollouts.spread(size=300_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000
    assert page == {"groups": [], "next": None, "total": 1500}
    steps = [one["step"] for one in spread["groups"]]
    assert steps[0] == 1500
    assert 20 <= len(steps) <= 25
    gaps = [newer - older for newer, older in pairwise(steps)]
    assert max(gaps) - min(gaps) <= 1


def test_a_search_gives_up_after_a_stretch_and_says_where_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psychecore.report.rollouts.STRETCH", 500)
    append(tmp_path / "samples.jsonl", group(1, "needle", "b"), *(group(step, "hay", "b") for step in range(2, 30)))
    rollouts = Rollouts(tmp_path)
    rollouts.look()
    below, found, rounds = None, [], 0
    while not found:
        page = rollouts.page(words="needle", below=below)
        below, found, rounds = page["next"], page["groups"], rounds + 1
    assert rounds > 5
    assert found[0]["step"] == 1


def test_long_texts_and_many_samples_are_cut_and_said_to_be(tmp_path: Path) -> None:
    row = group(1, *["x" * 30_000] * 70, totals=(1.0,) * 70)
    append(tmp_path / "samples.jsonl", row)
    rollouts = Rollouts(tmp_path)
    rollouts.look()
    (shown,) = rollouts.page()["groups"]
    assert (len(shown["samples"]), shown["more"]) == (64, 6)
    assert shown["samples"][0]["text"].endswith("… (10,000 more characters)")


def scored(total: str) -> str:
    return f'{{"step": 1, "samples": [{{"text": "a", "scores": {{"total": {total}}}}}]}}'


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("metrics.jsonl", "{broken", "metrics.jsonl line 2: not a JSON object"),
        ("metrics.jsonl", '{"step": 2, "kl": NaN}', "metrics.jsonl line 2: not a JSON object"),
        ("metrics.jsonl", "[1]", "metrics.jsonl line 2: a list"),
        ("metrics.jsonl", '{"step": "x"}', "metrics.jsonl line 2: step is 'x'"),
        ("metrics.jsonl", '{"step": 1' + "0" * 30 + "}", "must be a whole number"),
        (
            "metrics.jsonl",
            f'{{"step": 2, "kl": 1{"0" * 389}}}',
            r"metrics.jsonl line 2: kl is 10*\.\.\. \(390 characters\)",
        ),
        ("timings.jsonl", '{"step": 2, "kl": -1e301}', "timings.jsonl line 1: kl is -1e[+]301"),
        ("samples.jsonl", '{"step": 1}', "samples.jsonl line 2: no row with a step"),
        ("samples.jsonl", scored("[1]"), r"samples.jsonl line 2: a sample's scores have \[1\] as total"),
        ("samples.jsonl", scored("1" + "0" * 389), r"samples.jsonl line 2: total is 10*\.\.\. \(390 characters\)"),
    ],
)
def test_a_damaged_log_is_named_with_its_line(name: str, line: str, message: str, tmp_path: Path) -> None:
    append(tmp_path / "metrics.jsonl", metric(1))
    if name == "samples.jsonl":
        append(tmp_path / name, group(1, "a", "b"))
    append(tmp_path / name, line + "\n")
    run = RunFolder(tmp_path)
    for _ in range(2 if "not a JSON" in message else 1):  # a live page goes on naming it
        with pytest.raises(ValueError, match=message):
            run.look()


def test_the_table_has_a_row_for_each_label_and_set_of_a_training_run(tmp_path: Path) -> None:
    score = {"n": 100, "accuracy": 0.5, "low": 0.4, "high": 0.6, "constant": 0.3, "constant_answer": "C"}
    sets = {"heldout": score, "odd": {"n": "many", "accuracy": None}, "no report": 3}
    (tmp_path / "evaluation.json").write_text(json.dumps({"after": {"step": 4, "sets": sets}, "odd": 1}))
    first, second = evaluation_rows(tmp_path / "evaluation.json")
    assert [first[key] for key in ("label", "step", "set", "n", "value")] == ["after", 4, "heldout", 100, 0.5]
    assert (second["set"], second["n"], second["value"]) == ("odd", None, None)


def test_the_table_has_the_figures_of_an_evaluation_run(tmp_path: Path) -> None:
    score = {"n": 9, "value": 0.5, "low": 0.4, "high": 0.6, "constant": 0.3, "constant_answer": "C"}
    benchmarks = {
        "pceb": {"kind": "choice", "all": {"accuracy": score, "unparsable": 0.1}, "averages": {"standard": score}},
        "essays": {"kind": "overlap", "figures": {"rouge_1": {**score, "value": 27.3}}},
        "talks": {"kind": "judged", "rubrics": {"cpsycoun": {"unparsable": 0.2, "figures": {"safety": score}}}},
        "unscored": {"kind": "choice", "problems": []},
    }
    (tmp_path / "evaluation.json").write_text(json.dumps({"model": {"name": "m"}, "benchmarks": benchmarks}))
    rows = evaluation_rows(tmp_path / "evaluation.json")
    assert [(row["set"], row["value"], row["percent"], row["unparsable"]) for row in rows] == [
        ("pceb", 0.5, True, 0.1),
        ("pceb, average, standard", 0.5, True, None),
        ("essays, rouge_1", 27.3, False, None),
        ("talks, cpsycoun safety", 0.5, False, 0.2),
    ]


def test_the_table_has_the_parts_the_samples_and_the_differences_of_an_evaluation(tmp_path: Path) -> None:
    score = {"n": 9, "value": 0.5, "low": 0.4, "high": 0.6, "constant": None, "constant_answer": ""}
    whole = {"accuracy": score, "elastic": score, "format": 0.7, "pass_k": {"4": score}, "majority": score}
    part = {"accuracy": score, "elastic": None, "format": 0.6, "pass_k": {}, "majority": None}
    base = {"compared_with": "runs/base"}
    found = {
        "model": {"name": "m"},
        "benchmarks": {
            "pceb": {
                "all": whole,
                "by": {"column": {"ethics": part, "facts": part}, "tier": {"only": part}},
                "against": {"accuracy": score, "standard": score},
                **base,
            },
            "talks": {"rubrics": {}, "against": {"counts": {"first": 3}, "margin": score}, **base},
            "essays": {"kind": "overlap", "figures": {}, "against": {"rouge_1": score}, **base},
            "tied": {"rubrics": {}, "against": {"counts": {"first": 0}, "margin": None}},
        },
    }
    (tmp_path / "evaluation.json").write_text(json.dumps(found))
    rows = evaluation_rows(tmp_path / "evaluation.json")
    assert [(row["set"], row["format"], row["detail"]) for row in rows] == [
        ("pceb", 0.7, False),
        ("pceb, pass@4", None, False),
        ("pceb, majority", None, False),
        ("pceb, accuracy less base's", None, False),
        ("pceb, standard less base's", None, False),
        ("talks, wins less losses against base", None, False),
        ("essays, rouge_1 less base's", None, False),
        ("pceb, column ethics", 0.6, True),
        ("pceb, column facts", 0.6, True),
    ]
    assert rows[0]["elastic"] == 0.5
    assert [row["set"] for row in rows if not row["percent"]] == ["essays, rouge_1 less base's"]
    (tmp_path / "evaluation.json").write_text(json.dumps(found).replace("0.4", "1" + "0" * 389))
    with pytest.raises(ValueError, match=r"evaluation.json: low is 10*\.\.\. \(390 characters\)"):
        evaluation_rows(tmp_path / "evaluation.json")


def test_runs_of_one_name_are_told_apart_and_what_is_no_run_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "grpo").mkdir(parents=True)
        append(tmp_path / name / "grpo" / "metrics.jsonl", metric(1))
    names = [run.name for run in open_runs([tmp_path / "a" / "grpo", tmp_path / "b" / "grpo"])]
    assert names == ["a/grpo", "b/grpo"]
    with pytest.raises(ValueError, match=r"is no run folder.*did you mean .*a/grpo\?"):
        open_runs([tmp_path / "a"])
    with pytest.raises(ValueError, match="given twice"):
        open_runs([tmp_path / "a" / "grpo", tmp_path / "a" / "grpo" / "."])
    with pytest.raises(ValueError, match="is no run folder"):
        open_runs([tmp_path / "nowhere"])
    (tmp_path / "a" / "curate").mkdir()
    config = tmp_path / "a" / "curate" / "config.toml"
    config.write_text("[models]\nauthor = 'x'\n[run]\nfolder = 'x'\n")
    with pytest.raises(ValueError, match="is no run folder"):
        open_runs([config.parent])  # whose report.html is of another kind
    config.write_text("[run]\nfolder = 'x'\n\n[model]\npath = 'x'\n")
    assert len(open_runs([config.parent])) == 1


def test_a_log_that_links_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="link out of its folder"):
        open_runs([tmp_path / "run"])
