"""The recipes as a user starts them, with a small random model that has SmolLM2's tokenizer and template.

Whole runs, alone and under torchrun, are processes of their own, and so is an error of each; the others are forks,
which start sooner.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_flags import recipe_flags
from recipe_server import Server

import psychecore as pc
from psychecore.durable import seal

REPO = Path(__file__).resolve().parents[2]
SAME = ("loss", "reward", "gradient_norm", "kl", "length", "entropy")  # not times, not memory


def start(recipe: str, workplace: Path, name: str, *flags: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    """A process of its own, under torchrun with several ranks."""
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return subprocess.run(
        [*launcher, str(REPO / "recipes" / f"{recipe}.py"), *recipe_flags(recipe, workplace, name, flags)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def run(server: Server, recipe: str, name: str, *flags: str) -> tuple[int, str]:
    """Exit code and output of a fork."""
    (code,), (said,) = server.run(recipe, name, [*flags])
    return code, said


def metrics(workplace: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workplace / name / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module", params=["sft", "grpo"])
def finished(request: pytest.FixtureRequest, workplace: Path) -> tuple[str, Path]:
    done = start(request.param, workplace, f"{request.param}-1")
    assert done.returncode == 0, done.stderr
    return request.param, workplace


def test_a_run_leaves_its_folder_metrics_samples_and_export(finished: tuple[str, Path]) -> None:
    recipe, workplace = finished
    folder = workplace / f"{recipe}-1"
    rows = metrics(workplace, folder.name)
    assert [(row["phase"], row["step"]) for row in rows] == [(recipe, step) for step in (1, 2, 3, 4)]
    wanted = {"loss", "lr", "gradient_norm", "entropy", "tokens", "total_tokens"}
    timed = {"memory_gib", "mfu", "seconds"}
    if recipe == "grpo":
        wanted |= {"reward", "reward_format", "reward_correct", "informative", "length", "truncated", "kl"}
        wanted |= {"clip_fraction", "mismatch"}
        timed |= {"rollout_tokens_per_s", "update_tokens_per_s", "rollout_seconds", "occupancy", "slot_use"}
        samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
        assert len(samples) == 12
        assert any(row["informative"] > 0 and row["kl"] > 0 for row in rows)
        assert all(len(row["samples"]) == 4 for row in samples)
        assert all({"format", "correct", "total"} == set(s["scores"]) for row in samples for s in row["samples"])
    else:
        timed |= {"tokens_per_s"}
    assert wanted <= set(rows[0])
    assert timed <= set(json.loads((folder / "timings.jsonl").read_text().splitlines()[0]))
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step_000003", "step_000004"]
    assert set(json.loads((folder / "evaluation.json").read_text())) == {"before", "after"}
    assert pc.load_model(folder / "export").config == pc.load_model(workplace / "model").config
    assert pc.load_tokenizer(folder / "export").stop_ids
    assert (folder / "config.toml").is_file()
    assert '"name": "loss"' in (folder / "report.html").read_text(encoding="utf-8")


def test_an_interrupted_run_continues_where_it_was(finished: tuple[str, Path], server: Server) -> None:
    recipe, workplace = finished
    broken = workplace / f"{recipe}-broken"
    shutil.copytree(workplace / f"{recipe}-1", broken)
    shutil.rmtree(broken / "checkpoints" / "step_000004")
    shutil.rmtree(broken / "export")
    code, said = run(server, recipe, broken.name)
    assert code == 0, said
    assert "continuing" in said
    assert "after step 3" in said
    logs = ["metrics.jsonl"] + ["samples.jsonl"] * (recipe == "grpo")
    for name in logs:
        assert (workplace / broken.name / name).read_bytes() == (workplace / f"{recipe}-1" / name).read_bytes()
    weights = [pc.load_model(workplace / name / "export").state_dict() for name in (f"{recipe}-1", broken.name)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.parametrize("finished", [pytest.param("sft", marks=pytest.mark.slow), "grpo"], indirect=True)
def test_two_ranks_under_torchrun_do_the_same_job(finished: tuple[str, Path]) -> None:
    recipe, workplace = finished
    done = start(recipe, workplace, f"{recipe}-2", ranks=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{recipe} 1/4") == 1
    expected, found = metrics(workplace, f"{recipe}-1"), metrics(workplace, f"{recipe}-2")
    for one, two in zip(expected[:2], found[:2], strict=True):  # later steps drift apart by rounding
        for name in set(SAME) & set(one):
            assert two[name] == pytest.approx(one[name], rel=2e-3, abs=1e-5), name
    assert pc.load_model(workplace / f"{recipe}-2" / "export").config
    first, second = (
        json.loads((workplace / f"{recipe}-{n}" / "evaluation.json").read_text())["before"] for n in (1, 2)
    )
    assert first == second


def test_a_refreshed_reference_follows_the_policy_and_survives_a_restart_elsewhere(
    workplace: Path, server: Server
) -> None:
    flags = ["--reference.refresh_every", "2", "--reference.device", "cpu", "--train.loss.kl_coefficient", "0.1"]
    code, said = run(server, "grpo", "refreshed", *flags)
    assert code == 0, said
    whole = metrics(workplace, "refreshed")
    assert sorted(p.name for p in (workplace / "refreshed" / "reference").iterdir()) == ["step_000002", "step_000004"]
    assert whole[2]["kl"] < whole[1]["kl"] / 2  # step 3 starts from a reference that equals the policy
    shutil.rmtree(workplace / "refreshed" / "checkpoints" / "step_000004")
    (workplace / "refreshed").rename(workplace / "moved")
    _, said = run(server, "grpo", "moved", *flags)
    assert "after step 3" in said
    assert metrics(workplace, "moved")[3]["kl"] == whole[3]["kl"]


def test_a_run_without_checkpoint_starts_its_logs_anew_and_changed_data_is_refused(
    workplace: Path, tmp_path: Path, server: Server
) -> None:
    train = tmp_path / "rows.jsonl"
    shutil.copyfile(workplace / "data" / "sft.jsonl", train)
    flags = ["--data.train", str(train), "--run.steps", "1", "--evaluation.files", ""]
    for _ in range(2):
        assert run(server, "sft", "anew", *flags)[0] == 0
        assert [row["step"] for row in metrics(workplace, "anew")] == [1]
        for name in ("checkpoints", "export"):  # as if killed before the first one
            shutil.rmtree(workplace / "anew" / name)
    assert run(server, "sft", "anew", *flags)[0] == 0
    train.write_text("".join(train.read_text().splitlines(keepends=True)[:-1]))
    code, said = run(server, "sft", "anew", *flags)
    assert code == 2, said
    assert "rows.jsonl has changed since" in said


def test_a_run_whose_checkpoints_are_out_of_reach_is_not_begun_anew(finished: tuple[str, Path], server: Server) -> None:
    recipe, workplace = finished
    lost = workplace / f"{recipe}-lost"
    shutil.copytree(workplace / f"{recipe}-1", lost)
    shutil.rmtree(lost / "checkpoints")
    before = (lost / "metrics.jsonl").read_bytes()
    code, said = run(server, recipe, lost.name)
    assert code == 2, said
    assert f"metrics.jsonl goes to step 4, but {lost}/checkpoints holds no checkpoint" in said
    assert "is their disk mounted?" in said
    assert (lost / "metrics.jsonl").read_bytes() == before


def test_a_checkpoint_that_was_sealed_without_a_key_is_named(finished: tuple[str, Path], server: Server) -> None:
    recipe, workplace = finished
    folder = workplace / f"{recipe}-keyless"
    shutil.copytree(workplace / f"{recipe}-1", folder)
    newest = folder / "checkpoints" / "step_000004"
    state = json.loads((newest / "state.json").read_text())
    del state["cursor"]
    (newest / "state.json").write_text(json.dumps(state))
    (newest / "manifest.json").unlink()
    seal(newest, {})
    code, said = run(server, recipe, folder.name)
    assert code == 2, said
    assert f"{newest}/state.json lacks cursor: remove {newest}" in said
    assert "Traceback" not in said


def test_a_cache_is_refused_only_where_it_cannot_hold_the_longest_real_prompt(workplace: Path, server: Server) -> None:
    flags = ["--run.steps", "1", "--evaluation.files", "", "--data.max_prompt_tokens", "100000"]
    code, said = run(server, "grpo", "small-cache", *flags, "--sampling.memory_gib", "0.001")
    assert code == 0, said
    code, said = run(server, "grpo", "no-cache", *flags, "--sampling.memory_gib", "0.00001")
    assert code == 2, said
    assert "memory_gib is 1e-05: raise it" in said


@pytest.mark.parametrize("recipe", ["sft", "grpo"])
def test_a_held_out_question_without_room_is_named_before_training(
    recipe: str, workplace: Path, server: Server
) -> None:
    code, said = run(server, recipe, f"{recipe}-long", "--evaluation.max_new_tokens", "100000000")
    assert code == 2, said
    assert "evaluation.files: question" in said
    assert "it exceeds the model's" in said
    assert not (workplace / f"{recipe}-long").exists()


def test_offloading_of_one_rank_is_refused(workplace: Path, server: Server) -> None:
    code, said = run(server, "sft", "offloaded", "--sharding.cpu_offload", "true")
    assert code == 2, said
    assert "sharding.cpu_offload is FSDP2's, and there is one rank" in said


def test_another_reference_holds_the_policy_to_itself(workplace: Path, server: Server) -> None:
    config = pc.load_model(workplace / "model").config
    pc.save_model(pc.Decoder(config).initialise(1, std=0.1), None, workplace / "other")
    flags = ["--reference.path", str(workplace / "other"), "--run.steps", "1", "--evaluation.files", ""]
    code, said = run(server, "grpo", "held", *flags)
    assert code == 0, said
    assert metrics(workplace, "held")[0]["kl"] > 0.001


def test_how_often_it_saves_and_how_long_it_waits_may_change_when_a_run_continues(
    finished: tuple[str, Path], server: Server
) -> None:
    recipe, _ = finished
    flags = ["--run.timeout_minutes", "90", "--run.keep_checkpoints", "3", "--optimizer.nonfinite", "skip"]
    code, said = run(server, recipe, f"{recipe}-1", *flags)
    assert code == 0, said
    assert "after step 4" in said


def test_a_folder_that_is_no_run_is_left_alone(workplace: Path, server: Server) -> None:
    (workplace / "mine" / "export").mkdir(parents=True)
    (workplace / "mine" / "export" / "thesis.txt").write_text("x")
    code, said = run(server, "sft", "mine")
    assert code == 2, said
    assert "is no run folder (it has no config.toml) but holds files" in said
    assert [str(path.relative_to(workplace / "mine")) for path in (workplace / "mine").rglob("*")] == [
        "export",
        "export/thesis.txt",
    ]


def test_a_conversation_beyond_the_models_positions_is_told_before_training(
    workplace: Path, server: Server, tmp_path: Path
) -> None:
    shutil.copytree(workplace / "model", tmp_path / "short")
    config = json.loads((tmp_path / "short" / "config.json").read_text())
    (tmp_path / "short" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 20}))
    code, said = run(server, "sft", "short", "--model.path", str(tmp_path / "short"), "--evaluation.files", "")
    assert code == 2, said
    assert re.search(r"conversation '.*' has \d+ tokens, and the model 20 positions", said)
    assert not (workplace / "short").exists()


def test_a_folder_with_another_configuration_is_left_alone(finished: tuple[str, Path], server: Server) -> None:
    recipe, workplace = finished
    before = (workplace / f"{recipe}-1" / "metrics.jsonl").read_bytes()
    code, said = run(server, recipe, f"{recipe}-1", "--optimizer.lr", "0.5")
    assert code == 2, said
    assert "holds a run with another configuration" in said
    assert "Traceback" not in said
    assert (workplace / f"{recipe}-1" / "metrics.jsonl").read_bytes() == before


GOOD = {"id": "a", "question": "Which?", "options": {"A": "x", "B": "y"}, "answer": "A", "kind": "single"}
TALK = {"id": "a", "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
BAD = {
    "grpo": [
        (GOOD | {"answer": "C"}, "line 2: answer 'C' names option C"),
        (GOOD | {"id": "b", "options": {"A": "x"}}, "line 2"),
        (GOOD, "line 2: id 'a' already stands on line 1"),
        (GOOD | {"id": "b", "question": "long " * 3000}, "question 'b' has a prompt of"),
        ("{", "line 2"),
    ],
    "sft": [
        (TALK | {"id": "b", "messages": [{"role": "narrator", "content": "x"}]}, "line 2: message 0 has role"),
        (TALK | {"id": "b", "messages": TALK["messages"][:1]}, "line 2"),
        (TALK | {"id": "b", "messages": [{"role": "user", "content": "long " * 3000}, TALK["messages"][1]]}, "'b' has"),
    ],
}


@pytest.mark.parametrize(
    ("recipe", "number"), [(recipe, i) for recipe, cases in BAD.items() for i in range(len(cases))]
)
def test_a_malformed_row_stops_the_run_before_the_model_is_loaded(
    recipe: str, number: int, workplace: Path, tmp_path: Path, server: Server
) -> None:
    row, message = BAD[recipe][number]
    good = GOOD if recipe == "grpo" else TALK
    lines = [json.dumps(good), row if isinstance(row, str) else json.dumps(row)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    shutil.copytree(workplace / "model", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")  # loading it would be another error
    flags = ["--data.train", str(tmp_path / "rows.jsonl"), "--model.path", str(tmp_path / "model")]
    code, said = run(server, recipe, f"bad-{recipe}-{number}", *flags)
    assert code == 2, said
    assert message in said
    assert "Traceback" not in said
    assert not (workplace / f"bad-{recipe}-{number}").exists()


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--data.train", "nowhere.jsonl", "nowhere.jsonl does not exist: --data.train must name"),
        ("--model.path", "./nowhere", "'./nowhere' does not exist"),
        ("--evaluation.files", "nowhere.jsonl", "nowhere.jsonl does not exist: --evaluation.files must name"),
        ("--evaluation.limit", "-3", "limit -3"),
        ("--run.folder", "/dev/null/x", "/dev/null"),
        ("--data.train", "/", "Is a directory"),
        ("--optimizer.lr", "-1", "lr is -1.0"),
        ("--train.token_budgte", "1", "did you mean --train.token_budget"),
    ],
)
def test_a_missing_file_or_bad_value_is_one_line(
    flag: str, value: str, message: str, workplace: Path, server: Server
) -> None:
    code, said = run(server, "grpo", "bad", flag, value)
    assert code == 2, said
    assert message in said
    assert "Traceback" not in said
    assert not (workplace / "bad").exists()


@pytest.mark.parametrize("recipe", ["sft", "grpo"])
def test_so_it_is_on_the_command_line(recipe: str, workplace: Path) -> None:
    done = start(recipe, workplace, "bad", "--data.train", "nowhere.jsonl")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: nowhere.jsonl does not exist: --data.train must name something that does"
    ]
    assert done.stdout == ""
    assert not (workplace / "bad").exists()
