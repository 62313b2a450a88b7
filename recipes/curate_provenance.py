"""What the manifest of a curation says: what went in, of what, by whom."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from curate_models import Models
from curate_options import CurateRecipe, SourceOptions

from psychecore.curate.assemble import Provenance
from psychecore.curate.prompts import Prompts
from psychecore.curate.sources import SUFFIXES

PROMPTED = ("questions", "quality", "rationale", "dialogue")  # stages that have a file of prompts
COUNTED = (
    *("clean", "clean_posts", "clean_given", "dedupe_texts", "dedupe_posts", "questions", "pool", "dedupe"),
    *("quality", "review", "hold_out", "rationale", "dialogue", "select", "divide"),
)


def provenance(config: CurateRecipe, models: Models, prompts: Sequence[Prompts]) -> Provenance:
    """The counts of the stages in the folder, every file that was read, models, prompts, seeds and options.

    Without paths and times, so that the same run gives the same bytes.
    """
    stages = []
    for name in COUNTED:
        done = config.run.folder / f"{name}.done.json"
        if done.exists():
            stages.append({"name": name, **json.loads(done.read_text(encoding="utf-8"))["counts"]})
    seeded = (*PROMPTED, "dedupe", "review", "hold_out", "select", "divide")
    settings = asdict(config)
    for hidden in ("run", "models", "sources"):  # paths, and what tells nothing of the result
        settings.pop(hidden)
    settings["decontaminate"]["benchmarks"] = [Path(path).name for path in config.decontaminate.benchmarks]
    if config.hold_out.file:
        settings["hold_out"]["file"] = config.hold_out.file.name
    return Provenance(
        stages=stages,
        inputs=_inputs(config),
        models=models.described(),
        prompts={one.path.name: {"version": one.version, "sha256": one.sha256} for one in prompts},
        seeds={name: getattr(config, name).seed for name in seeded},
        config=json.loads(json.dumps(settings, default=str)),
    )


def text_files(path: Path | None) -> list[Path]:
    """The files that `sources.texts` names, in the order of their paths."""
    if path is None or not path.is_dir():
        return [path] if path else []
    return sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES)


def source_files(options: SourceOptions) -> dict[str, list[Path]]:
    """The files of the sources by what they are read as."""
    return {
        "text": text_files(options.texts),
        "posts": list(options.posts),
        "questions": [options.questions] if options.questions else [],
    }


def roles(options: SourceOptions) -> dict[str, list[str]]:
    """The names of the sources by what they are read as; those of texts below their folder become names of passages."""
    base = options.texts if options.texts and options.texts.is_dir() else None
    read = source_files(options)
    texts = [str(path.relative_to(base)) if base else path.name for path in read["text"]]
    return {"texts": texts, **{role: [path.name for path in read[role]] for role in ("posts", "questions")}}


def benchmark_files(path: Path) -> list[Path]:
    """The files of a benchmark, which is a file or a folder."""
    return sorted(file for file in path.rglob("*") if file.suffix in (".json", ".jsonl")) if path.is_dir() else [path]


def _inputs(config: CurateRecipe) -> dict[str, Path]:
    """Every file that was read, by role."""
    options = config.sources
    groups = {
        **source_files(options),
        "decisions": [Path(path) for path in options.decisions],
        "hold-out": [config.hold_out.file] if config.hold_out.file else [],
        "benchmark": [file for path in config.decontaminate.benchmarks for file in benchmark_files(Path(path))],
    }
    found = {f"{role} {number}": path for role, paths in groups.items() for number, path in enumerate(paths)}
    return found | {"passages as read": config.run.folder / "passages.jsonl"}
