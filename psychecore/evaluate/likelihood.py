"""Answering by likelihood: the option that the model finds likeliest, without generating or parsing anything.

Each candidate answer follows the same prompt, and its log-probability is the sum over its tokens. The candidates of a
question run in one packed forward pass in which the prompt stands once. Two forms of candidate:

- "letter": "B", or for a multiple-choice question every set of letters ("A", "AB", ..., "ABCD"). What most harnesses
  do. Small models bind letters poorly and may prefer one whatever the question says.
- "text": the option's text. Long options have low sums, so `normalise` divides by the number of tokens; without it the
  shortest option tends to win. A set of options is their texts joined by "; ".

A set of several letters has more tokens than one letter, so for multiple-choice questions normalising matters anyway.
The prompt asks for the bare answer, without thinking; where the template opens a think block, it is closed at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, combinations
from typing import Literal, NamedTuple

import torch

from psychecore.curate.generator import LocalGenerator
from psychecore.data.packing import pack
from psychecore.data.prompts import question_messages
from psychecore.data.records import Question
from psychecore.evaluate.item import Item
from psychecore.model.decoder import Decoder
from psychecore.text.chat import CLOSE, Message, opens_thinking
from psychecore.train.token_logprobs import batch_logprobs

Form = Literal["letter", "text"]
NO_THINKING = f"\n{CLOSE}\n\n"
TOKENS, KEYS = 8192, 262_144  # of one forward pass: distinct tokens, and keys that segments gather
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

    Items that follow each other run together, so that the questions on one case compute the case once. None for a
    question that with its candidates is longer than the generator's `max_length`.
    """
    if not items:  # all is known already: the weights need not be loaded
        return
    sampler = generator.load()
    tokenizer = sampler.tokenizer
    batch: list[_Asked] = []
    for item in items:
        rendered = tokenizer.render_chat(likelihood_messages(item, form), add_generation_prompt=True)
        prompt = rendered.ids + (tokenizer.encode(NO_THINKING) if opens_thinking(rendered.text) else [])
        texts = candidate_texts(item.question, form)
        asked = _Asked(prompt, {letters: tokenizer.encode(text) for letters, text in texts.items()})
        if batch and not _fits(batch, asked):
            yield from _scored(sampler.model, batch, generator.max_length, normalise)
            batch = []
        batch.append(asked)
    yield from _scored(sampler.model, batch, generator.max_length, normalise)


@torch.no_grad()
def ending_logprobs(model: Decoder, sequences: Sequence[tuple[list[int], list[int]]]) -> list[float]:
    """log p(ending | prompt) in nats, summed over the ending's tokens, of (prompt, ending) pairs.

    One packed forward pass, in which common beginnings stand once; several where the keys would exceed KEYS. Raises
    ValueError for an empty prompt or ending.
    """
    if not all(prompt and ending for prompt, ending in sequences):
        raise ValueError("a likelihood needs a prompt and an ending of at least one token each")
    step = max(1, KEYS // max((len(prompt) + len(ending) for prompt, ending in sequences), default=1))
    found: list[float] = []
    for start in range(0, len(sequences), step):
        part = sequences[start : start + step]
        masked = [(prompt + ending, [False] * len(prompt) + [True] * len(ending)) for prompt, ending in part]
        batch = pack(masked).to(model.device)
        logprobs_R, _ = batch_logprobs(model, batch)
        sums = torch.zeros(len(part), dtype=torch.float64)
        found += sums.index_add_(0, batch.sequence_R.cpu(), logprobs_R.double().cpu()).tolist()
    return found


class _Asked(NamedTuple):
    prompt: list[int]
    endings: dict[str, list[int]]

    @property
    def keys(self) -> int:
        return sum(len(self.prompt) + len(ending) for ending in self.endings.values())


def _fits(batch: list[_Asked], more: _Asked) -> bool:
    """Whether one more question keeps the batch within TOKENS and KEYS."""
    tokens, before = 0, list[int]()
    for asked in [*batch, more]:
        common = next((n for n, (a, b) in enumerate(zip(before, asked.prompt, strict=False)) if a != b), len(before))
        tokens += len(asked.prompt) - min(common, len(asked.prompt)) + sum(map(len, asked.endings.values()))
        before = asked.prompt
    return tokens <= TOKENS and sum(asked.keys for asked in [*batch, more]) <= KEYS


def _scored(model: Decoder, batch: list[_Asked], max_length: int, normalise: bool) -> Iterator[dict[str, float] | None]:
    short = [len(asked.prompt) + max(map(len, asked.endings.values())) <= max_length for asked in batch]
    pairs = [
        (asked.prompt, ending)
        for asked, fits in zip(batch, short, strict=True)
        if fits
        for ending in asked.endings.values()
    ]
    values = iter(ending_logprobs(model, pairs))
    for asked, fits in zip(batch, short, strict=True):
        yield (
            {letters: next(values) / (len(ending) if normalise else 1) for letters, ending in asked.endings.items()}
            if fits
            else None
        )
