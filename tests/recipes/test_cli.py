"""Configuration: presets, flags, and what a user typed wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import cli
import pytest
from cli import dump_config, help_text, load_config
from common import RunOptions, steps_of
from curate_options import CurateRecipe
from evaluate_options import EvaluateRecipe
from grpo_options import GrpoRecipe
from pipeline import Pipeline, refuse_set_here
from plan import Planner
from sft import SftRecipe

NEEDED = ["--model.path", "m", "--data.train", "d", "--run.folder", "r"]
REPO = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Inner:
    """An inner section."""

    lr: float = field(default=1e-3, metadata={"help": "the rate"})
    cap: float | None = None
    kind: Literal["a", "b"] = "a"
    on: bool = False


@dataclass(frozen=True)
class Outer:
    """The whole."""

    path: Path
    count: int = 3
    names: tuple[str, ...] = ()
    inner: Inner = field(default_factory=lambda: Inner(lr=0.5))

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count is {self.count}, but must be at least 0")


def test_flags_fill_every_type() -> None:
    config = load_config(
        Outer,
        ["--path", "x/y", "--count=7", "--names", "a,b", "--inner.cap", "2", "--inner.kind", "b", "--inner.on", "true"],
        None,
    )
    assert config == Outer(Path("x/y"), 7, ("a", "b"), Inner(0.5, 2.0, "b", True))
    assert load_config(Outer, ["--path", "x", "--inner.cap", "none"], None).inner.cap is None


def test_flags_override_a_preset_wherever_they_stand(tmp_path: Path) -> None:
    preset = tmp_path / "p.toml"
    preset.write_text('path = "x"\ncount = 5\n[inner]\nlr = 1\n')
    config = load_config(Outer, ["--count", "6", "--config", str(preset)], None)
    assert (config.path, config.count, config.inner.lr) == (Path("x"), 6, 1.0)


def test_a_preset_of_several_recipes_gives_each_its_table(tmp_path: Path) -> None:
    preset = tmp_path / "p.toml"
    preset.write_text('[one]\npath = "x"\n[two]\npath = "y"\n')
    assert load_config(Outer, ["--config", str(preset)], None, table="two").path == Path("y")


def test_a_dumped_configuration_reads_back_equal(tmp_path: Path) -> None:
    config = Outer(Path('a "quoted"\\ path\n\x7f é'), names=("a", "b"), inner=Inner(cap=None, on=True, lr=1e-7))
    (tmp_path / "c.toml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(Outer, ["--config", str(tmp_path / "c.toml")], None) == config


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--path", "x", "--inner.lrr", "1"], r"unknown option --inner\.lrr; did you mean --inner\.lr\?"),
        (["--path", "x", "--count", "many"], "--count is 'many', but must be integer"),
        (["--path", "x", "--inner.on", "yes"], r"--inner\.on is 'yes', but must be true or false"),
        (["--path", "x", "--inner.kind", "c"], r"--inner\.kind is 'c', but must be a\|b"),
        (["--path", "x", "--inner.lr", "nan"], r"--inner\.lr is nan, which stands for no number"),
        (["--path", "x", "--count", "-1"], "count is -1"),
        (["--path"], "--path needs a value"),
        (["path", "x"], "'path' is no option"),
        ([], "--path is required"),
    ],
)
def test_what_a_user_typed_wrong_is_named(argv: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(Outer, argv, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('path = "x"\ncuont = 5', "unknown key 'cuont'; did you mean count"),
        ('path = "x"\n[inner]\nrate = 5', r"unknown key 'inner\.rate'"),
        ('path = "x"\ninner = 5', "inner is 5, but must be a table"),
        ('path = "x"\ncount = "5"', "--count is '5'"),
        ('path = "x"\ncount = true', "--count is True"),
        ("path = ", r"p\.toml"),
    ],
)
def test_a_wrong_preset_is_named_with_its_key(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(Outer, ["--config", str(tmp_path / "p.toml")], None)


def test_two_presets_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text("")
    with pytest.raises(ValueError, match=r"--config is given twice"):
        load_config(Outer, ["--config", str(tmp_path / "p.toml"), f"--config={tmp_path / 'p.toml'}"], None)


def test_a_missing_preset_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.toml"):
        load_config(Outer, ["--config", "nowhere.toml"], None)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("optimizer.lr", "inf 0 -1"),
        ("optimizer.eps", "inf 0"),
        ("optimizer.weight_decay", "inf -1"),
        ("run.epochs", "inf 1e308 0"),
        ("run.timeout_minutes", "inf 1e308 0"),
        ("reward.timeout_seconds", "inf 1e308 0"),
        ("train.loss.kl_coefficient", "inf -1"),
        ("data.max_prompt_tokens", "0 -1"),
        ("sampling.max_slots", "0 -1 9223372036854775807"),
        ("sampling.memory_gib", "inf 0 -1"),
    ],
)
def test_a_number_that_no_run_can_use_is_named(name: str, values: str) -> None:
    for value in values.split():
        with pytest.raises(ValueError, match=rf"^\[{name.rpartition('.')[0]}\] .*{name.rpartition('.')[2]}"):
            load_config(GrpoRecipe, [*NEEDED, f"--{name}", value], None)
    with pytest.raises(ValueError, match="shuffle_seed is -1"):
        load_config(SftRecipe, [*NEEDED, "--data.shuffle_seed", "-1"], None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sampling.params.seed=3"], "run.seed decides"),
        (["--train.old_logprobs=sampler", "--sampling.params.top_k=5"], "leave those off"),
        (["--train.old_logprobs=sampler", "--train.loss.importance_cap=2"], "the same: leave it out"),
        (
            ["--train.mini_batches=1", "--train.old_logprobs=sampler"],
            "train.old_logprobs changes nothing at mini_batches 1",
        ),
        (
            ["--train.mini_batches=1", "--train.loss.ratio=sequence"],
            "train.loss.ratio changes nothing at mini_batches 1",
        ),
        (["--train.mini_batches=1", "--train.loss.clip_high=0.28"], "loss.clip_high changes nothing at mini_batches 1"),
        (["--train.loss.constant_length=40"], "constant_length is of normalisation"),
        (["--model.thinking=false"], "without which reward.format is 0: give --reward.format_weight 0"),
        (["--train.loss.kl_coefficient=0", "--reference.path=other"], "there is no reference"),
        (["--train.loss.kl_coefficient=0", "--reference.refresh_every=2"], "there is no reference"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(flags: list[str], message: str) -> None:
    # a ratio by sequence is not 1 for the sampler's part of the weight
    capped = ["--train.mini_batches=1", "--train.loss.ratio=sequence", "--train.loss.importance_cap=2"]
    load_config(GrpoRecipe, [*NEEDED, *capped], None)
    with pytest.raises(ValueError, match=message):
        load_config(GrpoRecipe, [*NEEDED, *flags], None)


@pytest.mark.parametrize("recipe", [SftRecipe, GrpoRecipe, CurateRecipe, EvaluateRecipe, Planner])
def test_every_option_is_explained(recipe: type) -> None:
    """By a help text of its own or in that of its section, and with the default that it has there."""
    text = help_text(recipe, None)
    for path, option, _, owner, _ in cli._leaves(recipe):
        assert option.metadata.get("help") or option.name in (owner.__doc__ or ""), path
        assert f"--{path} " in text
    assert "--sampling.params.max_new_tokens integer  (default 1024)" in help_text(GrpoRecipe, None)
    assert load_config(GrpoRecipe, [*NEEDED], None).sampling.params.max_new_tokens == 1024


def test_a_typo_is_told_once_a_node() -> None:
    """Under torchrun every rank reads the same flags, and there is no group yet in which to agree."""
    told = [
        subprocess.run(
            [sys.executable, str(REPO / "recipes" / "sft.py"), "--trian", "1"],
            capture_output=True,
            text=True,
            env=os.environ | {"WORLD_SIZE": "4", "RANK": rank, "LOCAL_RANK": local},
        )
        for rank, local in (("1", "1"), ("2", "0"))
    ]
    assert [done.returncode for done in told] == [2, 2]
    assert [done.stderr.count("unknown option --trian") for done in told] == [0, 1]


@pytest.mark.parametrize("recipe", [SftRecipe, GrpoRecipe, Pipeline])
def test_help_names_every_option_with_its_default(recipe: type) -> None:
    text = help_text(recipe, "About.")
    assert "[run] " in text or "run] " in text
    for words in ("optimizer.lr", "default ", "required"):
        assert words in text


@pytest.mark.parametrize("script", ["sft", "grpo", "curate", "pipeline", "compose", "demo_model"])
def test_help_explains_the_script(script: str) -> None:
    done = subprocess.run(
        [sys.executable, str(REPO / "recipes" / f"{script}.py"), "--help"], capture_output=True, text=True, check=True
    )
    assert len(done.stdout.splitlines()) > 5


@pytest.mark.parametrize("preset", sorted(path.name for path in (REPO / "recipes" / "presets").glob("*.toml")))
def test_every_preset_fits_its_recipes(preset: str) -> None:
    argv = ["--config", str(REPO / "recipes" / "presets" / preset)]
    if preset.startswith("curate"):
        assert load_config(CurateRecipe, argv, None, table="curate").run.folder
        return
    assert load_config(SftRecipe, argv, None, table="sft").run.folder
    assert load_config(GrpoRecipe, argv, None, table="grpo").run.folder


def test_the_7b_preset_has_the_figures_of_the_model_card() -> None:
    argv = ["--config", str(REPO / "recipes" / "presets" / "psyche_r1_7b.toml")]
    sft = load_config(SftRecipe, argv, None, table="sft")
    assert (sft.optimizer.lr, sft.optimizer.schedule, sft.optimizer.warmup_ratio) == (1e-5, "cosine", 0.1)
    assert (sft.train.batch_size, sft.run.epochs, sft.run.steps, sft.run.seed) == (256, 2, 0, 42)
    grpo = load_config(GrpoRecipe, argv, None, table="grpo")
    assert (grpo.optimizer.lr, grpo.optimizer.warmup_steps, grpo.run.epochs) == (1e-6, 10, 2)
    assert (grpo.train.prompts_per_step, grpo.train.samples_per_prompt, grpo.train.mini_batches) == (128, 5, 4)
    loss = grpo.train.loss
    assert (loss.kl, loss.kl_coefficient, loss.clip_low, loss.clip_high) == ("k3", 0.001, 0.2, 0.2)
    for optimizer in (sft.optimizer, grpo.optimizer):
        assert (optimizer.beta1, optimizer.beta2, optimizer.eps) == (0.9, 0.999, 1e-8)


@pytest.mark.parametrize(
    ("epochs", "rows", "together", "steps"),
    [(1, 90, 64, 2), (2, 64, 64, 2), (2, 147, 12, 25), (0.1, 30, 3, 1), (1.1, 10, 1, 11), (1e-9, 30, 3, 1)],
)
def test_epochs_become_the_fewest_steps_that_show_every_row(
    epochs: float, rows: int, together: int, steps: int
) -> None:
    assert steps_of(RunOptions(folder=Path(), epochs=epochs), rows, together) == steps
    assert steps_of(RunOptions(folder=Path(), epochs=epochs, steps=5), rows, together) == 5


def test_a_path_begins_at_home_and_a_preset_may_begin_with_a_byte_order_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    preset = tmp_path / "p.toml"
    preset.write_bytes(
        b"\xef\xbb\xbf[run]\r\nfolder = '~/runs/x'\r\n[evaluation]\r\nfiles = ['~/a.jsonl', 'b.jsonl']\r\n"
    )
    config = load_config(SftRecipe, ["--config", str(preset), *NEEDED[:4]], None)
    assert config.run.folder == tmp_path / "runs" / "x"
    assert config.evaluation.files == (tmp_path / "a.jsonl", Path("b.jsonl"))
    preset.write_text("[evaluation]\nfiles = 'a.jsonl,b.jsonl'")
    with pytest.raises(ValueError, match=r"evaluation.files is 'a.jsonl,b.jsonl', but must be a list, in brackets"):
        load_config(SftRecipe, ["--config", str(preset), *NEEDED], None)


@pytest.mark.parametrize(
    "flag", ["--sft.data.train=x", "--grpo.model.path=x", "--grpo.run.seed", "--sft.evaluation.files"]
)
def test_the_pipeline_refuses_what_it_sets_itself(flag: str) -> None:
    refuse_set_here(["--pipeline.seed", "1", "--sft.model.path", "x", "--sft.run.steps", "3"])
    with pytest.raises(ValueError, match=rf"option {flag.partition('=')[0]} would be ignored"):
        refuse_set_here(["--pipeline.seed", "1", flag])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--answers.form=text"], 'are of mode "likelihood"'),
        (["--answers.normalise=true"], 'are of mode "likelihood"'),
        (["--benchmark.shots=5"], "are of benchmark.cpsyexam"),
        (["--benchmark.split=test"], "are of benchmark.cpsyexam"),
        (["--benchmark.last_turn_only=true"], "are of benchmark.dialogues"),
        (["--judge.path=x"], "are of benchmark.dialogues"),
    ],
)
def test_an_option_of_an_evaluation_that_would_be_ignored_is_refused(flags: list[str], message: str) -> None:
    asked = ["--model.path=m", "--benchmark.questions=q.jsonl"]
    load_config(EvaluateRecipe, [*asked, "--answers.mode=likelihood", "--answers.form=text"], None)
    with pytest.raises(ValueError, match=message):
        load_config(EvaluateRecipe, [*asked, *flags], None)
