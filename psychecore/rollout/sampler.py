"""Text out of a policy: batches of prompts, G samples each, through the engine's continuous batching.

A prompt is prefilled once, its keys and values are stored once, and all its samples read them. The same modules and
parameters sample and train, so there is no weight copy; every call starts from an empty cache, so updated weights never
meet an old one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from psychecore.model.decoder import Decoder
from psychecore.rollout.engine import SPAN, Engine, Sample, SamplerStats
from psychecore.rollout.graphs import Capture, CudaCapture, whole
from psychecore.rollout.sampling import SamplingParams, stream_key
from psychecore.rollout.trajectory import Group, Rollout
from psychecore.text.chat import OPEN, Message, opens_thinking
from psychecore.text.tokenizer import Tokenizer


class Piece(NamedTuple):
    """What `Sampler.stream` yields: new text of one sample; finish_reason is set with its last piece."""

    prompt: int
    sample: int
    token_ids: list[int]
    text: str
    finish_reason: str | None


class Sampler:
    """Samples from `model` with up to `max_slots` sequences of `max_length` tokens (prompt and answer) at a time.

    `max_length` is 2048 by default, or all that the model has positions for where that is less; more is a ValueError.
    `memory_gib` bounds the key/value cache: work that doesn't fit waits. None leaves it to max_slots. `cuda_graphs`
    captures decoding steps and replays them (rollout/graphs.py): None where the model is whole on a CUDA device, True
    makes it an error where it isn't, False never. `stats` tells how many steps were replays. Decoding on CPU and
    in a graph passes the model's modules by: forward hooks of yours run over prompts only.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        max_slots: int = 64,
        max_length: int | None = None,
        memory_gib: float | None = None,
        cuda_graphs: bool | None = None,
    ):
        context = model.config.context_length
        max_length = min(2048, context) if max_length is None else max_length
        if max_slots < 1 or max_length < 2:
            raise ValueError(f"max_slots {max_slots} must be at least 1 and max_length {max_length} at least 2")
        if max_length > context:
            raise ValueError(
                f"max_length is {max_length}, but the model has {context} positions (max_position_embeddings of its "
                "config.json): shorten prompts and max_new_tokens, or take a model with a longer context"
            )
        if memory_gib is not None and not memory_gib > 0:
            raise ValueError(f"memory_gib is {memory_gib}, but must be above 0, or None")
        self.model, self.tokenizer = model, tokenizer
        self.max_slots, self.max_length, self.memory_gib = max_slots, max_length, memory_gib
        if cuda_graphs and whole(model):
            self._require_cuda()
        self.cuda_graphs = cuda_graphs
        self.stats = SamplerStats()

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[Message]] | Sequence[Sequence[int]],
        params: SamplingParams,
        samples_per_prompt: int = 1,
        *,
        prompt_keys: Sequence[int] | None = None,
        progress: str | None = None,
    ) -> list[Group]:
        """Sample each prompt `samples_per_prompt` times; groups come in the order of the prompts.

        A prompt is a list of messages (rendered with the generation prompt) or of token ids. A sample's random numbers
        depend on (params.seed, its prompt key, its number) only; `prompt_keys` are the prompts' indices by default, and
        a caller that splits prompts over ranks passes their global numbers. `progress` names a progress bar.

        Raises ValueError for an empty prompt, or one that with max_new_tokens exceeds max_length or the cache's memory,
        before any compute.
        """
        prompt_ids = [self._encode(prompt) for prompt in prompts]
        engine = self._engine(prompt_ids, params, samples_per_prompt, prompt_keys)
        opened = [
            OPEN if opens_thinking(self.tokenizer.decode(ids[-8:], skip_special_tokens=False)) else ""
            for ids in prompt_ids
        ]
        found: dict[tuple[int, int], Rollout] = {}
        total = len(prompt_ids) * samples_per_prompt
        # disable=None: a bar on a terminal only, not in a log file
        with tqdm(total=total, desc=progress, disable=None if progress else True, leave=False) as bar:
            for said in engine.run():
                found[said.sample.prompt, said.sample.number] = Rollout(
                    token_ids=said.token_ids,
                    logprobs=said.logprobs,
                    text=opened[said.sample.prompt] + self.tokenizer.decode(said.token_ids),
                    finish_reason="stop" if said.stopped else "length",
                )
                bar.update()
        self.stats = engine.stats
        return [Group(ids, [found[p, g] for g in range(samples_per_prompt)]) for p, ids in enumerate(prompt_ids)]

    def stream(
        self,
        prompts: Sequence[Sequence[Message]] | Sequence[Sequence[int]],
        params: SamplingParams,
        samples_per_prompt: int = 1,
        *,
        prompt_keys: Sequence[int] | None = None,
    ) -> Iterator[Piece]:
        """The same samples as `generate`, piece by piece as they are said, samples interleaved.

        Joined, a sample's pieces are its text, but for the <think> that its prompt may end in; a character whose bytes
        are not complete waits for them. Arguments and errors as for `generate`. The weights must not change until the
        iterator is exhausted or closed.
        """
        prompt_ids = [self._encode(prompt) for prompt in prompts]
        engine = self._engine(prompt_ids, params, samples_per_prompt, prompt_keys)
        sent: dict[Sample, tuple[int, str]] = {}

        def piece(sample: Sample, token_ids: list[int], reason: str | None) -> Piece | None:
            tokens, before = sent.get(sample, (0, ""))
            text = self.tokenizer.decode(token_ids)
            if reason is None and (text.endswith("\ufffd") or len(token_ids) == tokens):
                return None
            sent[sample] = (len(token_ids), text)
            return Piece(sample.prompt, sample.number, token_ids[tokens:], text[len(before) :], reason)

        steps = engine.steps()
        while True:
            with torch.no_grad():  # not around the yields, or the consumer's own code would run without gradients
                finished = next(steps, None)
            if finished is None:
                break
            pieces = [piece(s.sample, s.token_ids, "stop" if s.stopped else "length") for s in finished]
            pieces += [piece(sample, token_ids, None) for sample, token_ids in engine.running()]
            yield from (p for p in pieces if p is not None)
        self.stats = engine.stats

    def _encode(self, prompt: Sequence[Message] | Sequence[int]) -> list[int]:
        if isinstance(prompt, (torch.Tensor, np.ndarray)):
            prompt = prompt.tolist()
        if not isinstance(prompt, (list, tuple)) or not all(isinstance(item, (dict, Integral)) for item in prompt):
            raise ValueError(f"a prompt must be a list of messages or of token ids, not {prompt!r:.80}")
        if prompt and isinstance(prompt[0], dict):
            return self.tokenizer.render_chat(list(prompt), add_generation_prompt=True).ids
        return [int(token) for token in prompt]

    def _engine(
        self,
        prompt_ids: list[list[int]],
        params: SamplingParams,
        samples_per_prompt: int,
        prompt_keys: Sequence[int] | None,
    ) -> Engine:
        if samples_per_prompt < 1:
            raise ValueError(f"samples_per_prompt is {samples_per_prompt}, but must be at least 1")
        keys = range(len(prompt_ids)) if prompt_keys is None else prompt_keys
        if len(keys) != len(prompt_ids):
            raise ValueError(f"{len(prompt_ids)} prompts, but {len(keys)} prompt keys")
        self._check_lengths(prompt_ids, params)
        waiting = [
            Sample(p, g, stream_key(params.seed, keys[p], g), params.max_new_tokens)
            for p in range(len(prompt_ids))
            for g in range(samples_per_prompt)
        ]
        slots, rows = self._plan(prompt_ids, params, samples_per_prompt)
        tokenizer = self.tokenizer
        stop_ids, valid_ids, capture = sorted(tokenizer.stop_ids), tokenizer.valid_ids, self._capture()
        return Engine(self.model, prompt_ids, waiting, params, slots, rows, stop_ids, valid_ids, capture)

    def _require_cuda(self) -> None:
        if self.model.device.type != "cuda":
            place = self.model.device
            raise ValueError(f"cuda_graphs is True, but the model is on {place}: leave it None, or use a GPU")

    def _capture(self) -> Capture | None:
        """How decoding steps are captured, None where they aren't."""
        if self.cuda_graphs:
            self._require_cuda()  # shards may have been on the CPU until now
        if self.cuda_graphs is False or self.model.device.type != "cuda":
            return None
        if not whole(self.model):
            if self.cuda_graphs:
                raise ValueError("cuda_graphs is True, but the model is sharded: sample inside `gathered(model)`")
            return None
        return CudaCapture(self.model.device)

    def _plan(self, prompt_ids: list[list[int]], params: SamplingParams, samples: int) -> tuple[int, int]:
        """How many sample slots and prompt rows the cache gets."""
        prompts = max(len(prompt_ids), 1)
        slots = min(self.max_slots, prompts * samples)
        rows = min(
            prompts, slots + 8
        )  # each slot may hold a group's last sample; prompts are prefilled several at a time
        if self.memory_gib is None:
            return slots, rows
        config = self.model.config
        position = 2 * config.layers * config.key_value_heads * config.head_dim * self.model.compute_dtype.itemsize
        row_bytes = position * (max(map(len, prompt_ids), default=1) + SPAN)
        slot_bytes = position * (params.max_new_tokens + SPAN)
        budget = self.memory_gib * 2**30
        while slots * slot_bytes + rows * row_bytes > budget:
            if rows > math.ceil(slots / samples):
                rows -= 1
            elif slots > 1:
                slots -= 1
            else:
                raise ValueError(
                    f"one sequence needs {(row_bytes + slot_bytes) / 2**30:.3g} GiB of key/value cache, but memory_gib "
                    f"is {self.memory_gib}: raise it, or shorten prompts or max_new_tokens"
                )
        return slots, rows

    def _check_lengths(self, prompt_ids: list[list[int]], params: SamplingParams) -> None:
        for number, ids in enumerate(prompt_ids):
            if not ids:
                raise ValueError(f"prompt {number} is empty")
            if min(ids) < 0 or max(ids) >= self.model.config.vocab_size:
                raise ValueError(f"prompt {number} holds token ids outside 0..{self.model.config.vocab_size - 1}")
            if len(ids) + params.max_new_tokens > self.max_length:
                raise ValueError(
                    f"prompt {number} has {len(ids)} tokens; with max_new_tokens {params.max_new_tokens} it exceeds "
                    f"max_length {self.max_length}: shorten it, or raise max_length"
                )
