"""Credits against brute force over all subsets of five letters."""

from __future__ import annotations

from itertools import product

import pytest

from psychecore.data.records import Question
from psychecore.reward.correctness import correctness_score, credit

BITS = [bits for bits in product([0, 1], repeat=5) if any(bits)]


def letters(bits: tuple[int, ...]) -> str:
    return "".join(letter for letter, bit in zip("ABCDE", bits, strict=True) if bit)


@pytest.mark.parametrize("gold", BITS, ids=letters)
def test_credits_are_counts_over_the_letters(gold: tuple[int, ...]) -> None:
    question = Question("q", "?", dict.fromkeys("ABCDE", "text"), letters(gold), "multiple")
    for chosen in BITS:
        hits = sum(c and g for c, g in zip(chosen, gold, strict=True))
        misses = sum(c > g for c, g in zip(chosen, gold, strict=True))
        either = sum(c or g for c, g in zip(chosen, gold, strict=True))
        expected = {
            "strict": float(chosen == gold),
            "elastic": 0.0 if misses else hits / sum(gold),
            "jaccard": hits / either,
        }
        text = f"<think>x</think>{', '.join(letters(chosen))}"
        for rule, value in expected.items():
            assert credit(letters(chosen), letters(gold), rule) == value  # type: ignore[arg-type]
            assert correctness_score(text, question, rule) == value  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", ["strict", "elastic", "jaccard"])
def test_a_single_choice_wants_exactly_its_letter_under_every_rule(rule: str) -> None:
    question = Question("q", "?", dict.fromkeys("ABCDE", "text"), "B", "single")
    for chosen in BITS:
        answer = f"<think>x</think>{letters(chosen)}"
        assert correctness_score(answer, question, rule) == float(letters(chosen) == "B")  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", ["strict", "elastic", "jaccard"])
@pytest.mark.parametrize("text", ["", "<think>A and C</think>", "<think>x</think>F", "A person", "\x00" * 1000])
def test_what_cannot_be_read_earns_nothing(text: str, rule: str) -> None:
    question = Question("q", "?", dict.fromkeys("ABCDE", "text"), "AC", "multiple")
    assert correctness_score(text, question, rule) == 0.0  # type: ignore[arg-type]


@pytest.mark.parametrize("answer", ["A. w\nB. x\nC. y\nD. z\nE. v", "ABCDE", "The answers are A, B, C, D, E."])
@pytest.mark.parametrize("kind", ["single", "multiple"])
def test_listing_all_letters_earns_nothing(answer: str, kind: str) -> None:
    gold = "B" if kind == "single" else "BD"
    question = Question("q", "?", dict.fromkeys("ABCDE", "text"), gold, kind)  # type: ignore[arg-type]
    for rule in ("strict", "elastic"):
        assert correctness_score(f"<think>x</think>{answer}", question, rule) == 0.0  # type: ignore[arg-type]
