"""One passage and one post through every stage: prints the rows that docs/DATA.md shows.

    python docs/worked_example.py

The stages are the real ones; what the models say is written by hand here, since a small model would not get this far.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from psychecore.curate.assemble import Sources, assemble
from psychecore.curate.clean import Clean
from psychecore.curate.dedupe import dedupe
from psychecore.curate.dialogue import Dialogue, DialogueConfig
from psychecore.curate.divide import DivideConfig, divide
from psychecore.curate.generator import Reply, Request
from psychecore.curate.prompts import load_prompts
from psychecore.curate.quality import Quality, QualityConfig
from psychecore.curate.questions import Questions, QuestionsConfig
from psychecore.curate.rationale import Rationale, RationaleConfig
from psychecore.curate.review import Decision, ReviewConfig, review_file, row_hash
from psychecore.curate.select import SelectStage
from psychecore.curate.stage import run_stage
from psychecore.data.records import read_jsonl

PROMPTS = Path(__file__).resolve().parents[1] / "recipes" / "prompts"

PASSAGE = {
    "id": "en-passage-1",
    "area": "general",
    "language": "en",
    "source": "example",
    "text": "In negative reinforcement, something unpleasant is taken away after an act , and the act becomes more "
    "frequent!!! 😀 Punishment works in the opposite direction. Visit https://example.com/psy for more.",
}
DRAFTS = """Quote: In negative reinforcement, something unpleasant is taken away after an act
Question: A seat-belt alarm stops when the driver buckles up, and buckling up becomes more frequent. What is this?
Type: single
A. Negative reinforcement
B. Positive punishment
C. Extinction
D. Habituation
Answer: A

Quote: Punishment makes every act less frequent
Question: In which direction does punishment work?
Type: single
A. It makes acts rarer
B. It makes acts more frequent
C. It has no effect
D. It depends on the weather
Answer: A"""
VERDICT = """answerable: 5 - the passage defines the term
unambiguous: 4 - one reading
key: 5 - the alarm is taken away
sound: 5 - textbook usage"""
ANSWERS = [
    "<think>The alarm is something unpleasant. It ends with the act, and the act becomes more frequent.</think>"
    "\nA. Negative reinforcement",
    "Say first whether something is added or taken away, then whether the act becomes more frequent or rarer.",
    "<think>The alarm is taken away when the belt is fastened. Fastening the belt becomes more frequent. Taking away "
    "plus more frequent is negative reinforcement; punishment would make the act rarer.</think>"
    "\nA. Negative reinforcement",
]
POST = {
    "id": "en-post-1",
    "language": "en",
    "source": "example",
    "topic": "sleep",
    "post": "I lie awake for hours and go through everything that went wrong at work. Anna",
    "reply": "Get up at the same time every day. If you lie awake for twenty minutes, get up and read something dull "
    "until you are sleepy. Write down what worries you an hour before you go to bed.",
}
REWRITE = (
    "It sounds exhausting to lie awake for hours while everything from work goes through your mind. No wonder you are "
    "worn out. A few things may be worth trying: get up at the same time every day. If you lie awake for about twenty "
    "minutes, get up and read something dull until you are sleepy. And write down what worries you an hour before you "
    "go to bed."
)


class Says:
    """A Generator that gives the replies it was given, in turn."""

    def __init__(self, name: str, *replies: str):
        self.name, self.replies = name, list(replies)

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """The next replies."""
        return [Reply(self.replies.pop(0), None) for _ in requests]


def main(folder: Path) -> None:
    """Run the stages and print what each kept and rejected."""
    prompts = {
        name: load_prompts(PROMPTS / f"{name}.toml") for name in ("questions", "quality", "rationale", "dialogue")
    }
    passages = write(folder / "passages.jsonl", PASSAGE)
    run_stage(Clean(), passages, folder)
    show(folder, "clean")
    questions = Questions(QuestionsConfig(count=2, multiple=0), Says("writer", DRAFTS), prompts["questions"])
    run_stage(questions, folder / "clean.jsonl", folder)
    show(folder, "questions")
    dedupe(folder / "questions.jsonl", folder)
    show(folder, "dedupe")
    run_stage(Quality(QualityConfig(), [Says("judge", VERDICT)], prompts["quality"]), folder / "dedupe.jsonl", folder)
    show(folder, "quality", "quality")
    [question] = (row for _, row in read_jsonl(folder / "quality.jsonl"))
    decision = Decision(question["id"], "accept", row_hash(question))
    review_file(folder / "quality.jsonl", [decision], folder, ReviewConfig())
    show(folder, "review", "review")
    rationale = Rationale(RationaleConfig(rounds=1), Says("writer", *ANSWERS), prompts["rationale"])
    run_stage(rationale, folder / "review.jsonl", folder)
    show(folder, "rationale", "rationale", "rationale_history")
    posts = write(folder / "posts.jsonl", POST)
    run_stage(Dialogue(DialogueConfig(), Says("writer", REWRITE, REWRITE), prompts["dialogue"]), posts, folder)
    show(folder, "dialogue")
    selectors = [Says("small", "It is B, positive punishment."), Says("large", "<think>It ends.</think>\nA.")]
    run_stage(SelectStage(selectors), folder / "rationale.jsonl", folder)
    show(folder, "select", "answers")
    divide(folder / "select.jsonl", folder, DivideConfig(grpo_minimum=0))
    show(folder, "matrix")
    sources = Sources(folder / "questions_sft.jsonl", folder / "questions_grpo.jsonl", folder / "dialogue.jsonl")
    assemble(sources, folder / "out")
    show(folder / "out", "sft")


def write(path: Path, row: dict) -> Path:
    """A file with one row."""
    path.write_text(json.dumps(row) + "\n")
    return path


def show(folder: Path, name: str, *keys: str) -> None:
    """Print the rows of a stage's files, or only some keys of them."""
    for path in (folder / f"{name}.jsonl", folder / f"{name}.rejects.jsonl"):
        for _, row in read_jsonl(path) if path.exists() else ():
            shown = {key: row[key] for key in keys} if keys and "rejects" not in path.name else row
            print(f"{path.name}: {json.dumps(shown, ensure_ascii=False)}\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
