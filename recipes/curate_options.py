"""What a curation depends on: where it reads and writes, its models, and the options of every stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from common import option
from curate_models import ModelsOptions

from psychecore.curate.clean import CleanConfig
from psychecore.curate.decontaminate import DecontaminateConfig
from psychecore.curate.dedupe import DedupeConfig
from psychecore.curate.dialogue import DialogueConfig
from psychecore.curate.divide import DivideConfig
from psychecore.curate.holdout import HoldOutConfig
from psychecore.curate.quality import QualityConfig
from psychecore.curate.questions import QuestionsConfig
from psychecore.curate.rationale import RationaleConfig
from psychecore.curate.review import ReviewConfig
from psychecore.curate.select import SelectConfig
from psychecore.curate.sources import PassageConfig

PROMPTS = Path(__file__).resolve().parent / "prompts"
STAGES = (
    "sources",
    "clean",
    "questions",
    "dedupe",
    "quality",
    "review",
    "rationale",
    "dialogue",
    "select",
    "assemble",
    "report",
)


@dataclass(frozen=True)
class RunOptions:
    """Where to, and what."""

    folder: Path = option(Path("runs/curate"), "holds every stage's files; an interrupted curation continues in it")
    stage: str = option("all", "all, or one of " + ", ".join(STAGES))
    batch_size: int = option(64, "rows that a stage of models takes at a time")
    prompts: Path = option(PROMPTS, "folder of the prompts, one TOML file a stage")

    def __post_init__(self) -> None:
        if self.stage not in ("all", *STAGES):
            raise ValueError(f"stage is {self.stage!r}, but must be all or one of {', '.join(STAGES)}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}, but must be at least 1")


@dataclass(frozen=True)
class SourceOptions:
    """What is read."""

    texts: Path | None = option(None, "file or folder of .txt, .md and .jsonl")
    posts: tuple[Path, ...] = option((), "posts with replies: .jsonl, .json or .csv, ours or counsel_chat's")
    questions: Path | None = option(None, "ready questions, JSONL; they join after the stage questions")
    passage_limit: int = option(0, "write questions on the first so many passages only; 0: all")
    post_limit: int = option(0, "only the first so many posts; 0: all")
    question_limit: int = option(0, "only the first so many ready questions; 0: all")
    trust_questions: bool = option(False, "ready questions are not shown to the judges")
    judge_dialogues: bool = option(False, "the first judge also compares reply and rewrite")
    decisions: tuple[str, ...] = option((), "review decisions, .jsonl of the page or .csv; the later wins")

    def __post_init__(self) -> None:
        if not (self.texts or self.posts or self.questions):
            raise ValueError("nothing to read: give texts, posts or questions")
        if min(self.passage_limit, self.post_limit, self.question_limit) < 0:
            raise ValueError("passage_limit, post_limit and question_limit must be at least 0")


@dataclass(frozen=True)
class CurateRecipe:
    """Everything a curation depends on."""

    sources: SourceOptions
    run: RunOptions = field(default_factory=RunOptions)
    models: ModelsOptions = field(default_factory=ModelsOptions)
    passages: PassageConfig = field(default_factory=PassageConfig)
    clean: CleanConfig = field(default_factory=CleanConfig)
    questions: QuestionsConfig = field(default_factory=QuestionsConfig)
    dedupe: DedupeConfig = field(default_factory=DedupeConfig)
    decontaminate: DecontaminateConfig = field(default_factory=DecontaminateConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    review: ReviewConfig = field(default_factory=ReviewConfig)
    hold_out: HoldOutConfig = field(default_factory=HoldOutConfig)
    rationale: RationaleConfig = field(default_factory=RationaleConfig)
    dialogue: DialogueConfig = field(default_factory=DialogueConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    divide: DivideConfig = field(default_factory=DivideConfig)
    split_by_source: bool = option(False, "rows of one source, such as a book, stay in one of sft, grpo and heldout")
    assemble_seed: int = option(42, "orders the rows of the training files")
