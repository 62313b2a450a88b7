"""torch's compiler for the passes over memory between the products of training on CPU, where no Triton kernel runs.

Plain torch makes such a pass in several operations, each of which reads and writes all of it; compiled to C++ it is
one. An SFT step of SmolLM2 is 15 % faster so, a GRPO update 20. It takes some 20 s once a machine and a few a process,
and a C++ compiler, so a process asks for it by `use`; small tensors never meet it. What is compiled are the definitions
in kernels/, and the loss's arithmetic on its chunks of logits.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Op = TypeVar("Op", bound=Callable[..., Any])
SMALLEST = 1 << 16  # numbers of a tensor from which on it pays: a call costs some 50 us, a pass over 2^16 as long
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
CACHE = "TORCHINDUCTOR_CACHE_DIR"

_used = False
_compiled: dict[Callable[..., Any], Callable[..., Any]] = {}


def use(wanted: bool = True) -> None:
    """From here on, whether this process compiles.

    What is made lies in the folder that CACHE names, or else in the user's own cache: torch's default is a folder of
    /tmp, which another user of the machine may have made, and torch trusts what it finds. Raises ValueError where torch
    cannot compile: it needs a C++ compiler and that folder.
    """
    global _used
    if wanted:
        try:
            own = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
            os.environ.setdefault(CACHE, str(Path(own) / "psychecore" / "compiled"))
            compiled(_one_pass)(torch.zeros(2, 2))
        except Exception as error:  # of many kinds: what torch wraps, what the system says
            reason = next(iter(str(error).strip().splitlines()), "")
            raise ValueError(
                f"torch.compile does not work here ({type(error).__name__}: {reason}): install a C++ compiler, g++ or "
                f"one that CXX names, let {CACHE} name a folder that can be written, or go without"
            ) from error
    _used = wanted


def takes(x: Tensor) -> bool:
    """Whether a function of this tensor is to be compiled: not where a compiler looks on already."""
    large = x.numel() >= SMALLEST and x.dtype in DTYPES
    return _used and large and x.device.type == "cpu" and not torch.compiler.is_compiling()


def where_it_pays(function: Op, x: Tensor) -> Op:
    """The function, compiled if `takes` says so of x."""
    return compiled(function) if takes(x) else function


def compiled(function: Op) -> Op:
    """The function, compiled at its first call for tensors of any size."""
    if function not in _compiled:
        _compiled[function] = torch.compile(function, dynamic=True)
    return cast(Op, _compiled[function])


def _one_pass(x: Tensor) -> Tensor:
    return x * 2 + 1
