"""Start a script as several gloo ranks, as torchrun would, and let them go again."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NoReturn


def launch(script: Path, arguments: list[str], world_size: int, timeout: float = 240) -> list[str]:
    """Run `script` as that many ranks; returns each rank's output. Fails the test where one does not end well."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world_size),
        "OMP_NUM_THREADS": "1",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        outputs = [rank.communicate(timeout=timeout)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(outputs)
    return outputs


def leave() -> NoReturn:
    """End a worker whose work is done: torch can abort at interpreter exit after that (PyTorch issue 190489)."""
    sys.stdout.flush()
    os._exit(0)
