"""Chat templates as transformers renders them, bounded and sandboxed; and reading a think block."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from psychecore.text.chat import ChatTemplate, check_messages, split_think
from psychecore.text.tokenizer import Tokenizer, load_tokenizer

SYSTEM = {"role": "system", "content": "You are a psychologist.\nAnswer briefly."}
ASK = {"role": "user", "content": "What is  transference? 什么是移情？\n\nPlease explain. "}
SAY = {"role": "assistant", "content": "Old feelings, aimed at the helper."}
REASONED = {"role": "assistant", "content": "<think>\nFreud named it.\n</think>\n\nB. Transference"}
CONVERSATIONS = {
    "one question": [ASK],
    "system": [SYSTEM, ASK],
    "answered": [ASK, SAY],
    "several turns": [SYSTEM, ASK, SAY, {"role": "user", "content": "Thanks!"}, SAY],
    "open question after turns": [ASK, SAY, ASK],
    "reasoning": [SYSTEM, ASK, REASONED],
    "reasoning in an earlier turn": [ASK, REASONED, ASK],
}


@pytest.fixture(scope="module")
def thinking_folder(shared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen3's tokenizer with a template that opens the think block itself, as that of Qwen3-Thinking-2507 does.

    It also holds a mark for transformers' masks.
    """
    folder = tmp_path_factory.mktemp("tokenizer") / "qwen3-thinking"
    shutil.copytree(shared_folder / "data" / "tokenizers" / "qwen3", folder)
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    head, prompt, _ = config["chat_template"].rpartition("{%- if add_generation_prompt %}")
    opens = "{% generation %}{{- '<|im_start|>assistant\\n<think>\\n' }}{% endgeneration %}{%- endif %}"
    config["chat_template"] = head + prompt + opens
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder


@pytest.fixture(scope="module", params=["smollm2", "qwen3", "qwen3-thinking"])
def folder(request: pytest.FixtureRequest) -> Path:
    if request.param == "smollm2":
        return request.getfixturevalue("smollm2_folder")
    if request.param == "qwen3-thinking":
        return request.getfixturevalue("thinking_folder")
    return request.getfixturevalue("shared_folder") / "data" / "tokenizers" / "qwen3"


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Any:
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


@pytest.mark.parametrize("variables", [{}, {"enable_thinking": False}, {"enable_thinking": True}])
@pytest.mark.parametrize("add_generation_prompt", [False, True])
@pytest.mark.parametrize("case", CONVERSATIONS)
def test_rendering_equals_transformers_in_string_and_ids(
    case: str, add_generation_prompt: bool, variables: dict[str, Any], tokenizer: Tokenizer, oracle: Any
) -> None:
    messages = CONVERSATIONS[case]
    options = {"add_generation_prompt": add_generation_prompt, **variables}
    encoded = tokenizer.render_chat(messages, **options)
    assert encoded.text == oracle.apply_chat_template(messages, tokenize=False, **options)
    assert encoded.ids == oracle.apply_chat_template(messages, tokenize=True, return_dict=False, **options)


def test_a_block_that_the_template_opens_is_closed_by_what_is_trained(thinking_folder: Path) -> None:
    """In every turn, and from where a rollout would begin on."""
    tokenizer = load_tokenizer(thinking_folder)
    prompt = tokenizer.render_chat([ASK], add_generation_prompt=True)
    assert prompt.text.endswith("<|im_start|>assistant\n<think>\n")
    whole = tokenizer.render_chat([ASK, REASONED])
    assert whole.ids[: len(prompt.ids)] == prompt.ids
    assert whole.loss_mask[: len(prompt.ids)] == [False] * len(prompt.ids)
    trained = [i for i, taught in zip(whole.ids, whole.loss_mask, strict=True) if taught]
    said = "Freud named it.\n</think>\n\nB. Transference<|im_end|>"
    assert tokenizer.decode(trained, skip_special_tokens=False) == said
    turns = tokenizer.render_chat([ASK, SAY, ASK, REASONED])
    trained = [i for i, taught in zip(turns.ids, turns.loss_mask, strict=True) if taught]
    assert tokenizer.decode(trained, skip_special_tokens=False) == f"{SAY['content']}<|im_end|>{said}"


