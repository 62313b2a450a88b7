"""The sampler: text out of a policy. Prefill once per prompt, G continuations, slot refill, stop rules.

It runs the very modules that train, so there is no weight copy and weights updated between two calls are simply
seen; all cached keys and values are made anew in each call. Slots are refilled from the waiting samples as soon as
one finishes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from psychecore.data.packing import pack, plan_micro_batches
from psychecore.model.attention import PackedAttention
from psychecore.model.decoder import Decoder
from psychecore.rollout.kv_cache import DecodeAttention, KVCache, PrefillAttention, PromptCache
from psychecore.rollout.sampling import SamplingParams, sample, stream_key, uniform
from psychecore.rollout.trajectory import Group, Rollout
from psychecore.text.chat import Message
from psychecore.text.tokenizer import Tokenizer

PREFILL_TOKENS = 4096  # prompts are prefilled in packed chunks of about this size; bounds activation memory


@dataclass
class SamplerStats:
    """What the last call did. occupancy: running sequences per decoding step over the slots in use."""

    prompt_tokens: int = 0
    new_tokens: int = 0
    steps: int = 0
    slot_steps: int = 0
    running_steps: int = 0
    seconds: float = 0.0

    @property
    def occupancy(self) -> float:
        """Share of slots that held a running sequence, averaged over decoding steps."""
        return self.running_steps / self.slot_steps if self.slot_steps else 1.0


class _Sample(NamedTuple):
    prompt: int
    number: int
    key: int


class Sampler:
    """Samples from `model` with up to `max_slots` sequences of `max_length` tokens (prompt and answer) at a time."""

    def __init__(self, model: Decoder, tokenizer: Tokenizer, max_slots: int = 64, max_length: int = 2048):
        if max_slots < 1 or max_length < 2:
            raise ValueError(f"max_slots {max_slots} must be at least 1 and max_length {max_length} at least 2")
        self.model, self.tokenizer = model, tokenizer
        self.max_slots, self.max_length = max_slots, max_length
        self.stats = SamplerStats()

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

        Raises ValueError for an empty prompt, or one that with max_new_tokens exceeds max_length, before any compute.
        """
        if samples_per_prompt < 1:
            raise ValueError(f"samples_per_prompt is {samples_per_prompt}, but must be at least 1")
        keys = range(len(prompts)) if prompt_keys is None else prompt_keys
        if len(keys) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts, but {len(keys)} prompt keys")
        prompt_ids = [self._encode(prompt) for prompt in prompts]
        self._check_lengths(prompt_ids, params)
        waiting = deque(
            _Sample(p, g, stream_key(params.seed, keys[p], g))
            for p in range(len(prompts))
            for g in range(samples_per_prompt)
        )
        found: dict[tuple[int, int], Rollout] = {}
        with torch.no_grad(), tqdm(total=len(waiting), desc=progress, disable=progress is None, leave=False) as bar:
            run = _Run(self, prompt_ids, waiting, params)
            for done, rollout in run.finished():
                found[done.prompt, done.number] = rollout
                bar.update()
        self.stats = run.stats
        return [Group(ids, [found[p, g] for g in range(samples_per_prompt)]) for p, ids in enumerate(prompt_ids)]

    def _encode(self, prompt: Sequence[Message] | Sequence[int]) -> list[int]:
        if prompt and isinstance(prompt[0], dict):
            return self.tokenizer.render_chat(list(prompt), add_generation_prompt=True).ids  # type: ignore[arg-type]
        return [int(token) for token in prompt]  # type: ignore[arg-type]

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


