"""Model folders from strangers: a damaged, oversized or misleading file is refused by a ValueError that names it."""

from __future__ import annotations

import json
import os
import re
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from attempt import EXAMPLES, attempt
from hypothesis import example, given, settings
from hypothesis import strategies as st

import psychecore as pc
from psychecore.model.config import LIMITS, ModelConfig
from psychecore.model.weight_files import INDEX
from psychecore.text import tokenizer as tokenizer_module
from psychecore.text.tokenizer import load_tokenizer

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rope_parameters": None,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "max_position_embeddings": 100,
    "layer_types": None,
    "hidden_act": "silu",
}
ROPE_KEYS = ("rope_type", "type", "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
ROPE_KEYS += ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate", "rope_theta")
ODD = [
    0,
    -1,
    1,
    2,
    8,
    10**12,
    2**62,
    10**400,
    1e-320,
    1e308,
    float("inf"),
    float("nan"),
    0.5,
    True,
    "",
    "yarn",
    "llama3",
]
ODD += ["linear", "false", [], [1], {}, {"a": 1}, None]
VALUES = st.sampled_from(ODD) | st.integers() | st.floats() | st.text(max_size=4)
ROPES = st.dictionaries(st.sampled_from(ROPE_KEYS), VALUES | st.sampled_from([2.0, 4.0, 32.0]), max_size=9)


@pytest.fixture
def folder(tiny_model: Callable[..., pc.Decoder], tmp_path: Path) -> Path:
    pc.save_model(tiny_model(torch.float32, layers=1), None, tmp_path / "model")
    return tmp_path / "model"


def test_the_undamaged_folder_loads(folder: Path) -> None:
    assert pc.load_model(folder).config.layers == 1


@settings(max_examples=EXAMPLES * 3)
@given(changes=st.dictionaries(st.sampled_from(sorted(LLAMA)), VALUES | ROPES, max_size=4), rope=st.none() | ROPES)
@example(changes={}, rope={"rope_type": "llama3", "factor": 2.0})
@example(changes={}, rope={"rope_type": "yarn", "factor": 10**400})
@example(changes={}, rope={"rope_type": "yarn", "factor": 2.0, "mscale": -1e300, "mscale_all_dim": 1.0})
@example(changes={"rope_theta": 1}, rope={"rope_type": "yarn", "factor": 2.0})
@example(changes={"rope_theta": float("nan")}, rope=None)
@example(changes={"tie_word_embeddings": "false"}, rope=None)
@example(changes={"layer_types": {"full_attention": 1}}, rope=None)
@example(changes={"model_type": ["llama"]}, rope=None)
def test_any_config_gives_a_finite_network_or_is_refused(changes: dict[str, Any], rope: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"rope_scaling": rope} | changes))
    config, refusal = attempt(lambda: ModelConfig.from_folder(tmp_path), limit=len(str(tmp_path)) + 400)
    if config is None:
        assert refusal.startswith(str(tmp_path / "config.json"))
    else:
        for name, limit in LIMITS.items():
            assert 1 <= getattr(config, name) <= limit
        frequencies = config.rope.inverse_frequencies(config.head_dim)
        assert torch.isfinite(frequencies).all()
        assert torch.isfinite(torch.tensor(config.rope.attention_factor))
        assert ModelConfig.from_hf(config.to_hf()).parameters == config.parameters


@given(data=st.binary(max_size=200))
@example(data=b"[" * 100_000)
@example(data=b'{"vocab_size": ' + b"9" * 5000 + b"}")
@example(data=b'{"model_type": "\\ud800"}')
def test_any_bytes_as_json_are_refused_by_name(data: bytes, folder: Path) -> None:
    before = (folder / "config.json").read_bytes()
    for name in ("config.json", INDEX):
        (folder / name).write_bytes(data)
        model, refusal = attempt(lambda: pc.load_model(folder), limit=len(str(folder)) + 400)
        assert model is None
        assert refusal.startswith(str(folder / name)), refusal
        (folder / "config.json").write_bytes(before)
        if name == "config.json":  # a single file is read without an index
            (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / INDEX).unlink()
    (folder / "model-1.safetensors").rename(folder / "model.safetensors")


