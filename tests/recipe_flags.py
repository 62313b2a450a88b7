"""The command line of a short run of a recipe, shared by the tests that start one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def recipe_flags(recipe: str, workplace: Path, name: str, extra: Sequence[str] = ()) -> list[str]:
    """Four steps on the fixture `workplace`, in its folder `name`, with a checkpoint after each; `extra` overrides."""
    common = {
        "model.path": workplace / "model",
        "model.dtype": "float32",
        "data.train": workplace / "data" / f"{recipe}.jsonl",
        "run.folder": workplace / name,
        "run.steps": 4,
        "run.checkpoint_every": 1,
        "evaluation.files": workplace / "data" / "heldout.jsonl",
        "evaluation.limit": 6,
        "evaluation.max_new_tokens": 4,
        "optimizer.lr": 1e-3,
        "train.token_budget": 700,
    }
    if recipe == "sft":
        common |= {"train.batch_size": 5}
    else:
        common |= {
            "train.prompts_per_step": 3,
            "train.samples_per_prompt": 4,
            "train.mini_batches": 2,
            "sampling.params.max_new_tokens": 8,
        }
    flags = [item for key, value in common.items() if f"--{key}" not in extra for item in (f"--{key}", str(value))]
    return [*flags, *extra]
