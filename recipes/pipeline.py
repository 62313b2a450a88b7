"""The whole pipeline in one command: curate the data, SFT on the easy, GRPO on the hard, and the table of accuracies.

    python recipes/pipeline.py --config recipes/presets/demo.toml
    python recipes/pipeline.py --config recipes/presets/demo.toml --pipeline.seed 1 --pipeline.folder runs/demo-1

1. compose: questions out of the authored concepts; a small share of them, `sft_share`, is for
2. warm-up: a short SFT of the base model, which gives curation a second selector;
3. curate: passages, posts and the other composed questions become sft.jsonl and grpo.jsonl (recipes/curate.py);
4. SFT on the questions that a selector got and the dialogues, from the base model;
5. GRPO on the questions that none got, from the SFT checkpoint.

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
from curate_options import CurateRecipe
from grpo_options import GrpoRecipe
from sft import SftRecipe

from psychecore.curate.assemble import MANIFEST_FILE
from psychecore.data.records import read_questions
from psychecore.durable import replace_file
from psychecore.runtime import SIGNALS

RECIPES = Path(__file__).resolve().parent
_BOTH = ("data.train", "run.folder", "run.seed", "evaluation.files")
SET_HERE = {
    "grpo.model.path",
    *(f"{stage}.{key}" for stage in ("sft", "grpo") for key in _BOTH),
}  # a preset may hold them


@dataclass(frozen=True)
class PipelineOptions:
    """Where it all goes; the stages' own data paths and run folders are set from here."""

    folder: Path = option(Path("runs/demo"), "holds data/, warmup/, curate/, sft/ and grpo/")
    seed: int = option(42, "composes the data, orders the rows and samples")
    language: str = option("en", "language of the composed questions: en, zh, or en,zh")
    kinds: tuple[str, ...] = option(compose.KINDS, "kinds of composed questions: field,concept,multiple")
    sft_share: float = option(0.2, "share of the training concepts that the warm-up gets; curation gets the others")
    warmup_steps: int = option(15, "SFT steps of the second selector; 0: the base model is the only selector")
    curate: Path = option(RECIPES / "presets" / "curate_demo.toml", "the curation's preset")
    processes: int = option(1, "ranks of each training stage on this machine")

    def __post_init__(self) -> None:
        if self.processes < 1 or self.warmup_steps < 0:
            raise ValueError(
                f"processes is {self.processes}, but must be at least 1; warmup_steps {self.warmup_steps} at least 0"
            )


@dataclass(frozen=True)
class Pipeline:
    """A preset with the tables [pipeline], [sft] and [grpo].

    data.train, run.folder, run.seed and evaluation.files of both stages and grpo.model.path are set here: the preset
    holds them for the recipes alone, and flags for them are refused.
    """

    sft: SftRecipe
    grpo: GrpoRecipe
    pipeline: PipelineOptions = field(default_factory=PipelineOptions)


def main(config: Pipeline) -> None:
    """Run every stage and print the table."""
    started, options = time.perf_counter(), config.pipeline
    data, warmup_folder, curate_folder, sft_folder, grpo_folder = (
        options.folder / name for name in ("data", "warmup", "curate", "sft", "grpo")
    )
    curation: CurateRecipe = load_config(CurateRecipe, ["--config", str(options.curate)], None, table="curate")
    print("== compose", flush=True)
    flags = {"seed": options.seed, "language": options.language, "kinds": ",".join(options.kinds)}
    flags |= {"sft-share": options.sft_share, "out": data}
    compose.main([f"--{name}={value}" for name, value in flags.items()])
    give_questions(data)
    heldout = tuple(data / name for name in ("heldout.jsonl", "heldout_concepts.jsonl"))
    selectors = curation.models.selectors
    if options.warmup_steps:
        warmup = replace(
            config.sft,
            data=replace(config.sft.data, train=data / "sft.jsonl"),
            run=replace(config.sft.run, folder=warmup_folder, seed=options.seed, steps=options.warmup_steps),
            evaluation=replace(config.sft.evaluation, files=()),
        )
        run_stage("sft", warmup, options, "warmup")
        selectors = (*selectors, f"warm-up={warmup_folder / 'export'}")
    curation = replace(
        curation,
        run=replace(curation.run, folder=curate_folder),
        sources=replace(curation.sources, questions=data / "given.jsonl"),
        models=replace(curation.models, selectors=selectors),
    )
    run_stage("curate", curation, options)
    sft = replace(
        config.sft,
        data=replace(config.sft.data, train=curate_folder / "sft.jsonl"),
        run=replace(config.sft.run, folder=sft_folder, seed=options.seed),
        evaluation=replace(config.sft.evaluation, files=heldout),
    )
    grpo = replace(
        config.grpo,
        model=replace(config.grpo.model, path=str(sft_folder / "export")),
        data=replace(config.grpo.data, train=curate_folder / "grpo.jsonl"),
        run=replace(config.grpo.run, folder=grpo_folder, seed=options.seed),
        evaluation=replace(config.grpo.evaluation, files=heldout),
    )
    run_stage("sft", sft, options)
    run_stage("grpo", grpo, options)
    print(table(sft_folder, grpo_folder))
    print(f"total time {(time.perf_counter() - started) / 60:.1f} minutes; the model is in {grpo_folder / 'export'}")


