"""The fork server of faults/server.py, from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from recipe_flags import recipe_flags


class Server:
    """Runs recipes, with faults where they are asked for, in processes that need not import torch anew."""

    def __init__(self, workplace: Path):
        self.workplace = workplace
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("faults") / "server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def run(self, recipe: str, name: str, flags: list[str] | None = None, **job: Any) -> tuple[list[int], list[str]]:
        """Exit code and output of each rank."""
        log = self.workplace / f"{name}.log"
        job = {"recipe": recipe, "ranks": 1, "log": str(log), "limit": 200, **job}
        job["argv"] = recipe_flags(recipe, self.workplace, name, flags or [])
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"the server ended in job {name} with {self.process.wait(timeout=20)}"
        codes = json.loads(answer)
        return codes, [Path(f"{log}.{rank}").read_text() for rank in range(job["ranks"])]

    def close(self) -> None:
        """End the server."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
