"""Asking a model a benchmark's questions, and the predictions file: one row an item and sample.

Two ways to answer: "generate" lets the model write and reads the letters from what follows its thinking (the paper's
way), "likelihood" takes its likeliest option (likelihood.py). With several samples an item has several rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from psychecore.curate.generator import Announcing, Arrived, Generator, Reply, Request, collect
from psychecore.curate.progress import Progress
from psychecore.curate.replies import writable
from psychecore.data.records import read_jsonl
from psychecore.durable import replace_file
from psychecore.evaluate.choice import Prediction, predict, predict_parsed
from psychecore.evaluate.item import Essay, Item, clean_text
from psychecore.evaluate.text_overlap import text_overlap
from psychecore.reward.answer import Parsed, answer_part
from psychecore.text.chat import CLOSE, OPEN, Message


@dataclass(frozen=True)
class AnswerConfig:
    """How the model answers; the defaults of sampling are those of the paper's inference.

    mode: "generate", or "likelihood" of the options' letters or texts (`form`), a token's mean where `normalise`.
    samples: answers an item, above 1 with a temperature only. pass_k: the k for which pass@k is given. These are of
    choice questions: essays and dialogues are generated, once. temperature, top_p, max_new_tokens and seed are of
    what is generated.
    """

    mode: Literal["generate", "likelihood"] = "generate"
    form: Literal["letter", "text"] = "letter"
    normalise: bool = False
    samples: int = 1
    pass_k: tuple[int, ...] = ()
    temperature: float = 0.7
    top_p: float = 0.9
    max_new_tokens: int = 2048
    seed: int = 42

    def __post_init__(self) -> None:
        if self.samples < 1 or self.max_new_tokens < 1:
            raise ValueError(f"samples {self.samples} and max_new_tokens {self.max_new_tokens} must be at least 1")
        if self.mode == "generate" and (self.form != "letter" or self.normalise):
            raise ValueError('form and normalise are of mode "likelihood": leave them out, or take that mode')
        if self.samples > 1 and (self.temperature == 0 or self.mode == "likelihood"):
            raise ValueError(f"samples is {self.samples}, but all would be equal: generate, with a temperature above 0")
        if not 0 <= self.temperature < float("inf") or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature {self.temperature} must be at least 0, top_p {self.top_p} in (0, 1]")
        if bad := [k for k in self.pass_k if not 1 <= k <= self.samples]:
            raise ValueError(f"pass_k holds {bad[0]}, but must be from 1 to samples, {self.samples}")


@dataclass(frozen=True)
class Answer:
    """One answer to an item. `credit` and `elastic` are None where the benchmark publishes no key.

    parsed: the letters read, None where none could be, then `reason` says why. text: what the model said, or in
    likelihood mode the scores of the candidates. `kind` and `gold` are the question's.
    """

    id: str
    sample: int
    groups: dict[str, str]
    prompt: list[Message]
    text: str
    parsed: str | None
    reason: str
    kind: str
    gold: str
    credit: float | None
    elastic: float | None
    format: float

    @classmethod
    def of(cls, item: Item, sample: int, prompt: list[Message], prediction: Prediction) -> Answer:
        """From a scored text."""
        known = bool(item.question.answer)
        return cls(
            id=item.question.id,
            sample=sample,
            groups=item.groups,
            prompt=prompt,
            text=prediction.text,
            parsed=prediction.letters,
            reason=prediction.reason,
            kind=prediction.kind,
            gold=prediction.answer,
            credit=prediction.accuracy if known else None,
            elastic=prediction.elastic if known else None,
            format=prediction.format,
        )


@dataclass(frozen=True)
class EssayAnswer:
    """One answer to an open question with its scores from 0 to 100; `answer` is `text` without the thinking."""

    id: str
    groups: dict[str, str]
    prompt: list[Message]
    text: str
    answer: str
    gold: str
    rouge_1: float
    rouge_l: float
    bleu_4: float


def choice_requests(items: Sequence[Item], config: AnswerConfig) -> list[Request]:
    """What a model is asked: each item `samples` times, one after the other."""
    return [_request(item.messages(), config, sample) for item in items for sample in range(config.samples)]


def essay_requests(essays: Sequence[Essay], config: AnswerConfig) -> list[Request]:
    """Each case question once."""
    return [_request(essay.messages(), config, 0) for essay in essays]


def read_replies(items: Sequence[Item], replies: Sequence[Reply], samples: int) -> list[Answer]:
    """The replies to `choice_requests`, parsed and scored."""
    answers = []
    for number, reply in enumerate(replies):
        item, sample = items[number // samples], number % samples
        (prediction,) = predict([item.question], [writable(reply.text)])
        answers.append(Answer.of(item, sample, item.messages(), prediction))
    return answers


def read_essays(essays: Sequence[Essay], replies: Sequence[Reply]) -> list[EssayAnswer]:
    """The replies to `essay_requests`, scored. Thinking that never ends leaves no answer, which scores 0."""
    answers = []
    for essay, reply in zip(essays, replies, strict=True):
        text = writable(reply.text)
        answer = clean_text(answer_part(text)[0])
        scores = text_overlap(answer, essay.gold)._asdict()
        answers.append(EssayAnswer(essay.id, essay.groups, essay.messages(), text, answer, essay.gold, **scores))
    return answers


def read_scores(item: Item, prompt: list[Message], scores: Mapping[str, float] | None) -> Answer:
    """The answer that is the likeliest candidate; None stands for a question too long for the model."""
    if scores is None:
        parsed = Parsed(None, "the question is longer than the model's max_length")
    else:
        parsed = Parsed(max(scores, key=lambda letters: scores[letters]))
    text = json.dumps({letters: round(value, 6) for letters, value in scores.items()}) if scores else ""
    return Answer.of(item, 0, prompt, predict_parsed(item.question, text, parsed))


def with_thinking_opened(replies: Sequence[Reply]) -> list[Reply]:
    """The replies of a server whose chat template opens <think>, which then stands in none of them, with the tag.

    Without it, thinking that was cut off would count as an answer. A tenth of the replies must close what they don't
    open: a single one may be a slip of a model that does not think.
    """
    said = [reply.text for reply in replies if reply.text]
    if 10 * sum(CLOSE in text and OPEN not in text for text in said) < max(len(said), 1):
        return list(replies)
    return [
        replace(reply, text=OPEN + reply.text) if reply.text and OPEN not in reply.text else reply for reply in replies
    ]


def write_predictions(path: Path, rows: Sequence[Any]) -> None:
    """Dataclasses as JSONL, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows))


