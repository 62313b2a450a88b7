"""Compose questions with rationales from the authored concepts of recipes/data, deterministically.

    python recipes/compose.py --out runs/demo/data --seed 42 --language en --kinds field,concept,multiple

A concept has a term, a definition, a paraphrase of it, an everyday example, and what it is confused with. 15 % of the
concepts of each area are held out. Splits:
- train: the other concepts, asked by definition and by example;
- heldout: the same concepts, asked by paraphrase, with other stem wordings and other distractors than in train;
- heldout_concepts: the concepts that train never shows.
Kinds: "field" asks for the area of psychology, "concept" for the term among terms of its area, "multiple" for all the
terms that some descriptions fit. sft.jsonl and grpo.jsonl split train by concept. The same inputs and seed give the
same bytes. The wording is in recipes/data/wording_*.toml.
"""

from __future__ import annotations

import argparse
import random
import sys
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from cli import main_guard

from psychecore.data.prompts import worked_conversation
from psychecore.data.records import LANGUAGES, Question, read_jsonl, write_rows

DATA = Path(__file__).resolve().parent / "data"
AREAS = ("general", "developmental", "social", "abnormal", "counselling", "assessment", "ethics")
KINDS = ("field", "concept", "multiple")
HELD_OUT = 0.15
SOURCE = "psychecore demo corpus"


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


def compose(concepts: Sequence[Concept], seed: int = 42, kinds: Sequence[str] = KINDS) -> dict[str, list[Question]]:
    """The splits "train", "heldout" and "heldout_concepts", each in a seeded order. Raises ValueError for no kinds."""
    if not kinds or not set(kinds) <= set(KINDS):
        raise ValueError(f"kinds are {', '.join(kinds) or 'none'}, but must be of {', '.join(KINDS)}")
    held = _draw_held_out(concepts, seed)
    known, new = [c for c in concepts if c.id not in held], [c for c in concepts if c.id in held]
    composer = _Composer(seed)
    splits: dict[str, list[Question]] = {"train": [], "heldout": [], "heldout_concepts": []}
    for split, members, texts in (
        ("train", known, ("definition", "example")),
        ("heldout", known, ("paraphrase",)),
        ("heldout_concepts", new, ("definition", "example", "paraphrase")),
    ):
        if "field" in kinds:
            splits[split] += [composer.field(split, concept, text) for concept in members for text in texts]
        if "concept" in kinds:
            splits[split] += [composer.concept(split, concept, text, members) for concept in members for text in texts]
        if "multiple" in kinds:
            splits[split] += composer.multiple(split, members, texts if split == "train" else ("paraphrase",))
    return {name: _shuffled(_balance(rows, seed), f"{seed}/{name}") for name, rows in splits.items()}


