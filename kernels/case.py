"""A kernel as it is compiled: function, argument types and constants, for kernels/resources.md and its test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class CompileCase:
    """One configuration of a Triton kernel, enough to compile it for a GPU that is not there.

    signature: argument name -> Triton type ("*bf16", "i64", "fp32", "constexpr"), in the order of the parameters.
    constexprs: the constants by name. Pointers and the integers named in `multiples_of_16` are compiled as divisible by
    16, as the launcher's specialisation finds them at the sizes of Qwen2.5; without it wide loads disappear.
    needs_dot: a tensor-core instruction must appear. needs_wide: a 128-bit (or TMA) global load must appear.
    """

    name: str
    fn: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    multiples_of_16: tuple[str, ...] = field(default=())
    needs_dot: bool = False
    needs_wide: bool = True

    def in_fp16(self) -> CompileCase:
        """The same with fp16 in place of bf16."""
        signature = {name: type_.replace("bf16", "fp16") for name, type_ in self.signature.items()}
        return replace(self, name=f"{self.name} fp16", signature=signature)
