"""Rationales by prompt-rationale optimisation (Psyche-R1, arXiv 2508.10848, figure of the pipeline, step 4).

Per question: the base prompt P gives a rationale r and an answer a', and they are kept if a' is the gold answer. Then
T rounds, in each of which a model proposes a prompt P*, which gives (r*, a*): if a* is the gold answer, P* and r* take
the place of P and r, if not, everything stays as it was. Our choices, where the paper is silent: T = 3; a question
whose first answer is wrong stays in the pool and may succeed later; one that never succeeds is rejected; the proposer
sees the question, the prompt, the rationale and whether its answer was right, and never the gold answer, which it
could otherwise write into the prompt.

A proposed prompt is text that a model wrote, so it is bounded: it replaces the instruction only, the form of the answer
and the question are always put behind it, and one that hints at an option is reverted unread.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from psychecore.curate.conclusion import other_conclusion
from psychecore.curate.generator import Generator, Request
from psychecore.curate.prompts import Prompts
from psychecore.curate.stage import Outcome, Rejection
from psychecore.data.prompts import question_messages
from psychecore.data.records import LETTERS, Question
from psychecore.reward.answer import NOTHING_STATED, parse_answer
from psychecore.text.chat import split_think


@dataclass(frozen=True)
class RationaleConfig:
    """`rounds` is T, and 0 asks the base prompt only. `keep_authored`: rows that come with a rationale keep it.

    Lengths of rationales (`min_rationale`, `max_rationale`) and of proposed prompts (`max_prompt`) are in characters,
    `max_new_tokens` and `max_proposal_tokens` in tokens. Answers (`temperature`) are greedy by default; proposals
    (`proposal_temperature`) are sampled, since a greedy proposer tends to repeat itself after a revert. `seed` is of
    both.
    """

    rounds: int = 3
    keep_authored: bool = True
    min_rationale: int = 20
    max_rationale: int = 8_000
    max_prompt: int = 1_200
    max_new_tokens: int = 1_024
    max_proposal_tokens: int = 256
    temperature: float = 0.0
    proposal_temperature: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise ValueError(f"rationale.rounds is {self.rounds}, but must be 0 or more")
        if not 0 < self.min_rationale <= self.max_rationale:
            raise ValueError(
                f"rationale.min_rationale is {self.min_rationale} and max_rationale {self.max_rationale}, "
                "but 0 < min_rationale <= max_rationale must hold"
            )
        for name in ("max_prompt", "max_new_tokens", "max_proposal_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"rationale.{name} is {getattr(self, name)}, but must be 1 or more")
        for name in ("temperature", "proposal_temperature"):
            if getattr(self, name) < 0:
                raise ValueError(f"rationale.{name} is {getattr(self, name)}, but must be 0 (greedy) or more")


class Trial(NamedTuple):
    """What one prompt gave. `fault` is "" for a right answer with a usable rationale, else a code for why not, such as
    cut_off where max_new_tokens ended the reply."""

    rationale: str
    answer: str | None
    fault: str


@dataclass
class _Search:
    """A question on its way through the rounds; `rationale` is "" until an answer was right."""

    row: dict[str, Any]
    question: Question
    prompt: str
    rationale: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)

    def note(self, number: int, prompt: str, trial: Trial) -> None:
        """Write the trial down and, where its answer is right, go on from its prompt and rationale."""
        entry = {"round": number, "prompt": prompt, "rationale": trial.rationale, "answer": trial.answer}
        self.history.append({**entry, "accepted": not trial.fault, "fault": trial.fault})
        if not trial.fault:
            self.prompt, self.rationale = prompt, trial.rationale

    def outcome(self) -> Outcome:
        row = {**self.row, "rationale_history": self.history}
        if self.rationale:
            return Outcome([{**row, "rationale": self.rationale}], [])
        tried = ", ".join(f"{entry['answer'] or 'none'} ({entry['fault']})" for entry in self.history)
        detail = f"the answer is {self.question.answer}, the trials gave {tried}"
        return Outcome([], [Rejection({**row, "rationale": None}, "never_correct", detail)])


class Rationale:
    """The stage: question rows in, the same rows with "rationale" and "rationale_history" out.

    The history has an entry a trial, the base prompt's first, as round 0: round, prompt, rationale, answer (letters or
    None), accepted, fault. A prompt that was reverted unread has an empty rationale and no answer.
    """

    name = "rationale"

    def __init__(
        self, config: RationaleConfig, generator: Generator, prompts: Prompts, proposer: Generator | None = None
    ):
        """`proposer` writes the candidate prompts; by default the model that writes the rationales does."""
        self.config, self.generator, self.prompts = config, generator, prompts
        self.proposer = proposer or generator

    def batch(self, rows: Sequence[dict[str, Any]]) -> list[Outcome]:
        """One Outcome a row. Every round is one batch of proposals and one of answers over all rows.

        Raises ValueError that names the id of a row that is no question.
        """
        outcomes: dict[int, Outcome] = {}
        searches: dict[int, _Search] = {}
        for index, row in enumerate(rows):
            try:
                question = Question.from_row(row)
            except ValueError as error:
                raise ValueError(f"question {row.get('id')!r}: {error}") from None
            if question.rationale and self.config.keep_authored:
                outcomes[index] = _authored(row, question)
            else:
                base = self.prompts.messages("base", question.language)[-1]["content"].strip()
                searches[index] = _Search(row, question, base)
        pool = list(searches.values())
        self._answer(pool, [search.prompt for search in pool], 0)
        for number in range(1, self.config.rounds + 1):
            asked, candidates = [], []
            for search, candidate in zip(pool, self._propose(pool, number), strict=True):
                if fault := candidate_fault(candidate, search.question, _tried(search), self.config.max_prompt):
                    search.note(number, candidate[: self.config.max_prompt], Trial("", None, fault))
                else:
                    asked.append(search)
                    candidates.append(candidate)
            self._answer(asked, candidates, number)
        outcomes |= {index: search.outcome() for index, search in searches.items()}
        return [outcomes[index] for index in range(len(rows))]

    def _answer(self, searches: list[_Search], candidates: list[str], number: int) -> None:
        """Ask each question with its candidate prompt and note what came."""
        requests = []
        for search, candidate in zip(searches, candidates, strict=True):
            text = question_messages(search.question)[-1]["content"]
            messages = self.prompts.messages("answer", search.question.language, prompt=candidate, question=text)
            requests.append(
                Request(messages, self.config.max_new_tokens, self.config.temperature, self.config.seed, number)
            )
        replies = self.generator.generate(requests) if requests else []
        for search, candidate, reply in zip(searches, candidates, replies, strict=True):
            trial = read_trial(reply.text, search.question, self.config.min_rationale, self.config.max_rationale)
            search.note(number, candidate, trial._replace(fault=trial.fault or "cut_off" * reply.cut))

    def _propose(self, searches: list[_Search], number: int) -> list[str]:
        """A candidate prompt for each question, cleaned, not yet checked."""
        requests = []
        for search in searches:
            language = search.question.language
            last = next((entry for entry in reversed(search.history) if entry["accepted"]), search.history[0])
            verdict = self.prompts.messages("right" if search.rationale else "wrong", language)[-1]["content"].strip()
            messages = self.prompts.messages(
                "propose",
                language,
                question=question_messages(search.question)[-1]["content"],
                prompt=search.prompt,
                rationale=last["rationale"][: self.config.max_rationale] or "-",
                verdict=verdict,
                tried="\n".join(f"- {prompt}" for prompt in _tried(search)),
            )
            requests.append(
                Request(
                    messages,
                    self.config.max_proposal_tokens,
                    self.config.proposal_temperature,
                    self.config.seed,
                    number,
                )
            )
        replies = self.proposer.generate(requests) if requests else []
        return [clean_candidate(reply.text) for reply in replies]


def read_trial(reply: str, question: Question, min_rationale: int = 1, max_rationale: int = 8_000) -> Trial:
    """The rationale and the answer of a reply, judged against the question's gold answer.

    The answer is read as the reward reads it. A reply without think tags answers in its last line, and what stands
    before is the rationale. Faults: no_answer, wrong_answer, no_rationale (shorter than the minimum), long_rationale,
    and other_conclusion, where the rationale ends in another answer than the one that follows it.
    """
    thought, _ = split_think(reply)
    if thought is None and "<think>" not in reply:
        before, _, final = reply.strip().rpartition("\n")
        thought, reply = before.strip(), final
    letters = parse_answer(reply, question.options).letters
    rationale = thought or ""
    if letters is None:
        return Trial(rationale, None, "no_answer")
    if letters != question.answer:
        return Trial(rationale, letters, "wrong_answer")
    if len(rationale) < min_rationale:
        return Trial(rationale, letters, "no_rationale")
    if len(rationale) > max_rationale:
        return Trial(rationale, letters, "long_rationale")
    return Trial(rationale, letters, "other_conclusion" if other_conclusion(rationale, question) else "")


_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
_FENCE = re.compile(r"\A```\w*\n(.*?)\n?```\Z", re.DOTALL)
_LABEL = re.compile(
    r"\A(?:(?:new |improved |candidate )?(?:prompt|instruction)|(?:新的?)?(?:提示词?|指令))\s*[:：]\s*", re.I
)


def clean_candidate(reply: str) -> str:
    """The prompt in a proposer's reply: what follows its thinking, without fence, label, quotes, control characters."""
    text = split_think(reply)[1]
    if "<think>" in text:
        return ""  # it was still thinking when its tokens ran out
    text = _UNSEEN.sub("", text).strip()
    if fenced := _FENCE.match(text):
        text = fenced[1].strip()
    text = _LABEL.sub("", text).strip()
    if len(text) > 1 and (text[0], text[-1]) in (('"', '"'), ("“", "”"), ("「", "」"), ("'", "'")):
        text = text[1:-1].strip()
    return text