def read_predictions(path: Path) -> list[Answer]:
    """The answers of an earlier evaluation. Raises ValueError with file and line."""
    return list(_answers(path))


class Counted:
    """A generator that shows how many replies have arrived and how long the rest will take."""

    def __init__(self, generator: Generator, progress: Progress):
        self.generator, self.progress, self.name = generator, progress, generator.name
        self.identity: str = getattr(generator, "identity", generator.name)

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply a request, in order."""
        return collect(self, requests)

    def generate_each(self, requests: Sequence[Request], arrived: Arrived) -> None:
        """As Announcing has it."""

        def count(replies: Mapping[int, Reply]) -> None:
            arrived(replies)
            self.progress.update(len(replies))

        if isinstance(self.generator, Announcing):
            self.generator.generate_each(requests, count)
        else:
            count(dict(enumerate(self.generator.generate(requests))))


def _request(messages: list[Message], config: AnswerConfig, sample: int) -> Request:
    return Request(messages, config.max_new_tokens, config.temperature, config.seed, sample, config.top_p)


_KINDS: dict[str, tuple[type, ...]] = {  # of what a predictions file holds; `groups` are looked into as well
    **dict.fromkeys(("id", "text", "reason", "kind", "gold"), (str,)),
    "sample": (int,),
    "groups": (dict,),
    "prompt": (list,),
    "parsed": (str, type(None)),
    **dict.fromkeys(("credit", "elastic"), (float, int, type(None))),
    "format": (float, int),
}


def _answers(path: Path) -> Iterator[Answer]:
    seen: dict[tuple[str, int], int] = {}
    for number, row in read_jsonl(path):
        try:
            answer = Answer(**row)
            for key, kinds in _KINDS.items():
                if type(row[key]) not in kinds:
                    names = " or ".join(kind.__name__ for kind in kinds)
                    raise TypeError(f"{key} is {row[key]!r:.80}, but must be {names}")
            if not all(isinstance(value, str) for value in answer.groups.values()):
                raise TypeError(f"groups is {answer.groups!r:.80}, but must hold texts")
            first = seen.setdefault((answer.id, answer.sample), number)
            if first != number:
                raise TypeError(f"sample {answer.sample} of {answer.id!r:.80} already stands on line {first}")
        except TypeError as error:
            raise ValueError(f"{path} line {number}: no prediction ({error})") from None
        yield answer
