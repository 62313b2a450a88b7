"""Accuracy on multiple-choice questions, with what is needed to believe it: intervals, a floor, the unparsable share.

Standard accuracy is the exact match of letter sets. Elastic accuracy credits part of a multiple-choice answer if none
of it is wrong, as PCEB does (see `psychecore.reward.correctness.credit`). The floor is what the best constant answer
scores on these very questions: where several options are right, that is neither 0 nor one in the number of options.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, combinations
from typing import Any, Protocol

from psychecore.data.prompts import question_messages
from psychecore.data.records import KINDS, Question
from psychecore.evaluate.statistics import wilson_interval
from psychecore.reward.answer import Parsed, parse_answer
from psychecore.reward.correctness import credit
from psychecore.reward.format import format_score
from psychecore.rollout.sampling import SamplingParams
from psychecore.rollout.trajectory import Group
from psychecore.text.chat import Message


class TextSampler(Protocol):
    """What `evaluate_choice` needs of a sampler; `psychecore.rollout.sampler.Sampler` has it."""

    def generate(
        self, prompts: Sequence[Sequence[Message]], params: SamplingParams, samples_per_prompt: int = 1
    ) -> Sequence[Group]: ...


@dataclass(frozen=True)
class Prediction:
    """One answered question. letters is None where no answer could be read, then `reason` says why."""

    id: str
    kind: str
    answer: str
    letters: str | None
    reason: str
    accuracy: float
    elastic: float
    format: float
    text: str

    def to_row(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class ChoiceScore:
    """Figures over n questions, all shares in [0, 1].

    accuracy: exact matches, [low, high] its Wilson 95 % interval. elastic: the mean credit with multiple-choice
    questions credited elastically. format_rate: one think block, then an answer. unparsable: no letters to be read.
    constant: the accuracy of the best constant answer, the letters constant_answer; constant_elastic: the elastic
    figure of the constant that is best by it.
    """

    n: int
    accuracy: float
    low: float
    high: float
    elastic: float
    format_rate: float
    unparsable: float
    constant: float
    constant_answer: str
    constant_elastic: float


@dataclass(frozen=True)
class ChoiceReport(ChoiceScore):
    """The figures over all questions, and by kind for the kinds ("single", "multiple") that occur."""

    by_kind: dict[str, ChoiceScore] = field(default_factory=dict)

    def to_row(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)

    def __str__(self) -> str:
        """One line: "accuracy 62.0% [52.2, 70.9], n 100, always B 28.0%; format 98.0%, unparsable 1.0%"."""
        line = f"accuracy {self.accuracy:.1%} [{100 * self.low:.1f}, {100 * self.high:.1f}], n {self.n}"
        line += f", always {self.constant_answer} {self.constant:.1%}"
        line += f"; format {self.format_rate:.1%}, unparsable {self.unparsable:.1%}"
        if "multiple" in self.by_kind:
            for kind, score in self.by_kind.items():
                elastic = f" (elastic {score.elastic:.1%})" if kind == "multiple" else ""
                line += f"; {kind} {score.accuracy:.1%}{elastic}, n {score.n}"
        return line


def evaluate_choice(
    sampler: TextSampler, questions: Sequence[Question], params: SamplingParams
) -> tuple[ChoiceReport, list[Prediction]]:
    """Ask each question once and score the answers. Raises ValueError without questions."""
    groups = sampler.generate([question_messages(question) for question in questions], params, samples_per_prompt=1)
    predictions = predict(questions, [group.rollouts[0].text for group in groups])
    return summarise(predictions), predictions


def score_choice(questions: Sequence[Question], texts: Sequence[str]) -> ChoiceReport:
    """Score answers that exist already, one text a question. Raises ValueError if the numbers differ or are 0."""
    return summarise(predict(questions, texts))


def predict(questions: Sequence[Question], texts: Sequence[str]) -> list[Prediction]:
    """Read and score each answer. Raises ValueError if there are not as many texts as questions."""
    if len(texts) != len(questions):
        raise ValueError(f"{len(texts)} texts for {len(questions)} questions: each question needs one")
    return [
        predict_parsed(question, text, parse_answer(text, question.options))
        for question, text in zip(questions, texts, strict=True)
    ]


def summarise(predictions: Sequence[Prediction]) -> ChoiceReport:
    """The report over scored answers. Raises ValueError for none."""
    if not predictions:
        raise ValueError("there are no questions to score")
    by_kind = {kind: [item for item in predictions if item.kind == kind] for kind in KINDS}
    scores = {kind: _score(items) for kind, items in by_kind.items() if items}
    return ChoiceReport(**vars(_score(predictions)), by_kind=scores)


def predict_parsed(question: Question, text: str, parsed: Parsed) -> Prediction:
    """Score letters that are read already."""
    return Prediction(
        id=question.id,
        kind=question.kind,
        answer=question.answer,
        letters=parsed.letters,
        reason=parsed.reason,
        accuracy=credit(parsed.letters, question.answer, "strict"),
        elastic=_elastic(parsed.letters, question.answer, question.kind),
        format=format_score(text),
        text=text,
    )


def _elastic(letters: str | None, answer: str, kind: str) -> float:
    return credit(letters, answer, "elastic" if kind == "multiple" else "strict")


def _score(items: Sequence[Prediction]) -> ChoiceScore:
    n = len(items)
    right = sum(item.accuracy == 1.0 for item in items)
    low, high = wilson_interval(right, n)
    golds = Counter((item.answer, item.kind) for item in items)
    constant_answer, constant = best_constant(golds, elastic=False)
    return ChoiceScore(
        n=n,
        accuracy=right / n,
        low=low,
        high=high,
        elastic=math.fsum(item.elastic for item in items) / n,
        format_rate=math.fsum(item.format for item in items) / n,
        unparsable=sum(item.letters is None for item in items) / n,
        constant=constant,
        constant_answer=constant_answer,
        constant_elastic=best_constant(golds, elastic=True)[1],
    )


def best_constant(golds: Counter[tuple[str, str]], elastic: bool) -> tuple[str, float]:
    """The set of letters that scores best when always given, and its mean score; of equals the shortest, then A-J.

    `golds` counts (right letters, kind); with `elastic`, questions of the kind "multiple" are credited so.
    """
    letters = sorted(set().union(*(answer for answer, _ in golds)))
    best, best_score = "", -1.0
    for subset in chain.from_iterable(combinations(letters, size) for size in range(1, len(letters) + 1)):
        rules = ((answer, kind if elastic else "single", count) for (answer, kind), count in golds.items())
        score = math.fsum(count * _elastic("".join(subset), answer, kind) for answer, kind, count in rules)
        if score > best_score:
            best, best_score = "".join(subset), score
    return best, best_score / golds.total()
