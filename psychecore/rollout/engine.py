"""Continuous batching: which sample runs in which slot, and the decoding step.

A finished sample's slot is refilled at once from waiting work, across prompts; a prompt's row is kept while samples of
it run or wait. Running samples occupy slots 0..n-1 and prompts rows 0..m-1, so that a step reads plain slices; its
sizes are taken from a few buckets. The host reads one tensor a step, which samples are done, after the step.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from psychecore.data.packing import pack, plan_micro_batches
from psychecore.model.attention import PackedAttention
from psychecore.model.decoder import Decoder
from psychecore.rollout.decode import State, accept, decode_step
from psychecore.rollout.graphs import Capture, StepGraphs
from psychecore.rollout.kv_cache import KVCache, PrefillAttention, Shape
from psychecore.rollout.sampling import SamplingParams

PREFILL_TOKENS = 4096  # of one forward pass; bounds its activations
SPAN = 32  # cached positions are read in multiples of this
GRAPH_SPAN = 256  # and in a CUDA graph in this, 4 times, 16 times as many: 16-bit kernels skip what no sample has


@dataclass
class SamplerStats:
    """What a generate call did: tokens, steps, seconds, and how full the slots were.

    graphs: CUDA graphs captured. replayed_steps: steps that were one of them; both are 0 where graphs are off.
    """

    prompt_tokens: int = 0
    new_tokens: int = 0
    steps: int = 0
    slot_steps: int = 0
    running_steps: int = 0
    graphs: int = 0
    replayed_steps: int = 0
    slots: int = 0
    used_slots: int = 0
    seconds: float = 0.0

    @property
    def occupancy(self) -> float:
        """Share of slots that held a running sample, averaged over the steps while samples were waiting."""
        return self.running_steps / self.slot_steps if self.slot_steps else 1.0

    @property
    def slot_use(self) -> float:
        """Share of slots that held a running sample, averaged over all steps: low where few samples run long."""
        return self.used_slots / (self.slots * self.steps) if self.steps else 1.0


class Sample(NamedTuple):
    """One continuation to be sampled: of which prompt, which of its samples, random key, and longest length."""

    prompt: int
    number: int
    key: int
    limit: int


class Said(NamedTuple):
    """A sample that is complete: its tokens, their log-probs, and whether a stop token ended it."""

    sample: Sample
    token_ids: list[int]
    logprobs: list[float]
    stopped: bool


class Engine:
    """Runs samples to their end, up to `slots` of them and `rows` of their prompts at a time.

    `waiting` samples run in their order; those of one prompt must stand together. With `capture`, decoding steps are
    captured by their shape and replayed.
    """

    @torch.inference_mode(False)  # the state of a stream may be used outside that mode
    def __init__(
        self,
        model: Decoder,
        prompt_ids: Sequence[Sequence[int]],
        waiting: Sequence[Sample],
        params: SamplingParams,
        slots: int,
        rows: int,
        stop_ids: Sequence[int],
        valid_ids: Sequence[bool],
        capture: Capture | None = None,
    ):
        self.model, self.params, self.prompt_ids = model, params, prompt_ids
        self.slots, self.rows = slots, rows
        self.waiting = deque(waiting)
        self.unfinished = Counter(entry.prompt for entry in waiting)
        self.stats = SamplerStats(slots=slots)
        self.graphs = None if capture is None else StepGraphs(model, capture)
        self.samples: list[Sample] = []  # by slot
        self.prompts: list[int] = []  # by row
        self.hidden_D: dict[int, Tensor] = {}  # the last hidden state of prompts that samples still wait for
        self.started: list[int] = []  # by slot, the step at which it was filled
        self.step = 0
        longest = _up(max(map(len, prompt_ids), default=1), SPAN)
        limit = _up(params.max_new_tokens, SPAN)
        self.cache = KVCache(model.config, rows, longest, slots, limit, model.compute_dtype, model.device)
        self.state = State.empty(model, slots, rows, params, stop_ids, valid_ids)

    def run(self) -> Iterator[Said]:
        """Run until nothing is left; yields each sample when it is complete."""
        return (said for finished in self.steps() for said in finished)

    def steps(self) -> Iterator[list[Said]]:
        """Run until nothing is left; yields after every step the samples that it completed, maybe none."""
        start = time.perf_counter()
        while self.waiting or self.samples:
            while self._admit():
                yield list(self._retire())
            if self.samples:
                self._decode()
                self.step += 1
                self._count()
                yield list(self._retire())
        self.stats.seconds = time.perf_counter() - start

    def running(self) -> Iterator[tuple[Sample, list[int]]]:
        """The samples that run, with their tokens so far."""
        for slot, entry in enumerate(self.samples):
            yield entry, self.state.said_BM[slot, : int(self.state.count_B[slot])].tolist()

    def _decode(self) -> None:
        shape = self._shape()
        step = functools.partial(decode_step, self.model, self.cache, self.state, shape, self.params)
        if self.graphs is None:
            step()
        else:
            self.graphs.run(shape, step)
            self.stats.graphs, self.stats.replayed_steps = self.graphs.captured, self.graphs.replayed

    def _count(self) -> None:
        self.stats.steps += 1
        self.stats.new_tokens += len(self.samples)
        self.stats.used_slots += len(self.samples)
        if self.waiting:
            self.stats.slot_steps += self.slots
            self.stats.running_steps += len(self.samples)

    def _admit(self) -> bool:
        """Fill free slots from the waiting samples; their first token comes from their prompt's last hidden state."""
        first = len(self.samples)
        entering: list[Sample] = []
        while self.waiting and first + len(entering) < self.slots:
            if self.waiting[0].prompt not in self.hidden_D and not self._prefill():
                break  # every row is taken by a prompt whose samples still run
            entering.append(self.waiting.popleft())
        if not entering:
            return False
        state, device = self.state, self.model.device
        slot_B = torch.arange(first, first + len(entering), device=device)
        state.key_B[slot_B] = torch.tensor([entry.key for entry in entering], device=device)
        state.limit_B[slot_B] = torch.tensor([entry.limit for entry in entering], device=device)
        state.prompt_B[slot_B] = torch.tensor([len(self.prompt_ids[e.prompt]) for e in entering], device=device)
        state.count_B[slot_B] = 0
        state.running_B[slot_B] = True
        self.samples += entering
        self.started += [self.step] * len(entering)
        accept(self.model, state, slot_B, torch.stack([self.hidden_D[e.prompt] for e in entering]), self.params)
        self.stats.new_tokens += len(entering)
        still_waiting = {self.waiting[0].prompt} if self.waiting else set()
        for prompt in {entry.prompt for entry in entering} - still_waiting:
            del self.hidden_D[prompt]
        self._seat()
        return True

    def _prefill(self) -> bool:
        """Run the next waiting prompts packed, as many as there are free rows and tokens in the budget."""
        free, tokens = self.rows - len(self.prompts), 0
        chosen: list[int] = []
        for prompt, _ in itertools.groupby(entry.prompt for entry in self.waiting):
            tokens += len(self.prompt_ids[prompt])
            if len(chosen) == free or (chosen and tokens > PREFILL_TOKENS):
                break
            chosen.append(prompt)
        for chunk in plan_micro_batches([len(self.prompt_ids[p]) for p in chosen], PREFILL_TOKENS):
            ids = [list(self.prompt_ids[chosen[i]]) for i in chunk]
            batch = pack([(prompt, [False] * len(prompt)) for prompt in ids]).to(self.model.device)
            packed = PackedAttention(batch.cu_q, batch.cu_k, batch.key_index_I, self.model.device)
            attention = PrefillAttention(packed, self.model.config, batch.tokens, self.model.compute_dtype)
            hidden_TD = self.model(batch.tokens_T, batch.positions_T, attention)
            for i, places in zip(chunk, batch.places, strict=True):
                row = len(self.prompts)
                self.prompts.append(chosen[i])
                self.cache.store_prompt(row, attention.k_LTKH[:, places], attention.v_LTKH[:, places])
                self.state.prompt_length_A[row] = len(places)
                self.hidden_D[chosen[i]] = hidden_TD[places[-1]]
            self.stats.prompt_tokens += batch.tokens
        return bool(chosen)

    def _retire(self) -> Iterator[Said]:
        """Take complete samples out, close the gaps with the last running ones, free rows that nobody needs."""
        done = self.state.done_B[: len(self.samples)].nonzero()[:, 0].tolist()  # the one host synchronisation of a step
        for slot in reversed(done):  # from the end, so that moves don't disturb the rest
            count = int(self.state.count_B[slot])
            entry, token_ids = self.samples[slot], self.state.said_BM[slot, :count].tolist()
            logprobs = self.state.logprob_BM[slot, :count].tolist()
            if not all(map(math.isfinite, logprobs)):
                raise ValueError(
                    f"log-probs of a sample of prompt {entry.prompt} are not finite: the model gives NaN or infinite "
                    "logits for it; look for such numbers in its weights"
                )
            yield Said(entry, token_ids, logprobs, bool(self.state.stopped_B[slot]))
            last = len(self.samples) - 1
            if slot != last:
                self.cache.move_answer(last, slot, int(self.state.count_B[last]))
                for field in fields(self.state):
                    if "_B" in field.name:
                        tensor = getattr(self.state, field.name)
                        tensor[slot] = tensor[last]
                self.samples[slot], self.started[slot] = self.samples[last], self.started[last]
            self.samples.pop()
            self.started.pop()
            for tensor in (self.state.running_B, self.state.done_B, self.state.count_B):
                tensor[last] = 0
            self.unfinished[entry.prompt] -= 1
            if not self.unfinished[entry.prompt]:
                self._free(self.prompts.index(entry.prompt))
        if done:
            self._seat()

    def _free(self, row: int) -> None:
        last = len(self.prompts) - 1
        if row != last:
            self.cache.move_prompt(last, row, len(self.prompt_ids[self.prompts[last]]))
            self.state.prompt_length_A[row] = self.state.prompt_length_A[last]
            self.prompts[row] = self.prompts[last]
        self.prompts.pop()

    def _seat(self) -> None:
        """Give every running sample a seat among its prompt's, and the others the place behind all seats."""
        row_of = {prompt: row for row, prompt in enumerate(self.prompts)}
        taken: Counter[int] = Counter()
        seats = []
        for entry in self.samples:
            seats.append((row_of[entry.prompt], taken[entry.prompt]))
            taken[entry.prompt] += 1
        self.seats = self._bucket(max(taken.values(), default=1))
        outside = self._bucket(max(len(self.prompts), 1), self.rows) * self.seats
        flat = [row * self.seats + seat for row, seat in seats] + [outside] * (self.slots - len(seats))
        self.state.seat_B.copy_(torch.tensor(flat))
        self.longest_prompt = max((len(self.prompt_ids[p]) for p in self.prompts), default=1)
        self.oldest = min(self.started, default=self.step)

    def _shape(self) -> Shape:
        return Shape(
            slots=self._bucket(len(self.samples), self.slots),
            rows=self._bucket(len(self.prompts), self.rows),
            seats=self.seats,
            prompt_span=self._span(self.longest_prompt, self.cache.prompt_k_LAKPH.shape[3]),
            answer_span=self._span(self.step - self.oldest + 1, self.cache.answer_k_LBKSH.shape[3]),
        )

    def _span(self, positions: int, limit: int) -> int:
        """A multiple of SPAN. With graphs coarser: a shape costs an eager step and a capture as long, and kernels stop
        at a length (not SDPA, which is for fp32 on GPUs: there the whole span is read)."""
        if self.graphs is None:
            return _up(positions, SPAN)
        span = GRAPH_SPAN
        while span < positions:
            span *= 4
        return min(span, limit)

    def _bucket(self, value: int, limit: int | None = None) -> int:
        """The next of 1, 2, 3, 4, 6, 8, 12, 16, ...: at most a third of a step is spent on slots not in use.

        With graphs of 1, 2, 4, 8, ...: there a step takes hardly longer for more slots, and a graph as long as many.
        """
        size = 1 << max(value - 1, 0).bit_length()
        if self.graphs is None and size > 2 and value <= size // 4 * 3:
            size = size // 4 * 3
        return size if limit is None else min(size, limit)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
