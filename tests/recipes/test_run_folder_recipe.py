"""What a recipe holds its run folder to: the dtype it began with, and and what is damaged is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import common
import pytest
import run_folder
import torch
from cli import dump_config, load_config
from recipe_flags import recipe_flags
from run_folder import open_run_folder, settle_dtype
from sft import SftRecipe, encode

from psychecore.data.records import Conversation
from psychecore.model.config import ModelConfig
from psychecore.model.decoder import Decoder
from psychecore.model.pretrained import save_model
from psychecore.runtime import Runtime
from psychecore.text.tokenizer import load_tokenizer
from psychecore.train.finite import NonFiniteError
from psychecore.train.sharding import ShardingConfig

ALONE = Runtime(0, 1, torch.device("cpu"))


def sft(folder: Path, *flags: str) -> SftRecipe:
    return load_config(SftRecipe, recipe_flags("sft", folder, "run", flags), None)


def test_auto_goes_on_in_the_dtype_that_the_run_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    auto = sft(tmp_path, "--model.dtype", "auto")
    monkeypatch.setattr(common, "fast_dtype", lambda device: torch.bfloat16)
    begun = settle_dtype(auto, ALONE)
    assert begun.model.dtype == "bfloat16"
    open_run_folder(auto.run.folder, dump_config(begun), ALONE)
    monkeypatch.setattr(common, "fast_dtype", lambda device: torch.float32)  # the machine is busy now
    assert settle_dtype(auto, ALONE) == begun
    (auto.run.folder / "metrics.jsonl").write_text('{"step": 1}\n')
    told = r"another configuration: --model.dtype is 'bfloat16' there and 'float32' here"
    with pytest.raises(ValueError, match=told):
        open_run_folder(auto.run.folder, dump_config(sft(tmp_path, "--model.dtype", "float32")), ALONE)


@pytest.mark.parametrize("begun", ["", "metrics.jsonl", "evaluation.json", "checkpoints/step_000001/state.json"])
def test_a_run_that_failed_before_its_first_step_can_be_begun_with_other_settings(begun: str, tmp_path: Path) -> None:
    config, other = sft(tmp_path), sft(tmp_path, "--train.token_budget", "77")
    open_run_folder(config.run.folder, dump_config(config), ALONE)
    run_folder._LOCKS.clear()  # its process has ended
    (config.run.folder / "metrics.jsonl").touch()
    if begun:
        (config.run.folder / begun).parent.mkdir(parents=True, exist_ok=True)
        (config.run.folder / begun).write_text("{}")
        with pytest.raises(ValueError, match="holds a run with another configuration"):
            open_run_folder(config.run.folder, dump_config(other), ALONE)
    else:
        open_run_folder(config.run.folder, dump_config(other), ALONE)
        assert "token_budget = 77" in (config.run.folder / "config.toml").read_text()


def test_a_run_that_ended_is_not_begun_anew_when_its_checkpoints_are_gone(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 36}\n')
    (tmp_path / "evaluation.json").write_text("{}")
    (tmp_path / "export").mkdir()
    with pytest.raises(ValueError, match="holds the export of a run that ended"):
        run_folder.begin_anew(tmp_path / "checkpoints", 50, ALONE)
    assert (tmp_path / "evaluation.json").exists()
    (tmp_path / "export").rmdir()
    run_folder.begin_anew(tmp_path / "checkpoints", 50, ALONE)  # killed before its first checkpoint
    assert not (tmp_path / "evaluation.json").exists()


def test_a_model_of_the_hub_may_lie_in_another_cache(tmp_path: Path) -> None:
    told = []
    for place in ("old", "new"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "config.json").write_text("{}")
        told.append(run_folder.hash_inputs({"owner/name": tmp_path / place}, [], ALONE))
    assert told[0] == told[1]
    assert list(told[0]) == ["owner/name/config.json"]


def test_a_run_that_began_before_an_option_was_there_goes_on(tmp_path: Path) -> None:
    config = sft(tmp_path, "--evaluation.files", "./a.jsonl,b.jsonl")
    open_run_folder(config.run.folder, dump_config(config), ALONE)
    run_folder._LOCKS.clear()
    (config.run.folder / "metrics.jsonl").write_text('{"step": 1}\n')
    path = config.run.folder / "config.toml"
    older = "".join(line for line in path.read_text().splitlines(keepends=True) if not line.startswith("thinking"))
    path.write_text(older.replace('"a.jsonl"', '"./a.jsonl"'))
    assert run_folder.difference(path, dump_config(config)) == ""
    open_run_folder(config.run.folder, dump_config(config), ALONE)
    run_folder._LOCKS.clear()
    path.write_text(older.replace("[train]", "[train]\nold_option = 3"))
    with pytest.raises(ValueError, match=r"--train\.old_option is 3 there and None here"):
        open_run_folder(config.run.folder, dump_config(config), ALONE)
    then = {"/h/hub/models--owner--name/snapshots/0abc/config.json": "1"}
    run_folder.check_hashes(then, {"owner/name/config.json": "1"}, "then")


def test_evaluations_of_steps_that_are_taken_again_are_forgotten(tmp_path: Path) -> None:
    rows = {"before": {"step": 0}, "step 200": {"step": 200}, "step 250": {"step": 250}, "after": {"step": 400}}
    (tmp_path / "evaluation.json").write_text(json.dumps(rows))
    run_folder._forget_evaluations(tmp_path, 200)
    assert list(json.loads((tmp_path / "evaluation.json").read_text())) == ["before", "step 200"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = [", r"config\.toml'?: Invalid value"),
        ("", r"config\.toml is damaged: run is no table"),
        ("run = 3", r"config\.toml is damaged: run is no table"),
        ("[run]\n[model]\n[[train]]", r"config\.toml is damaged: train is no table"),
    ],
)
def test_a_damaged_configuration_is_named(text: str, message: str, tmp_path: Path) -> None:
    config = sft(tmp_path, "--model.dtype", "auto")
    config.run.folder.mkdir()
    (config.run.folder / "config.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        settle_dtype(config, ALONE)
    with pytest.raises(ValueError, match=message):
        open_run_folder(config.run.folder, dump_config(config), ALONE)


def test_a_template_that_leaves_out_the_thinking_of_the_last_turn_is_told(smollm2_folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(smollm2_folder / name, tmp_path)
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    (tmp_path / "chat_template.jinja").write_text(template)
    asked = {"role": "user", "content": "Which?"}
    row = Conversation("c", [asked, {"role": "assistant", "content": "<think>why</think>\nB"}])
    assert encode([row], load_tokenizer(smollm2_folder), 512, ALONE)
    with pytest.raises(ValueError, match="'c': message 2: the chat template leaves out or changes"):
        encode([row], load_tokenizer(tmp_path), 512, ALONE)
    plain = Conversation("d", [asked, {"role": "assistant", "content": "B"}])
    assert encode([plain], load_tokenizer(tmp_path), 512, ALONE)


def test_a_torn_evaluation_is_named(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text('{"before": {')
    with pytest.raises(ValueError, match=r"evaluation\.json: not JSON"):
        common.evaluated_on_first(tmp_path, "before", ALONE)


def test_what_is_not_finite_in_the_reference_is_named(tmp_path: Path) -> None:
    model = Decoder(ModelConfig("llama", 32, 8, 1, 2, 1, 4, 8)).initialise(0)
    with torch.no_grad():
        model.layers[0].down.weight[0, 0] = float("inf")
    save_model(model, None, tmp_path)
    with pytest.raises(NonFiniteError, match=r"weight layers\.0\.down\.weight has 1 values that are not finite"):
        common.load_frozen(str(tmp_path), torch.float32, ShardingConfig(), ALONE, on_cpu=False)
