"""Questions in labelled lines, the form that the prompt asks for and that small models keep to best.

    Quote: ...        Question: ...        Type: single        A. ...  to  D. ...        Answer: B

Labels may be Chinese or English, in any case, width, order, bold or numbered; options may share a line, the stem may
stand without a label under a number, and what is said around the items is passed over. A draft starts where the label
that the reply began with comes again, where a label comes that the draft has already, at a number, or at an option A
after a key. Every regular expression looks at one line or moves on, so the cost is linear in the reply.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from psychecore.curate.options import MARKER, read_kind, split_options, tidy
from psychecore.curate.replies import flatten


@dataclass
class Draft:
    """One item of a reply. `options` in the order written, `key` as written, `broken` what made it unreadable."""

    raw: str
    stem: str = ""
    options: dict[str, str] = field(default_factory=dict)
    key: str = ""
    span: str = ""
    kind: str = ""  # "single", "multiple" or "" where the reply does not say
    broken: str = ""


_NUMBER = r"(?:[#№]? ?\d{1,3}|[一二三四五六七八九十]{1,3})"
_LABELS = {
    "stem": r"question|q|stem|题目|题干|问题|试题|第",
    "kind": r"(?:question )?type|kind|题型|题目类型|类型",
    "key": r"(?:the )?(?:correct |right |best )?(?:answers?|answer\(s\)|key)|(?:correct|right) options?|ans"
    r"|(?:正确|参考|标准)?答案|正确选项",
    "span": r"(?:source |supporting |direct )?(?:quotes?|quotation|span|evidence|excerpt|sentence)|source|anchor"
    r"|原文(?:引用|依据|片段|句子)?|引文|引用(?:原文)?|依据|原句|出处",
    "options": r"options|(?:answer )?choices|备?选项",
    "note": r"explanation|rationale|reason(?:ing)?|analysis|note|解析|解释|分析|说明|理由|考点|难度|difficulty",
}
_LABEL = re.compile(
    r"\[?(?:"
    + "|".join(rf"(?P<{name}>{words})" for name, words in _LABELS.items())
    + rf")(?P<number> ?{_NUMBER} ?题?)?"
    r" {0,3}(?:\((?P<hint>[^()\n]{1,40})\))? {0,3}"
    r"(?P<end>[:\]=]{1,2}|$|(?<=[\d题])[.)、]|(?: is| are):?(?= \(?[A-J]\b)(?! \w \w)|[是为](?=[A-J ]))",
    re.IGNORECASE,
)
_KIND_HEAD = re.compile(
    rf"\[?(?P<words>(?:单项?|多项?)选择?题?|(?:single|multiple)[- ]\w{{1,9}}) ?{_NUMBER}?[:\].、]+", re.I
)
_ITEM = re.compile(r"\(?\d{1,3} ?[.):、]\s*")
_LISTED_KEY = re.compile(r"[(\[]?[A-Ja-j]{1,10}[)\]]?[.:,;、]?")
_BULLET = re.compile(r"[-•·>▪●○|]\s+")
_CUT = re.compile(  # labels in the middle of a line; only ones that read as labels there: capital, colon
    r"(?<=[\s。？！；?!.;])(?=(?:Question(?: \d{1,3})?|Type|Options|(?:Correct )?Answer|Quote|Explanation)\s?[:：]"
    r"|(?:题目|题型|选项|(?:正确|参考)?答案|原文|解析)\s?[:：])"
)
_DECORATION = re.compile(r"\*+|`{3,}[a-z]{0,10}\s*$|`+|__+|^\s*#+")
_BEGIN = ("stem", "kind", "span", "option")  # what an item may begin with, beside a number
_RULE = re.compile(r"[-=—*_\s]*$")


@dataclass
class _Line:
    start: int
    text: str  # without decoration, bullet and label
    event: str  # "text", "blank", "option", "number" or a label's name
    hint: str = ""

    @property
    def is_first_option(self) -> bool:
        marker = MARKER.match(flatten(self.text))
        return marker is not None and (marker["bracket"] or marker["letter"]) in "Aa"


def read_labelled(text: str) -> list[Draft]:
    lines = list(_lines(text))
    starters, events = _number_starts(lines), [line.event for line in lines]
    began = next((e for e, starts in zip(events, starters, strict=True) if starts or e in _BEGIN), "stem")
    began = began if began in ("kind", "span") else "stem"
    items: list[_Item] = []
    loose: list[_Line] = []  # the last paragraph of text that belongs to no part
    for index, line in enumerate(lines):
        item = items[-1] if items else None
        event = "text" if line.event == "number" and not starters[index] else line.event
        if event == "blank":
            loose = []
        elif (event == "number" and not (item and item.open_for("number", began))) or (
            event in ("stem", "kind", "span") and not (item and item.open_for(event, began))
        ):
            item = _Item(line.start)
            items.append(item)
        elif event == "option" and loose and line.is_first_option and (item is None or item.has_body()):
            item = _Item(loose[0].start)
            item.parts["stem"] = [part.text for part in loose]
            items.append(item)
        if item is None:
            loose = _longer(loose, line) if event == "text" else []
            continue
        loose = item.take(event, line, loose)
    ends = [item.start for item in items[1:]] + [len(text)] * bool(items)
    drafts = [item.draft(text[item.start : end]) for item, end in zip(items, ends, strict=True)]
    return [draft for draft in drafts if draft.options or draft.key or draft.stem or draft.span]


def _longer(loose: list[_Line], line: _Line) -> list[_Line]:
    loose.append(line)  # in place: a copy for each line would take quadratic time
    return loose


def _lines(text: str) -> Iterator[_Line]:
    cuts = sorted({0, *(m.end() for m in re.finditer("\n", text)), *(m.end() for m in _CUT.finditer(text)), len(text)})
    for start, end in pairwise(cuts):
        yield _line(start, text[start:end])


def _line(start: int, raw: str) -> _Line:
    text = _DECORATION.sub("", raw).strip()
    if not text or _RULE.match(text):
        return _Line(start, "", "blank")
    flat = flatten(text)
    if match := _BULLET.match(flat):
        text, flat = text[match.end() :], flat[match.end() :]
    number = _ITEM.match(flat)
    rest = number.end() if number else 0
    if (match := _LABEL.match(flat, rest)) and (match.lastgroup != "stem" or match["stem"] != "第" or match["number"]):
        event = next(name for name in _LABELS if match[name])
        hint = match["hint"] or ""
        return _Line(start, text[match.end() :].strip(), event, hint)
    if match := _KIND_HEAD.match(flat, rest):
        return _Line(start, text[match.end() :].strip(" .．、"), "number", match["words"])
    if MARKER.match(flat):
        return _Line(start, text, "option")
    return _Line(start, text[rest:] if number else text, "number" if number and len(flat) > rest else "text")


def _number_starts(lines: list[_Line]) -> list[bool]:
    """Whether the numbered line at each place begins an item: what comes next, or what it holds, are options."""
    starts = [False] * len(lines)
    following = ""
    for index in range(len(lines) - 1, -1, -1):
        line = lines[index]
        if line.event == "number":
            starts[index] = bool(line.hint) or following in ("option", "options", "kind") or _holds_options(line.text)
            following = "number" if starts[index] else following
        elif line.event not in ("text", "blank"):
            following = line.event
    return starts


def _holds_options(text: str) -> bool:
    return len(split_options(text)[1]) >= 2


class _Item:
    """The lines of one item, by part."""

    def __init__(self, start: int):
        self.start = start
        self.parts: dict[str, list[str]] = {name: [] for name in ("stem", "options", "key", "span", "kind", "note")}
        self.at, self.broken = "stem", ""

    def has_body(self) -> bool:
        return bool(self.parts["options"] or self.parts["key"])

    def open_for(self, event: str, began: str) -> bool:
        """Whether this item still has room for a label; a number ends an item that has more than a bare head."""
        parts, body = self.parts, self.has_body()
        if event == "number":
            return not body and not parts["stem"] and not parts["span"]
        if event == "stem":
            return not body and not parts["stem"]
        return not (body and (event == began or (event == "kind" and bool(parts["kind"]))))

    def take(self, event: str, line: _Line, loose: list[_Line]) -> list[_Line]:
        """Add a line; returns the text that stands loose after it."""
        if line.hint:
            self.parts["kind"].append(line.hint)
        if event == "blank":
            self.at = "note" if self.at in ("span", "key", "options") and self.parts[self.at] else self.at
            return []
        if line.event == "number" and self.at == "key" and _LISTED_KEY.fullmatch(flatten(line.text)):
            self.broken = "the keys of several questions stand in a list"  # after the last, which is not all theirs
        if event == "number":
            event = "stem"
        if event == "option":
            if self.at == "key" or (self.parts["key"] and self.at == "note"):
                self.parts[self.at].append(line.text)
                return []
            if not self.parts["stem"] and loose:
                self.parts["stem"] = [part.text for part in loose]
            event = "options"
        if event == "text":
            if self.at == "note" or (self.at == "key" and self.parts["key"]):
                self.at = "note"
                return _longer(loose, line)
            event = self.at
        if event == "span" and self.parts["span"]:
            event = "note"  # the first quotation counts
        elif event == "key" and self.parts["key"]:
            self.parts["key"].append("\0")  # a second statement: read_key holds the two against each other
        elif event == "stem" and _holds_options(line.text):
            event = "options"  # so that a blank line ends them
        self.at = event
        self.parts[event] += [line.text] if line.text else []
        return []

    def draft(self, raw: str) -> Draft:
        parts = {name: "\n".join(lines) for name, lines in self.parts.items()}
        stem, options, broken = split_options(f"{parts['stem']}\n{parts['options']}")
        kind = read_kind(parts["kind"]) or read_kind(flatten(stem)[:12] if stem[:1] in "(（[【" else "")
        stem = re.sub(r"^[(（[【](?:单|多)项?选择?题?[)）\]】]\s*(?:(?:题目|题干|问题)[:：]\s*)?", "", stem)
        return Draft(raw.strip(), stem, options, parts["key"], tidy(parts["span"]), kind, self.broken or broken)
