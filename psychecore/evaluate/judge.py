"""Dialogue judged by a language model: each reply of a counsellor is scored on a rubric, or compared with another's.

The model under test answers every client turn of a given dialogue (what went before is the dialogue's own), and the
judge, any Generator, sees the dialogue so far and the reply. The rubrics and what a judge may write are in verdicts.py;
the prompts are ours (recipes/prompts/judge.toml).

Where two models are compared the judge is asked twice with the replies swapped, since judges favour a place: only a
verdict that both orders give counts as a win. A verdict that cannot be read is counted as such, and never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from psychecore.curate.generator import Generator, Request
from psychecore.curate.prompts import Prompts
from psychecore.curate.replies import writable
from psychecore.curate.typography import language_of
from psychecore.data.records import read_jsonl
from psychecore.evaluate.item import parse_rows, row_id
from psychecore.evaluate.statistics import DIFFERENCE, Estimate, clustered_estimate
from psychecore.evaluate.verdicts import RUBRICS, parse_preference, parse_scores
from psychecore.reward.answer import answer_part
from psychecore.text.chat import Message, check_messages

MAX_FILE = 256_000_000
_TAG = re.compile(r"[<‹〈](?=[\s/]*(?:dialogue|reply))", re.IGNORECASE)  # the names of recipes/prompts/judge.toml


@dataclass(frozen=True)
class Turn:
    """A dialogue up to a client's turn; `id` is DIALOGUE/NUMBER."""

    id: str
    dialogue: str
    messages: list[Message]

    @property
    def language(self) -> Literal["zh", "en"]:
        """What the client writes, which is what the judge is asked in."""
        said = " ".join(message["content"] for message in self.messages if message["role"] == "user")
        return "zh" if language_of(said) == "zh" else "en"


@dataclass(frozen=True)
class Verdict:
    """A judge's scores of one reply by criterion, or none and the `problem` with what it said."""

    id: str
    dialogue: str
    reply: str
    scores: dict[str, int] | None
    problem: str
    judged: str


@dataclass(frozen=True)
class Preference:
    """Which of two replies the judge prefers: "first", "second", "tie", "inconsistent", or None where not readable."""

    id: str
    dialogue: str
    winner: str | None
    judged: tuple[str, str]

    @property
    def value(self) -> float:
        """1 for the first, -1 for the second, else 0."""
        return {"first": 1.0, "second": -1.0}.get(self.winner or "", 0.0)


def read_dialogues(path: Path, last_turn_only: bool = False) -> list[Turn]:
    """The client turns of dialogues, JSONL or a JSON list of {"id", "messages"}; PsyDT's test files have this form.

    `last_turn_only` takes the last client turn of each, for files that hold every turn as a row of its own. Raises
    ValueError with file and line.
    """
    if path.suffix == ".json":
        if path.stat().st_size > MAX_FILE:
            raise ValueError(f"{path} has {path.stat().st_size:,} bytes, but at most {MAX_FILE:,} are read")
        rows: list[tuple[int, Any]] = list(enumerate(parse_rows(path.read_bytes(), str(path)), start=1))
    else:
        rows = list(read_jsonl(path))
    turns: list[Turn] = []
    seen: dict[str, int] = {}
    for number, row in rows:
        try:
            messages = row.get("messages") if isinstance(row, dict) else None
            check_messages(messages)
            name = row_id(row, f"row {number}")
            if name in seen:
                raise ValueError(f"id {name!r:.80} already stands in row {seen[name]}")
            seen[name] = number
            assert messages is not None
            places = [place for place, message in enumerate(messages) if message["role"] == "user"]
            if not places:
                raise ValueError("no message is a client's (role user)")
        except ValueError as error:
            raise ValueError(f"{path} row {number}: {error}") from None
        picked = places[-1:] if last_turn_only else places
        turns += [Turn(f"{name}/{places.index(place) + 1}", name, messages[: place + 1]) for place in picked]
    if not turns:
        raise ValueError(f"{path}: no dialogues")
    return turns


