"""Freed memory is kept on CPU, and the user's own settings of malloc stay."""

import os
import platform
import subprocess
import sys

import pytest

from psychecore.model.host_memory import SETTINGS, keep_freed_memory

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt's thresholds are glibc's")

FAULTS = """
import resource, sys, torch
from psychecore.model.host_memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    rows = [torch.ones(1 << 20) for _ in range(8)]
    return sum(len(row) for row in rows)
work()
before = faults()
for _ in range(5):
    work()
print(faults() - before)
"""


PASS = 8 << 10  # pages of the eight tensors


def page_faults(what: str, **settings: str) -> int:
    """Of forty tensors of 4 MiB, eight at a time, made anew five times, in a process of its own."""
    clean = {name: value for name, value in os.environ.items() if name not in (*SETTINGS, "GLIBC_TUNABLES")}
    command = [sys.executable, "-c", FAULTS, what]
    done = subprocess.run(command, capture_output=True, text=True, env=clean | settings, check=True)
    return int(done.stdout)


@glibc
def test_memory_that_was_freed_is_not_faulted_in_again() -> None:
    """Five passes over the tensors fault in less than one; where malloc maps each tensor, all five."""
    assert page_faults("keep") < PASS
    assert page_faults("leave", MALLOC_MMAP_THRESHOLD_="131072") > 4.5 * PASS


@glibc
@pytest.mark.parametrize("name", [*SETTINGS, "GLIBC_TUNABLES"])
def test_a_users_own_setting_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One in the environment means that somebody has chosen."""
    monkeypatch.setenv(name, "glibc.malloc.trim_threshold=131072" if name == "GLIBC_TUNABLES" else "131072")
    assert not keep_freed_memory()


def test_a_c_library_without_the_switch_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS."""
    for name in (*SETTINGS, "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("psychecore.model.host_memory.ctypes.CDLL", lambda _: object())
    assert not keep_freed_memory()
