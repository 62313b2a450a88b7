"""Children that may die or stand still (a fork of a process with threads can): they are waited for a bounded time."""

from __future__ import annotations

import os
import signal
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
