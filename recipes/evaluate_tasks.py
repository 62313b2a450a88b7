"""What an evaluation asks: every benchmark read and checked, before a model is asked anything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common import require
from evaluate_options import BenchmarkOptions, EvaluateRecipe

from psychecore.curate.prompts import Prompts, load_prompts
from psychecore.evaluate import cpsyexam, judge, pceb
from psychecore.evaluate.item import Essay, Item, Problem
from psychecore.evaluate.question_files import first_of_each, read_question_file
from psychecore.evaluate.scores import Tallied
from psychecore.evaluate.text_overlap import text_overlap

Weights = Mapping[str, tuple[Mapping[str, float], bool]]  # of a macro mean: (weight by value of the group, elastic)


@dataclass(frozen=True)
class ChoiceTask:
    """Multiple-choice questions; `averages` are macro means over the group `macro`.

    shots: worked examples before each, where the letters go into CPsyExam's submission. theirs: the other's answers.
    """

    name: str
    items: Sequence[Item]
    groups: Sequence[str]
    macro: str = ""
    averages: Weights = field(default_factory=dict)
    problems: Sequence[Problem] = ()
    shots: int | None = None
    theirs: Sequence[Tallied] = ()

    @property
    def inputs(self) -> dict[str, str]:
        """What the results depend on besides the model and how it answers."""
        return {"questions": fingerprint(self.items)}


@dataclass(frozen=True)
class EssayTask:
    """Open questions. theirs: the other's scores by figure, for each question that it has answered."""

    name: str
    essays: Sequence[Essay]
    theirs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def inputs(self) -> dict[str, str]:
        """As of ChoiceTask."""
        return {"questions": fingerprint(self.essays)}


@dataclass(frozen=True)
class DialogueTask:
    """Turns to be answered and judged. theirs: the other's replies by turn."""

    name: str
    turns: Sequence[judge.Turn]
    prompts: Prompts
    max_new_tokens: int
    theirs: Mapping[str, str] = field(default_factory=dict)

    @property
    def inputs(self) -> dict[str, str]:
        """As of ChoiceTask, without the judge's weights."""
        return {
            "dialogues": fingerprint(self.turns),
            "prompts": self.prompts.sha256,
            "judge.max_new_tokens": str(self.max_new_tokens),
        }


Task = ChoiceTask | EssayTask | DialogueTask


def read_tasks(config: EvaluateRecipe) -> list[Task]:
    """The benchmarks in the order in which they are asked.

    Raises FileNotFoundError or ValueError, naming the file, for all that is wrong with them: too few worked examples
    and a prompt that the judge would need too.
    """
    benchmark = config.benchmark
    for option in ("pceb", "cpsyexam", "questions", "dialogues"):
        given = getattr(benchmark, option) or ()
        for path in given if isinstance(given, tuple) else (given,):
            require(path, f"benchmark.{option}")
    tasks: list[Task] = [*_pceb(benchmark)] if benchmark.pceb else []
    if benchmark.cpsyexam:
        tasks += _cpsyexam(benchmark.cpsyexam, benchmark, config.run.seed)
    for path in benchmark.questions:
        tasks.append(ChoiceTask(path.stem, read_question_file(path)[: benchmark.limit or None], ("kind", "area")))
    for path in benchmark.dialogues:
        tasks.append(_dialogues(path, config))
    return tasks


def fingerprint(rows: Sequence[Any]) -> str:
    """SHA-256 of dataclasses."""
    text = json.dumps([asdict(row) for row in rows], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _pceb(benchmark: BenchmarkOptions) -> Iterator[Task]:
    assert benchmark.pceb is not None
    found = pceb.read_pceb(benchmark.pceb)
    if items := first_of_each(found.items, "column", benchmark.limit):
        weights = pceb.column_weights({item.groups["column"]: 1 for item in items})
        part = "" if len(weights) == len(pceb.COLUMNS) else f" ({len(weights)} of {len(pceb.COLUMNS)})"
        averages = {f"standard{part}": (weights, False), f"elastic{part}": (weights, True)}
        yield ChoiceTask("pceb", items, ("column", "area", "tier"), "column", averages, found.problems)
    elif not benchmark.essays:
        raise ValueError(f"{benchmark.pceb} holds essays only, and benchmark.essays is false")
    if found.essays and benchmark.essays:
        try:
            text_overlap("试", "试")  # an absent package is told now, not after hours
        except ImportError as error:
            raise ValueError(f"{error}; or leave the essays out, --benchmark.essays false") from None
        yield EssayTask("pceb_essays", found.essays[: benchmark.limit or None])


def _cpsyexam(path: Path, benchmark: BenchmarkOptions, seed: int) -> Iterator[Task]:
    exam, split = cpsyexam.read_cpsyexam(path), benchmark.split
    for shots in benchmark.shots:
        try:
            items = exam.with_shots(split, shots, seed)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; --benchmark.split and --benchmark.shots say what is used") from None
        items = first_of_each(items, "task", benchmark.limit)
        keyless = split == "test"
        averages = {} if keyless else {name: (each, False) for name, each in cpsyexam.task_weights(items).items()}
        yield ChoiceTask(
            name=f"cpsyexam_{split}_{shots}_shot",
            items=items,
            groups=("kind", "subject", "task"),
            macro="task",
            averages=averages,
            problems=exam.problems,
            shots=shots if keyless else None,
        )


def _dialogues(path: Path, config: EvaluateRecipe) -> DialogueTask:
    turns = judge.read_dialogues(path, config.benchmark.last_turn_only)[: config.benchmark.limit or None]
    require(config.run.prompts, "run.prompts")
    prompts = load_prompts(config.run.prompts / "judge.toml")
    for language in sorted({turn.language for turn in turns}):  # an absent table or value is told now
        for rubric in config.judge.rubrics:
            prompts.messages(rubric, language, dialogue="", reply="")
        if config.run.against:
            prompts.messages("compare", language, dialogue="", reply_a="", reply_b="")
    return DialogueTask(path.stem, turns, prompts, config.judge.max_new_tokens)