def candidate_fault(candidate: str, question: Question, tried: Sequence[str], max_prompt: int) -> str:
    """Why a proposed prompt is not even tried, as a code, or "".

    empty_prompt; long_prompt; repeated_prompt; and hinting_prompt, which states an answer or names some of the options
    but not all: the answer would then be the proposer's, and no reasoning led to it.
    """
    if not candidate:
        return "empty_prompt"
    if len(candidate) > max_prompt:
        return "long_prompt"
    if candidate in tried:
        return "repeated_prompt"
    named = [text.casefold().strip() in candidate.casefold() for text in question.options.values()]
    if parse_answer(candidate, LETTERS).reason != NOTHING_STATED or (any(named) and not all(named)):
        return "hinting_prompt"
    return ""


def _tried(search: _Search) -> list[str]:
    return list(dict.fromkeys(entry["prompt"] for entry in search.history if entry["prompt"]))


def _authored(row: dict[str, Any], question: Question) -> Outcome:
    rationale = question.rationale or ""
    if "<think>" in rationale or "</think>" in rationale:
        return Outcome([], [Rejection(row, "think_tags", "the rationale holds think tags of its own")])
    if other := other_conclusion(rationale, question):
        detail = f"the answer is {question.answer}, but the rationale ends in: {other}"
        return Outcome([], [Rejection(row, "other_conclusion", detail)])
    return Outcome([{**row, "rationale_history": row.get("rationale_history", [])}], [])
