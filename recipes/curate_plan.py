"""What a full curation will take: requests and tokens by stage, GPU-hours and cost by model size, as Markdown tables.

    python recipes/curate_plan.py
    python recipes/curate_plan.py --questions 10000 --yields.selectors 5 --gpu_price 3 --read_price 0.2

Token figures carry their basis; speeds are a share of the GPU's data sheet and no measurement. Put in your own: the
shares that survive from selection.json and the stages' counts, your provider's prices.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from cli import load_config, main_guard
from common import option

from psychecore.curate.cost import Call, Gpu, Shape, Yields, endpoint_cost, plan_loads, roof_rate

PROMPTS = "prompt measured on the demo corpus"
# Prompts: recipes/prompts (version 1) filled from recipes/data, English, in tokens of Qwen3's tokenizer. docs/DATA.md
CALLS = [
    Call("questions", 571, 440, f"{PROMPTS} (43 passages); reply assumed: 4 questions of 110"),
    Call("quality", 448, 120, f"{PROMPTS} (403 questions with passages); reply assumed: 4 lines of 30"),
    Call("rationale", 154, 350, f"{PROMPTS} (403 questions); reply assumed"),
    Call("proposal", 611, 80, f"{PROMPTS} (403 questions, 261) and a rationale of 350, assumed; reply assumed"),
    Call("dialogue", 350, 160, f"{PROMPTS} (51 posts with replies), one attempt, no judge; reply assumed"),
    Call("select", 98, 350, f"{PROMPTS} (403 questions); reply assumed"),
]
SHAPES = [  # config.json of Qwen/Qwen2.5-*-Instruct
    Shape("Qwen2.5-7B", 7.6e9, 28, 4),
    Shape("Qwen2.5-14B", 14.8e9, 48, 8),
    Shape("Qwen2.5-32B", 32.8e9, 64, 8),
    Shape("Qwen2.5-72B", 72.7e9, 80, 8),
]


@dataclass(frozen=True)
class PlanRecipe:
    """How much is wanted, what survives, and what things cost."""

    questions: int = option(75_000, "finished questions, SFT and GRPO together")
    dialogues: int = option(73_000, "finished dialogues")
    yields: Yields = field(default_factory=Yields)
    share: float = option(0.24, "share of the data sheet's speed; 0.24: the sampler on 2 CPU cores (benchmarks)")
    tflops: float = option(989.0, "a GPU's dense bf16 TFLOP/s (989: H100 SXM)")
    bandwidth_tb_s: float = option(3.35, "of its memory")
    memory_gb: float = option(80.0, "of a GPU")
    gpu_price: float = option(2.5, "of a GPU-hour, an example price")
    read_price: float = option(0.3, "of a million prompt tokens at an endpoint, an example price")
    write_price: float = option(0.9, "of a million reply tokens, likewise")


def tables(config: PlanRecipe) -> str:
    """Both tables."""
    loads = plan_loads(config.questions, config.dialogues, config.yields, {call.name: call for call in CALLS})
    lines = [
        "| stage | requests | prompt tokens each | reply tokens each | prompt tokens (M) | reply tokens (M) | basis |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for load in loads:
        call = load.call
        lines.append(
            f"| {call.name} | {load.calls:,.0f} | {call.prompt_tokens:,.0f} | {call.reply_tokens:,.0f} "
            f"| {load.prompt_tokens / 1e6:,.1f} | {load.reply_tokens / 1e6:,.1f} | {call.basis} |"
        )
    read, write = sum(load.prompt_tokens for load in loads) / 1e6, sum(load.reply_tokens for load in loads) / 1e6
    lines.append(f"| all | {sum(load.calls for load in loads):,.0f} | | | {read:,.1f} | {write:,.1f} | |")
    gpu = Gpu("GPU", config.tflops * 1e12, config.bandwidth_tb_s * 1e12, config.memory_gb * 1e9)
    lines += [
        "",
        f"| every model of this size | reads tokens/s | writes tokens/s | GPU-hours | hours on 8 GPUs "
        f"| at {config.gpu_price:g} a GPU-hour | basis |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for shape in SHAPES:
        rate = roof_rate(shape, gpu, config.share)
        hours = rate.gpu_hours(loads)
        lines.append(
            f"| {rate.model} | {rate.read:,.0f} | {rate.write:,.0f} | {hours:,.0f} | {hours / 8:,.1f} "
            f"| {hours * config.gpu_price:,.0f} | {rate.basis} |"
        )
    cost = endpoint_cost(loads, config.read_price, config.write_price)
    prices = f"{config.read_price:g} and {config.write_price:g} a million prompt and reply tokens"
    return "\n".join([*lines, "", f"At an endpoint, at {prices}: {cost:,.0f}."])


if __name__ == "__main__":
    with main_guard():
        print(tables(load_config(PlanRecipe, sys.argv[1:], __doc__)))
