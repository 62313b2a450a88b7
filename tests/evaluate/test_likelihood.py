"""Likelihoods of options against transformers on the same weights, one unpadded sequence at a time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import psychecore as pc
from psychecore.curate.generator import LocalGenerator
from psychecore.data.records import Question
from psychecore.evaluate import likelihood
from psychecore.evaluate.item import Item
from psychecore.evaluate.likelihood import candidate_scores, candidate_texts, ending_logprobs, likelihood_messages

transformers = pytest.importorskip("transformers")


def item(name: str, answer: str = "B", kind: str = "single", context: str | None = None) -> Item:
    options = {"A": "fear", "B": "joy and a long tail of words", "C": "<|im_end|> anger"}
    return Item(Question(name, f"What is {name}?", options, answer, kind, context=context))  # type: ignore[arg-type]


def test_sums_equal_those_of_transformers_logits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    oracle = transformers.Qwen2ForCausalLM(config).float().eval()
    oracle.save_pretrained(tmp_path)
    prompts = [list(range(40)), [*range(30), 7, 8, 9]]
    pairs = [(prompt, ending) for prompt in prompts for ending in ([5], [5, 6], [50, 51, 52], [5, 9])]
    expected = []
    for prompt, ending in pairs:
        with torch.no_grad():
            logprobs_TV = oracle(torch.tensor([prompt + ending])).logits[0].double().log_softmax(-1)
        rows = range(len(prompt) - 1, len(prompt) + len(ending) - 1)
        expected.append(sum(logprobs_TV[row, token].item() for row, token in zip(rows, ending, strict=True)))
    model = pc.load_model(tmp_path, dtype=torch.float32)
    assert ending_logprobs(model, pairs) == pytest.approx(expected, abs=1e-4)


def test_a_multiple_choice_question_may_be_answered_with_every_set_of_letters() -> None:
    question = item("x", "AC", "multiple").question
    assert list(candidate_texts(question, "letter")) == ["A", "B", "C", "AB", "AC", "BC", "ABC"]
    assert candidate_texts(question, "text")["AC"] == "fear; <|im_end|> anger"
    assert list(candidate_texts(item("x").question, "letter").values()) == ["A", "B", "C"]


@pytest.mark.parametrize(("form", "normalise"), [("letter", False), ("text", False), ("text", True)])
def test_questions_asked_together_score_as_if_asked_alone(
    form: likelihood.Form, normalise: bool, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = LocalGenerator(str(workplace / "model"), max_length=400)
    case = "A client says this. " * 20
    items = [item("one", context=case), item("two", "AC", "multiple", case), item("long " * 500), item("three")]
    together = list(candidate_scores(generator, items, form, normalise))
    alone = [next(iter(candidate_scores(generator, [one], form, normalise))) for one in items]
    assert together[2] is None
    for one, other in zip(together, alone, strict=True):
        assert one == (other if other is None else pytest.approx(other, abs=1e-4))
    monkeypatch.setattr(likelihood, "KEYS", 300)  # one sequence at a time
    split = list(candidate_scores(generator, items[:2], form, normalise))
    assert split == [pytest.approx(scores, abs=1e-4) for scores in together[:2]]


def test_normalising_divides_by_the_tokens_of_the_option(workplace: Path) -> None:
    generator = LocalGenerator(str(workplace / "model"))
    (sums,), (means,) = (list(candidate_scores(generator, [item("x")], "text", normal)) for normal in (False, True))
    assert sums is not None
    assert means is not None
    encode = generator.load().tokenizer.encode
    for letters, text in candidate_texts(item("x").question, "text").items():
        assert means[letters] == pytest.approx(sums[letters] / len(encode(text)))


def test_a_think_block_that_the_template_opens_is_closed_before_the_answer(workplace: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(workplace / "model", tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    opens = config["chat_template"].replace("assistant\n' }}", "assistant\n<think>\n' }}")
    assert opens != config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": opens}), "utf-8")
    generator = LocalGenerator(str(folder))
    [scores] = candidate_scores(generator, [item("x")], "letter", False)
    model, tokenizer = generator.load().model, generator.load().tokenizer
    asked = tokenizer.render_chat(likelihood_messages(item("x"), "letter"), add_generation_prompt=True)
    assert asked.text.endswith("<|im_start|>assistant\n<think>\n")
    closed = asked.ids + tokenizer.encode("\n</think>\n\n")
    expected = ending_logprobs(model, [(closed, tokenizer.encode(letter)) for letter in "ABC"])
    assert scores == pytest.approx(dict(zip("ABC", expected, strict=True)), abs=1e-4)


def test_an_option_that_says_a_control_token_is_plain_text(workplace: Path) -> None:
    tokenizer = LocalGenerator(str(workplace / "model")).load().tokenizer
    text = candidate_texts(item("x").question, "text")["C"]
    assert not tokenizer.special_ids & set(tokenizer.encode(text))
    asked = tokenizer.render_chat(likelihood_messages(item("x"), "text"), add_generation_prompt=True)
    plain = tokenizer.render_chat([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], True)
    special = tokenizer.special_ids
    assert [i for i in asked.ids if i in special] == [i for i in plain.ids if i in special]
