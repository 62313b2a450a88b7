"""Fixtures that several tests use: the folders which a checkout may lack, and a bound on threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from psychecore.model.config import ModelConfig
from psychecore.model.decoder import Decoder

REPO = Path(__file__).resolve().parents[1]
SMOLLM2 = REPO / ".models" / "SmolLM2-135M-Instruct"
SHARED = REPO.parent / "shared"

# Test tensors are small: beyond a few threads, handing out the work costs more than the work, and a container's
# quota is often below the cores that torch counts. OMP_NUM_THREADS still decides where it is set.
if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2))


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """The real SmolLM2-135M-Instruct, as a Hugging Face folder."""
    if not SMOLLM2.is_dir():
        pytest.skip(f"{SMOLLM2} is absent: run `python recipes/demo_model.py`")
    return SMOLLM2


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder with benchmark parts and tokenizers that stands beside the repository on our machines."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent: it holds data that is not ours to commit")
    return SHARED


@pytest.fixture
def tiny_model() -> Callable[..., Decoder]:
    """Makes a random decoder small enough for brute force: 3 query heads on 1 key/value head, 61 tokens."""

    def make(dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any) -> Decoder:
        shape = {
            "family": "qwen2",
            "vocab_size": 61,
            "width": 24,
            "layers": 2,
            "query_heads": 3,
            "key_value_heads": 1,
            "head_dim": 8,
            "feed_forward_width": 40,
            "qkv_bias": True,
        }
        model = Decoder(ModelConfig(**(shape | changes))).to(dtype)
        return model.initialise(seed, std=0.3)

    return make


class LetterTokenizer:
    """Stands in for a Tokenizer where only ids matter: token i is the i-th character from 'a', 0 stops."""

    stop_ids = frozenset([0])
    valid_ids = (True,) * 61

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(ord("a") + i) for i in ids)


@pytest.fixture
def letter_tokenizer() -> LetterTokenizer:
    return LetterTokenizer()
