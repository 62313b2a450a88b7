"""How CPU time grows with the size of the input: the tests that some work is linear measure it here, in one way.

A pass of Python's garbage collector takes half a second where torch's objects are loaded, and comes when it likes: it
is off while the clock runs. The least of several turns counts, short and long by turns, so that a machine which slows
down slows both.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of one call, without the garbage collector's."""
    gc.disable()
    try:
        start = time.process_time()
        work()
        return time.process_time() - start
    finally:
        gc.enable()


def growth(work: Callable[[int], object], size: int, times: int, turns: int = 4) -> float:
    """How many times longer `work(size * times)` takes than `work(size)`: about `times` where the work is linear,
    `times` squared where it is quadratic. The longer one must take less than two seconds, whatever its growth.

    One kind of input at a time: among several, those that grow linearly would hide one that does not.
    """
    turn = [(cpu_seconds(lambda: work(size)), cpu_seconds(lambda: work(size * times))) for _ in range(turns)]
    short, long = (min(column) for column in zip(*turn, strict=True))
    assert long < 2
    return long / max(short, 1e-3)  # below a millisecond, the clock and the caches are what is measured
