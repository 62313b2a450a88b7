"""Chat templates as transformers renders them, bounded and sandboxed; and reading a think block."""

from __future__ import annotations

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


@pytest.fixture(scope="module", params=["smollm2", "qwen3"])
def folder(request: pytest.FixtureRequest) -> Path:
    if request.param == "smollm2":
        return request.getfixturevalue("smollm2_folder")
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
