"""Curation: texts, posts and ready questions become sft.jsonl and grpo.jsonl, with a report of what went and why.

    python recipes/curate.py --config recipes/presets/curate_demo.toml
    python recipes/curate.py --config recipes/presets/curate_demo.toml --run.stage clean

The stages below run in this order; each reads what the ones before have left in the folder, and writes NAME.jsonl,
NAME.rejects.jsonl (each row with its reason) and NAME.done.json. A stage that is finished is not run again while its
inputs, its options, its prompts and its models are the same; one that was killed goes on at the batch where it was
killed, and what models have said until then is in cache.jsonl.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

from cli import dump_config, load_config, main_guard
from curate_checks import check
from curate_models import Models, what
from curate_options import STAGES, CurateRecipe
from curate_provenance import PROMPTED, benchmark_files, provenance, roles, source_files
from curate_rows import DistinctOptions, OnlyNew, Passages, counted, first, remove_passes, write_rows

from psychecore.curate.assemble import MANIFEST_FILE, OUTPUTS, Sources, assemble
from psychecore.curate.cache import Cache
from psychecore.curate.clean import Clean
from psychecore.curate.decontaminate import Benchmarks
from psychecore.curate.dedupe import dedupe
from psychecore.curate.dialogue import Dialogue
from psychecore.curate.divide import GRPO_FILE, SFT_FILE, divide
from psychecore.curate.divide import OUTPUTS as DIVIDED
from psychecore.curate.holdout import draw_held_out, set_aside
from psychecore.curate.progress import Progress
from psychecore.curate.prompts import Prompts, load_prompts
from psychecore.curate.quality import Quality
from psychecore.curate.questions import Questions
from psychecore.curate.rationale import Rationale
from psychecore.curate.report import write_report
from psychecore.curate.review import read_decisions, review_file, sample_rows
from psychecore.curate.review_csv import read_csv, write_csv
from psychecore.curate.review_page import write_page
from psychecore.curate.select import SelectStage
from psychecore.curate.sources import read_given, read_passages, read_posts
from psychecore.curate.stage import Done, Stage, StageCounts, run_stage, run_whole
from psychecore.data.records import Question, read_jsonl
from psychecore.durable import replace_file


def main(config: CurateRecipe) -> None:
    """Run all stages, or the one that is named."""
    check(config)
    folder = config.run.folder
    folder.mkdir(parents=True, exist_ok=True)
    cache = Cache(folder / "cache.jsonl")  # first: it locks the folder, and a run that is in it keeps its config.toml
    try:
        replace_file(folder / "config.toml", [dump_config(config)])
        curation = Curation(config, Models(config.models, cache))
        if config.run.stage == "assemble":
            curation.check(STAGES[: STAGES.index("assemble")])
        for name in STAGES if config.run.stage == "all" else [config.run.stage]:
            curation.run(name)
    finally:
        cache.close()


class Curation:
    """The stages over one folder."""

    def __init__(self, config: CurateRecipe, models: Models):
        self.config, self.models, self.folder = config, models, config.run.folder
        self.used: dict[str, Prompts] = {}
        self.checking = False

    def run(self, name: str) -> None:
        """Run one stage. Raises ValueError where a stage before it has not run."""
        getattr(self, f"_{name}")()

    def check(self, names: Sequence[str]) -> None:
        """Raise ValueError where one of these stages would have to run, since the manifest would say that it has."""
        self.checking = True
        for name in names:
            self.run(name)
        self.checking = False

    def _sources(self) -> None:
        config, options = self.config, self.config.sources
        limits = options.passage_limit, options.post_limit, options.question_limit

        def write() -> StageCounts:
            rows: dict[str, Iterator[dict[str, Any]]] = {"passages": iter(()), "posts": iter(()), "given": iter(())}
            if options.texts:
                rows["passages"] = first(
                    read_passages(options.texts, config.passages), limits[0], "sources.passage_limit"
                )
            if options.posts:
                read = chain.from_iterable(map(read_posts, options.posts))
                rows["posts"] = first(read, limits[1], "sources.post_limit")
            if options.questions:
                rows["given"] = first(read_given(options.questions), limits[2], "sources.question_limit")
            counts = [write_rows(self.folder / f"{kind}.jsonl", found) for kind, found in rows.items()]
            return StageCounts(sum(counts), sum(counts))

        by_role = source_files(options)
        files = [*by_role["posts"], *by_role["questions"], *by_role["text"]]
        outputs = ["passages.jsonl", "posts.jsonl", "given.jsonl"]
        self._whole("sources", files, outputs, [asdict(config.passages), limits, roles(options)], write)

    def _clean(self) -> None:
        for name, source in (("clean", "passages"), ("clean_posts", "posts"), ("clean_given", "given")):
            ready, options = source == "given", self.config.clean
            stage = Clean(replace(options, least=1) if ready else options)  # a question may be as short as it likes
            stage.name = name
            self._rows(DistinctOptions(stage) if ready else stage, source, asdict(stage.config), batch_size=512)
        # Twin passages would be asked about twice; those that stay share a cluster, which links their questions.
        self._deduped("dedupe_texts", "clean", [])
        self._deduped("dedupe_posts", "clean_posts", self._benchmarks())

    def _questions(self) -> None:
        config, author, prompts = self.config.questions, self.models.author(), self._prompts("questions")
        settings = [asdict(config), what(author), prompts.sha256]
        self._rows(Questions(config, author, prompts), "dedupe_texts", settings)

    def _dedupe(self) -> None:
        questions, given = self._needed("questions"), self._needed("clean_given")

        def pool() -> StageCounts:
            rows = (row for path in (questions, given) for _, row in read_jsonl(path))
            count = write_rows(self.folder / "pool.jsonl", rows)
            return StageCounts(count, count)

        self._whole("pool", [questions, given], ["pool.jsonl"], None, pool)
        self._deduped("dedupe", "pool", self._benchmarks(), self.config.dedupe.best)

    def _deduped(self, name: str, source: str, benchmarks: list[Path], best: str = "") -> None:
        """Near-duplicates of a stage's rows go, and what stands in the benchmarks."""
        path, clean = self._needed(source), self.config.decontaminate
        config = replace(self.config.dedupe, best=best)  # a passage has not what the best question is told by

        def work() -> StageCounts:
            shingles = config.zh_chars, config.en_words  # the rows' own, or nothing would be found
            held = Benchmarks(clean, *shingles) if benchmarks else None
            with Progress(name, sum(1 for _ in read_jsonl(path))) as bar:
                found = dedupe(path, self.folder, config, held, lambda count: bar.update(count - bar.done), name)
            kept = found.pop("kept", 0)
            return StageCounts(kept + sum(found.values()), kept, dict(sorted(found.items())))

        settings = [asdict(config), *([asdict(clean)] if benchmarks else [])]
        self._whole(name, [path, *benchmarks], [f"{name}.jsonl", f"{name}.rejects.jsonl"], settings, work)

    def _benchmarks(self) -> list[Path]:
        return [file for path in self.config.decontaminate.benchmarks for file in benchmark_files(Path(path))]

    def _quality(self) -> None:
        config, judges, prompts = self.config, self.models.judges(), self._prompts("quality")
        settings = [asdict(config.quality), [what(judge) for judge in judges], prompts.sha256]
        settings.append(config.sources.trust_questions)
        with Passages(self._needed("clean")) as passages:
            stage: Stage = Quality(config.quality, judges, prompts, passages)
            if config.sources.trust_questions:
                stage = OnlyNew(stage)
            self._rows(stage, "dedupe", settings)

    def _review(self) -> None:
        config, source = self.config, self._needed("quality")
        files = [Path(path) for path in config.sources.decisions]

        def work() -> StageCounts:
            decisions = []
            for path in files:
                questions = (row for _, row in read_jsonl(source))
                decisions += read_csv(path, questions) if path.suffix == ".csv" else read_decisions(path)
            merged = review_file(source, decisions, self.folder, config.review)
            for note in merged.notes:
                print(f"  {note}")
            with Passages(self._needed("clean")) as passages:
                rows = sample_rows((row for _, row in read_jsonl(source)), config.review)
                write_page(self.folder / "review.html", rows, passages, decisions)
                write_csv(self.folder / "review.csv", rows, passages, decisions)
            return counted(merged.outcomes)

        outputs = ["review.jsonl", "review.rejects.jsonl", "review.html", "review.csv"]
        self._whole("review", [source, *files], outputs, asdict(config.review), work)
        self._hold_out()

    def _hold_out(self) -> None:
        config, source, by_source = self.config.hold_out, self._needed("review"), self.config.split_by_source

        def work() -> StageCounts:
            held = draw_held_out((row for _, row in read_jsonl(source)), config, by_source)
            return set_aside(source, held, self.folder / "rest.jsonl", self.folder / "held_out.jsonl")

        files = [source, *([config.file] if config.file else [])]
        self._whole("hold_out", files, ["rest.jsonl", "held_out.jsonl"], [asdict(config), by_source], work)

    def _rationale(self) -> None:
        config, author, prompts = self.config.rationale, self.models.author(), self._prompts("rationale")
        settings = [asdict(config), what(author), prompts.sha256]
        self._rows(Rationale(config, author, prompts), "rest", settings, Question.from_row)

    def _dialogue(self) -> None:
        config, prompts = self.config.dialogue, self._prompts("dialogue")
        models = self.config.models
        judge = [(models.judges or (models.author,))[0]] if self.config.sources.judge_dialogues else []
        author, *judges = self.models.get([models.author, *judge], "author")
        settings = [asdict(config), what(author), [what(judge) for judge in judges], prompts.sha256]
        self._rows(Dialogue(config, author, prompts, *judges), "dedupe_posts", settings)

    def _select(self) -> None:
        config, specs = self.config, self.config.models.selectors
        held = frozenset(row["id"] for _, row in read_jsonl(self._needed("held_out")))
        source = "rationale"
        for number, spec in enumerate(specs or ("",), start=1):  # one after the other: they may not fit together
            (selector,) = self.models.get([spec], "selectors")
            name = "select" if number == len(specs) else f"select_{number}"
            settings = [asdict(config.select), selector.name, what(selector), sorted(held)]
            self._rows(SelectStage([selector], config.select, held, name), source, settings)
            source = name
        remove_passes(self.folder, len(specs))
        answered, options = self._needed("select"), (config.divide, config.split_by_source)
        settings = [asdict(config.divide), config.split_by_source]
        self._whole("divide", [answered], DIVIDED, settings, lambda: divide(answered, self.folder, *options))

    def _assemble(self) -> None:
        sources = Sources(
            sft=self._needed(SFT_FILE.removesuffix(".jsonl")),
            grpo=self._needed(GRPO_FILE.removesuffix(".jsonl")),
            dialogues=self._needed("dialogue"),
            heldout=self._needed("held_out"),
        )
        config, prompts = self.config, [self._prompts(name) for name in PROMPTED]
        made_from = provenance(config, self.models, prompts)
        outputs = [*OUTPUTS.values(), "assemble.rejects.jsonl", MANIFEST_FILE]
        options = config.assemble_seed, made_from, config.split_by_source
        files = [*sources.files().values(), *made_from.inputs.values()]
        settings = [options[0], asdict(made_from), options[2]]
        self._whole("assemble", files, outputs, settings, lambda: assemble(sources, self.folder, *options))

    def _report(self) -> None:
        write_report(self.folder, self.folder / "report.html")
        print(f"report    {self.folder / 'report.html'}; to review by hand: {self.folder / 'review.html'}")

    def _rows(
        self,
        stage: Stage,
        source: str,
        settings: Any,
        check: Callable[[dict[str, Any]], object] | None = None,
        batch_size: int = 0,
    ) -> None:
        started, size = time.perf_counter(), batch_size or self.config.run.batch_size
        path = self._needed(source)
        if self.checking:
            Done(self.folder, stage.name, [path], settings, []).check()
            return
        counts = run_stage(stage, path, self.folder, size, settings, check, self.models.refused)
        self._tell(stage.name, counts, started)
        if counts.refused:
            print(f"  a server had no room for {counts.refused} requests; with more, the same command asks them again")

    def _whole(
        self, name: str, files: Sequence[Path], outputs: Sequence[str], settings: Any, work: Callable[[], StageCounts]
    ) -> None:
        started = time.perf_counter()
        if self.checking:
            Done(self.folder, name, files, settings, outputs).check()
            return
        self._tell(name, run_whole(name, files, self.folder, outputs, settings, work), started)

    def _tell(self, name: str, counts: StageCounts, started: float) -> None:
        reasons = sorted(((r, n) for r, n in counts.rejected.items() if n), key=lambda item: (-item[1], item[0]))
        dropped = ", ".join(f"{reason} {count}" for reason, count in reasons[:4])
        line = f"{name:<12}{counts.read:>7} rows, {counts.kept:>6} kept, {sum(counts.rejected.values()):>6} dropped"
        seconds = time.perf_counter() - started
        print(f"{line}{f' ({dropped})' if dropped else ''}, {seconds:.1f} s", flush=True)
        with open(self.folder / "timings.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": name, "read": counts.read, "seconds": round(seconds, 3)}) + "\n")

    def _needed(self, name: str) -> Path:
        """The file of an earlier stage. Raises ValueError that names it."""
        path = self.folder / f"{name}.jsonl"
        if not path.exists():
            raise ValueError(f"{path} is missing: run the stages before this one, or --run.stage all")
        return path

    def _prompts(self, name: str) -> Prompts:
        if name not in self.used:
            self.used[name] = load_prompts(self.config.run.prompts / f"{name}.toml")
        return self.used[name]


if __name__ == "__main__":
    with main_guard():
        main(load_config(CurateRecipe, sys.argv[1:], __doc__, table="curate"))
