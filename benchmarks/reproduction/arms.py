"""The arms of the reproduction: where each starts, on which questions it runs GRPO, and what it changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Arm:
    """start: the base model, or that model after SFT. questions: what GRPO trains on; None: no GRPO."""

    about: str
    start: Literal["base", "sft"] = "sft"
    questions: Literal["hard", "random", "easy"] | None = "hard"
    redrawn: Literal["letters", "answers"] | None = None  # so that none is right more often than among random questions
    flags: dict[str, object] = field(default_factory=dict)  # of recipes/grpo.py


MAIN = {
    "base": Arm("the model as it came", "base", None),
    "sft": Arm("SFT only", "sft", None),
    "grpo": Arm("GRPO only, on the hard questions", "base"),
    "paper": Arm("SFT, then GRPO on the hard questions: the paper"),
    "random": Arm("SFT, then GRPO on as many random questions", questions="random"),
    "easy": Arm("SFT, then GRPO on as many easy questions: the wrong set", questions="easy"),
}
KNOBS = {
    "relettered": Arm("hard questions, options shuffled anew", redrawn="letters"),
    "matched": Arm("hard questions, each answer as often as among random ones", redrawn="answers"),
    "kl_0": Arm("no KL term (paper: 0.001)", flags={"train.loss.kl_coefficient": 0.0}),
    "kl_0.04": Arm("KL 0.04", flags={"train.loss.kl_coefficient": 0.04}),
    "no_std": Arm("advantage without division by std", flags={"train.advantage": "mean"}),
    "group_4": Arm("groups of 4", flags={"train.samples_per_prompt": 4, "train.prompts_per_step": 16}),
    "group_16": Arm("groups of 16", flags={"train.samples_per_prompt": 16, "train.prompts_per_step": 4}),
    "no_format": Arm("no format reward", flags={"reward.format_weight": 0.0, "reward.correct_weight": 1.0}),
}
ARMS = MAIN | KNOBS
SEEDS = (42, 1, 2)


def plan(tasks: tuple[str, ...]) -> list[tuple[str, str, int]]:
    """(task, arm, seed) in the order of interest: the main arms by seed, then the knobs on the first seed and task."""
    rounds = [(task, arm, seed) for seed in SEEDS for task in tasks for arm in MAIN]
    return rounds + [(tasks[0], arm, SEEDS[0]) for arm in KNOBS]
