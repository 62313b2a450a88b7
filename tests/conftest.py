"""Fixtures that several tests use: the folders which a checkout may lack, and a bound on threads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

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
