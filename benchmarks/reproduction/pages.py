"""Puts the results into docs/REPRODUCTION.md, tables and charts. `python benchmarks/reproduction/pages.py`."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

from arms import ARMS, KNOBS, MAIN, SEEDS  # noqa: E402
from chart import intervals, lines  # noqa: E402
from table import put  # noqa: E402

from psychecore.durable import replace_file  # noqa: E402
from psychecore.evaluate.statistics import DIFFERENCE, estimate, wilson_interval  # noqa: E402

RESULTS = REPO / "benchmarks" / "results" / "reproduction"
PAGE, README = REPO / "docs" / "REPRODUCTION.md", REPO / "README.md"
CURVES = {
    "reward_correct": "Share of right samples",
    "informative": "Share of groups that say something",
    "length": "Tokens of a sample",
    "kl": "KL to where GRPO started",
}
Rows = dict[tuple[str, str], list[dict[str, Any]]]  # by task and arm, in the order of the seeds


def main() -> None:
    """Write the page's tables and charts from what results there are."""
    rows = read()
    page = PAGE.read_text(encoding="utf-8")
    tables = {"main": main_table(rows), "differences": differences(rows), "knobs": knob_table(rows)}
    for name, table in (tables | {"cost": cost_table(rows)}).items():
        page = put(page, name, table)
    replace_file(PAGE, [page])
    replace_file(README, [put(README.read_text(encoding="utf-8"), "reproduction", headline_table(rows))])
    for task in sorted({task for task, _ in rows}):
        replace_file(PAGE.parent / f"reproduction_{task}.svg", [accuracy_chart(rows, task)])
        for metric in CURVES:
            replace_file(PAGE.parent / f"reproduction_{task}_{metric}.svg", [curve_chart(rows, task, metric)])
    print(f"wrote {PAGE}")


def read() -> Rows:
    """All result files."""
    rows: Rows = defaultdict(list)
    found = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("*.json")]
    for row in sorted(found, key=lambda row: SEEDS.index(row["seed"])):
        rows[row["task"], row["arm"]].append(row)
    return rows


def main_table(rows: Rows) -> str:
    """Accuracy of the main arms over all seeds together, with each seed's own."""
    lines_ = ["| task | arm | seeds | held-out set | accuracy (95 %) | by seed | format | dialogue perplexity |"]
    lines_.append("|---|---|---|---|---|---|---|---|")
    for (task, arm), runs in sorted(rows.items(), key=lambda item: (item[0][0], list(ARMS).index(item[0][1]))):
        for name in runs[0]["heldout"] if arm in MAIN else ():
            share, low, high, _ = _share("".join(run["heldout"][name]["right"] for run in runs))
            each = ", ".join(f"{100 * run['heldout'][name]['accuracy']:.1f}" for run in runs)
            form = sum(run["heldout"][name]["format_rate"] for run in runs) / len(runs)
            perplexity = math.exp(sum(math.log(run["perplexity"]) for run in runs) / len(runs))
            lines_.append(
                f"| {task} | {ARMS[arm].about} | {len(runs)} | {name} | **{share:.1f}** ({low:.1f} to "
                f"{high:.1f}) | {each} | {form:.0%} | {perplexity:.1f} |"
            )
    return "\n".join(lines_) + "\n"


def differences(rows: Rows) -> str:
    """The paper's arm against the others: paired by question and seed, bootstrapped over questions."""
    lines_ = ["| task | the paper's recipe less | seeds | held-out set | points (95 %) |", "|---|---|---|---|---|"]
    for (task, arm), runs in sorted(rows.items(), key=lambda item: (item[0][0], list(ARMS).index(item[0][1]))):
        if arm == "paper" or arm not in MAIN:
            continue
        paper = {run["seed"]: run for run in rows[task, "paper"]}
        pairs = [(paper[run["seed"]], run) for run in runs if run["seed"] in paper]
        for name in runs[0]["heldout"] if pairs else ():
            values = [
                int(a) - int(b)
                for one, other in pairs
                for a, b in zip(one["heldout"][name]["right"], other["heldout"][name]["right"], strict=True)
            ]
            gap = estimate(values, span=DIFFERENCE)
            lines_.append(
                f"| {task} | {ARMS[arm].about} | {len(pairs)} | {name} | {100 * gap.value:+.1f} "
                f"({100 * gap.low:+.1f} to {100 * gap.high:+.1f}) |"
            )
    return "\n".join(lines_) + "\n"


