"""Every kernel compiles for every chip without a spill, with the instructions that it is for, as resources.md says."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from psychecore.kernels import resources  # noqa: E402
from psychecore.kernels.case import CompileCase  # noqa: E402
from psychecore.kernels.jit import jit, tl  # noqa: E402
from psychecore.kernels.resources import CHIPS, MODULES, TABLE, Chip, Resources, compile_for, occupancy, problems  # noqa: E402

SM_80, SM_90, SM_100 = CHIPS
CASES = resources.all_cases()
# of each kernel function and head width, by which tiles are chosen, the last in bf16: the largest sizes spill first
LARGEST = {
    (case.fn, case.constexprs.get("PADDED")): case for case in CASES if not case.name.endswith(("fp16", "fp32"))
}.values()


@pytest.mark.parametrize("case", LARGEST, ids=lambda case: case.name)
def test_the_largest_configuration_of_each_kernel_compiles_well_for_sm_90(case: CompileCase) -> None:
    assert list(problems(case, SM_90, compile_for(case, SM_90))) == []


def test_no_kernel_function_is_left_out_of_that() -> None:
    assert {case.fn for case in LARGEST} == {case.fn for case in CASES}


def test_decoding_with_the_widest_heads_fits_the_chips_between() -> None:
    sm_86 = Chip("sm_86", 86, 99 * 1024, 100 * 1024, warps=48, blocks=16)  # as sm_89 and sm_120
    (case,) = (case for case in CASES if case.name == "decode_attention split H=256")
    for chip in (sm_86, SM_100):
        assert list(problems(case, chip, compile_for(case, chip))) == []


def test_every_kernel_has_room_on_the_chips_between() -> None:
    # their code is made as sm_80's is, with as much shared memory, of which a block has 163 KiB there and 99 here
    shared = re.findall(r"^\| .+? \| \d+ \| \d+ \| (\d+) \|", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(shared) == len(CASES)
    assert max(map(int, shared)) <= 99 * 1024


@pytest.mark.slow
def test_all_configurations_compile_well_for_all_chips_and_the_table_is_up_to_date() -> None:
    assert resources.table() == TABLE.read_text(encoding="utf-8")


def test_the_table_names_every_configuration_once() -> None:
    rows = re.findall(r"^\| (.+?) \| \d", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [case.name for case in CASES]


def test_every_module_with_cases_is_listed_and_every_kernel_has_a_case() -> None:
    folder = Path(resources.__file__).parent
    texts = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.py")}
    assert {name for name, text in texts.items() if "\ndef compile_cases(" in text} <= set(MODULES)
    compiled = {(case.fn.__module__.rpartition(".")[2], case.fn.__name__) for case in CASES}
    kernels = {(name, kernel) for name, text in texts.items() for kernel in re.findall(r"@jit\ndef (\w+)\(", text)}
    without = {kernel for _, kernel in kernels - compiled}
    called = {call for text in texts.values() for call in re.findall(r"(?<!def )\b(\w+)\(", text)}
    assert without <= called  # a function that a kernel calls is compiled inside of it


@jit
def _copies(from_ptr, to_ptr, STEP: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK) * STEP
    tl.store(to_ptr + place, tl.load(from_ptr + place))


def copies(step: int, *, dot: bool = False) -> CompileCase:
    signature = {"from_ptr": "*bf16", "to_ptr": "*bf16", "STEP": "constexpr", "BLOCK": "constexpr"}
    return CompileCase("copies", _copies, signature, {"STEP": step, "BLOCK": 1024}, num_warps=4, needs_dot=dot)


def test_narrow_loads_and_a_missing_dot_are_found_in_real_code() -> None:
    assert list(problems(copies(1), SM_90, compile_for(copies(1), SM_90))) == []
    narrow = copies(3, dot=True)
    found = list(problems(narrow, SM_90, compile_for(narrow, SM_90)))
    assert [what.split(",")[0] for what in found] == ["multiplies without tensor cores", "has no load of 16 bytes"]


GOOD = Resources(registers=32, stack=0, local=0, shared=0, warps=4, ptx="ld.global.v4.b32 {...}")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"stack": 8}, "spills: 8 bytes of stack"),
        ({"local": 16}, "16 of local memory"),
        ({"shared": 163 * 1024 + 1}, "takes 166913 bytes"),
    ],
)
def test_spills_and_too_much_shared_memory_are_found(change: dict[str, int], what: str) -> None:
    case = copies(1)
    assert list(problems(case, SM_80, GOOD)) == []
    (said,) = problems(case, SM_80, dataclasses.replace(GOOD, **change))
    assert what in said


@pytest.mark.parametrize(
    ("ptx", "wide"),
    [
        ("ld.global.v4.b32", True),
        ("ld.global.L1::evict_last.v2.b64", True),
        ("cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, 0x10;", True),
        ("cp.async.bulk.tensor.2d.shared::cluster.global", True),
        ("ld.global.v2.b32", False),
        ("ld.global.v4.b16", False),
        ("cp.async.ca.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x4, 0x4;", False),
        ("st.global.v4.b32", False),
    ],
)
def test_wide_is_16_bytes_by_one_thread(ptx: str, wide: bool) -> None:
    assert bool(resources.WIDE.search(ptx)) is wide


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "share"),
    [
        (32, 0, 4, 1.0),  # 64 warps, the most there are
        (33, 0, 4, 0.75),  # 40 for each thread are handed out: 12 warps in each quarter
        (80, 0, 4, 0.375),
        (128, 0, 8, 0.25),
        (255, 0, 16, 0.0),  # 16 warps of 256 registers do not fit: 8 do
        (32, 0, 1, 0.5),  # 32 blocks, the most there are
        (32, 113 * 1024, 8, 0.25),  # two blocks of 114 KiB fill 228
    ],
)
def test_occupancy_is_what_nvidias_calculator_says(registers: int, shared: int, warps: int, share: float) -> None:
    found = dataclasses.replace(GOOD, registers=registers, shared=shared, warps=warps)
    assert occupancy(SM_90, found) == share


def test_the_interpreter_is_told_apart_from_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match="unset it"):
        compile_for(copies(1), SM_90)
