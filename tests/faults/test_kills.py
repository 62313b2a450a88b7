"""kill -9 at random moments of a run: continued, it leaves the same bytes as one that nobody killed.

KILLS sets how many (`make faults`: 100); SEED which.
"""

from __future__ import annotations

import json
import math
import os
import random
from pathlib import Path
from typing import Any

import pytest

KILLS = int(os.environ.get("KILLS", "6"))
SEED = int(os.environ.get("SEED", "0"))
FLAGS = ["--evaluation.limit", "2", "--run.evaluate_every", "2"]
BACKGROUND = ["--run.checkpoint_in_background", "true"]
REFRESH = ["--reference.refresh_every", "2"]
SOON = ["--run.timeout_minutes", "0.5"]  # how long the first rank waits for the part of a checkpoint of one that died
OWN = ("config.toml", "manifest.json", "timings.jsonl", "report.html", ".lock")
# name: recipe, ranks, flags, share of the kills (two ranks take four times as long to start)
CASES: dict[str, tuple[str, int, list[str], float]] = {
    "sft": ("sft", 1, FLAGS, 0.3),
    "grpo": ("grpo", 1, FLAGS + REFRESH, 0.3),
    "grpo-in-background": ("grpo", 1, FLAGS + REFRESH + BACKGROUND, 0.2),
    "sft-2-ranks": ("sft", 2, FLAGS + SOON, 0.1),
    "grpo-2-ranks": ("grpo", 2, FLAGS + REFRESH + SOON, 0.1),
}


def contents(folder: Path) -> dict[str, bytes]:
    """What a run leaves, but for what tells the time and the run's own name."""
    left = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in left.items() if Path(name).name not in OWN}


QUICK = ("grpo", "sft-2-ranks")  # the others are for `make faults`


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CASES])
def test_a_run_killed_at_random_moments_loses_nothing(name: str, server: Any) -> None:
    recipe, ranks, flags, part = CASES[name]
    draw, count = random.Random(f"{SEED} {name}"), server.workplace / f"{name}-counts.json"
    codes, output = server.run(recipe, f"{name}-whole", flags, ranks=ranks, count=str(count))
    assert codes == [0] * ranks, output
    moments: dict[str, int] = json.loads(count.read_text())
    moments["torn"] = 4
    assert {"forward", "backward", "optimizer", "save", "write", "rename", "remove"} <= set(moments)
    whole = contents(server.workplace / f"{name}-whole")
    kills, runs, where = 0, 0, []
    while kills < math.ceil(KILLS * part):
        folder = f"{name}-killed-{runs}"
        for _ in range(100):  # until an attempt lives
            moment = draw.choice(sorted(moments))
            # an attempt that continues has fewer moments left, so that late ones may not come
            number = draw.randint(1, max(moments[moment] // draw.choice([1, 2, 4]), 1))
            victim = draw.randrange(ranks)
            codes, output = server.run(recipe, folder, flags, ranks=ranks, kill=[moment, number], rank=victim)
            if codes == [0] * ranks:
                break
            assert codes[victim] == -9, "\n".join(output)  # of our own doing, not an error
            kills += 1
            where.append(f"{moment} {number}")
            if ranks == 2:
                assert codes[1 - victim] in (0, 1), output
        assert codes == [0] * ranks, "\n".join(output)
        left = contents(server.workplace / folder)
        assert left.keys() == whole.keys(), where
        assert [name for name in whole if left[name] != whole[name]] == [], where
        runs += 1
    print(f"{name}: {kills} kills over {runs} runs: {', '.join(where)}")
