"""recipes/sft.py for torchrun; the first time, rank 1 kills itself in the update of step 3."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from server import FAULTS, cli, runtime, sft

if __name__ == "__main__":
    mark = Path(os.environ["MARK"])
    if os.environ["RANK"] == "1" and not mark.exists():
        mark.touch()
        FAULTS["killed"]("update", 3)
    with cli.main_guard():
        config = cli.load_config(sft.SftRecipe, sys.argv[1:], None)
        with runtime(config.run.device) as place:
            sft.main(config, place)
