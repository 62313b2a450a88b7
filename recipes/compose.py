"""Compose questions with rationales from the authored concepts of recipes/data, deterministically.

    python recipes/compose.py --out runs/demo/data --seed 42 --language en

A concept has a term, a definition, a paraphrase of it, an everyday example, and what it is confused with. 15 % of the
concepts of each area are held out. Splits:
- train: the other concepts, asked by definition and by example;
- heldout: the same concepts, asked by paraphrase, with other stem wordings and other distractors than in train;
- heldout_concepts: the concepts that train never shows, with distractors of their own kind.
About one question per four concepts has two or three right options. sft.jsonl and grpo.jsonl split train by concept.
The same inputs and seed give the same bytes.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from cli import main_guard

from psychecore.data.prompts import worked_conversation
from psychecore.data.records import LANGUAGES, Question, read_jsonl, write_rows

DATA = Path(__file__).resolve().parent / "data"
AREAS = ("general", "developmental", "social", "abnormal", "counselling", "assessment", "ethics")
HELD_OUT = 0.15
SOURCE = "psychecore demo corpus"

STEMS = {
    ("en", "definition"): (
        "Which term is defined here? {text}",
        "{text} What is this called?",
        "Name the concept. {text}",
        "A textbook says: {text} Which concept does it explain?",
        "Which of these does the following sentence define? {text}",
    ),
    ("en", "example"): (
        "{text} Which concept does this illustrate?",
        "{text} This is an instance of what?",
        "Read the scene. {text} Which term fits it?",
        "{text} How would a psychologist name this?",
        "Which concept is at work here? {text}",
    ),
    ("en", "heldout"): (
        "Choose the term that matches this description. {text}",
        "{text} Which option is being described?",
        "What do psychologists call the following? {text}",
        "Which option names this idea? {text}",
        "Pick the matching concept. {text}",
    ),
    ("zh", "definition"): (
        "下面定义的是哪个术语？{text}",
        "{text}这称为什么？",
        "请说出这一概念：{text}",
        "教材写道：{text}它解释的是哪个概念？",
        "下列哪一项符合这个定义？{text}",
    ),
    ("zh", "example"): (
        "{text}这体现了哪个概念？",
        "{text}这属于下列哪一种情况？",
        "阅读情境：{text}哪个术语最贴切？",
        "{text}心理学家会怎样称呼它？",
        "这里起作用的是哪个概念？{text}",
    ),
    ("zh", "heldout"): (
        "请选出与描述相符的术语。{text}",
        "{text}所描述的是哪一选项？",
        "心理学上把下述内容叫作什么？{text}",
        "哪个选项命名了这一观点？{text}",
        "请挑出对应的概念。{text}",
    ),
}
STEMS_MULTIPLE = {
    ("en", "train"): "Which concepts do these sentences describe? {text}",
    ("en", "heldout"): "Select every option that one of these descriptions fits. {text}",
    ("zh", "train"): "下列句子分别描述了哪些概念？{text}",
    ("zh", "heldout"): "请选出与下列任一描述相符的全部选项。{text}",
}
RATIONALES = {
    ("en", "definition"): (
        "The description fits {term}; it is easily confused with {other}.",
        "This defines {term}, which should not be mixed up with {other}.",
        "What is meant is {term}, not {other}.",
    ),
    ("en", "example"): (
        "This shows {term}; it is easily confused with {other}.",
        "The scene illustrates {term}, not {other}.",
        "What happens here is {term}, which should not be mixed up with {other}.",
    ),
    ("zh", "definition"): ("描述符合{term}，它容易与{other}混淆。", "这定义的是{term}，不应与{other}混为一谈。"),
    ("zh", "example"): ("这体现了{term}，它容易与{other}混淆。", "情境说明的是{term}，而不是{other}。"),
}


@dataclass(frozen=True)
class Concept:
    """A row of concepts_*.jsonl."""

    id: str
    term: str
    area: str
    definition: str
    paraphrase: str
    example: str
    confused_with: str
    language: str

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Concept:
        """Validate one JSON object. Raises ValueError that says which key is wrong."""
        for field in fields(cls):
            value = row.get(field.name)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{field.name} is {value!r}, but must be a non-empty text")
        if row["area"] not in AREAS or row["language"] not in LANGUAGES:
            raise ValueError(f"area {row['area']!r} or language {row['language']!r} is unknown")
        return cls(**{field.name: row[field.name] for field in fields(cls)})

    @property
    def pool(self) -> tuple[str, str]:
        """Concepts of one pool are each other's distractors."""
        return self.language, self.area


