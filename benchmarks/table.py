"""What `make bench` ends with: targets beside measurements, from benchmarks/results. `python benchmarks/table.py`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from chart import lines
from measure import RESULTS, read

from psychecore.durable import replace_file

REPO = RESULTS.parents[1]
DOCS, README = REPO / "docs", REPO / "README.md"
ROLLOUTS = {
    "group32": ("rollouts, 4 prompts x 8 samples x 128 tokens", "3x transformers, 1.2x llama.cpp"),
    "group64": ("the same with 64 sequences", "3x, 1.2x"),
    "tail": ("lengths from a long tail, 128 sequences, 48 slots", "3x transformers, occupancy over 90 %"),
    "shared600": ("prompts of 600 tokens x 8 samples x 32 tokens", "5x transformers"),
    "one": ("one sequence", "2x transformers"),
}
# README's tables: of a CPU with bf16, and of one without by dtype (measure.named); name and what ends a result's file
TABLES = {
    "speed": "",
    "speed without bf16, in fp32": "_without_bf16_float32",
    "speed without bf16, in bf16": "_without_bf16_bfloat16",
}
# where_time_goes.py: columns, and what they are called in its result
PARTS = {"products": "products_s", "attention": "attention_s", "other operators": "others_s", "left": "left_s"}


def main() -> None:
    """Print the tables, put them into README, and write the plots."""
    page = README.read_text(encoding="utf-8")
    for name, ending in TABLES.items():
        lines_ = ["| what | target | measured |", "|---|---|---|"]
        lines_ += [f"| {what} | {target} | {measured} |" for what, target, measured in rows(ending)]
        table = "\n".join(lines_) + "\n"
        machine = read(f"rollouts{ending}").get("machine", {})
        print(f"{name} ({machine.get('cpu')}, {machine.get('date')}):\n{table}")
        page = put(page, name, table)
        print(times := profile(ending))
        page = put(page, name.replace("speed", "profile"), times)
    replace_file(README, [page])
    plots()
    if torch.cuda.is_available():
        print("these tables are of CPUs; what ran on this GPU stands in benchmarks/results/*_gpu.json")


def put(page: str, name: str, table: str) -> str:
    """The page with the table between <!-- name --> and <!-- end -->. Raises ValueError where it has no such place."""
    before, mark, rest = page.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    if not end:
        raise ValueError(f"the page has no place for the table {name!r}")
    return before + mark + table + end + after


def measured(name: str, ending: str) -> dict[str, Any]:
    """A result of the processor that measured the rollouts, nothing for another's: a clone holds those of others."""
    rollouts, result = read(f"rollouts{ending}"), read(name + ending)
    return result if result.get("machine", {}).get("cpu") == rollouts.get("machine", {}).get("cpu") else {}


def rows(ending: str) -> Iterator[tuple[str, str, str]]:
    """(what, target, measured) of every result that is there."""
    cases = read(f"rollouts{ending}").get("cases", {})
    for name, (what, target) in ROLLOUTS.items():
        if case := cases.get(name):
            more = f"; occupancy {case['occupancy_while_work_waits']:.1%}" if name == "tail" else ""
            more += f"; {case['share_of_roof']:.0%} of the roof" if "share_of_roof" in case else ""
            yield what, target, f"{_times(case)} (psychecore {case['median']['psychecore']:.0f} tok/s){more}"
    for name, what, target in (
        ("grpo_step", "GRPO step, 4 x 8 samples of 128 tokens", "4x TRL at half its memory"),
        ("sft_step", "SFT on counsel_chat", "4x TRL at half its memory, 1.3x transformers"),
    ):
        if row := measured(name, ending):
            memory = ", ".join(f"{share:.2f} of {peer}'s memory" for peer, share in row["memory_share"].items())
            yield what, target, f"{_times(row)} (psychecore {row['median']['psychecore']:.0f} tok/s); {memory}"
    if row := measured("shared_prompt", ending):
        gap = f"largest gradient difference {row['largest_gradient_difference']:.0e} of the largest entry"
        yield "update, a prompt of 600 tokens, 8 completions of 100", "3x unshared", f"{_times(row)}; {gap}"
    if row := measured("loss_memory", ending).get("main"):
        share, ratio = row["memory_share"], row["time_ratio"]
        what = f"loss at V = {row['vocabulary']:,}, D = {row['width']}, {row['tokens']:,} tokens"
        yield what, "8 % of the naive memory, 1.2x its time", f"{share:.1%} of its memory, {ratio:.2f}x its time"


def profile(ending: str) -> str:
    """Where the time of each row goes (where_time_goes.py), as a table; empty where that was not measured."""
    cases = measured("where_time_goes", ending).get("cases", {})
    head = ("what", "seconds", *PARTS, "roof", "at most")
    lines_ = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, row in cases.items():
        what = ROLLOUTS[name][0] if name in ROLLOUTS else f"{name.upper()} step"
        seconds = " | ".join(f"{row[key]:.2f}" if key in row else "" for key in ("all_s", *PARTS.values(), "roof_s"))
        most = ", ".join(f"{ratio:.2f}x {peer}" for peer, ratio in row["bound"].items())
        lines_.append(f"| {what} | {seconds} | {most} |")
    return "\n".join(lines_) + "\n" if cases else ""


def plots() -> None:
    """docs/growth_rollouts.svg and docs/growth_memory.svg."""
    if growth := read("rollouts").get("cases", {}).get("growth"):
        points = [(row["samples"], row["seconds"]) for row in growth["rows"]]
        title = "Rollout time by number of samples (8 a prompt, 64 tokens each, 32 slots)"
        replace_file(DOCS / "growth_rollouts.svg", [lines({"psychecore": points}, title, "samples", "seconds")])
    if growth := read("loss_memory").get("growth"):
        series: dict[str, list[tuple[float, float]]] = {}
        vocabularies = sorted({row["vocabulary"] for row in growth})
        for way in ("psychecore", "naive"):
            for vocabulary in (vocabularies[0], vocabularies[-1]):
                points = [(row["tokens"], row[way]["extra_mib"]) for row in growth if row["vocabulary"] == vocabulary]
                series[f"{way}, V = {vocabulary:,}"] = sorted(points)
        title = "Extra memory of the loss by tokens and vocabulary"
        replace_file(DOCS / "growth_memory.svg", [lines(series, title, "tokens", "MiB")])


def _times(row: dict[str, Any]) -> str:
    return ", ".join(f"**{ratio:.2f}x** {peer}" for peer, ratio in row["times_faster"].items())


if __name__ == "__main__":
    main()
