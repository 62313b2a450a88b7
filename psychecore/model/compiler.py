"""torch's compiler for the passes over memory between the products of training on CPU, where no Triton kernel runs.

Plain torch makes such a pass in several operations, each of which reads and writes all of it; compiled to C++ it is
one. An SFT step of SmolLM2 is 15 % faster so, a GRPO update 20. It takes some 20 s once a machine and a few a process,
and a C++ compiler, so a process asks for it by `use`; small tensors never meet it. What is compiled are the definitions
in kernels/, and the loss's arithmetic on its chunks of logits.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Op = TypeVar("Op", bound=Callable[..., Any])
SMALLEST = 1 << 16  # numbers of a tensor from which on it pays: a call costs some 50 us, a pass over 2^16 as long
DTYPES = (torch.bfloat16, torch.float16, torch.float32)

_used = False
_compiled: dict[Callable[..., Any], Callable[..., Any]] = {}


def use(wanted: bool = True) -> None:
    """From here on, whether this process compiles.

    Raises ValueError where torch can't: it needs a C++ compiler, CXX or g++, must not be told to do without compiling,
    and keeps what it makes, and trusts it, in a folder of /tmp that must be this user's.
    """
    global _used
    if wanted:
        way_out = "install a C++ compiler, g++ or one that CXX names, or go without"
        try:
            _require_own_cache()
            tried = compiled(_is_compiled)(torch.zeros(2))
        except Exception as error:  # of many kinds: what torch wraps, what the system says
            reason = next(iter(str(error).strip().splitlines()), "")
            raise ValueError(f"torch.compile fails here ({type(error).__name__}: {reason}): {way_out}") from error
        if not tried.all():
            raise ValueError(f"torch.compile is switched off here, by TORCHDYNAMO_DISABLE or the like: {way_out}")
    _used = wanted


def _require_own_cache() -> None:
    """Make torch's folder, or see that it is this user's: whoever made it can put code into what is compiled."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # slow to import, and few need it

    folder = default_cache_dir()  # where some of it lies even if TORCHINDUCTOR_CACHE_DIR names another
    os.makedirs(folder, mode=0o700, exist_ok=True)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & stat.S_IWOTH:
        raise PermissionError(f"{folder} belongs to another user, or any user can write to it; set TMPDIR")


def _is_compiled(x: Tensor) -> Tensor:
    return x + 1 if torch.compiler.is_compiling() else x


def takes(x: Tensor) -> bool:
    """Whether a function of this tensor is to be compiled: not where a compiler looks on already."""
    large = x.numel() >= SMALLEST and x.dtype in DTYPES
    return _used and large and x.device.type == "cpu" and not torch.compiler.is_compiling()


def where_it_pays(function: Op, x: Tensor) -> Op:
    """The function, compiled if `takes` says so of x."""
    return compiled(function) if takes(x) else function


def compiled(function: Op) -> Op:
    """The function, compiled at its first call for tensors of any size.

    It is compiled anew for another dtype, rank or gradient mode; from the ninth on torch warns, and runs it as written.
    """
    if function not in _compiled:
        _compiled[function] = torch.compile(function, dynamic=True)
    return cast(Op, _compiled[function])
