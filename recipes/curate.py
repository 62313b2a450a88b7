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
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from cli import dump_config, load_config, main_guard
from curate_models import Models
from curate_options import STAGES, CurateRecipe
from curate_rows import OnlyNew, Passages, counted, first, write_rows

from psychecore.curate.assemble import MANIFEST_FILE, OUTPUTS, Provenance, Sources, assemble
from psychecore.curate.cache import Cache
from psychecore.curate.clean import Clean
from psychecore.curate.decontaminate import Benchmarks
from psychecore.curate.dedupe import dedupe
from psychecore.curate.dialogue import Dialogue
from psychecore.curate.divide import GRPO_FILE, MATRIX_FILE, REPORT_FILE, SFT_FILE, divide
from psychecore.curate.divide import REJECTS_FILE as DIVIDE_REJECTS
from psychecore.curate.holdout import draw_held_out, set_aside
from psychecore.curate.prompts import Prompts, load_prompts
from psychecore.curate.quality import Quality
from psychecore.curate.questions import Questions
from psychecore.curate.rationale import Rationale
from psychecore.curate.report import write_report
from psychecore.curate.review import read_decisions, review_file, sample_rows
from psychecore.curate.review_page import write_page
from psychecore.curate.select import SelectStage
from psychecore.curate.sources import SUFFIXES, read_given, read_passages, read_posts
from psychecore.curate.stage import Stage, StageCounts, run_stage, run_whole
from psychecore.data.records import Question, read_jsonl
from psychecore.durable import replace_file


def main(config: CurateRecipe) -> None:
    """Run all stages, or the one that is named."""
    folder = config.run.folder
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "config.toml", [dump_config(config)])
    cache = Cache(folder / "cache.jsonl")
    try:
        curation = Curation(config, Models(config.models, cache))
        for name in STAGES if config.run.stage == "all" else [config.run.stage]:
            curation.run(name)
    finally:
        cache.close()


