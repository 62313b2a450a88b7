"""A judge's reply read into four scores, in JSON or in lines, Chinese or English; a score is never guessed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from psychecore.curate.replies import Object, flatten, read_objects, without_thinking

CRITERIA = ("answerable", "unambiguous", "key", "sound")
MAX_REPLY = 20_000  # characters of a reply that are read


class Verdict(NamedTuple):
    """Scores and reasons by criterion ("" where none is given); or neither, and the `problem` with the reply."""

    scores: dict[str, int]
    reasons: dict[str, str]
    problem: str = ""


class _Given(NamedTuple):
    name: str
    score: Any  # as written; None where only a reason is given
    reason: str = ""


def parse_verdict(reply: str) -> Verdict:
    """The four scores that a judge's reply gives. Never raises, and takes time linear in the reply.

    Read are JSON objects of several shapes, and lines such as "answerable: 4 - reason", "**Key**: 5/5", "无歧义：3分",
    table rows, or a criterion with "Score: 4" and "Reason: ..." on the lines below it. A score that is missing, no
    whole number from 1 to 5, or given twice with different values makes the reply unparsable.

    >>> parse_verdict("answerable: 4 - yes\\nunambiguous: 5\\nkey: 5/5\\nsound: 4").scores["key"]
    5
    """
    text = without_thinking(reply[:MAX_REPLY]).replace("\r", "\n")
    objects = read_objects(text, lambda found: any(_named(key) for key in found) or _entry(found) is not None)
    if any(not found.whole for found in objects):
        return Verdict({}, {}, "the object breaks off or is no JSON")
    given = [part for found in objects for part in _from_object(found.value)] or list(_from_lines(text))
    scores: dict[str, int] = {}
    reasons: dict[str, str] = {}
    for name, value, reason in given:
        if reason:
            reasons.setdefault(name, reason)
        if value is None:
            continue
        score = _whole(value)
        if score is None:
            return Verdict({}, {}, f"{name} is {value!r:.40}, which is no whole number from 1 to 5")
        if scores.setdefault(name, score) != score:
            return Verdict({}, {}, f"{name} is {scores[name]} and then {score}")
    if missing := [name for name in CRITERIA if name not in scores]:
        return Verdict({}, {}, f"no score for {', '.join(missing)}")
    return Verdict({name: scores[name] for name in CRITERIA}, {name: reasons.get(name, "") for name in CRITERIA})


_NAMES = {
    "answerable": r"answerab(?:le|ility)|可以?(?:回答|作答)性?|可答性",
    "unambiguous": r"unambigu(?:ous(?:ness)?|ity)|无歧义性?|没有歧义",
    "key": r"(?:(?:one |all )?(?:answer )?keys?(?:[ _](?:is |are )?(?:right|correct))?)|答案(?:正确|准确)性?",
    "sound": r"(?:psychological(?:ly)?[ _])?sound(?:ness)?|(?:合乎|符合)心理学|心理学上?(?:正确|可靠|合理)性?|专业性",
}
_NAME = "(?:" + "|".join(f"(?P<{name}>{words})" for name, words in _NAMES.items()) + ")"
_KEY = re.compile(rf"{_NAME}[ _]?(?:score|rating|评分|得分|(?P<why>reason|explanation|理由))?", re.IGNORECASE)
_NUMBER = r"[-+~<>]?\d+(?:\.\d+)?(?:e\d+|%)?(?: ?(?:/|(?:out )?of\b|or\b|to\b|[-–—~或到至]) ?\d+(?![\w.]))?"
_VALUE = re.compile(rf"(?P<value>{_NUMBER}) ?(?:分|points?\b)?")
_LINE = re.compile(
    rf"(?:^|(?<=[,;|.] )|(?<=[,;|]))(?:\(?\d{{1,2}}[.):] ?)?\"?{_NAME}\"? ?(?:score|评分|得分|分数)? ?"
    rf"[:=|(—–-]{{1,2}} ?(?:score ?[:=]? ?|评分 ?[:=]? ?)?{_VALUE.pattern}",
    re.IGNORECASE,
)
_HEAD = re.compile(rf"(?:\(?\d{{1,2}}[.):] ?)?{_NAME} ?(?P<end>:|$|\()", re.IGNORECASE)
_SCORE = re.compile(rf"(?:score|rating|评分|得分|分数) ?[:=|] ?{_VALUE.pattern}", re.IGNORECASE)
_REASON = re.compile(r"(?:reason(?:ing)?|explanation|justification|理由|原因|说明) ?[:=|] ?", re.IGNORECASE)
_SCORE_KEYS = ("score", "rating", "value", "评分", "得分", "分数")
_REASON_KEYS = ("reason", "reasoning", "explanation", "justification", "理由", "原因", "说明")
_EDGES = " -–—:：,，|;；)）]】"


def _whole(value: Any) -> int | None:
    """A whole number from 1 to 5, also as "4", "4.0", "4/5", "4 of 5" or "4 out of 5"; None for anything else."""
    if isinstance(value, str) and (match := re.fullmatch(r"([1-5])(?:\.0)?(?: ?(?:/|(?:out )?of) ?5)?", value.strip())):
        return int(match[1])
    return int(value) if type(value) in (int, float) and value in (1, 2, 3, 4, 5) else None


def _named(key: str) -> re.Match[str] | None:
    return _KEY.fullmatch(flatten(key).strip())


def _criterion(match: re.Match[str]) -> str:
    return next(name for name in CRITERIA if match[name])


def _entry(found: Object) -> _Given | None:
    """{"criterion": "key", "score": 4, "reason": "..."}."""
    name = _first(found, ("criterion", "name", "标准", "指标"))
    match = _named(name) if isinstance(name, str) else None
    return _Given(_criterion(match), *_scored(found)) if match else None


def _scored(found: Object) -> tuple[Any, str]:
    """(score, reason) of an object; one that gives a key twice, differently, has the score False, which fails."""
    score, reason = _first(found, _SCORE_KEYS), _first(found, _REASON_KEYS)
    return False if found.repeated else score, reason if isinstance(reason, str) else ""


def _first(found: Object, keys: tuple[str, ...]) -> Any:
    return next((found[key] for key in keys if key in found), None)


def _from_object(found: Object) -> Iterator[_Given]:
    if (entry := _entry(found)) is not None:
        yield entry
        return
    for key, value in found.items():
        if not (match := _named(key)):
            continue
        name = _criterion(match)
        if key in found.repeated:
            yield _Given(name, False)
        elif isinstance(value, Object):
            yield _Given(name, *_scored(value))
        elif isinstance(value, list) and len(value) == 2 and isinstance(value[1], str):
            yield _Given(name, value[0], value[1])
        elif not isinstance(value, str):
            yield _Given(name, False if value is None else value)
        elif match["why"] or not (number := _VALUE.match(flatten(value).strip())):
            yield _Given(name, None, value)
        else:
            yield _Given(name, number["value"], value.strip()[number.end() :].strip(_EDGES))


def _from_lines(text: str) -> Iterator[_Given]:
    current = ""
    for raw in text.split("\n"):
        line = " ".join(re.sub(r"[*`#]|__", "", raw).split()).lstrip("-•·>| ").rstrip("| ")
        flat = flatten(line)
        found = list(_LINE.finditer(flat))
        if found and found[0].start() == 0:
            stops = [match.start() for match in found[1:]] + [len(line)]
            for part, stop in zip(found, stops, strict=True):
                yield _Given(current := _criterion(part), part["value"], line[part.end() : stop].strip(_EDGES))
        elif match := _HEAD.match(flat):
            current = _criterion(match)
        elif current and (match := _SCORE.match(flat)):
            yield _Given(current, match["value"], line[match.end() :].strip(_EDGES))
        elif current and (match := _REASON.match(flat)):
            yield _Given(current, None, line[match.end() :])
