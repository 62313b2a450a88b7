"""Empathetic dialogues: a counsellor's plain reply, rewritten one to one so that it states feeling and understanding.

Psyche-R1 (arXiv 2508.10848, figure of the pipeline, step 5) rewrites existing replies into single-turn dialogues. What
the rewrite may change is checked by rules, and by a second model where one is given: the advice is kept, understanding
is really added, no diagnosis, medicine or promise comes in, names and contact data are gone, the length is in bounds.
A post that shows acute risk is marked, and only a reply that names help and plays nothing down may train on it. The
rules judge words and not meaning: they are a gate for a model's slips, not a clinical review.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from psychecore.curate.additions import added_claims
from psychecore.curate.advice import lost_advice
from psychecore.curate.empathy import added_understanding
from psychecore.curate.generator import Generator, Request
from psychecore.curate.privacy import names_in, private_data, without_private_data
from psychecore.curate.prompts import Prompts
from psychecore.curate.risk import find_risk
from psychecore.curate.risk_reply import plays_down, reply_fault
from psychecore.curate.stage import Outcome, Rejection
from psychecore.curate.wording import language_of, length, plain
from psychecore.data.records import LANGUAGES
from psychecore.text.chat import Message, split_think


@dataclass(frozen=True)
class DialogueConfig:
    """`attempts` rewrites are asked for until one passes. Lengths (`min_length` and `max_length` of a rewrite) count
    English words or Chinese characters; `max_new_tokens`, `temperature` and `seed` are of a request.

    `min_ratio` and `max_ratio` bound the rewrite's length by the source's; `advice_share` is the part of the content
    words of each piece of advice that must be found again.
    """

    attempts: int = 2
    min_length: int = 40
    max_length: int = 500
    min_ratio: float = 0.8
    max_ratio: float = 3.0
    advice_share: float = 0.5
    max_new_tokens: int = 768
    temperature: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.max_new_tokens < 1:
            raise ValueError(
                f"dialogue.attempts is {self.attempts} and max_new_tokens {self.max_new_tokens}, "
                "but both must be 1 or more"
            )
        for low, high in (("min_length", "max_length"), ("min_ratio", "max_ratio")):
            if not 0 < getattr(self, low) <= getattr(self, high):
                raise ValueError(
                    f"dialogue.{low} is {getattr(self, low)} and {high} {getattr(self, high)}, "
                    f"but 0 < {low} <= {high} must hold"
                )
        if not 0 < self.advice_share <= 1:
            raise ValueError(f"dialogue.advice_share is {self.advice_share}, but must be above 0 and at most 1")
        if self.temperature < 0:
            raise ValueError(f"dialogue.temperature is {self.temperature}, but must be 0 (greedy) or more")


class Fault(NamedTuple):
    """Why a rewrite can't be used: a short stable code, and what was found, for a person."""

    code: str
    detail: str


@dataclass
class _Case:
    """A post with its reply, both without names and contact data, and the last rewrite of it."""

    row: dict[str, Any]
    post: str
    reply: str
    language: str
    risk: str | None
    names: frozenset[str] = frozenset()  # that stood in either
    rewrite: str = ""
    cut: bool = False
    fault: Fault | None = None

    def outcome(self) -> Outcome:
        if self.fault:
            row = {**self.row, "risk": self.risk, "rewrite": self.rewrite}
            return Outcome([], [Rejection(row, self.fault.code, self.fault.detail)])
        dialogue = {
            "id": f"{self.row['id']}-dialogue",
            "messages": [
                Message(role="user", content=self.post),
                Message(role="assistant", content=self.rewrite),
            ],
            "source": self.row.get("source", ""),
            "risk": self.risk,
            "post_id": self.row["id"],
            "language": self.language,
            "topic": self.row.get("topic", ""),
        }
        if self.row.get("cluster"):
            dialogue["post_cluster"] = self.row["cluster"]  # questions' clusters are named after other ids
        return Outcome([dialogue], [])