class Curation:
    """The stages over one folder."""

    def __init__(self, config: CurateRecipe, models: Models):
        self.config, self.models, self.folder = config, models, config.run.folder
        self.used: dict[str, Prompts] = {}

    def run(self, name: str) -> None:
        """Run one stage. Raises ValueError where a stage before it has not run."""
        getattr(self, f"_{name}")()

    def _sources(self) -> None:
        config, options = self.config, self.config.sources
        limits = options.passage_limit, options.post_limit, options.question_limit

        def write() -> StageCounts:
            rows: dict[str, Iterator[dict[str, Any]]] = {"passages": iter(()), "posts": iter(()), "given": iter(())}
            if options.texts:
                rows["passages"] = first(read_passages(options.texts, config.passages), options.passage_limit)
            if options.posts:
                read = chain.from_iterable(map(read_posts, options.posts))
                rows["posts"] = first(read, options.post_limit)
            if options.questions:
                rows["given"] = read_given(options.questions, options.question_limit)
            counts = [write_rows(self.folder / f"{kind}.jsonl", found) for kind, found in rows.items()]
            return StageCounts(sum(counts), sum(counts))

        files = [*options.posts, *([options.questions] if options.questions else [])]
        if options.texts and options.texts.is_dir():
            files += sorted(path for path in options.texts.rglob("*") if path.suffix in SUFFIXES)
        elif options.texts:
            files.append(options.texts)
        outputs = ["passages.jsonl", "posts.jsonl", "given.jsonl"]
        self._whole("sources", files, outputs, [asdict(config.passages), limits], write)

    def _clean(self) -> None:
        for name, source in (("clean", "passages"), ("clean_posts", "posts")):
            stage = Clean(self.config.clean)
            stage.name = name
            self._rows(stage, source, asdict(self.config.clean), batch_size=512)

    def _questions(self) -> None:
        config, author, prompts = self.config.questions, self.models.author(), self._prompts("questions")
        settings = [asdict(config), author.identity, prompts.sha256]
        self._rows(Questions(config, author, prompts), "clean", settings)

    def _dedupe(self) -> None:
        config = self.config
        questions, given = self._needed("questions"), self._needed("given")

        def pool() -> StageCounts:
            rows = (row for path in (questions, given) for _, row in read_jsonl(path))
            count = write_rows(self.folder / "pool.jsonl", rows)
            return StageCounts(count, count)

        self._whole("pool", [questions, given], ["pool.jsonl"], None, pool)
        benchmarks = [Path(path) for path in config.decontaminate.benchmarks]
        files = [file for path in benchmarks for file in (sorted(path.rglob("*.json*")) if path.is_dir() else [path])]
        outputs = ["dedupe.jsonl", "dedupe.rejects.jsonl"]
        settings = [asdict(config.dedupe), asdict(config.decontaminate)]

        def work() -> StageCounts:
            held = Benchmarks(config.decontaminate) if benchmarks else None
            reasons = dict(dedupe(self._needed("pool"), self.folder, config.dedupe, held))
            kept = reasons.pop("kept", 0)
            return StageCounts(kept + sum(reasons.values()), kept, dict(sorted(reasons.items())))

        self._whole("dedupe", [self._needed("pool"), *files], outputs, settings, work)

    def _quality(self) -> None:
        config, judges, prompts = self.config, self.models.judges(), self._prompts("quality")
        settings = [asdict(config.quality), [judge.identity for judge in judges], prompts.sha256]
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
            decisions = [decision for path in files for decision in read_decisions(path)]
            merged = review_file(source, decisions, self.folder, config.review)
            for note in merged.notes:
                print(f"  {note}")
            with Passages(self._needed("clean")) as passages:
                rows = sample_rows((row for _, row in read_jsonl(source)), config.review)
                write_page(self.folder / "review.html", rows, passages, decisions)
            return counted(merged.outcomes)

        outputs = ["review.jsonl", "review.rejects.jsonl", "review.html"]
        self._whole("review", [source, *files], outputs, asdict(config.review), work)
        self._hold_out()

    def _hold_out(self) -> None:
        config, source = self.config.hold_out, self._needed("review")

        def work() -> StageCounts:
            held = draw_held_out((row for _, row in read_jsonl(source)), config)
            return set_aside(source, held, self.folder / "rest.jsonl", self.folder / "held_out.jsonl")

        files = [source, *([config.file] if config.file else [])]
        self._whole("hold_out", files, ["rest.jsonl", "held_out.jsonl"], asdict(config), work)

    def _rationale(self) -> None:
        config, author, prompts = self.config.rationale, self.models.author(), self._prompts("rationale")
        settings = [asdict(config), author.identity, prompts.sha256]
        self._rows(Rationale(config, author, prompts), "rest", settings, self._is_question)

    def _dialogue(self) -> None:
        config, prompts = self.config.dialogue, self._prompts("dialogue")
        asked = [self.config.models.author, *(self.models.options.judges[:1] if self._judges_dialogues else ())]
        author, *judges = self.models.get(asked, "author")
        settings = [asdict(config), author.identity, [judge.identity for judge in judges], prompts.sha256]
        self._rows(Dialogue(config, author, prompts, *judges), "clean_posts", settings)

    def _select(self) -> None:
        config, specs = self.config, self.config.models.selectors
        held = frozenset(row["id"] for _, row in read_jsonl(self._needed("held_out")))
        source = "rationale"
        for number, spec in enumerate(specs or ("",), start=1):  # one after the other: they may not fit together
            (selector,) = self.models.get([spec], "selectors")
            name = "select" if number == len(specs) else f"select_{number}"
            settings = [asdict(config.select), selector.name, selector.identity, sorted(held)]
            self._rows(SelectStage([selector], config.select, held, name), source, settings)
            source = name
        outputs = [SFT_FILE, GRPO_FILE, DIVIDE_REJECTS, MATRIX_FILE, REPORT_FILE]
        answered = self._needed("select")
        self._whole(
            "divide", [answered], outputs, asdict(config.divide), lambda: divide(answered, self.folder, config.divide)
        )

    def _assemble(self) -> None:
        sources = Sources(
            sft=self._needed(SFT_FILE.removesuffix(".jsonl")),
            grpo=self._needed(GRPO_FILE.removesuffix(".jsonl")),
            dialogues=self._needed("dialogue"),
            heldout=self._needed("held_out"),
        )
        provenance = self._provenance()
        outputs = [*OUTPUTS.values(), "assemble.rejects.jsonl", MANIFEST_FILE]
        seed = self.config.assemble_seed
        settings = [seed, asdict(provenance)]
        files = list(sources.files().values())
        self._whole("assemble", files, outputs, settings, lambda: assemble(sources, self.folder, seed, provenance))

    def _report(self) -> None:
        write_report(self.folder, self.folder / "report.html")
        print(f"report    {self.folder / 'report.html'}; to review by hand: {self.folder / 'review.html'}")

    @property
    def _judges_dialogues(self) -> bool:
        return self.config.sources.judge_dialogues and bool(self.models.options.judges)

    def _provenance(self) -> Provenance:
        """What went in, of what, by whom; without paths and times, so that the same run gives the same bytes."""
        order = ("clean", "clean_posts", "questions", "pool", "dedupe", "quality", "review", "hold_out", "rationale",
                 "dialogue", "select", "divide")  # fmt: skip
        stages = []
        for name in order:
            done = self.folder / f"{name}.done.json"
            if done.exists():
                stages.append({"name": name, **json.loads(done.read_text(encoding="utf-8"))["counts"]})
        config, options = self.config, self.config.sources
        inputs: dict[str, Path | None] = {f"posts {number}": path for number, path in enumerate(options.posts)}
        inputs |= {"questions": options.questions}
        inputs |= {
            f"benchmark {n}": Path(p) for n, p in enumerate(config.decontaminate.benchmarks) if Path(p).is_file()
        }
        inputs |= {"texts": options.texts if options.texts and options.texts.is_file() else None}
        inputs |= {"passages as read": self.folder / "passages.jsonl"}
        names = ("questions", "quality", "rationale", "dialogue")
        versions = {f"{name}.toml": self._prompts(name).version for name in names}
        seeds = {
            name: getattr(config, name).seed for name in (*names, "dedupe", "review", "hold_out", "select", "divide")
        }
        settings = asdict(config)
        for hidden in ("run", "models", "sources"):  # paths, and what tells nothing of the result
            settings.pop(hidden)
        return Provenance(
            stages=stages,
            inputs={role: path for role, path in inputs.items() if path},
            models=self.models.described(),
            prompts=versions,
            seeds=seeds,
            config=json.loads(json.dumps(settings, default=str)),
        )

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
        self._tell(stage.name, run_stage(stage, path, self.folder, size, settings, check), started)

    def _whole(
        self, name: str, files: Sequence[Path], outputs: Sequence[str], settings: Any, work: Callable[[], StageCounts]
    ) -> None:
        started = time.perf_counter()
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

    def _is_question(self, row: dict[str, Any]) -> None:
        Question.from_row(row)


if __name__ == "__main__":
    with main_guard():
        main(load_config(CurateRecipe, sys.argv[1:], __doc__, table="curate"))
