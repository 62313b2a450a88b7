"""The whole pipeline in one command: compose the data, SFT, GRPO, and the table base / SFT / GRPO.

    python recipes/pipeline.py --config recipes/presets/demo.toml
    python recipes/pipeline.py --config recipes/presets/demo.toml --pipeline.seed 1 --pipeline.folder runs/demo-1

Each stage is a process of its own (torchrun where `processes` is above 1), and continues where it was interrupted.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import compose
from cli import dump_config, load_config, main_guard
from common import evaluated, option
from grpo import GrpoRecipe
from sft import SftRecipe

from psychecore.durable import replace_file
from psychecore.runtime import SIGNALS

RECIPES = Path(__file__).resolve().parent


@dataclass(frozen=True)
class PipelineOptions:
    """Where it all goes; the stages' own data paths and run folders are set from here."""

    folder: Path = option(Path("runs/demo"), "holds data/, sft/ and grpo/")
    seed: int = option(42, "composes the data, orders the rows and samples")
    language: str = option("en", "language of the composed questions: en, zh, or en,zh")
    kinds: tuple[str, ...] = option(compose.KINDS, "kinds of composed questions: field,concept,multiple")
    sft_share: float = option(0.5, "share of the training concepts that SFT gets; GRPO gets the others")
    processes: int = option(1, "ranks of each training stage on this machine")

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ValueError(f"processes is {self.processes}, but must be at least 1")


@dataclass(frozen=True)
class Pipeline:
    """A preset with the tables [pipeline], [sft] and [grpo]."""

    sft: SftRecipe
    grpo: GrpoRecipe
    pipeline: PipelineOptions = field(default_factory=PipelineOptions)


def main(config: Pipeline) -> None:
    """Run every stage and print the table."""
    started, options = time.perf_counter(), config.pipeline
    data, sft_folder, grpo_folder = (options.folder / name for name in ("data", "sft", "grpo"))
    print("== compose", flush=True)
    flags = {"seed": options.seed, "language": options.language, "kinds": ",".join(options.kinds)}
    flags |= {"sft-share": options.sft_share, "out": data}
    compose.main([f"--{name}={value}" for name, value in flags.items()])
    heldout = tuple(str(data / name) for name in ("heldout.jsonl", "heldout_concepts.jsonl"))
    sft = replace(
        config.sft,
        data=replace(config.sft.data, train=data / "sft.jsonl"),
        run=replace(config.sft.run, folder=sft_folder, seed=options.seed),
        evaluation=replace(config.sft.evaluation, files=heldout),
    )
    grpo = replace(
        config.grpo,
        model=replace(config.grpo.model, path=str(sft_folder / "export")),
        data=replace(config.grpo.data, train=data / "grpo.jsonl"),
        run=replace(config.grpo.run, folder=grpo_folder, seed=options.seed),
        evaluation=replace(config.grpo.evaluation, files=heldout),
    )
    run_stage("sft", sft, options)
    run_stage("grpo", grpo, options)
    print(table(sft_folder, grpo_folder))
    print(f"total time {(time.perf_counter() - started) / 60:.1f} minutes; the model is in {grpo_folder / 'export'}")


def run_stage(name: str, config: SftRecipe | GrpoRecipe, options: PipelineOptions) -> None:
    """Run one recipe as a process; raises SystemExit with its exit code where it fails or is stopped by a signal.

    A signal is the stage's to obey (it saves first), so it is passed on and waited for.
    """
    print(f"\n== {name}", flush=True)
    options.folder.mkdir(parents=True, exist_ok=True)
    preset = options.folder / f"{name}.toml"
    replace_file(preset, [dump_config(config)])
    launcher = [sys.executable]
    if options.processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(options.processes)]
    received: list[int] = []
    stages: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: Any) -> None:
        received.append(number)
        for stage in stages:
            stage.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    # torchrun kills its ranks 30 s after a signal, where a step may take longer
    environment = os.environ | {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(int(60 * config.run.timeout_minutes))}
    try:
        # a session of its own: a Ctrl-C then reaches the stage once, from here
        command = [*launcher, str(RECIPES / f"{name}.py"), "--config", str(preset)]
        stage = subprocess.Popen(command, start_new_session=True, env=environment)
        stages.append(stage)
        if received:
            stage.send_signal(received[0])
        code = stage.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code and not received:
        print(f"error: stage {name} ended with exit code {code}", file=sys.stderr)
    if code or received or not evaluated(config.run.folder, "after"):
        print(f"stage {name} was not finished; the same command continues it", file=sys.stderr)
        raise SystemExit(code)


def table(sft_folder: Path, grpo_folder: Path) -> str:
    """Accuracy with 95 % interval and format rate on each held-out set, for base, SFT and GRPO."""
    sft = json.loads((sft_folder / "evaluation.json").read_text(encoding="utf-8"))
    grpo = json.loads((grpo_folder / "evaluation.json").read_text(encoding="utf-8"))
    stages = {"base": sft["before"], "SFT": sft["after"], "SFT + GRPO": grpo["after"]}
    lines = ["", f"{'':<12}{'held-out set':<20}{'accuracy':>9}  {'95 % interval':<16}{'format':>7}{'unparsable':>12}"]
    for stage, row in stages.items():
        for name, report in row["sets"].items():
            interval = f"{report['low']:.1%} to {report['high']:.1%}"
            lines.append(
                f"{stage:<12}{name:<20}{report['accuracy']:>9.1%}  {interval:<16}"
                f"{report['format_rate']:>7.0%}{report['unparsable']:>12.0%}"
            )
    for name, report in sft["before"]["sets"].items():
        lines.append(f"best constant answer on {name}: {report['constant']:.1%} of {report['n']} questions")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    with main_guard():
        main(load_config(Pipeline, sys.argv[1:], __doc__))
