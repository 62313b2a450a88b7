"""Model folders: what is damaged, missing or too much is named; what is written is whole."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

import psychecore as pc
from psychecore.model import weight_files
from psychecore.model.config import ModelConfig
from psychecore.model.weight_files import INDEX


@pytest.fixture
def folder(tiny_model: Callable[..., pc.Decoder], tmp_path: Path) -> Path:
    pc.save_model(tiny_model(torch.float32, layers=1), None, tmp_path / "model")
    return tmp_path / "model"


def only_indexed(folder: Path) -> Path:
    """The index of a folder whose weights lie in a file of another name than the single one's."""
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    return folder / INDEX


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_a_missing_tensor_is_named(folder: Path) -> None:
    rewrite(folder, lambda t: t.pop("model.layers.0.mlp.up_proj.weight"))
    with pytest.raises(ValueError, match=r"model.*'model\.layers\.0\.mlp\.up_proj\.weight' is missing"):
        pc.load_model(folder)


def test_an_unexpected_tensor_is_named(folder: Path) -> None:
    rewrite(folder, lambda t: t.update({"model.layers.1.mlp.up_proj.weight": torch.ones(2)}))
    with pytest.raises(ValueError, match=r"'model\.layers\.1\.mlp\.up_proj\.weight' is not part of"):
        pc.load_model(folder)


def test_a_misshapen_tensor_is_named_with_both_shapes(folder: Path) -> None:
    rewrite(folder, lambda t: t.update({"model.norm.weight": torch.ones(23)}))
    with pytest.raises(ValueError, match=r"'model\.norm\.weight' has shape \(23,\), but .* \(24,\)"):
        pc.load_model(folder)


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_a_truncated_file_is_named(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged or truncated"):
        pc.load_model(folder)


@pytest.mark.parametrize("place", ["../other.safetensors", "/etc/passwd", "sub/part.safetensors", "weights.bin", 7])
def test_an_index_that_points_elsewhere_is_refused(folder: Path, place: object) -> None:
    only_indexed(folder).write_text(json.dumps({"weight_map": {"model.norm.weight": place}}))
    with pytest.raises(ValueError, match=r"index\.json"):
        pc.load_model(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}'])
def test_an_index_that_is_none_is_refused(folder: Path, text: str) -> None:
    only_indexed(folder).write_text(text)
    with pytest.raises(ValueError, match=r"index\.json: not a safetensors index"):
        pc.load_model(folder)


def test_an_index_that_names_the_wrong_shard_is_refused(folder: Path) -> None:
    only_indexed(folder).write_text(json.dumps({"weight_map": {"no.such.tensor": "one.safetensors"}}))
    with pytest.raises(ValueError, match=r"places tensor 'no\.such\.tensor' in one\.safetensors"):
        pc.load_model(folder)


def test_an_index_that_stayed_behind_beside_the_single_file_is_passed_over(folder: Path) -> None:
    """transformers leaves it when it saves a model in one file over one in several."""
    before = pc.load_model(folder, torch.float32)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}))
    stale = {"model.norm.weight": torch.zeros_like(before.norm.weight)}
    save_file(stale, folder / "model-00001-of-00002.safetensors")
    assert torch.equal(pc.load_model(folder, torch.float32).norm.weight, before.norm.weight)