class _Composer:
    def __init__(self, seed: int):
        self.seed = seed
        self.wording = {}
        for language in LANGUAGES:
            with open(DATA / f"wording_{language}.toml", "rb") as file:
                self.wording[language] = tomllib.load(file)
        self.trained: dict[str, set[str]] = {}  # by concept, the distractors of its training questions

    def field(self, split: str, concept: Concept, kind: str) -> Question:
        """The concept's area among four; of the six others, training offers one half and held-out text the other."""
        draw = self._draw(split, concept, f"{kind}/field")
        wording = self.wording[concept.language]["field"]
        others = _shuffled([area for area in AREAS if area != concept.area], f"{self.seed}/{concept.id}/field")
        areas = [concept.area, *(others[3:] if split == "heldout" else others[:3])]
        names = [wording["names"][area] for area in areas]
        stem = draw.choice(wording["train" if split == "train" else "heldout"])
        rationale = wording["rationale"].format(field=names[0])
        return self._single(draw, split, concept, f"{kind}-field", stem, kind, names, rationale)

    def concept(self, split: str, concept: Concept, kind: str, members: Sequence[Concept]) -> Question:
        """The right term among four of its area; the one that it is confused with comes first among the distractors."""
        draw = self._draw(split, concept, kind)
        wording, text = self.wording[concept.language]["concept"], getattr(concept, kind).lower()
        terms = {c.term for c in members}
        others = [c for c in members if c.language == concept.language and c.id != concept.id]
        pools = [[c.term for c in others if c.area == concept.area], [c.term for c in others]]  # the second: too few
        avoid = self.trained.get(concept.id, set()) if split == "heldout" else set()
        candidates = next(
            (fit for pool in pools if len(fit := [t for t in pool if t not in avoid and t.lower() not in text]) >= 3),
            None,
        )
        if candidates is None:
            raise ValueError(f"concept {concept.id!r} has fewer than 3 possible distractors; more concepts are needed")
        draw.shuffle(candidates)
        candidates.sort(key=lambda term: term != concept.confused_with)
        if split == "train":
            self.trained.setdefault(concept.id, set()).update(candidates[:3])
        described = "example" if kind == "example" else "definition"
        rationale = draw.choice(wording["rationales"][described]).format(
            term=concept.term, other=concept.confused_with if concept.confused_with in terms else candidates[0]
        )
        stem = draw.choice(wording[described if split == "train" else "heldout"])
        return self._single(draw, split, concept, kind, stem, kind, [concept.term, *candidates[:3]], rationale)

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
                wording = self.wording[pool[0]]
                gap = wording["gap"]
                stem = draw.choice(wording["multiple"]["train" if split == "train" else "heldout"])
                named = wording["list_separator"].join(f"({i}){gap}{c.term}" for i, c in enumerate(right, 1))
                terms = {c.term for c in right}
                questions.append(
                    Question(
                        id=f"{split}-{pool[0]}-{pool[1]}-multiple-{number + 1:03}",
                        question=stem.format(text=gap.join(f"({i}){gap}{text}" for i, text in enumerate(texts, 1))),
                        options=options,
                        answer="".join(letter for letter, term in options.items() if term in terms),
                        kind="multiple",
                        rationale=named + wording["stop"],
                        area=pool[1],
                        language=pool[0],  # type: ignore[arg-type]
                        source=SOURCE,
                    )
                )
        return questions

    def _draw(self, split: str, concept: Concept, kind: str) -> random.Random:
        return random.Random(f"{self.seed}/{split}/{concept.id}/{kind}")

    def _single(
        self,
        draw: random.Random,
        split: str,
        concept: Concept,
        name: str,
        stem: str,
        kind: str,
        choices: list[str],
        rationale: str,
    ) -> Question:
        """A question whose first choice is right."""
        options = _shuffled(choices, str(draw.random()))
        return Question(
            id=f"{split}-{concept.id}-{name}",
            question=stem.format(text=getattr(concept, kind)),
            options=dict(zip("ABCD", options, strict=True)),
            answer="ABCD"[options.index(choices[0])],
            kind="single",
            rationale=rationale,
            area=concept.area,
            language=concept.language,  # type: ignore[arg-type]
            source=SOURCE,
        )


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
    parser.add_argument("--kinds", default=",".join(KINDS), help="of field, concept, multiple")
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
    concepts = [c for c in concepts if c.language in languages]
    splits = compose(concepts, options.seed, options.kinds.split(","))
    keys = sorted({split_key(q) for q in splits["train"]})
    first = set(_shuffled(keys, f"{options.seed}/sft")[: round(options.sft_share * len(keys))])
    sft = [q for q in splits["train"] if split_key(q) in first]
    grpo = [q for q in splits["train"] if split_key(q) not in first]
    if not sft or not grpo:
        raise ValueError(
            f"--sft-share {options.sft_share} leaves {len(sft)} questions for SFT and {len(grpo)} for GRPO"
        )
    for name, rows in (*splits.items(), ("grpo", grpo)):
        write_rows(options.out / f"{name}.jsonl", rows)
    write_rows(options.out / "sft.jsonl", [worked_conversation(question) for question in sft])
    print(f"{len(concepts)} concepts, language {options.language}, seed {options.seed}, in {options.out}")
    for name, rows in (*splits.items(), ("sft", sft), ("grpo", grpo)):
        multiple = sum(q.kind == "multiple" for q in rows)
        print(f"  {name:<18}{len(rows):>6} questions, {multiple} of them with several right options")


def split_key(question: Question) -> str:
    """Questions on one concept stay together; those on several go by themselves."""
    return question.id if question.kind == "multiple" else question.id.removesuffix("-field").rpartition("-")[0]


if __name__ == "__main__":
    with main_guard():
        main(sys.argv[1:])