def refuse_set_here(argv: list[str]) -> None:
    """Raise ValueError for an option of a stage that the pipeline sets itself."""
    for item in argv:
        name = item.partition("=")[0].removeprefix("--")
        if name in SET_HERE:
            raise ValueError(
                f"option --{name} would be ignored: the pipeline trains on what it composes and curates, and takes "
                "--pipeline.folder and --pipeline.seed; to train on files of your own run "
                f"recipes/{name.partition('.')[0]}.py"
            )


def give_questions(data: Path) -> None:
    """Write given.jsonl: the composed questions for curation; those on one concept stay together in every split."""
    rows = (
        {**q.to_row(), "passage_id": f"concept {compose.split_key(q)}"} for q in read_questions(data / "grpo.jsonl")
    )
    replace_file(data / "given.jsonl", (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def run_stage(
    recipe: str, config: SftRecipe | GrpoRecipe | CurateRecipe, options: PipelineOptions, name: str = ""
) -> None:
    """Run one recipe as a process; `name` tells apart two stages of one recipe.

    Raises SystemExit with its exit code where it fails or is stopped by a signal. A signal is the stage's to obey (it
    saves first), so it is passed on and waited for.
    """
    name = name or recipe
    print(f"\n== {name}", flush=True)
    options.folder.mkdir(parents=True, exist_ok=True)
    preset = options.folder / f"{name}.toml"
    replace_file(preset, [dump_config(config)])
    launcher, environment = [sys.executable], dict(os.environ)
    if options.processes > 1 and not isinstance(config, CurateRecipe):
        # torchrun kills its ranks 30 s after a signal, where a step may take longer
        environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(int(60 * config.run.timeout_minutes))
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(options.processes)]
    received: list[int] = []
    stages: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: Any) -> None:
        received.append(number)
        for stage in stages:
            stage.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        # a session of its own: a Ctrl-C then reaches the stage once, from here
        command = [*launcher, str(RECIPES / f"{recipe}.py"), "--config", str(preset)]
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
    if code or received or not finished(config):
        print(f"stage {name} was not finished; the same command continues it", file=sys.stderr)
        raise SystemExit(code)


def finished(config: SftRecipe | GrpoRecipe | CurateRecipe) -> bool:
    """Whether a stage has come to its end."""
    if isinstance(config, CurateRecipe):
        return (config.run.folder / MANIFEST_FILE).exists()
    if not config.evaluation.files:
        return (config.run.folder / "export").is_dir()
    return evaluated(config.run.folder, "after")


def table(sft_folder: Path, grpo_folder: Path) -> str:
    """Accuracy with 95 % interval and format rate on each held-out set, for base, SFT and GRPO."""
    sft = json.loads((sft_folder / "evaluation.json").read_text(encoding="utf-8"))
    grpo = json.loads((grpo_folder / "evaluation.json").read_text(encoding="utf-8"))
    stages = {"base": sft["before"]} if "before" in sft else {}  # not where sft.run.evaluate_first is false
    stages |= {"SFT": sft["after"], "SFT + GRPO": grpo["after"]}
    lines = ["", f"{'':<12}{'held-out set':<20}{'accuracy':>9}  {'95 % interval':<16}{'format':>7}{'unparsable':>12}"]
    for stage, row in stages.items():
        for name, report in row["sets"].items():
            interval = f"{report['low']:.1%} to {report['high']:.1%}"
            lines.append(
                f"{stage:<12}{name:<20}{report['accuracy']:>9.1%}  {interval:<16}"
                f"{report['format_rate']:>7.0%}{report['unparsable']:>12.0%}"
            )
    for name, report in sft["after"]["sets"].items():
        lines.append(f"best constant answer on {name}: {report['constant']:.1%} of {report['n']} questions")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    with main_guard():
        refuse_set_here(sys.argv[1:])
        main(load_config(Pipeline, sys.argv[1:], __doc__))