def test_a_head_beside_one_that_config_json_ties_must_be_the_embedding(
    tiny_model: Callable[..., pc.Decoder], tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    pc.save_model(tiny_model(torch.float32, layers=1, tied_head=True), None, folder)
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    pc.load_model(folder)
    rewrite(folder, lambda t: t["lm_head.weight"][-1, -1].add_(1))
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from it: set tie_word_embeddings to false"):
        pc.load_model(folder)


def test_an_export_goes_where_a_link_leads_and_never_over_something_else(
    tiny_model: Callable[..., pc.Decoder], tmp_path: Path
) -> None:
    model = tiny_model(torch.float32, layers=1)
    (tmp_path / "large disk").mkdir()
    link = tmp_path / "export"
    link.symlink_to("large disk")
    for _ in range(2):
        pc.save_model(model, None, link)
        assert link.is_symlink()
        assert pc.load_model(tmp_path / "large disk").config == model.config
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "large disk"]
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"project holds files, but no model"):
        pc.save_model(model, None, tmp_path / "project")
    assert [path.name for path in (tmp_path / "project").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("shape", "odd"),
    [
        ({"family": "qwen3"}, "qk_norm is False, but True in a qwen3"),
        ({"family": "qwen2"}, "qkv_bias is False, but True in a qwen2"),
        (
            {"family": "llama", "qkv_bias": True},
            "out_bias is False, but True in a llama",
        ),
        ({"family": "llama", "qk_norm": True}, "qk_norm is True, but False in a llama"),
        ({"family": "qwen3", "qk_norm": True, "mlp_bias": True}, "mlp_bias is True, but False in a qwen3"),
    ],
)
def test_a_network_that_no_folder_can_hold_is_not_saved(shape: dict[str, Any], odd: str, tmp_path: Path) -> None:
    sizes = {"vocab_size": 31, "width": 8, "layers": 1, "query_heads": 2, "key_value_heads": 1, "head_dim": 4}
    model = pc.Decoder(ModelConfig(**shape, **sizes, feed_forward_width=8)).initialise(0)
    with pytest.raises(ValueError, match=odd):
        pc.save_model(model, None, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_an_export_says_where_to_stop_though_the_tokenizer_s_folder_did_not(
    smollm2_folder: Path, tiny_model: Callable[..., pc.Decoder], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(smollm2_folder, source, ignore=shutil.ignore_patterns("*.safetensors", "generation_config.json"))
    tokenizer = pc.load_tokenizer(source)
    pc.save_model(tiny_model(torch.float32, layers=1), tokenizer, tmp_path / "m")
    raw = json.loads((tmp_path / "m" / "generation_config.json").read_text())
    assert raw == {"eos_token_id": sorted(tokenizer.stop_ids), "pad_token_id": tokenizer.pad_id}
    assert pc.load_tokenizer(tmp_path / "m").stop_ids == tokenizer.stop_ids
    transformers = pytest.importorskip("transformers")
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "m").eos_token_id == raw["eos_token_id"]


def test_a_source_that_is_no_folder_is_refused() -> None:
    for source in ("./nowhere", "/nowhere", "nowhere", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            pc.load_model(source)


def test_a_hub_id_asks_for_json_and_safetensors_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def snapshot_download(name: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        files = [
            "model.safetensors",
            "checkpoint-500/model.safetensors",
            "config.json",
            "model.py",
            "pytorch_model.bin",
        ]
        filtered = filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        asked[name] = list(filtered)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    pc.load_model("owner/name")
    assert asked == {"owner/name": ["model.safetensors", "config.json"]}


def test_tied_weights_are_written_once_and_an_untied_head_twice(
    tiny_model: Callable[..., pc.Decoder], tmp_path: Path
) -> None:
    for tied in (True, False):
        model = tiny_model(torch.float32, tied_head=tied)
        pc.save_model(model, None, tmp_path / "m")
        tensors = load_file(tmp_path / "m" / "model.safetensors")
        assert ("lm_head.weight" in tensors) is not tied
        assert sum(t.numel() for t in tensors.values()) == model.config.parameters


def test_saving_over_a_folder_replaces_it_whole(folder: Path, tiny_model: Callable[..., pc.Decoder]) -> None:
    (folder / "stale.txt").write_text("old")
    model = tiny_model(torch.float32, seed=5)
    pc.save_model(model, None, folder)
    assert sorted(p.name for p in folder.parent.iterdir()) == ["model"]
    assert not (folder / "stale.txt").exists()
    ids_BS = torch.tensor([[1, 2, 3]])
    assert torch.equal(pc.load_model(folder, dtype=torch.float32).logits(ids_BS), model.logits(ids_BS))


def test_a_save_that_fails_leaves_the_old_folder(
    folder: Path, tiny_model: Callable[..., pc.Decoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (folder / "model.safetensors").read_bytes()

    def full_disk(*arguments: object, **options: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(weight_files, "save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        pc.save_model(tiny_model(torch.float32, seed=5), None, folder)
    assert (folder / "model.safetensors").read_bytes() == before


def test_what_rank_0_cannot_write_is_told_by_both_and_holds_up_neither(tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    script = Path(__file__).with_name("two_ranks_save.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(forked.__file__).parent)},
    )
    assert done.returncode == 0, done.stderr
    (own, saved), (other, also) = (json.loads((tmp_path / f"rank{r}.json").read_text()) for r in (0, 1))
    assert "NotADirectoryError" in own
    assert "rank 0 says why" in other
    assert saved == also == "saved"
    assert pc.load_model(tmp_path / "export").config.width == 24