@pytest.mark.parametrize(
    "claim",
    [
        {"num_hidden_layers": 10**12},
        {"num_hidden_layers": 1000},
        {"vocab_size": 2**62},
        {"vocab_size": 10_000_000, "hidden_size": 1_000_000},
        {"hidden_size": 2**62},
        {"intermediate_size": 2**31},
        {"num_attention_heads": 2**40, "num_key_value_heads": 1},
        {"head_dim": 2**40},
        {"max_position_embeddings": 2**62},
    ],
)
def test_sizes_that_the_files_do_not_hold_are_refused_before_anything_is_allocated(
    claim: dict[str, int], folder: Path
) -> None:
    (folder / "config.json").write_text(json.dumps(LLAMA | claim))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=re.escape(str(folder))):
        pc.load_model(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@given(data=st.data())
def test_a_damaged_safetensors_file_is_loaded_or_refused(data: st.DataObject, folder: Path) -> None:
    path = folder / "model.safetensors"
    good = path.read_bytes()
    header = 8 + struct.unpack("<Q", good[:8])[0]
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        bad[data.draw(st.integers(0, header - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(bad[: data.draw(st.integers(0, len(bad)) | st.just(len(bad)))])
    try:
        model, refusal = attempt(lambda: pc.load_model(folder), limit=len(str(folder)) + 600)
    finally:
        path.write_bytes(good)
    assert model is not None or refusal.startswith(str(folder))


SAFETENSORS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(
            ["F32", "F64", "BF16", "F16", "I8", "U64", "BOOL", "F8_E4M3", "F4", "C64", "X", "", 3]
        ),
        "shape": st.lists(st.sampled_from([0, 1, 24, 61, -1, 2**62, 2**64, 1.5]), max_size=3) | st.just([24]),
        "data_offsets": st.lists(st.sampled_from([0, 1, 24, 48, 96, 192, -1, 2**62, 2**64]), min_size=1, max_size=3),
    }
)


@given(
    entry=SAFETENSORS,
    length=st.sampled_from([None, 0, 1, 100_000_001, 2**63, 2**64 - 1]),
    size=st.sampled_from([0, 24, 96, 192]),
)
@example(entry={"dtype": "F8_E4M3", "shape": [24], "data_offsets": [0, 24]}, length=None, size=24)
@example(entry={"dtype": "F4", "shape": [24], "data_offsets": [0, 12]}, length=None, size=12)
def test_a_made_up_safetensors_header_is_refused(entry: Any, length: int | None, size: int, folder: Path) -> None:
    header = json.dumps({"model.norm.weight": entry}).encode()
    packed = struct.pack("<Q", len(header) if length is None else length) + header + bytes(size)
    (folder / "model.safetensors").write_bytes(packed)
    model, refusal = attempt(lambda: pc.load_model(folder), limit=len(str(folder)) + 400)
    assert model is None  # the other tensors are missing at least
    assert refusal.startswith(str(folder))


@pytest.mark.parametrize("kind", ["F8_E4M3", "BOOL", "U8", "F4", "C64", "F8_E8M0"])
def test_weights_of_another_dtype_are_loaded_or_refused(kind: str, folder: Path) -> None:
    path = folder / "model.safetensors"
    good = path.read_bytes()
    end = 8 + struct.unpack("<Q", good[:8])[0]
    header = json.loads(good[8:end])
    header["model.norm.weight"]["dtype"] = kind
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + good[end:])
    model, refusal = attempt(lambda: pc.load_model(folder), limit=len(str(folder)) + 400)
    assert model is not None or refusal.startswith(str(folder))


PLACES = ["../x.safetensors", "/etc/passwd", "a/../../x.safetensors", "..", "", ".safetensors", "x\0.safetensors"]
PLACES += ["x" * 5000, "x.safetensors/", "~/x.safetensors", None, 7, ["a"], {"a": 1}, True, "model.bin"]
PLACES += ["x" * 300 + ".safetensors", "x" * 200 + ".safetensors", "..\\x.safetensors", "\ud800.safetensors"]


@pytest.mark.parametrize("place", PLACES)
def test_an_index_cannot_lead_out_of_its_folder(place: Any, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "x.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": place}}))
    model, refusal = attempt(lambda: pc.load_model(folder), limit=len(str(folder)) + 700)
    assert model is None
    assert refusal.startswith(str(folder))


def test_links_that_lead_out_of_the_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
        with pytest.raises(ValueError, match=re.escape(str(folder / name)) + " is a link out of its folder"):
            pc.load_model(folder)
        (folder / name).unlink()
        (tmp_path / name).rename(folder / name)
    (folder / "model.safetensors").rename(folder / "weights")
    (folder / "model.safetensors").symlink_to("weights")  # a link inside is fine
    pc.load_model(folder)


def test_the_links_of_the_hub_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--owner--name"
    snapshot = cache / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for i, file in enumerate(sorted(folder.iterdir())):
        file.rename(cache / "blobs" / str(i))
        (snapshot / file.name).symlink_to(f"../../blobs/{i}")
    pc.load_model(snapshot)
    (snapshot / INDEX).symlink_to("../../../secret")
    with pytest.raises(ValueError, match="is a link out of its folder"):
        pc.load_model(snapshot)