def read_concepts(paths: Iterable[Path]) -> list[Concept]:
    """All concepts of some files; ids and terms are unique. Raises ValueError with file and line."""
    concepts: list[Concept] = []
    seen: set[str] = set()
    for path in paths:
        for number, row in read_jsonl(path):
            try:
                concept = Concept.from_row(row)
            except ValueError as error:
                raise ValueError(f"{path} line {number}: {error}") from None
            for name in (concept.id, f"{concept.language} {concept.term.lower()}"):
                if name in seen:
                    raise ValueError(f"{path} line {number}: {name!r} stands twice")
                seen.add(name)
            concepts.append(concept)
    return concepts


def compose(concepts: Sequence[Concept], seed: int = 42) -> dict[str, list[Question]]:
    """The splits "train", "heldout" and "heldout_concepts", each in a seeded order."""
    held = _draw_held_out(concepts, seed)
    known, unknown = [c for c in concepts if c.id not in held], [c for c in concepts if c.id in held]
    known_terms = {c.term for c in known}
    composer = _Composer(seed)
    train: list[Question] = []
    heldout: list[Question] = []
    used: dict[str, set[str]] = {}
    for concept in known:
        pool = [c for c in known if c.pool == concept.pool and c.id != concept.id]
        for kind in ("definition", "example"):
            question = composer.single("train", concept, kind, pool, known_terms, used.get(concept.id, set()))
            used.setdefault(concept.id, set()).update(question.options.values())
            train.append(question)
        fresh = [c for c in pool if c.term not in used[concept.id]]
        heldout.append(composer.single("heldout", concept, "paraphrase", fresh, known_terms, set()))
    train += composer.multiple("train", known, ("definition", "example"))
    heldout += composer.multiple("heldout", known, ("paraphrase",))
    new: list[Question] = []
    unknown_terms = {c.term for c in unknown}
    for concept in unknown:
        others = [c for c in unknown if c.language == concept.language and c.id != concept.id]
        pool = [c for c in others if c.area == concept.area]
        pool = pool if len(pool) >= 3 else others
        for kind in ("definition", "example", "paraphrase"):
            new.append(composer.single("heldout_concepts", concept, kind, pool, unknown_terms, set()))
    new += composer.multiple("heldout_concepts", unknown, ("paraphrase",))
    splits = {"train": train, "heldout": heldout, "heldout_concepts": new}
    return {name: _shuffled(_balance(rows, seed), f"{seed}/{name}") for name, rows in splits.items()}