class _Run:
    """The state of one generate call: which sample sits in which slot, and what it has said so far."""

    def __init__(self, sampler: Sampler, prompt_ids: list[list[int]], waiting: deque[_Sample], params: SamplingParams):
        self.model, self.tokenizer, self.params = sampler.model, sampler.tokenizer, params
        self.prompt_ids, self.waiting = prompt_ids, waiting
        self.stats = SamplerStats()
        self.slots = min(sampler.max_slots, len(waiting))
        self.device = self.model.device
        length = max(map(len, prompt_ids), default=1) + params.max_new_tokens
        self.cache = KVCache(self.model.config, self.slots, length, self.dtype, self.device)
        self.prompts: dict[int, PromptCache] = {}
        self.samples: list[_Sample] = []  # of the running sequences, by slot
        zeros = torch.zeros(self.slots, dtype=torch.int64, device=self.device)
        self.keys_B, self.token_B, self.positions_B, self.count_B = (zeros.clone() for _ in range(4))
        self.said_BM = zeros.new_zeros(self.slots, params.max_new_tokens)
        self.logprob_BM = torch.zeros(self.slots, params.max_new_tokens, device=self.device)
        vocabulary = self.model.config.vocab_size
        self.is_stop_V = torch.zeros(vocabulary, dtype=torch.bool, device=self.device)
        if not params.ignore_stop:
            self.is_stop_V[[i for i in sampler.tokenizer.stop_ids if i < vocabulary]] = True
        allowed_V = torch.zeros(vocabulary, dtype=torch.bool)
        valid = torch.as_tensor(sampler.tokenizer.valid_ids, dtype=torch.bool)[:vocabulary]
        allowed_V[: len(valid)] = valid
        self.forbidden_V = None if allowed_V.all() else ~allowed_V.to(self.device)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.compute_dtype

    def finished(self) -> Iterator[tuple[_Sample, Rollout]]:
        """Run until nothing is left; yields each sample when it is complete."""
        start = time.perf_counter()
        while self.waiting or self.samples:
            while self.waiting and len(self.samples) < self.slots:
                yield from self._admit()
            if self.samples:
                yield from self._decode()
        self.stats.seconds = time.perf_counter() - start

    def _admit(self) -> Iterator[tuple[_Sample, Rollout]]:
        """Fill the free slots from the waiting samples, and sample their first token from the prompt's last state."""
        first = len(self.samples)
        entering = [self.waiting.popleft() for _ in range(min(self.slots - first, len(self.waiting)))]
        self._prefill(sorted({entry.prompt for entry in entering} - set(self.prompts)))
        for prompt in dict.fromkeys(entry.prompt for entry in entering):
            slots = [first + i for i, entry in enumerate(entering) if entry.prompt == prompt]
            self.cache.fill(slots, self.prompts[prompt])
            self.positions_B[slots] = len(self.prompt_ids[prompt]) - 1
        rows = slice(first, first + len(entering))
        self.keys_B[rows] = torch.tensor([entry.key for entry in entering], device=self.device)
        self.count_B[rows] = 0
        self.samples += entering
        hidden_BD = torch.stack([self.prompts[entry.prompt].hidden_D for entry in entering])
        for prompt in set(self.prompts) - {entry.prompt for entry in self.waiting}:
            del self.prompts[prompt]  # all its samples run; the slots hold their own copies
        yield from self._accept(rows, hidden_BD)

    def _prefill(self, prompts: list[int]) -> None:
        """Run prompts packed (common beginnings once), in chunks under a token budget; keep their keys and values."""
        for chunk in plan_micro_batches([len(self.prompt_ids[p]) for p in prompts], PREFILL_TOKENS):
            ids = [self.prompt_ids[prompts[i]] for i in chunk]
            batch = pack([(prompt, [False] * len(prompt)) for prompt in ids]).to(self.device)
            packed = PackedAttention(batch.cu_q, batch.cu_k, batch.key_index_I, self.device)
            attention = PrefillAttention(packed, self.model.config, batch.tokens, self.dtype)
            hidden_TD = self.model(batch.tokens_T, batch.positions_T, attention)
            for i, places in zip(chunk, batch.places, strict=True):
                k_LPKH, v_LPKH = attention.k_LTKH[:, places], attention.v_LTKH[:, places]
                self.prompts[prompts[i]] = PromptCache(k_LPKH, v_LPKH, hidden_TD[places[-1]])
            self.stats.prompt_tokens += batch.tokens

    def _decode(self) -> Iterator[tuple[_Sample, Rollout]]:
        """One step: the last token of every running sequence through the model, one new token each."""
        running = len(self.samples)
        positions_B = self.positions_B[:running]
        attention = DecodeAttention(self.cache, positions_B, int(positions_B.max()))
        hidden_BD = self.model(self.token_B[:running], positions_B, attention)
        self.stats.steps += 1
        self.stats.slot_steps += self.slots
        self.stats.running_steps += running
        yield from self._accept(slice(0, running), hidden_BD)

    def _accept(self, rows: slice, hidden_BD: Tensor) -> Iterator[tuple[_Sample, Rollout]]:
        """Sample the next token of these slots, record it, and retire what is complete."""
        logits_BV = F.linear(hidden_BD, self.model.head_weight)
        if self.forbidden_V is not None:
            logits_BV = logits_BV.masked_fill(self.forbidden_V, -torch.inf)
        count_B = self.count_B[rows]
        token_B, logprob_B = sample(logits_BV, self.params, uniform(self.keys_B[rows], count_B))
        slots_B = torch.arange(rows.start, rows.stop, device=self.device)
        self.said_BM[slots_B, count_B] = token_B
        self.logprob_BM[slots_B, count_B] = logprob_B.float()
        self.token_B[rows] = token_B
        self.count_B[rows] += 1
        self.positions_B[rows] += 1
        self.stats.new_tokens += len(token_B)
        stopped_B = self.is_stop_V[token_B]
        done_B = stopped_B | (self.count_B[rows] >= self.params.max_new_tokens)
        for row in reversed(done_B.nonzero()[:, 0].tolist()):  # from the end, so that moves don't disturb the rest
            yield self._retire(rows.start + row, bool(stopped_B[row]))

    def _retire(self, slot: int, stopped: bool) -> tuple[_Sample, Rollout]:
        """Take a complete sequence out, and close the gap with the last running one."""
        count = int(self.count_B[slot])
        token_ids = self.said_BM[slot, :count].tolist()
        rollout = Rollout(
            token_ids=token_ids,
            logprobs=self.logprob_BM[slot, :count].tolist(),
            text=self.tokenizer.decode(token_ids),
            finish_reason="stop" if stopped else "length",
        )
        done, last = self.samples[slot], len(self.samples) - 1
        if slot != last:
            self.cache.move(last, slot, int(self.positions_B[last]))
            for state in (self.keys_B, self.token_B, self.positions_B, self.count_B, self.said_BM, self.logprob_BM):
                state[slot] = state[last]
            self.samples[slot] = self.samples[last]
        self.samples.pop()
        return done, rollout
