"""The demo corpus and its composer: enough of it, well formed, deterministic, and its splits really apart."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from compose import AREAS, DATA, compose, main, read_concepts

from psychecore.data.prompts import worked_conversation
from psychecore.data.records import Question, read_conversations, read_questions
from psychecore.reward.score import RewardConfig, score_group

CONCEPTS = read_concepts(sorted(DATA.glob("concepts_*.jsonl")))
SPLITS = {language: compose([c for c in CONCEPTS if c.language == language]) for language in ("en", "zh")}


def body(question: Question) -> str:
    """The description without its stem: the longest sentence of the question."""
    return max(re.split(r"(?<=[.?？。：])\s*", question.question), key=len)


def test_the_corpus_is_as_large_as_promised_and_covers_every_area() -> None:
    counts = Counter((c.language, c.area) for c in CONCEPTS)
    assert sum(n for (language, _), n in counts.items() if language == "en") >= 400
    assert sum(n for (language, _), n in counts.items() if language == "zh") >= 150
    assert {area for _, area in counts} == set(AREAS)
    passages = [json.loads(line) for path in DATA.glob("passages_*.jsonl") for line in path.read_text().splitlines()]
    assert len(passages) >= 40
    assert len({p["id"] for p in passages}) == len({p["text"] for p in passages}) == len(passages)


@pytest.mark.parametrize("field", ["definition", "paraphrase", "example"])
def test_no_text_gives_its_term_away_or_stands_twice(field: str) -> None:
    texts = [getattr(c, field) for c in CONCEPTS]
    assert len(set(texts)) == len(texts)
    assert [c.id for c in CONCEPTS if c.term.lower() in getattr(c, field).lower()] == []


def test_a_paraphrase_shares_few_words_with_its_definition() -> None:
    for concept in CONCEPTS:
        if concept.language == "en":
            first, second = (set(re.findall(r"[a-z]{5,}", t)) for t in (concept.definition, concept.paraphrase))
            assert len(first & second) <= 0.4 * len(second), concept.id


@pytest.mark.parametrize("language", ["en", "zh"])
def test_training_and_held_out_questions_differ_in_wording_and_distractors(language: str) -> None:
    train, heldout = SPLITS[language]["train"], SPLITS[language]["heldout"]
    assert {q.question for q in train}.isdisjoint(q.question for q in heldout)
    assert {body(q) for q in train}.isdisjoint(body(q) for q in heldout)
    seen: dict[tuple[str, str], set[str]] = {}

    def distractors(q: Question) -> set[str]:
        return set(q.options.values()) - {q.options[q.answer]}

    def subject(q: Question) -> tuple[str, str]:
        return "-".join(q.id.split("-")[1:4]), q.id.rpartition("-")[2] if q.id.endswith("field") else "concept"

    for q in (q for q in train if q.kind == "single"):
        seen.setdefault(subject(q), set()).update(distractors(q))
    repeated = [q.id for q in heldout if q.kind == "single" and distractors(q) & seen[subject(q)]]
    assert repeated == []


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_second_held_out_set_has_concepts_that_training_never_names(language: str) -> None:
    splits = SPLITS[language]
    terms = {
        name: {t for q in rows if "field" not in q.id for t in q.options.values()} for name, rows in splits.items()
    }
    new, known = terms["heldout_concepts"], terms["train"] | terms["heldout"]
    assert new
    assert new.isdisjoint(known)
    for q in splits["train"]:
        named = max(
            (t for t in new | known if t in (q.rationale or "")), key=len, default=""
        )  # of nested terms the whole
        assert named not in new, q.id


@pytest.mark.parametrize("language", ["en", "zh"])
def test_questions_are_well_formed_and_their_worked_answers_earn_the_full_reward(language: str) -> None:
    for rows in SPLITS[language].values():
        assert len({q.id for q in rows}) == len(rows)
        for q in rows:
            assert Question.from_row(q.to_row()) == q
            assert len(q.options) == len(set(q.options.values())) == 4
            assert not [t for letter, t in q.options.items() if letter not in q.answer and t.lower() in body(q).lower()]
            reply = worked_conversation(q).messages[-1]["content"]
            assert score_group([reply], q, RewardConfig())[0]["total"] == pytest.approx(1.0), (q.id, reply)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_constant_letter_is_worth_guessing(language: str) -> None:
    for rows in SPLITS[language].values():
        counts = Counter(q.answer for q in rows if q.kind == "single")
        assert max(counts.values()) - min(counts.values()) <= 1


def test_composing_is_deterministic_and_the_seed_matters() -> None:
    concepts = [c for c in CONCEPTS if c.language == "en"]
    assert compose(concepts) == SPLITS["en"]
    assert compose(concepts, seed=1) != SPLITS["en"]


def test_the_files_hold_the_splits_and_sft_and_grpo_share_no_concept(tmp_path: Path) -> None:
    main(["--out", str(tmp_path), "--language", "en,zh", "--sft-share", "0.6"])
    train = {q.id: q for q in read_questions(tmp_path / "train.jsonl")}
    sft, grpo = read_conversations(tmp_path / "sft.jsonl"), read_questions(tmp_path / "grpo.jsonl")
    assert {row.id for row in sft} | {row.id for row in grpo} == set(train)
    assert len(sft) + len(grpo) == len(train)

    def concepts(ids: set[str]) -> set[str]:
        return {"-".join(i.split("-")[1:4]) for i in ids if train[i].kind == "single"}

    assert concepts({row.id for row in sft}).isdisjoint(concepts({row.id for row in grpo}))


def test_a_malformed_concept_is_named_with_its_line(tmp_path: Path) -> None:
    rows = [c.__dict__ | {} for c in CONCEPTS[:2]]
    for change, message in (
        ({"term": ""}, "line 2: term is ''"),
        ({"area": "astrology"}, "line 2: area 'astrology'"),
        ({"id": rows[0]["id"]}, "line 2: .* stands twice"),
    ):
        path = tmp_path / "c.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in (rows[0], rows[1] | change)))
        with pytest.raises(ValueError, match=message):
            read_concepts([path])


def test_ids_of_concepts_are_in_order() -> None:
    by_area: dict[str, list[str]] = {}
    for concept in CONCEPTS:
        by_area.setdefault(concept.id.rpartition("-")[0], []).append(concept.id)
    for ids in by_area.values():
        assert all(a < b for a, b in pairwise(ids))
