"""Stage 4, quality: a language model judges each question on four criteria from 1 to 5, each with a reason.

The criteria are ours (PAPER.md has an LLM filter and says no more): `answerable` from the passage or from general
knowledge, `unambiguous`, `key` (the keyed option is right and the others wrong; for several, all of them and no other)
and `sound` (psychology as the field knows it). The judge sees the passage where there is one. A verdict that cannot be
read rejects the question; a score is never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from psychecore.curate.generator import Generator, Request
from psychecore.curate.prompts import Prompts
from psychecore.curate.replies import writable
from psychecore.curate.stage import Outcome, Rejection
from psychecore.curate.verdicts import CRITERIA, parse_verdict
from psychecore.data.records import Question
from psychecore.text.chat import Message


@dataclass(frozen=True)
class QualityConfig:
    """The least score to pass, by criterion and of their `mean` (1 to 5), and how the judges are asked.

    Criteria: `answerable` from passage or general knowledge, `unambiguous`, a right `key`, `sound` psychology.

    `samples` verdicts of each judge (above 1 needs a temperature). With several verdicts a criterion's score is their
    median, and each of them must be readable. `temperature`, `seed` and `max_new_tokens` are of a verdict. Raises
    ValueError for values out of range.
    """

    answerable: float = 4.0
    unambiguous: float = 4.0
    key: float = 4.0
    sound: float = 4.0
    mean: float = 4.0
    samples: int = 1
    max_new_tokens: int = 400
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (*CRITERIA, "mean"):
            if not 1 <= getattr(self, name) <= 5:
                raise ValueError(f"quality.{name} is {getattr(self, name)}, but scores go from 1 to 5")
        for name in ("samples", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"quality.{name} is {getattr(self, name)}, but must be at least 1")
        if not self.temperature >= 0:
            raise ValueError(f"quality.temperature is {self.temperature}, but must be 0 or more")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"quality.samples is {self.samples} at temperature 0: all would be equal; raise it or ask once"
            )


class Quality:
    """The stage: question rows in; those that pass out, each with its scores, reasons and judges under "quality".

    `passages` maps a passage's id to its text; a question's own `context` and `span` are shown as well. Rejected are
    "unparsable_verdict" (the raw text stands in the row), "low_answerable" and so on by criterion, and "low_mean".
    """

    name = "quality"

    def __init__(
        self,
        config: QualityConfig,
        judges: Sequence[Generator],
        prompts: Prompts,
        passages: Mapping[str, str] | None = None,
    ):
        if not judges:
            raise ValueError("quality needs at least one judge")
        self.config, self.judges, self.prompts, self.passages = config, judges, prompts, passages or {}

    def batch(self, rows: Sequence[dict[str, Any]]) -> list[Outcome]:
        """One Outcome a question. Raises ValueError, with the question's id, for a row that is no question."""
        samples = self.config.samples
        asked = [self._messages(row) for row in rows]
        requests = [
            Request(messages, self.config.max_new_tokens, self.config.temperature, self.config.seed, sample)
            for messages in asked
            for sample in range(samples)
        ]
        replies = [[writable(reply.text) for reply in judge.generate(requests)] for judge in self.judges]
        outcomes = []
        for index, row in enumerate(rows):
            said = [
                (judge.name, sample, texts[index * samples + sample])
                for judge, texts in zip(self.judges, replies, strict=True)
                for sample in range(samples)
            ]
            outcomes.append(self._outcome(row, said))
        return outcomes

    def _messages(self, row: dict[str, Any]) -> list[Message]:
        try:
            question = Question.from_row(row)
        except ValueError as error:
            raise ValueError(f"question {row.get('id')!r}: {error}") from None
        passage = self.passages.get(str(row.get("passage_id") or ""), "")
        text = "\n\n".join(part for part in (passage, question.context) if part) or str(row.get("span") or "")
        return self.prompts.messages(
            "with_passage" if text else "without_passage",
            question.language,
            passage=text,
            question=question.question,
            options="\n".join(f"{letter}. {option}" for letter, option in question.options.items()),
            kind=_KINDS[question.language][question.kind],
            answer=("、" if question.language == "zh" else ", ").join(question.answer),
        )

    def _outcome(self, row: dict[str, Any], said: list[tuple[str, int, str]]) -> Outcome:
        verdicts: list[dict[str, Any]] = []
        broken: list[tuple[str, str]] = []  # why, raw text
        for judge, sample, text in said:
            verdict = parse_verdict(text)
            entry: dict[str, Any] = {"judge": judge, "sample": sample}
            if verdict.problem:
                broken.append((f"{judge}: {verdict.problem}", text))
                entry["problem"] = verdict.problem
            else:
                entry |= {"scores": verdict.scores, "reasons": verdict.reasons}
            verdicts.append(entry)
        quality: dict[str, Any] = {"prompts": self.prompts.version, "verdicts": verdicts}
        if broken:
            row = {**row, "quality": quality, "raw": broken[0][1]}
            return Outcome([], [Rejection(row, "unparsable_verdict", broken[0][0])])
        scores = {name: float(median(verdict["scores"][name] for verdict in verdicts)) for name in CRITERIA}
        mean = sum(scores.values()) / len(CRITERIA)
        row = {**row, "quality": {**quality, "scores": scores, "mean": mean}}
        measured = {**scores, "mean": mean}
        low = [name for name, score in measured.items() if score < getattr(self.config, name)]
        if not low:
            return Outcome([row], [])
        detail = "; ".join(f"{name} is {measured[name]:g}, below {getattr(self.config, name):g}" for name in low)
        return Outcome([], [Rejection(row, f"low_{low[0]}", detail)])


_KINDS = {
    "en": {"single": "single (one right option)", "multiple": "multiple (several right options)"},
    "zh": {"single": "单选（只有一个正确选项）", "multiple": "多选（有多个正确选项）"},
}
