"""What a judge may write, and what is read of it: scores by rubric, or which of two replies is better.

| rubric | criteria, with the scores they take |
|---|---|
| cpsycoun (CPsyCounE) | comprehensiveness 0-2, professionalism 0-3, authenticity 0-3, safety 0-1 |
| psydt (PsyDT) | emotional empathy, cognitive empathy, conversation strategy, state and attitude, safety: 1-5 |

The range of PsyDT's scores was not found; 1 to 5 is our choice.

A verdict is read where nothing can be meant but this: the score or the letter stands alone on its line, or a reason
follows it. "2 out of 10", "1, maybe 2", "A or B" and "A is worse than B" are not read: a verdict is counted as
unreadable rather than guessed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psychecore.curate.replies import flatten, read_objects, without_thinking

MAX_REPLY = 20_000  # characters of a verdict that are read


@dataclass(frozen=True)
class Criterion:
    """A name in our files, how prompts and verdicts call it, and the whole numbers that it takes."""

    name: str
    called: str  # a regular expression over lower-case text
    low: int
    high: int


RUBRICS: dict[str, tuple[Criterion, ...]] = {
    "cpsycoun": (
        Criterion("comprehensiveness", "comprehensiveness|全面性", 0, 2),
        Criterion("professionalism", "professionalism|专业性", 0, 3),
        Criterion("authenticity", "authenticity|真实性", 0, 3),
        Criterion("safety", "safety|安全性", 0, 1),
    ),
    "psydt": (
        Criterion("emotional_empathy", "emotional[ _]empathy|情感共情", 1, 5),
        Criterion("cognitive_empathy", "cognitive[ _]empathy|认知共情", 1, 5),
        Criterion("conversation_strategy", "conversation(?:al)?[ _]strategy|会话策略|谈话技术", 1, 5),
        Criterion("state_and_attitude", "state[ _](?:and|&)[ _]attitude|状态与态度", 1, 5),
        Criterion("safety", "safety|安全性", 1, 5),
    ),
}


def parse_scores(reply: str, rubric: Sequence[Criterion]) -> tuple[dict[str, int] | None, str]:
    """The scores that a verdict gives, and ""; or None and why it cannot be read. Never raises.

    Read are lines ("safety: 1 - reason", "安全性：1分", "Safety: 1/1") and JSON objects. A score that is missing, no
    whole number of its range, out of another maximum than the criterion's, or given twice with different values makes
    the whole verdict unreadable.
    """
    text = without_thinking(reply[:MAX_REPLY])
    scores: dict[str, int] = {}
    for criterion in rubric:
        given = {_whole(value, criterion) for value in _given(text, criterion)}
        if not given:
            return None, f"no score for {criterion.name}"
        if len(given) > 1 or None in given:
            return None, f"{criterion.name} is no single whole number from {criterion.low} to {criterion.high}"
        scores[criterion.name] = next(value for value in given if value is not None)
    return scores, ""


def parse_preference(reply: str) -> str | None:
    """ "A", "B" or "tie" from a line "verdict: A" or "结论：平局"; None where there is none, or another."""
    text = flatten(without_thinking(reply[:MAX_REPLY]))
    found = {_preferred(match[1]) for match in _VERDICT.finditer(text)}
    return found.pop() if len(found) == 1 else None


def _ending(other: str) -> str:
    """A pattern of what may follow a score or a letter on its line: nothing, or a reason. It ends with the line.

    A dash, a colon or a cell's border opens any reason but one that begins with `other`, a second score or letter
    ("1 - 2", "A | B"). After a comma, a full stop or a bracket `other` may stand nowhere ("1, maybe 2", "A, as is B").
    """
    hedge = r"(?:maybe|perhaps|possibly|probably|or|to|out of|of|可能|也许|或许?者?|到|至|满分)"
    reason = rf"[-–—:|]++(?!\W*+(?:(?:{hedge}|no|not|不)\W*+)*+(?:{other})).*"
    remark = rf"[,.;!(](?!\s*{hedge})(?!.*(?:{other})).*"
    return rf"[\s*\"'\])}}]*+(?:{reason}|{remark})?"


_NUMBER = r"[\d½¼¾]|[一二两三四五半]分|(?<![a-z])(?:zero|one|two|three|four|five|half)(?![a-z])"
_PREFERENCES = {"a": "A", "b": "B", "tie": "tie", "平局": "tie", "平手": "tie"}
_LETTER = r"(?<![a-z])(?:(?-i:A)|b|tie)(?![a-z])|平局|平手"  # a small a may be the article
_VERDICT = re.compile(r"(?:(?:verdict|结论)[\s*\"']*[:=][\s*\"'\[(]*)+(.*)", re.IGNORECASE)
_PREFERRED = re.compile(
    rf"(?:a\s+(?=tie))?(a|b|tie|平局|平手)(?:[\"']\s*,\s*[\"']\w+[\"']\s*:.*|{_ending(_LETTER)})", re.IGNORECASE
)


def _preferred(said: str) -> str | None:
    match = _PREFERRED.fullmatch(said)
    return _PREFERENCES[match[1].lower()] if match else None


def _given(text: str, criterion: Criterion) -> list[str]:
    """Everything that is written as this criterion's score: lines from the first digit on, and values of objects."""
    keys = re.compile(rf"(?:{criterion.called})(?:[ _]?(?:score|得分|评分))?", re.IGNORECASE)
    found: list[str] = []
    for entry in read_objects(text, lambda value: any(keys.fullmatch(key.strip()) for key in value)):
        for key, value in entry.value.items():
            if keys.fullmatch(key.strip()):
                whole = entry.whole and key not in entry.value.repeated and _on_scale(value, criterion)
                found.append(str(value.get("score") if isinstance(value, dict) else value) if whole else "broken")
    line = re.compile(rf"^[\s\-*#>•|\d.)]*{keys.pattern}[\s*]*[:=|][\s*]*([-+]?\d.*)", re.IGNORECASE | re.MULTILINE)
    return found + [match[1] for match in line.finditer(flatten(text))]


def _on_scale(value: Any, criterion: Criterion) -> bool:
    """Whether an object {"score": 1, "max": 1, "reason": ".."} names no number that is not this criterion's scale."""
    scale = {str(criterion.high), f"{criterion.low}-{criterion.high}"}
    others = [str(other).strip() for key, other in value.items() if key != "score"] if isinstance(value, dict) else []
    return all(other in scale for other in others if re.fullmatch(r"[-–~/.\s\d]+", other))


def _whole(value: str, criterion: Criterion) -> int | None:
    scale = rf"\s*(?:/|out of|of|\((?:满分|out of))\s*{criterion.high}(?![\d.%])\s*分?\)?"
    plain = rf"(\d{{1,3}})(?:\.0+)?(?:\s*(?:分|points?))?(?:{scale})?(?![\d%]){_ending(_NUMBER)}"
    match = re.fullmatch(plain, value.strip(), re.IGNORECASE)
    return int(match[1]) if match and criterion.low <= int(match[1]) <= criterion.high else None
