"""Answering by likelihood: the option that the model finds likeliest, without generating or parsing anything.

Each candidate answer follows the same prompt, and its log-probability is the sum over its tokens. The candidates of a
question run in one packed forward pass in which the prompt stands once. Two forms of candidate:

- "letter": "B", or for a multiple-choice question every set of letters ("A", "AB", ..., "ABCD"). What most harnesses
  do. Small models bind letters poorly and may prefer one whatever the question says.
- "text": the option's text. Long options have low sums, so `normalise` divides by the number of tokens; without it the
  shortest option tends to win. A set of options is their texts joined by "; ".

A set of several letters has more tokens than one letter, so for multiple-choice questions normalising matters anyway.
The prompt asks for the bare answer, without thinking.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, combinations
from typing import Literal

import torch

from psychecore.curate.generator import LocalGenerator
from psychecore.data.packing import pack
from psychecore.data.prompts import question_messages
from psychecore.data.records import Question
from psychecore.evaluate.item import Item
from psychecore.model.decoder import Decoder
from psychecore.text.chat import Message
from psychecore.train.token_logprobs import batch_logprobs

Form = Literal["letter", "text"]
SYSTEM = {
    "letter": {
        "en": "You are a psychology expert. Answer with the letter or letters of the right options and nothing else.",
        "zh": "你是一位心理学专家。只回答正确选项的字母，不要写其他内容。",
    },
    "text": {
        "en": "You are a psychology expert. Answer with the text of the right option or options and nothing else.",
        "zh": "你是一位心理学专家。只回答正确选项的内容，不要写其他内容。",
    },
}


def likelihood_messages(item: Item, form: Form) -> list[Message]:
    """The question, asked for the bare answer; worked examples give the bare answer as well."""
    language = item.question.language
    messages: list[Message] = [{"role": "system", "content": SYSTEM[form][language]}]
    for shot in item.shots:
        answer = candidate_texts(shot, form)[shot.answer]
        messages += [question_messages(shot)[1], {"role": "assistant", "content": answer}]
    return [*messages, question_messages(item.question)[1]]


def candidate_texts(question: Question, form: Form) -> dict[str, str]:
    """What each answer would say, by letters: single options, or for a multiple-choice question every set of them."""
    letters = "".join(question.options)
    sizes = range(1, len(letters) + 1) if question.kind == "multiple" else (1,)
    sets = ["".join(chosen) for chosen in chain.from_iterable(combinations(letters, size) for size in sizes)]
    if form == "letter":
        return {chosen: chosen for chosen in sets}
    joint = "；" if question.language == "zh" else "; "
    return {chosen: joint.join(question.options[letter] for letter in chosen) for chosen in sets}


def candidate_scores(
    generator: LocalGenerator, items: Sequence[Item], form: Form, normalise: bool
) -> Iterator[dict[str, float] | None]:
    """For each item the log-probability (nats; a token's mean where `normalise`) of each candidate, by letters.

    None for a question that with its candidates is longer than the generator's `max_length`.
    """
    sampler = generator.load()
    tokenizer = sampler.tokenizer
    for item in items:
        prompt = tokenizer.render_chat(likelihood_messages(item, form), add_generation_prompt=True).ids
        texts = candidate_texts(item.question, form)
        endings = {letters: tokenizer.encode(text) for letters, text in texts.items()}
        if len(prompt) + max(map(len, endings.values())) > generator.max_length:
            yield None
            continue
        sums = ending_logprobs(sampler.model, prompt, list(endings.values()))
        yield {
            letters: value / len(ids) if normalise else value
            for (letters, ids), value in zip(endings.items(), sums, strict=True)
        }


def best_candidate(scores: Mapping[str, float]) -> str:
    """The letters with the highest score; of equals the first."""
    return max(scores, key=lambda letters: scores[letters])


@torch.no_grad()
def ending_logprobs(model: Decoder, prompt: list[int], endings: Sequence[list[int]]) -> list[float]:
    """log p(ending | prompt) in nats, summed over the ending's tokens, for each; one forward pass, prompt stored once.

    Raises ValueError for an empty prompt or ending.
    """
    if not prompt or not all(endings):
        raise ValueError("a likelihood needs a prompt and endings of at least one token")
    sequences = [(prompt + ending, [False] * len(prompt) + [True] * len(ending)) for ending in endings]
    batch = pack(sequences, min_shared=min(16, len(prompt))).to(model.device)
    logprobs_R, _ = batch_logprobs(model, batch)
    sums = torch.zeros(len(endings), dtype=torch.float64)
    sums.index_add_(0, batch.sequence_R.cpu(), logprobs_R.double().cpu())
    return sums.tolist()
