"""Model folders: what is damaged, missing or too much is named; what is written is whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import forked
import pytest
import torch
from safetensors.torch import load_file, save_file

import psychecore as pc
from psychecore.model import pretrained


@pytest.fixture
def folder(tiny_model: Callable[..., pc.Decoder], tmp_path: Path) -> Path:
    pc.save_model(tiny_model(torch.float32, layers=1), None, tmp_path / "model")
    return tmp_path / "model"


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
    (folder / pretrained.INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": place}}))
    with pytest.raises(ValueError, match=r"index\.json"):
        pc.load_model(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}'])
def test_an_index_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / pretrained.INDEX).write_text(text)
    with pytest.raises(ValueError, match=r"index\.json: not a safetensors index"):
        pc.load_model(folder)


def test_an_index_that_names_the_wrong_shard_is_refused(folder: Path) -> None:
    (folder / pretrained.INDEX).write_text(json.dumps({"weight_map": {"no.such.tensor": "model.safetensors"}}))
    with pytest.raises(ValueError, match=r"places tensor 'no\.such\.tensor' in model\.safetensors"):
        pc.load_model(folder)


def test_a_source_that_is_no_folder_is_refused() -> None:
    for source in ("./nowhere", "/nowhere", "nowhere", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            pc.load_model(source)


def test_a_hub_id_asks_for_json_and_safetensors_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        asked[name] = allow_patterns
        return str(folder)

    monkeypatch.setattr(pretrained.huggingface_hub, "snapshot_download", snapshot_download)
    pc.load_model("owner/name")
    assert list(asked) == ["owner/name"]
    assert not [pattern for pattern in asked["owner/name"] if pattern in ("*", "*.bin", "*.py", "*.pt")]


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

    monkeypatch.setattr(pretrained, "save_file", full_disk)
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
