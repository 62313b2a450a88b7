"""What a curation refuses before it writes a file or asks a model: stages of hours must not end in what was known."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from cli import read_toml
from common import require
from curate_options import CurateRecipe
from curate_provenance import PROMPTED, benchmark_files, source_files

from psychecore.curate.prompts import load_prompts


def check(config: CurateRecipe) -> None:
    """Raises ValueError or FileNotFoundError: a folder of others, files that are not there, what can't be met."""
    _check_folder(config)
    _check_files(config)
    if config.run.stage == "all":
        for name in PROMPTED:
            load_prompts(config.run.prompts / f"{name}.toml")
        if not config.models.author:
            raise ValueError("no model is given as author: set models.author, which writes what is asked for")
        if not config.models.selectors:
            raise ValueError("no model is given as selectors: set models.selectors, at least one answers each question")
    if config.run.stage in ("all", "select") and (given := len(config.models.selectors)):
        needed, samples = config.divide.selectors_needed, config.divide.samples_needed
        if needed > given or samples > config.select.samples:
            raise ValueError(
                f"no question can be easy: divide.selectors_needed is {needed} of {given} models.selectors, "
                f"divide.samples_needed {samples} of {config.select.samples} select.samples"
            )


def _check_folder(config: CurateRecipe) -> None:
    """A run replaces what stands under its stages' names, so the folder must be its own."""
    folder, path = config.run.folder, config.run.folder / "config.toml"
    if path.exists():
        if "sources" not in read_toml(str(path)):
            raise ValueError(f"{folder} holds a run that is no curation: choose another --run.folder")
    elif config.run.stage in ("all", "sources"):
        others = sorted(p.name for p in folder.glob("*.jsonl") if p.name != "cache.jsonl")
        if others:
            raise ValueError(
                f"{folder} is no curation's (it has no config.toml) but holds {others[0]}, which a stage might "
                "replace: choose another --run.folder"
            )


def _check_files(config: CurateRecipe) -> None:
    sources, held_out = config.sources, config.hold_out.file
    given = {
        "sources.texts": [sources.texts] if sources.texts else [],
        "sources.posts": list(sources.posts),
        "sources.questions": [sources.questions] if sources.questions else [],
        "sources.decisions": [Path(path) for path in sources.decisions],
        "hold_out.file": [held_out] if held_out else [],
        "decontaminate.benchmarks": [Path(path) for path in config.decontaminate.benchmarks],
    }
    for option, paths in given.items():
        for path in paths:
            require(path, option)
            if option == "decontaminate.benchmarks" and {".json", ".jsonl"}.isdisjoint(
                file.suffix for file in benchmark_files(path)
            ):
                raise ValueError(
                    f"{path} holds no .json or .jsonl file, so nothing would be kept out of the data: --{option} takes "
                    "these and folders of them; unpack an archive"
                )
            if path.is_dir() and option not in ("sources.texts", "decontaminate.benchmarks"):
                raise ValueError(f"{path} is a folder: --{option} must name a file, or be left out")
    for path in chain(*source_files(sources).values(), given["hold_out.file"]):
        if config.run.folder.resolve() == path.resolve().parent:
            raise ValueError(
                f"{path} lies in {config.run.folder}, whose files this run replaces: choose another --run.folder, or "
                "move the file"
            )
