"""Stage 8, first half: several models answer every question (PAPER.md, Pipeline, item 6).

A selector is a Generator. It gets the messages that the policy will get (data.prompts.question_messages), and its reply
is read as the reward reads the policy's (reward.answer.parse_answer), so that "hard" means hard for what is trained.
divide.py then makes the SFT and the GRPO questions out of who got what.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psychecore.curate.generator import Generator, Reply, Request
from psychecore.curate.stage import Outcome, Rejection
from psychecore.data.prompts import question_messages
from psychecore.data.records import Question
from psychecore.reward.answer import parse_answer
from psychecore.text.chat import CLOSE


@dataclass(frozen=True)
class SelectConfig:
    """How the selectors answer.

    samples: answers of each selector to each question; more than one needs a temperature. temperature: 0 is greedy.
    max_new_tokens: an answer that is longer is cut, and then mostly unreadable, so wrong. seed: of the sampling.
    keep_characters: of each answer's text after its thinking so many stay in the row, half of its beginning and half of
    its end.
    """

    samples: int = 1
    temperature: float = 0.0
    max_new_tokens: int = 1024
    seed: int = 42
    keep_characters: int = 200

    def __post_init__(self) -> None:
        if self.samples < 1 or self.max_new_tokens < 1 or self.keep_characters < 0 or self.temperature < 0:
            raise ValueError(
                f"samples {self.samples} and max_new_tokens {self.max_new_tokens} must be at least 1, "
                f"temperature {self.temperature} and keep_characters {self.keep_characters} at least 0"
            )
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"{self.samples} samples at temperature 0 are all the same: set a temperature, or samples 1"
            )


class SelectStage:
    """Question rows in, the same rows with "answers" out: {selector: [{"text", "letters", "right"}, ...]}.

    `letters` is what was read ("AC"), or null; `right` whether that equals the gold answer; "refused" stands beside
    them, true, where the selector could not be asked, since the question is too long for it. Rows may already carry
    answers of other selectors: where the models don't fit into memory together, run one pass a model, each on the
    output of the pass before, under a `name` of its own. `held_out` ids must not come here; they raise.
    """

    def __init__(
        self,
        selectors: Sequence[Generator],
        config: SelectConfig | None = None,
        held_out: frozenset[str] = frozenset(),
        name: str = "select",
    ):
        """Raises ValueError unless there is a selector and their names differ."""
        names = [selector.name for selector in selectors]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"the selectors are {names}, but must be one or more, each with a name of its own")
        self.selectors, self.config, self.held_out, self.name = selectors, config or SelectConfig(), held_out, name

    def batch(self, rows: Sequence[dict[str, Any]]) -> list[Outcome]:
        """Each row answered by every selector; a row that is no valid question is rejected as "invalid_question".

        Raises ValueError for a row that is held out, or that a selector of this name has answered before.
        """
        questions = [self._question(row) for row in rows]
        valid = [question for question in questions if isinstance(question, Question)]
        answered = {selector.name: self._ask(selector, valid) for selector in self.selectors}
        outcomes, index = [], 0
        for row, question in zip(rows, questions, strict=True):
            if isinstance(question, Question):
                answers = {name: given[index] for name, given in answered.items()}
                outcomes.append(Outcome([{**row, "answers": {**row.get("answers", {}), **answers}}], []))
                index += 1
            else:
                outcomes.append(Outcome([], [Rejection(row, "invalid_question", question)]))
        return outcomes

    def _question(self, row: dict[str, Any]) -> Question | str:
        """The row as a question, or why it is none."""
        if row.get("id") in self.held_out:
            raise ValueError(f"question {row['id']!r} is held out, but came to a selector: give it the other rows only")
        if twice := {selector.name for selector in self.selectors} & set(row.get("answers", {})):
            raise ValueError(f"question {row.get('id')!r} has answers of {min(twice)!r} already: name selectors apart")
        try:
            return Question.from_row(row)
        except ValueError as error:
            return str(error)

    def _ask(self, selector: Generator, questions: Sequence[Question]) -> list[list[dict[str, Any]]]:
        """For each question the selector's answers."""
        config = self.config
        requests = [
            Request(question_messages(question), config.max_new_tokens, config.temperature, config.seed, sample)
            for question in questions
            for sample in range(config.samples)
        ]
        replies = selector.generate(requests) if requests else []
        if len(replies) != len(requests):
            raise RuntimeError(f"selector {selector.name!r} gave {len(replies)} replies to {len(requests)} requests")
        groups = [replies[start : start + config.samples] for start in range(0, len(replies), config.samples)]
        return [
            [self._answer(question, reply) for reply in group]
            for question, group in zip(questions, groups, strict=True)
        ]

    def _answer(self, question: Question, reply: Reply) -> dict[str, Any]:
        letters = parse_answer(reply.text, question.options).letters
        text, keep = reply.text.rpartition(CLOSE)[2].strip(), self.config.keep_characters
        if len(text) > keep:  # an answer may be stated at its beginning or at its end
            text = f"{text[: keep - keep // 2]} … {text[len(text) - keep // 2 :]}"
        said = {"text": text, "letters": letters, "right": letters == question.answer}
        return said | {"refused": True} if reply.refused else said
