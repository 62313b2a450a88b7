"""The plan against sums done by hand, and the tables that docs/DATA.md prints."""

from __future__ import annotations

from pathlib import Path

import pytest
from curate_plan import CALLS, PlanRecipe, tables

from psychecore.curate.cost import (
    Call,
    Gpu,
    Load,
    Rate,
    Shape,
    Yields,
    endpoint_cost,
    measured_call,
    plan_loads,
    roof_rate,
)

REPO = Path(__file__).resolve().parents[2]
GPU = Gpu("G", flops=1e15, bandwidth=2e12, memory=80e9)
SMALL = Shape("small", 7e9, layers=28, kv_heads=4)


def test_requests_are_worked_backwards_from_what_is_wanted() -> None:
    yields = Yields(
        drafts=5, usable=0.5, unique=0.8, passed=0.5, accepted=1.0, rewritten=0.5, rounds=2, selectors=3, samples=4
    )
    loads = plan_loads(1000, 300, yields, {call.name: call for call in CALLS})
    # 1,000 of 2,000 pass; of 2,500 drafts 2,000 are unique; of 5,000 written 2,500 are usable: 1,000 passages
    assert {load.call.name: load.calls for load in loads} == {
        "questions": pytest.approx(1000),
        "quality": 2000,
        "rationale": 3000,
        "proposal": 2000,
        "dialogue": 600,
        "select": 12000,
    }


def test_hours_and_money_of_loads_worked_by_hand() -> None:
    loads = [Load(Call("a", 100, 10, ""), 3600), Load(Call("b", 0, 5, ""), 7200)]
    # 360,000 read at 200/s is half an hour, 72,000 written at 10/s two hours
    assert Rate("m", read=200, write=10, basis="").gpu_hours(loads) == 2.5
    assert endpoint_cost(loads, 2.0, 10.0) == pytest.approx(0.72 + 0.72)


def test_the_roof_of_a_gpu_worked_by_hand() -> None:
    assert SMALL.kv_bytes == 57_344  # 2 x 28 layers x 4 heads x 128 x 2 bytes
    rate = roof_rate(SMALL, GPU, share=0.5, context=1000, slots=100)
    assert rate.read == pytest.approx(0.5 * 1e15 / 14e9)
    # 100 sequences: 14e9 bytes of weights and 5.7e9 of cache at 2e12 a second are 9.867 ms a step
    assert rate.write == pytest.approx(0.5 * 100 / 9.8672e-3, rel=1e-4)
    assert "1 x G, 100 sequences" in rate.basis


def test_a_model_that_one_gpu_cannot_hold_is_spread_and_counted_by_gpu() -> None:
    large = Shape("large", 70e9, layers=80, kv_heads=8)
    rate = roof_rate(large, GPU, share=1.0, context=1000, slots=256)
    # 2 GPUs hold 144 GB of 140 GB weights, too few for 32 sequences of 0.33 GB; 4 hold 288 GB: 451
    assert "4 x G, 451 sequences" in rate.basis
    step = (140e9 + 451 * 1000 * large.kv_bytes) / 8e12
    assert rate.write == pytest.approx(451 / step / 4)


def test_a_call_is_measured_on_real_requests() -> None:
    pairs = [
        ([{"role": "system", "content": "a b"}, {"role": "user", "content": "c"}], "d e f"),
        ([{"role": "user", "content": "a b c d e f g"}], "h"),
    ]
    call = measured_call("x", pairs, lambda text: len(text.split()), "the demo")
    assert (call.prompt_tokens, call.reply_tokens) == ((3 + 10 + 7 + 5) / 2, (4 + 2) / 2)
    assert call.basis == "measured on 2 requests of the demo"
    with pytest.raises(ValueError, match="x: no requests to measure in the demo"):
        measured_call("x", [], len, "the demo")


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(ValueError, match="passed is 0"):
        Yields(passed=0)
    with pytest.raises(ValueError, match="selectors is 0"):
        Yields(selectors=0)
    with pytest.raises(ValueError, match=r"share is 1\.5"):
        roof_rate(SMALL, GPU, 1.5)
    with pytest.raises(ValueError, match="must be above 0"):
        Gpu("G", 1.0, 1.0, 0.0)


def test_the_tables_in_the_documentation_are_what_the_recipe_prints() -> None:
    assert tables(PlanRecipe()) in (REPO / "docs" / "DATA.md").read_text(encoding="utf-8")
