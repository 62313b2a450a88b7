"""Children that may die or stand still (a fork of a process with threads can): they are waited for a bounded time."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path


def in_a_fork(work: Callable[[], object], log: Path, seconds: float = 120) -> int:
    """Run `work` in a child, with its output in `log`; its exit code, or minus the signal that ended it.

    After `seconds` it is killed, and an error.
    """
    if (child := os.fork()) == 0:
        code = 1
        try:
            with open(log, "w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                work()
                code = 0
        except BaseException:
            log.write_text(traceback.format_exc())
        finally:
            os._exit(code)
    try:
        return wait(child, seconds)
    except AssertionError as error:
        said = log.read_text()[-2000:] if log.exists() else ""
        raise AssertionError(f"{error}: {said}") from None


def ranks(world_size: int, work: Callable[[], object], seconds: float = 240) -> list[int]:
    """Run `work` in forks that are the ranks of one run on this machine; their exit codes.

    A rank ends at once when its work is done: torch can abort at exit (PyTorch issue 190489).
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        run = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": str(world_size)}
    children = []
    for number in range(world_size):
        if (child := os.fork()) == 0:
            os.environ |= run | {"RANK": str(number), "LOCAL_RANK": str(number)}
            code = 1
            try:
                work()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return [wait(child, seconds) for child in children]


def wait(child: int, seconds: float = 60) -> int:
    """A child's exit code, or minus the signal that ended it; one that is not over in time is killed and an error."""
    end = time.monotonic() + seconds
    while (found := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"not over after {seconds} s")
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(found[1])