def judge_replies(
    judge: Generator, prompts: Prompts, rubric: str, turns: Sequence[Turn], replies: Sequence[str], max_new_tokens: int
) -> list[Verdict]:
    """A verdict for each turn's reply, its thinking left out; an empty one is shown to the judge as "-".

    What stands between the prompt's tags cannot close them: neither here nor in `compare_replies`.
    """
    said = [spoken(reply) for reply in replies]
    requests = [
        Request(prompts.messages(rubric, turn.language, dialogue=_shown(turn), reply=_material(reply)), max_new_tokens)
        for turn, reply in zip(turns, said, strict=True)
    ]
    verdicts = []
    for turn, reply, answer in zip(turns, said, judge.generate(requests), strict=True):
        scores, problem = parse_scores(answer.text, RUBRICS[rubric])
        verdicts.append(Verdict(turn.id, turn.dialogue, reply, scores, problem, writable(answer.text)))
    return verdicts


def compare_replies(
    judge: Generator,
    prompts: Prompts,
    turns: Sequence[Turn],
    first: Sequence[str],
    second: Sequence[str],
    max_new_tokens: int,
) -> list[Preference]:
    """Which reply is better at each turn, each pair judged in both orders."""
    requests = []
    for turn, one, other in zip(turns, map(spoken, first), map(spoken, second), strict=True):
        for a, b in ((one, other), (other, one)):
            values = {"dialogue": _shown(turn), "reply_a": _material(a), "reply_b": _material(b)}
            requests.append(Request(prompts.messages("compare", turn.language, **values), max_new_tokens))
    said = [writable(reply.text) for reply in judge.generate(requests)]
    found = []
    for number, turn in enumerate(turns):
        straight, swapped = said[2 * number], said[2 * number + 1]
        found.append(Preference(turn.id, turn.dialogue, _winner(straight, swapped), (straight, swapped)))
    return found


def rubric_estimates(verdicts: Sequence[Verdict], rubric: str, seed: int = 0) -> dict[str, Estimate]:
    """Each criterion's mean over the readable verdicts, dialogues being resampled; {} where none is readable."""
    read = [(verdict.scores, verdict.dialogue) for verdict in verdicts if verdict.scores is not None]
    clusters = [dialogue for _, dialogue in read]
    return {
        one.name: clustered_estimate([scores[one.name] for scores, _ in read], clusters, seed, (one.low, one.high))
        for one in (RUBRICS[rubric] if read else ())
    }


def preference_estimate(preferences: Sequence[Preference], seed: int = 0) -> Estimate | None:
    """Share of wins minus share of losses over the readable pairs; None where none is readable."""
    read = [preference for preference in preferences if preference.winner is not None]
    if not read:
        return None
    return clustered_estimate([one.value for one in read], [one.dialogue for one in read], seed, DIFFERENCE)


def _winner(straight: str, swapped: str) -> str | None:
    one, two = parse_preference(straight), parse_preference(swapped)
    if one is None or two is None:
        return None
    both = {("A", "B"): "first", ("B", "A"): "second", ("tie", "tie"): "tie"}
    return both.get((one, two), "inconsistent")


def spoken(reply: str) -> str:
    """What the client would hear: the reply without its thinking; "" where the thinking never ends."""
    return writable(answer_part(reply)[0])


def _shown(turn: Turn) -> str:
    names = {"zh": {"user": "来访者", "assistant": "咨询师"}, "en": {"user": "Client", "assistant": "Counsellor"}}
    spoken_by = names[turn.language]
    return _material(
        "\n".join(
            f"{spoken_by[message['role']]}: {message['content']}"
            for message in turn.messages
            if message["role"] in spoken_by
        )
    )


def _material(text: str) -> str:
    """A text as it may stand between the prompt's tags: one that it writes itself, </reply>, becomes ＜/reply>."""
    return _TAG.sub("＜", text) or "-"