def knob_table(rows: Rows) -> str:
    """What one changed setting does, beside the paper's arm of the same seed."""
    lines_ = [
        "| task | setting | held-out sets, % | format | last quarter: reward correct | informative | length | KL |"
    ]
    lines_.append("|---|---|---|---|---|---|---|---|")
    for (task, arm), runs in sorted(rows.items(), key=lambda item: (item[0][0], list(ARMS).index(item[0][1]))):
        run = next((run for run in runs if run["seed"] == SEEDS[0]), None)
        if run and arm in ("paper", *KNOBS):
            sets, late = run["heldout"].values(), {name: _last_quarter(curve) for name, curve in run["curves"].items()}
            about = "the paper's: KL 0.001, with std, groups of 8" if arm == "paper" else ARMS[arm].about
            accuracies = ", ".join(f"{100 * one['accuracy']:.1f}" for one in sets)
            lines_.append(
                f"| {task} | {about} | {accuracies} | "
                f"{min(s['format_rate'] for s in sets):.0%} | {late['reward_correct']:.2f} | "
                f"{late['informative']:.0%} | {late['length']:.0f} | "
                + (f"{late['kl']:.3f} |" if "kl" in late else "not measured |")
            )
    return "\n".join(lines_) + "\n"


def headline_table(rows: Rows) -> str:
    """A line an arm: accuracy on all held-out questions of each task, all seeds together."""
    tasks = sorted({task for task, _ in rows})
    lines_ = [f"| arm | {' | '.join(f'{task}, % right (95 %)' for task in tasks)} |", f"|---|{'---|' * len(tasks)}"]
    for arm in MAIN:
        cells = []
        for task in tasks:
            if runs := rows.get((task, arm)):
                share, low, high, n = _share(_all_sets(runs))
                cells.append(f"**{share:.1f}** ({low:.1f} to {high:.1f}), n {n}")
            else:
                cells.append("not run")
        lines_.append(f"| {ARMS[arm].about} | {' | '.join(cells)} |")
    return "\n".join(lines_) + "\n"


def accuracy_chart(rows: Rows, task: str) -> str:
    """Held-out accuracy of the main arms, all sets and seeds together."""
    shown = [
        (ARMS[arm].about.partition(":")[0], *_share(_all_sets(rows[task, arm]))[:3])
        for arm in MAIN
        if rows.get((task, arm))
    ]
    return intervals(shown, f"Held-out accuracy by arm, task {task}", "held-out accuracy, %")


def _all_sets(runs: list[dict[str, Any]]) -> str:
    """A digit a question, of all held-out sets and seeds."""
    return "".join(one["right"] for run in runs for one in run["heldout"].values())


def _share(right: str) -> tuple[float, float, float, int]:
    """(share, low, high) in per cent, and n, of a digit a question."""
    low, high = wilson_interval(right.count("1"), len(right))
    return 100 * right.count("1") / len(right), 100 * low, 100 * high, len(right)


def curve_chart(rows: Rows, task: str, metric: str) -> str:
    """One metric of the main arms by GRPO step, the mean over seeds and over three steps."""
    series = {}
    for arm in MAIN:
        curves = [run["curves"][metric] for run in rows.get((task, arm), []) if "curves" in run]
        if curves:
            mean = [sum(step) / len(step) for step in zip(*curves, strict=True)]
            smooth = [sum(mean[max(0, i - 2) : i + 1]) / len(mean[max(0, i - 2) : i + 1]) for i in range(len(mean))]
            series[arm] = list(enumerate(smooth, start=1))
    return lines(series, f"{CURVES[metric]} while GRPO trains, task {task}", "GRPO step", f"{metric} (mean of 3 steps)")


def cost_table(rows: Rows) -> str:
    """Minutes of training by task and stage: the median over seeds and arms, and the sum of all of them."""
    minutes: dict[tuple[str, str], dict[tuple[int, str], float]] = defaultdict(dict)
    for (task, _), runs in rows.items():
        for run in runs:
            for stage, spent in run["minutes"].items():
                minutes[task, "SFT" if stage == "sft" else "GRPO"][run["seed"], stage] = spent
    lines_ = ["| task | stage | runs | minutes each (median) | minutes in all |", "|---|---|---|---|---|"]
    for (task, stage), spent_by in sorted(minutes.items(), reverse=True):
        spent = list(spent_by.values())
        lines_.append(f"| {task} | {stage} | {len(spent)} | {statistics.median(spent):.1f} | {sum(spent):.0f} |")
    return "\n".join(lines_) + "\n"


def _last_quarter(values: list[float]) -> float:
    part = values[-max(len(values) // 4, 1) :]
    return sum(part) / len(part)


if __name__ == "__main__":
    main()