class _Composer:
    def __init__(self, seed: int):
        self.seed = seed

    def single(
        self, split: str, concept: Concept, kind: str, pool: list[Concept], terms: set[str], avoid: set[str]
    ) -> Question:
        """One right term among four; the term it is confused with comes first among the distractors."""
        draw = random.Random(f"{self.seed}/{split}/{concept.id}/{kind}")
        text = getattr(concept, "paraphrase" if kind == "paraphrase" else kind)
        wording = kind if split == "train" else "heldout"
        candidates = [c.term for c in pool if c.term not in avoid and c.term.lower() not in text.lower()]
        if len(candidates) < 3:
            candidates = [c.term for c in pool if c.term.lower() not in text.lower()]
        draw.shuffle(candidates)
        candidates.sort(key=lambda term: term != concept.confused_with)
        if len(candidates) < 3:
            raise ValueError(f"concept {concept.id!r} has {len(candidates)} possible distractors, but needs 3")
        other = concept.confused_with if concept.confused_with in terms else candidates[0]
        rationale_kind = "example" if kind == "example" else "definition"
        rationale = draw.choice(RATIONALES[concept.language, rationale_kind])
        options = [concept.term, *candidates[:3]]
        draw.shuffle(options)
        return Question(
            id=f"{split}-{concept.id}-{kind}",
            question=draw.choice(STEMS[concept.language, wording]).format(text=text),
            options=dict(zip("ABCD", options, strict=True)),
            answer="ABCD"[options.index(concept.term)],
            kind="single",
            rationale=rationale.format(term=concept.term, other=other),
            area=concept.area,
            language=concept.language,  # type: ignore[arg-type]
            source=SOURCE,
        )

    def multiple(self, split: str, concepts: Sequence[Concept], kinds: tuple[str, ...]) -> list[Question]:
        """Two or three described terms among four; four concepts of one area give one question."""
        questions = []
        for pool in sorted({c.pool for c in concepts}):
            members = _shuffled([c for c in concepts if c.pool == pool], f"{self.seed}/{split}/multiple/{pool}")
            for number in range(len(members) // 4):
                four = members[4 * number : 4 * number + 4]
                draw = random.Random(f"{self.seed}/{split}/multiple/{pool}/{number}")
                right = four[: draw.choice((2, 3))]
                texts = [getattr(c, draw.choice(kinds)) for c in right]
                if any(c.term.lower() in text.lower() for c in four[len(right) :] for text in texts):
                    continue  # a description that names a wrong option would make it arguable
                draw.shuffle(four)
                options = dict(zip("ABCD", (c.term for c in four), strict=True))
                language = pool[0]
                stem = STEMS_MULTIPLE[language, "train" if split == "train" else "heldout"]
                gap, stop = (" ", ".") if language == "en" else ("", "。")
                text = gap.join(f"({i}){gap}{text}" for i, text in enumerate(texts, start=1))
                named = ("; " if language == "en" else "；").join(f"({i}){gap}{c.term}" for i, c in enumerate(right, 1))
                questions.append(
                    Question(
                        id=f"{split}-{language}-{pool[1]}-multiple-{number + 1:03}",
                        question=stem.format(text=text),
                        options=options,
                        answer="".join(letter for letter, term in options.items() if term in {c.term for c in right}),
                        kind="multiple",
                        rationale=named + stop,
                        area=pool[1],
                        language=language,  # type: ignore[arg-type]
                        source=SOURCE,
                    )
                )
        return questions


def _draw_held_out(concepts: Sequence[Concept], seed: int) -> set[str]:
    held: set[str] = set()
    for pool in sorted({c.pool for c in concepts}):
        ids = _shuffled([c.id for c in concepts if c.pool == pool], f"{seed}/held/{pool}")
        held.update(ids[: round(HELD_OUT * len(ids))])
    return held


def _balance(questions: list[Question], seed: int) -> list[Question]:
    """Move the right answers of single questions so that each letter is right equally often, to within one."""
    singles = [i for i, q in enumerate(questions) if q.kind == "single"]
    letters = _shuffled(["ABCD"[k % 4] for k in range(len(singles))], f"{seed}/letters")
    balanced = list(questions)
    for i, letter in zip(singles, letters, strict=True):
        options = dict(questions[i].options)
        gold = questions[i].answer
        options[gold], options[letter] = options[letter], options[gold]
        balanced[i] = replace(questions[i], options=options, answer=letter)
    return balanced


def _shuffled(items: Sequence[Any], seed: str) -> list[Any]:
    copy = list(items)
    random.Random(seed).shuffle(copy)  # a text seed is hashed with SHA-512: the same in every process
    return copy


def main(argv: Sequence[str]) -> None:
    """Write the splits, sft.jsonl and grpo.jsonl, and print what they hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--language", default="en", help="en, zh, or en,zh")
    parser.add_argument("--sft-share", type=float, default=0.5, help="share of the concepts that go to sft.jsonl")
    parser.add_argument(
        "--concepts", type=Path, nargs="*", help="concept files instead of recipes/data/concepts_*.jsonl"
    )
    options = parser.parse_args(argv)
    languages = options.language.split(",")
    if not set(languages) <= set(LANGUAGES) or not 0 < options.sft_share < 1:
        raise ValueError(
            f"--language {options.language!r} must be of en, zh; --sft-share {options.sft_share} in (0, 1)"
        )
    concepts = read_concepts(options.concepts or sorted(DATA.glob("concepts_*.jsonl")))
    splits = compose([c for c in concepts if c.language in languages], options.seed)
    keys = sorted({_split_key(q) for q in splits["train"]})
    first = set(_shuffled(keys, f"{options.seed}/sft")[: round(options.sft_share * len(keys))])
    sft = [q for q in splits["train"] if _split_key(q) in first]
    grpo = [q for q in splits["train"] if _split_key(q) not in first]
    for name, rows in (*splits.items(), ("grpo", grpo)):
        write_rows(options.out / f"{name}.jsonl", rows)
    write_rows(options.out / "sft.jsonl", [worked_conversation(question) for question in sft])
    print(f"{len(concepts)} concepts, language {options.language}, seed {options.seed}, in {options.out}")
    for name, rows in (*splits.items(), ("sft", sft), ("grpo", grpo)):
        multiple = sum(q.kind == "multiple" for q in rows)
        print(f"  {name:<18}{len(rows):>6} questions, {multiple} of them with several right options")


def _split_key(question: Question) -> str:
    """Questions on one concept stay together; those on several go by themselves."""
    return question.id if question.kind == "multiple" else question.id.rpartition("-")[0]


if __name__ == "__main__":
    with main_guard():
        main(sys.argv[1:])
