"""Fixtures that several tests use: the folders which a checkout may lack, and a bound on threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from compose import main as compose_main
from recipe_server import Server

from psychecore.data.prompts import question_messages
from psychecore.data.records import read_questions
from psychecore.model import products
from psychecore.model.config import ModelConfig
from psychecore.model.decoder import Decoder
from psychecore.model.pretrained import save_model
from psychecore.runtime import Runtime
from psychecore.text.tokenizer import load_tokenizer
from psychecore.train.optimizer import Optimizer, OptimizerConfig
from psychecore.train.sft import SftConfig, sft_step

REPO = Path(__file__).resolve().parents[1]
SMOLLM2 = REPO / ".models" / "SmolLM2-135M-Instruct"
SHARED = REPO.parent / "shared"

# Test tensors are small: beyond a few threads, handing out the work costs more than the work, and a container's
# quota is often below the cores that torch counts. OMP_NUM_THREADS still decides where it is set.
if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2))


# Files of half a minute or more: begun first, so that no worker idles at the end (with --no-loadscope-reorder).
LONGEST = "faults compiler recipes plan ranks interpreted curate rank_faults kills cli run_state sampler".split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the others as they were collected."""
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONGEST)


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


@pytest.fixture(params=[False, True], ids=["own products", "wide products"])
def products_of_16_bits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch, and through fp32, whichever this machine's CPU is better at."""
    slow = {torch.bfloat16, torch.float16} if request.param else set()
    monkeypatch.setattr(products, "SLOW_ON_CPU", frozenset(slow))


@pytest.fixture(scope="session")
def workplace(smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Composed data, and a model that has learnt to answer in the right format with a letter by chance.

    A random model's rewards would all be 0, and GRPO on it would do nothing.
    """
    folder = tmp_path_factory.mktemp("workplace")
    compose_main(["--out", str(folder / "data"), "--kinds", "field"])
    tokenizer = load_tokenizer(smollm2_folder)
    model = Decoder(ModelConfig("llama", 49152, 16, 2, 4, 2, 4, 32, tied_head=True)).initialise(0, std=0.1)
    optimizer = Optimizer(model, OptimizerConfig(lr=2e-2), 60)
    rows = [
        tokenizer.render_chat([*question_messages(q), {"role": "assistant", "content": f"<think>x</think>{q.answer}"}])
        for q in read_questions(folder / "data" / "heldout.jsonl")[:64]
    ]
    for step in range(60):
        sft_step(model, optimizer, rows[step % 8 :: 8], SftConfig(8), Runtime(0, 1, torch.device("cpu")))
    save_model(model, tokenizer, folder / "model")
    return folder


@pytest.fixture(scope="session")
def server(workplace: Path) -> Iterator[Server]:
    """Runs recipes in forked processes, which saves each the seconds that torch takes to be imported."""
    server = Server(workplace)
    yield server
    server.close()


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

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(chr(ord("a") + i) for i in ids)


@pytest.fixture
def letter_tokenizer() -> LetterTokenizer:
    return LetterTokenizer()