def test_a_device_or_a_pipe_is_no_file(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        pc.load_model(folder)


# Tokenizers. The files are small ones of our own, so that thousands of damaged ones can be tried.

CHAT = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@pytest.fixture
def words(tmp_path: Path) -> Path:
    vocabulary = {"[UNK]": 0, "a": 1, "b": 2}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    (tmp_path / "words").mkdir()
    tokenizer.save(str(tmp_path / "words" / "tokenizer.json"))
    config = {"eos_token": "</s>", "chat_template": CHAT}
    (tmp_path / "words" / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "words" / "generation_config.json").write_text('{"eos_token_id": 4}')
    return tmp_path / "words"


def use(folder: Path) -> list[int]:
    tokenizer = load_tokenizer(folder)
    return tokenizer.render_chat([{"role": "user", "content": "a b"}], add_generation_prompt=True).ids


def test_the_undamaged_tokenizer_works(words: Path) -> None:
    assert use(words).count(3) == 2


@given(data=st.data())
def test_a_damaged_tokenizer_file_is_read_or_refused(data: st.DataObject, words: Path) -> None:
    name = data.draw(st.sampled_from(["tokenizer.json", "tokenizer_config.json", "generation_config.json"]))
    good = (words / name).read_bytes()
    place, cut = data.draw(st.integers(0, len(good))), data.draw(st.integers(0, 12))
    chunk = data.draw(
        st.binary(max_size=6) | st.sampled_from([b"4294967295", b"-1", b"null", b"[]", b'"', b"1e999", b"{{"])
    )
    (words / name).write_bytes(good[:place] + chunk + good[place + cut :])
    try:
        ids, refusal = attempt(lambda: use(words), limit=len(str(words)) + 700)
    finally:
        (words / name).write_bytes(good)
    assert ids is not None or str(words) in refusal or "chat template failed" in refusal


@pytest.mark.parametrize(
    ("name", "key", "value", "says"),
    [
        ("tokenizer_config.json", "chat_template", 7, "chat_template is 7"),
        ("tokenizer_config.json", "chat_template", "{% for", "not valid jinja2"),
        ("tokenizer_config.json", "chat_template", [{"name": "default", "template": ["x"]}], "chat_template is"),
        ("tokenizer_config.json", "chat_template", "{{ ''.x.y }}", "chat template failed"),
        ("generation_config.json", "eos_token_id", "x", "eos_token_id is 'x'"),
        ("generation_config.json", "eos_token_id", [[1]], "eos_token_id is"),
        ("generation_config.json", "eos_token_id", -1, "eos_token_id is -1"),
        ("generation_config.json", "eos_token_id", 1.5, "eos_token_id is 1.5"),
        ("generation_config.json", "eos_token_id", True, "eos_token_id is True"),
        ("generation_config.json", "eos_token_id", {"a": 1}, "eos_token_id is"),
    ],
)
def test_what_is_wrong_with_a_tokenizer_is_said_with_its_file(
    name: str, key: str, value: Any, says: str, words: Path
) -> None:
    path = words / name
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=re.escape(str(words))) as error:
        load_tokenizer(words)
    assert says in str(error.value)


@pytest.mark.parametrize("template", [[{"template": "x"}], [1], [], None])
def test_a_folder_whose_templates_have_no_default_has_none(template: Any, words: Path) -> None:
    (words / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    assert load_tokenizer(words).encode("a") == [1]
    with pytest.raises(ValueError, match="has no chat template"):
        use(words)


def test_a_template_that_is_no_text_is_refused_by_its_file(words: Path) -> None:
    (words / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"chat_template\.jinja"):
        load_tokenizer(words)


def test_an_id_of_4_billion_does_not_fill_the_memory(words: Path) -> None:
    path = words / "tokenizer.json"
    path.write_text(path.read_text().replace('"b": 2', '"b": 4294967290'))
    assert "4294967290" in path.read_text()
    with pytest.raises(ValueError, match=r"tokenizer\.json: its ids end at 4,294,967,290"):
        load_tokenizer(words)


@pytest.mark.parametrize("limit", [10, 100])
def test_files_beyond_the_size_limit_are_not_read(limit: int, words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module, "MAX_JSON", limit)
    with pytest.raises(ValueError, match=rf"tokenizer\.json has [\d,]+ bytes, but at most {limit} are read"):
        load_tokenizer(words)


def test_a_tokenizer_without_special_tokens_encodes_as_one_text(words: Path) -> None:
    vocabulary = {"[UNK]": 0, "a b": 1, "a": 2, "b": 3}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.save(str(words / "tokenizer.json"))
    (words / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}"}))
    assert use(words) == [1]


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"]
)
def test_a_link_to_a_secret_is_neither_read_nor_copied(name: str, words: Path, tmp_path: Path) -> None:
    loaded = load_tokenizer(words)
    (tmp_path / "secret").write_text("{}")
    (words / name).unlink(missing_ok=True)
    (words / name).symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="is a link out of its folder"):
        load_tokenizer(words)
    (tmp_path / "export").mkdir()
    with pytest.raises(ValueError, match="is a link out of its folder"):
        loaded.save(tmp_path / "export")
    assert not (tmp_path / "export" / name).exists()