class Dialogue:
    """The stage: post rows in, dialogue rows out, of one user and one assistant turn each."""

    name = "dialogue"

    def __init__(self, config: DialogueConfig, generator: Generator, prompts: Prompts, judge: Generator | None = None):
        """`judge` compares reply and rewrite; without one the rules decide alone."""
        self.config, self.generator, self.prompts, self.judge = config, generator, prompts, judge

    def batch(self, rows: Sequence[dict[str, Any]]) -> list[Outcome]:
        """One Outcome a row. Raises ValueError that names the id of a row that is no post."""
        cases = [_case(row) for row in rows]
        waiting = [case for case in cases if not case.fault]
        for attempt in range(self.config.attempts):
            self._rewrite(waiting, attempt)
            for case in waiting:
                case.fault = rewrite_fault(
                    case.post, case.reply, case.rewrite, case.risk, case.language, self.config, case.names
                )
                if case.cut and not case.fault:
                    case.fault = Fault("cut_off", f"max_new_tokens ended it at {case.rewrite[-40:]!r}")
            self._judge([case for case in waiting if not case.fault], attempt)
            waiting = [case for case in waiting if case.fault]
        return [case.outcome() for case in cases]

    def _rewrite(self, cases: list[_Case], attempt: int) -> None:
        requests = []
        for case in cases:
            name = "rewrite_risk" if case.risk else "rewrite"
            messages = self.prompts.messages(name, case.language, post=case.post, reply=case.reply)
            requests.append(
                Request(messages, self.config.max_new_tokens, self.config.temperature, self.config.seed, attempt)
            )
        replies = self.generator.generate(requests) if requests else []
        for case, reply in zip(cases, replies, strict=True):
            case.rewrite, case.cut = clean_rewrite(reply.text), reply.cut

    def _judge(self, cases: list[_Case], attempt: int) -> None:
        """Let the judge read what the rules let through; a verdict that can't be read rejects."""
        if self.judge is None or not cases:
            return
        requests = []
        for case in cases:
            values = {"post": case.post, "reply": case.reply, "rewrite": case.rewrite}
            messages = self.prompts.messages("judge", case.language, **values)
            requests.append(Request(messages, 128, 0.0, self.config.seed, attempt))
        for case, verdict in zip(cases, self.judge.generate(requests), strict=True):
            case.fault = verdict_fault(verdict.text)


