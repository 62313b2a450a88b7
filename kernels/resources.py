"""Compiles every kernel for GPUs that are not there, and says what it takes of them: kernels/resources.md.

    python -m psychecore.kernels.resources

Triton brings NVIDIA's assembler, so the registers, stack and shared memory are those of the machine code that a GPU
would run. A spill, a dot without tensor cores, narrow loads or too much shared memory end the command with an error;
tests/kernels/test_resources.py fails on the same. What this can't show is speed.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from psychecore.kernels.case import CompileCase
from psychecore.kernels.jit import AVAILABLE, triton

MODULES = ("rms_norm", "rotary", "swiglu", "cache_store", "token_logprobs", "decode_attention", "flash_attention")
TABLE = Path(__file__).with_name("resources.md")

# Global loads of at least 16 bytes a thread: plain ones, asynchronous copies of 16 bytes, and TMA.
WIDE = re.compile(
    r"ld\.global[\w.:]*\.(v4\.[bfsu]32|v[24]\.[bfsu]64|v8\.[bfsu]32|b128)"
    r"|cp\.async\.c[ag]\.shared\.global[^;]*, (0x10|16)\b"
    r"|cp\.async\.bulk\.tensor"
)
TENSOR_CORES = re.compile(r"mma\.sync|wgmma\.mma_async|tcgen05\.mma")


@dataclass(frozen=True)
class Chip:
    """A GPU generation, after the table "technical specifications per compute capability" of CUDA's guide.

    shared_block, shared_chip: bytes of shared memory for one block, and in all of a multiprocessor.
    """

    name: str
    capability: int
    shared_block: int
    shared_chip: int
    registers: int = 65536  # of a multiprocessor, in four quarters, handed out to warps in units of 256
    warps: int = 64
    blocks: int = 32


CHIPS = (
    Chip("sm_80", 80, 163 * 1024, 164 * 1024),  # A100
    Chip("sm_90", 90, 227 * 1024, 228 * 1024),  # H100
    Chip("sm_100", 100, 227 * 1024, 228 * 1024),  # B200
)


@dataclass(frozen=True)
class Resources:
    """What the compiled kernel takes: registers of a thread, bytes of a thread's stack and local memory, of a block's
    shared memory; and the code itself, as PTX."""

    registers: int
    stack: int
    local: int
    shared: int
    warps: int
    ptx: str


def all_cases() -> list[CompileCase]:
    """The cases of all kernel modules, in the order of MODULES, then those with products once more in fp16.

    The others compute in fp32 whatever they load, so that fp16 differs from bf16 by the conversion alone.
    """
    modules = [importlib.import_module(f"psychecore.kernels.{module}") for module in MODULES]
    cases = [case for module in modules for case in module.compile_cases()]
    return [*cases, *(case.in_fp16() for case in cases if case.needs_dot)]


def compile_for(case: CompileCase, chip: Chip) -> Resources:
    """Compile one configuration; needs triton, and no GPU."""
    if not AVAILABLE:
        raise ValueError("compiling kernels needs triton: pip install triton (Linux only)")
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise ValueError("TRITON_INTERPRET=1 replaces the compiler: unset it to compile kernels")
    aligned = [name for name, type_ in case.signature.items() if type_.startswith("*") or name in case.multiples_of_16]
    source = triton.compiler.ASTSource(
        fn=case.fn,
        signature=dict(case.signature),
        constexprs=dict(case.constexprs),
        attrs={(list(case.signature).index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    target = triton.backends.compiler.GPUTarget("cuda", chip.capability, 32)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    kernel = triton.compile(source, target=target, options=options)
    usage = _usage(kernel.asm["cubin"])
    return Resources(
        registers=usage["REG"],
        stack=usage["STACK"],
        local=usage["LOCAL"],
        shared=kernel.metadata.shared,
        warps=kernel.metadata.num_warps,
        ptx=kernel.asm["ptx"],
    )


def _usage(cubin: bytes) -> dict[str, int]:
    """cuobjdump's line "REG:32 STACK:0 SHARED:1024 LOCAL:0 ..." of a cubin with one kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", output)}


def problems(case: CompileCase, chip: Chip, found: Resources) -> Iterator[str]:
    """What is wrong with a compiled kernel, in words; nothing if all is well."""
    if found.stack or found.local:
        yield f"spills: {found.stack} bytes of stack and {found.local} of local memory a thread"
    if found.shared > chip.shared_block:
        yield f"takes {found.shared} bytes of shared memory, but a block has at most {chip.shared_block}"
    if case.needs_dot and not TENSOR_CORES.search(found.ptx):
        yield "multiplies without tensor cores"
    if case.needs_wide and not WIDE.search(found.ptx):
        yield f"has no load of 16 bytes, only {sorted(set(re.findall(r'ld[.]global[.:a-zA-Z0-9_]*', found.ptx)))}"


def occupancy(chip: Chip, found: Resources) -> float:
    """Warps that a multiprocessor holds at a time, as a share of the most that it can, after cuda_occupancy.h.

    Example: 80 registers are 2,560 for a warp, of which a quarter's 16,384 hold 6; so 24 warps run of 64: 0.375.
    """
    registers_warp = -(-found.registers * 32 // 256) * 256
    warps = chip.registers // 4 // registers_warp * 4
    shared = -(-(found.shared + 1024) // 128) * 128  # the driver keeps 1 KiB for itself in each block
    blocks = min(warps // found.warps, chip.warps // found.warps, chip.shared_chip // shared, chip.blocks)
    return blocks * found.warps / chip.warps


def cell(chip: Chip, found: Resources) -> str:
    """One chip's part of a row of the table."""
    return f"{found.registers} | {found.shared} | {occupancy(chip, found):.0%}"


def table() -> str:
    """Compile all cases for all chips (about 0.3 s each) into the table's text; ValueError names what is wrong."""
    lines = [
        "# What the kernels take of a GPU",
        "",
        f"Generated by `python -m psychecore.kernels.resources` with triton {triton.__version__}; compiled,",
        "not run: no configuration spills to stack or local memory. Shared memory is in bytes a block; occupancy is",
        "the share of a multiprocessor's 64 warps that fit. sm_80 is A100, sm_90 H100, sm_100 B200.",
        "",
        "| configuration | warps | " + " | ".join(f"{c.name} registers | shared | occupancy" for c in CHIPS) + " |",
        "|---|---|" + "---|" * (3 * len(CHIPS)),
    ]
    wrong = []
    for case in all_cases():
        results = [(chip, compile_for(case, chip)) for chip in CHIPS]
        wrong += [
            f"{case.name}, {chip.name}: {what}" for chip, found in results for what in problems(case, chip, found)
        ]
        cells = " | ".join(cell(chip, found) for chip, found in results)
        lines.append(f"| {case.name} | {results[0][1].warps} | {cells} |")
    if wrong:
        raise ValueError("\n".join(wrong))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
    print(f"wrote {TABLE}")