def taught(tokenizer: Tokenizer, messages: list[Any]) -> tuple[str, str]:
    """(what is trained, what is wrong) of a conversation."""
    item = tokenizer.render_chat(messages)
    ids = [i for i, trained in zip(item.ids, item.loss_mask, strict=True) if trained]
    return tokenizer.decode(ids, skip_special_tokens=False), item.fault


def with_template(source: str, smollm2_folder: Path, folder: Path) -> Tokenizer:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(smollm2_folder / name, folder)
    (folder / "chat_template.jinja").write_text(source, "utf-8")
    return load_tokenizer(folder)


def test_without_a_stop_token_behind_a_turn_nothing_of_it_is_taught(smollm2_folder: Path, tmp_path: Path) -> None:
    source = (
        "{% for m in messages %}{{ '### Instruction:\n' if m.role == 'user' else '### Response:\n' }}{{ m.content }}"
        "\n\n{% endfor %}{% if add_generation_prompt %}### Response:\n{% endif %}"
    )
    plain = with_template(source, smollm2_folder, tmp_path)
    for messages in ([ASK, SAY], [ASK, SAY, ASK], [ASK, SAY, ASK, SAY]):
        words, fault = taught(plain, messages)
        assert words == ""
        assert fault.startswith("message 2: the chat template ends this turn of the assistant in no stop token")
    at_the_end = with_template(
        source + "{% if not add_generation_prompt %}<|im_end|>{% endif %}", smollm2_folder, tmp_path
    )
    assert taught(at_the_end, [ASK, SAY])[0].strip() == SAY["content"] + "\n\n<|im_end|>"
    assert taught(at_the_end, [ASK, SAY, ASK, SAY])[0] == ""
    assert taught(at_the_end, [ASK, SAY, ASK])[1].startswith("message 2: the chat template leaves out or changes")


def test_a_template_may_end_what_is_no_prompt_in_a_token_of_its_own(smollm2_folder: Path, tmp_path: Path) -> None:
    """Phi-3's does: both endings begin with the same characters of different tokens."""
    tokenizer = with_template(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}<|endoftext|>{% endif %}",
        smollm2_folder,
        tmp_path,
    )
    fooled = {"role": "user", "content": "im_start|>assistant\nNo."}
    assert taught(tokenizer, [fooled, SAY, ASK, SAY]) == (2 * (SAY["content"] + "<|im_end|>"), "")


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (["<think>a</think>\nB", "<think>c</think>\nD"], "<think>\nc\n</think>\n\nD<|im_end|>"),
        (["Well. <think>a</think>\nB"], ""),
        (["<think>a</think>x<think>b</think>y"], ""),
    ],
)
def test_words_that_a_template_leaves_out_are_told(said: list[str], kept: str, shared_folder: Path) -> None:
    tokenizer = load_tokenizer(shared_folder / "data" / "tokenizers" / "qwen3")
    messages: list[Any] = [m for words in said for m in (ASK, {"role": "assistant", "content": words})]
    words, fault = taught(tokenizer, messages)
    assert words == kept
    assert fault.startswith("message 2: the chat template leaves out or changes part of these words")
    messages[1]["weight"] = 0
    assert taught(tokenizer, messages) == (kept, "")
    assert taught(tokenizer, [*messages, ASK, SAY])[0].endswith(SAY["content"] + "<|im_end|>")


def test_a_prompt_and_a_turn_of_weight_0_teach_nothing(tokenizer: Tokenizer) -> None:
    assert not any(tokenizer.render_chat([ASK, SAY, ASK], add_generation_prompt=True).loss_mask)
    first, second = ({"role": "assistant", "content": words} for words in ("Not this.", "But this."))
    assert "Not this.<|im_end|>" in taught(tokenizer, [ASK, first, ASK, second])[0]
    words, fault = taught(tokenizer, [ASK, {**first, "weight": 0}, ASK, {**second, "weight": 1}])
    assert "Not this." not in words
    assert words.endswith("But this.<|im_end|>")
    assert fault == ""


def test_thinking_switches_what_qwen3_opens_a_turn_with(shared_folder: Path) -> None:
    qwen3 = load_tokenizer(shared_folder / "data" / "tokenizers" / "qwen3")
    texts = [qwen3.render_chat([ASK], True, enable_thinking=on).text for on in (True, False)]
    assert texts[0] != texts[1]