def _case(row: dict[str, Any]) -> _Case:
    for key in ("id", "post", "reply"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise ValueError(f"post {row.get('id')!r}: {key} is {row.get(key)!r:.80}, but must be a non-empty text")
    language = row.get("language")
    if language not in LANGUAGES:
        raise ValueError(f"post {row['id']!r}: language is {language!r}, but must be one of {', '.join(LANGUAGES)}")
    found = find_risk(row["post"])
    risk = found.kind if found else None
    names = names_in(row["post"]) | names_in(row["reply"])  # a reply may name who wrote the post
    post, reply = (without_private_data(row[key], language, names).strip() for key in ("post", "reply"))
    case = _Case(row, post, reply, language, risk, names)
    if risk and (phrase := plays_down(case.reply)):  # its advice would have to be kept
        case.fault = Fault(
            "source_plays_down", f"the counsellor's own reply says {phrase!r} to a post that shows {risk}"
        )
    return case


_FENCE = re.compile(r"\A```\w*\n(.*?)\n?```\Z", re.DOTALL)
_LEAD = re.compile(
    r"\A(?:(?:sure|certainly|of course)[,.!]? ?)?(?:here(?:'s| is)[^\n:]{0,80}|(?:the )?(?:rewritten|revised|new) "
    r"(?:reply|response|version)|(?:以下是|这是)?[^\n：:]{0,12}(?:改写|回复|答复)[^\n：:]{0,8})\s*[:：]\s*\n?",
    re.IGNORECASE,
)


def clean_rewrite(reply: str) -> str:
    """The reply in a model's text, without thinking, fences, lead-in and quotes; "" if it never came to one."""
    text = split_think(reply)[1]
    if "<think>" in text or "</think>" in text:
        return ""
    text = text.strip()
    if fenced := _FENCE.match(text):
        text = fenced[1].strip()
    text = _LEAD.sub("", text).strip()
    if len(text) > 1 and (text[0], text[-1]) in (('"', '"'), ("“", "”"), ("「", "」")):
        text = text[1:-1].strip()
    return text


_TURN = re.compile(
    r"(?:^|\n)\s*(?:\**)(?:user|client|counsell?or|therapist|assistant|person|"
    r"patient|来访者|咨询师|用户|助手|求助者)(?:\**)\s*[:：]",
    re.IGNORECASE,
)
_GAP = re.compile(r"\[[^\]\n]{1,40}\]|【[^】\n]{1,20}】|<[a-z_|]{2,30}>|\bX{2,}\b|某某", re.IGNORECASE)
_META = re.compile(
    r"\bas an ai\b|\blanguage model\b|\bi (?:have )?rewr\w+|作为(?:一个)?(?:AI|人工智能|语言模型)|改写(?:后|如下|了)",
    re.IGNORECASE,
)


def rewrite_fault(
    post: str,
    source: str,
    rewrite: str,
    risk: str | None,
    language: str,
    config: DialogueConfig,
    names: frozenset[str] = frozenset(),
) -> Fault | None:
    """What is wrong with `rewrite` of the reply `source` to `post`, the first of all rules that finds something.

    `names` were taken out of post and reply, and must not come back.
    """
    if not rewrite:
        return Fault("no_rewrite", "the model gave no text, or was still thinking when its tokens ran out")
    if language_of(rewrite) != language:
        return Fault("wrong_language", f"the rewrite is not in {language!r}")
    if turn := _TURN.search(rewrite):
        return Fault("several_turns", f"it holds a speaker's label, {turn[0].strip()!r}")
    if meta := _META.search(rewrite):
        return Fault("not_a_reply", f"it speaks of itself: {meta[0]!r}")
    if gap := _GAP.search(rewrite):
        return Fault("placeholder", f"it holds {gap[0]!r}")
    if private := private_data(rewrite, names):
        return Fault(f"{private[0].kind}_left", f"it holds {private[0].text!r}")
    return (
        _length_fault(source, rewrite, config)
        or _content_fault(post, source, rewrite, config)
        or (_risk_fault(rewrite, risk))
    )


def _length_fault(source: str, rewrite: str, config: DialogueConfig) -> Fault | None:
    size, old = length(rewrite), length(source)
    low = max(config.min_length, config.min_ratio * old)
    high = min(config.max_length, config.max_ratio * old)
    if size < low:
        return Fault("too_short", f"{size} words or characters, the source has {old}; at least {low:.0f} are wanted")
    if size > high:
        return Fault("too_long", f"{size} words or characters, the source has {old}; at most {high:.0f} are allowed")
    return None


def _content_fault(post: str, source: str, rewrite: str, config: DialogueConfig) -> Fault | None:
    if plain(rewrite) == plain(source):
        return Fault("unchanged", "it is the counsellor's reply as it was")
    if added := added_claims(post, source, rewrite):
        return Fault(added[0][0], f"it says {added[0][1]!r}, which the source does not")
    if (phrase := plays_down(rewrite)) and phrase not in plain(source):
        return Fault("played_down", f"it says {phrase!r}")
    if lost := lost_advice(source, rewrite, config.advice_share):
        return Fault("advice_lost", f"{len(lost)} of the source's sentences of advice, first: {lost[0]!r}")
    if not added_understanding(post, source, rewrite):
        return Fault("no_understanding", "no sentence states feeling or understanding that the source did not state")
    return None


def _risk_fault(rewrite: str, risk: str | None) -> Fault | None:
    fault = reply_fault(rewrite) if risk else None
    return Fault(fault[0], f"the post shows {risk}: {fault[1]}") if fault else None


_VERDICT = re.compile(r"\b(ADVICE|ADDED|FEELING)\b\W{1,6}(YES|NO)\b(?! or| 或)", re.IGNORECASE)


def verdict_fault(verdict: str) -> Fault | None:
    """The judge's objection; its reply must say of ADVICE, ADDED and FEELING, each once and the same, yes or no."""
    found: dict[str, set[str]] = {}
    for key, value in _VERDICT.findall(split_think(verdict)[1]):
        found.setdefault(key.upper(), set()).add(value.upper())
    if set(found) != {"ADVICE", "ADDED", "FEELING"} or any(len(values) > 1 for values in found.values()):
        return Fault("judge_unreadable", f"the judge replied {verdict.strip()[:120]!r}")
    objections = (("ADVICE", "NO", "lost_advice"), ("ADDED", "YES", "added"), ("FEELING", "NO", "no_feeling"))
    for key, wrong, code in objections:
        if found[key] == {wrong}:
            return Fault(f"judge_{code}", f"the judge replied {verdict.strip()[:120]!r}")
    return None
