"""What an evaluation depends on: the model, the benchmarks, how it answers, the judge, and where the results go."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from common import option
from curate_models import FORM

from psychecore.evaluate.answers import AnswerConfig
from psychecore.evaluate.judge import RUBRICS

PROMPTS = Path(__file__).resolve().parent / "prompts"
RESERVED = re.compile(  # names of benchmarks, and endings that the files of judged dialogues get
    rf"pceb|pceb_essays|cpsyexam_(dev|test|train)_\d+_shot|.*\.(replies|compare|{'|'.join(RUBRICS)})", re.DOTALL
)


@dataclass(frozen=True)
class ModelOptions:
    """The model under test; the settings of servers and of local models hold for the judge as well."""

    path: str = field(metadata={"help": FORM})
    keys: tuple[str, ...] = option((), "HOST=VARIABLE: the environment variable that holds the API key of a server")
    dtype: Literal["auto", "bfloat16", "float32"] = option("auto", "of local models; auto: bfloat16 where it is fast")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "of local models; auto takes CUDA where there is one")
    thinking: bool | None = option(None, "the switch of chat templates that have one (Qwen3); none: as they come")
    slots: int = option(32, "sequences that a local model writes at a time")
    max_length: int = option(
        8192, "tokens of prompt and answer; a longer question gets an empty answer, and is counted"
    )
    concurrency: int = option(16, "requests at a time to a server")
    timeout_s: float = option(300.0, "seconds that a server has for one try")
    give_up_after_s: float = option(900.0, "seconds that a server may fail before the run ends")


@dataclass(frozen=True)
class BenchmarkOptions:
    """What it is asked."""

    pceb: Path | None = option(None, "folder of PCEB as published")
    essays: bool = option(True, "PCEB's open case questions too (needs the eval extra)")
    cpsyexam: Path | None = option(None, "zip or folder of CPsyExam")
    split: Literal["dev", "test", "train"] = option(
        "dev", "of CPsyExam; test has no answers, so a submission is written"
    )
    shots: tuple[int, ...] = option((0, 5), "worked examples before each question of CPsyExam, one run for each number")
    questions: tuple[Path, ...] = option((), "multiple-choice JSONL, in our schema or {question, options, answer}")
    dialogues: tuple[Path, ...] = option((), "dialogues to be continued and judged, JSONL or JSON of {id, messages}")
    last_turn_only: bool = option(False, "dialogues: only the last client turn of each row")
    limit: int = option(0, "only the first so many questions of each column, task or file; 0: all")

    def __post_init__(self) -> None:
        if not (self.pceb or self.cpsyexam or self.questions or self.dialogues):
            raise ValueError("nothing to evaluate on: give benchmark.pceb, cpsyexam, questions or dialogues")
        if self.limit < 0 or not self.shots or min(self.shots) < 0:
            raise ValueError(f"limit {self.limit} and shots {self.shots} must be at least 0, and shots not empty")
        files = (*self.questions, *self.dialogues)
        names = [path.stem.casefold() for path in files]  # some file systems keep x and X in one place
        if double := next((path.stem for path in files if names.count(path.stem.casefold()) > 1), None):
            raise ValueError(f"two files are named {double!r}; results are kept by that name, so rename one")
        if taken := next((path for path in files if RESERVED.fullmatch(path.stem.casefold())), None):
            raise ValueError(f"{taken}: {taken.stem!r} is the name of results of our own, so rename the file")


@dataclass(frozen=True)
class JudgeOptions:
    """Who judges dialogue."""

    path: str = option("", FORM)
    rubrics: tuple[str, ...] = option(tuple(RUBRICS), "of " + ", ".join(RUBRICS))
    max_new_tokens: int = option(1024, "longest verdict")

    def __post_init__(self) -> None:
        if not self.rubrics:
            raise ValueError(f"rubrics is empty, so nothing would be judged: give some of {', '.join(RUBRICS)}")
        if strange := [name for name in self.rubrics if name not in RUBRICS]:
            raise ValueError(f"rubrics holds {strange[0]!r:.80}, but must be of {', '.join(RUBRICS)}")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}, but must be at least 1")


@dataclass(frozen=True)
class RunOptions:
    """Where to, and against what."""

    folder: Path = option(Path("runs/evaluation"), "results; a run that was killed continues from its cache.jsonl")
    against: Path | None = option(None, "results of another model on the same questions: paired differences")
    prompts: Path = option(PROMPTS, "folder of judge.toml")
    seed: int = option(0, "of the bootstrap and of the draw of worked examples")

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, but must be at least 0")


@dataclass(frozen=True)
class EvaluateRecipe:
    """Everything an evaluation depends on."""

    model: ModelOptions
    benchmark: BenchmarkOptions
    answers: AnswerConfig = field(default_factory=AnswerConfig)
    judge: JudgeOptions = field(default_factory=JudgeOptions)
    run: RunOptions = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        asked = self.benchmark
        if asked.dialogues and not self.judge.path:
            raise ValueError(f"benchmark.dialogues needs a judge: give judge.path, {FORM}")
        if not asked.dialogues and (asked.last_turn_only or self.judge != JudgeOptions()):
            raise ValueError("judge and benchmark.last_turn_only are of benchmark.dialogues, which isn't given")
        if not asked.cpsyexam and (asked.split, asked.shots) != ("dev", (0, 5)):
            raise ValueError("benchmark.split and shots are of benchmark.cpsyexam, which isn't given")