def test_a_template_cannot_reach_python() -> None:
    for source in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
    ):
        with pytest.raises(ValueError, match="template failed"):
            ChatTemplate(source, {}).render([], False)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 1000000000 }}",
        "{% for i in range(1000000000) %}a{% endfor %}",
        "{{ 9 ** 9 ** 9 }}",
        "{% for i in range(100000) %}{{ 'a' * 1000 }}{% endfor %}",
    ],
)
def test_a_template_that_runs_wild_is_stopped(source: str) -> None:
    with pytest.raises(ValueError, match="chat template"):
        ChatTemplate(source, {}).render([], False)


def test_what_a_template_refuses_is_an_error_with_its_words() -> None:
    with pytest.raises(ValueError, match="roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}", {}).render([], False)
    with pytest.raises(ValueError, match="not valid jinja2"):
        ChatTemplate("{% for %}", {})


@pytest.mark.parametrize(
    ("messages", "named"),
    [
        ([], "non-empty list"),
        ("hello", "non-empty list"),
        (["hello"], "message 0"),
        ([{"role": "narrator", "content": "x"}], "'narrator'"),
        ([ASK, {"role": "user"}], "message 1 has content None"),
        ([{"role": "user", "content": "\ud800"}], "lone surrogate"),
    ],
)
def test_messages_that_are_none_are_refused_with_the_turn(messages: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        check_messages(messages)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think>\nB", ("a", "B")),
        ("a</think>B", ("a", "B")),
        ("no block", (None, "no block")),
        ("<think>never closed", (None, "<think>never closed")),
        ("<think></think>", ("", "")),
    ],
)
def test_split_think(text: str, expected: tuple[str | None, str]) -> None:
    assert split_think(text) == expected


def test_the_switch_of_a_template_holds_in_all_that_is_rendered(shared_folder: Path, smollm2_folder: Path) -> None:
    folder = shared_folder / "data" / "tokenizers" / "qwen3"
    plain, on, off = (load_tokenizer(folder, thinking) for thinking in (None, True, False))
    asked = [tokenizer.render_chat([ASK], add_generation_prompt=True) for tokenizer in (plain, on, off)]
    assert asked[0] == asked[1] == plain.render_chat([ASK], add_generation_prompt=True, enable_thinking=True)
    assert asked[2] == plain.render_chat([ASK], add_generation_prompt=True, enable_thinking=False) != asked[0]
    # what is trained without thinking stands where a prompt without it ends
    whole = off.render_chat([ASK, SAY])
    assert whole.ids[: len(asked[2].ids)] == asked[2].ids
    assert whole.loss_mask.index(True) == len(asked[2].ids)
    with pytest.raises(ValueError, match="thinking is False, but the chat template has no switch for it"):
        load_tokenizer(smollm2_folder, thinking=False)


def test_an_empty_think_block_is_no_word_and_tool_calls_that_are_left_out_are_told(
    shared_folder: Path, smollm2_folder: Path
) -> None:
    qwen3 = load_tokenizer(shared_folder / "data" / "tokenizers" / "qwen3")
    closed = [{"role": "assistant", "content": f"<think>\n\n</think>\n\n{word}"} for word in ("Yes.", "No.")]
    words, fault = taught(qwen3, [ASK, closed[0], ASK, closed[1]])
    assert (words, fault) == ("Yes.<|im_end|><think>\n\n</think>\n\nNo.<|im_end|>", "")
    assert taught(qwen3, [ASK, {"role": "assistant", "content": "B"}]) == ("B<|im_end|>", "")  # its own block is not
    call = {"type": "function", "function": {"name": "weather", "arguments": {"at": "Bonn"}}}
    calling: Any = {"role": "assistant", "content": "", "tool_calls": [call]}
    assert taught(qwen3, [ASK, calling])[1] == ""
    assert "weather" in taught(qwen3, [ASK, calling])[0]
    for content in ("", "Let me look."):
        words, fault = taught(load_tokenizer(smollm2_folder), [ASK, {**calling, "content": content}])
        assert (words, fault) == (
            "",
            "message 2: the chat template leaves out the tool calls, so they would not be learnt",
        )
    assert taught(load_tokenizer(smollm2_folder), [ASK, {**SAY, "tool_calls": None, "weight": None}])[1] == ""
