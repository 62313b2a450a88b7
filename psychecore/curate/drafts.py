"""A model's reply read into drafts of questions: what stands there, nothing judged yet.

Objects in JSON are read where there are any (see replies.py), else lines with labels (see labelled.py).
"""

from __future__ import annotations

from typing import Any

from psychecore.curate.labelled import Draft, read_labelled
from psychecore.curate.options import MARKER, plain, read_kind, split_options, tidy
from psychecore.curate.replies import Found, Object, flatten, read_objects, without_thinking
from psychecore.data.records import LETTERS

MAX_REPLY = 40_000  # characters; what a longer reply holds beyond them is not read


def read_drafts(reply: str) -> list[Draft]:
    """The questions that a model's reply holds, in order; an empty list where there is none. Never raises.

    >>> read_drafts("1. Which part?\\nA. x\\nB. y\\nAnswer: b")[0].key
    'b'
    """
    text = without_thinking(reply[:MAX_REPLY]).replace("\r\n", "\n").replace("\r", "\n")
    objects = read_objects(text, _is_item)
    return [_from_object(found) for found in objects] if objects else read_labelled(text)


_STEM_KEYS = ("question", "stem", "question_text", "题目", "题干", "问题")
_SPAN_KEYS = ("quote", "span", "evidence", "source", "excerpt", "原文", "引文", "依据", "引用", "原文引用", "原句")
_KIND_KEYS = ("type", "kind", "question_type", "题型", "类型")
_KEY_KEYS = ("answer", "answers", "correct_answer", "correct_answers", "correct", "key", "答案", "正确答案")
_OPTION_KEYS = ("options", "choices", "选项")


def _is_item(found: Object) -> bool:
    return isinstance(_pick(found, _STEM_KEYS), str)


def _pick(found: Object, names: tuple[str, ...]) -> Any:
    lowered = {key.lower().replace(" ", "_"): value for key, value in found.items()}
    return next((lowered[name] for name in names if lowered.get(name) is not None), None)


def _from_object(found: Found) -> Draft:
    value = found.value
    draft = Draft(found.raw, stem=_text(_pick(value, _STEM_KEYS)), span=_text(_pick(value, _SPAN_KEYS)))
    draft.kind = read_kind(_text(_pick(value, _KIND_KEYS)))
    options = _pick(value, _OPTION_KEYS)
    if options is None:
        options = {letter: value[letter] for letter in LETTERS if letter in value}
    draft.options, draft.broken = _options_from(options)
    key = _pick(value, _KEY_KEYS)
    draft.key = "; ".join(_letter(part, draft.options) for part in key) if isinstance(key, list) else _text(key)
    if value.repeated:
        draft.broken = f"the object names {min(value.repeated)!r} twice, differently"
    if not found.whole:
        draft.broken = "the object breaks off or is no JSON"
    return draft


def _options_from(options: Any) -> tuple[dict[str, str], str]:
    """Options by letter out of an object, or a list of texts, lettered texts or objects; and what is wrong."""
    made: dict[str, str] = {}
    pairs: list[tuple[str, str]] = []
    if isinstance(options, dict):
        pairs = [(str(letter), _text(text)) for letter, text in options.items()]
    elif isinstance(options, str):
        return split_options(options)[1:]
    elif isinstance(options, list):
        texts = [_labelled(option) for option in options]
        marked = [MARKER.match(flatten(text)) for text in texts]
        for index, (text, match) in enumerate(zip(texts, marked, strict=True)):
            letter = match["letter"] if match and all(marked) else chr(ord("A") + index)
            pairs.append((letter, text[match.end() :] if match and all(marked) else text))
    for letter, text in pairs:
        name = flatten(letter).strip(" .):、(").upper().removeprefix("OPTION").strip(" _")
        if len(name) != 1 or name in made:
            return {}, f"options are lettered {letter!r:.40}, which is no letter or stands twice"
        made[name] = tidy(text)
    return made, ""


def _labelled(option: Any) -> str:
    """{"label": "A", "text": "x"} as "A. x"; anything else as its text."""
    if not isinstance(option, dict):
        return _text(option)
    letter = next((option[key] for key in ("label", "letter", "key", "id", "option") if key in option), "")
    text = next((option[key] for key in ("text", "content", "value", "内容") if key in option), "")
    if not letter and not text and len(option) == 1:
        letter, text = next(iter(option.items()))
    return f"{_text(letter)}. {_text(text)}" if letter else _text(text)


def _letter(part: Any, options: dict[str, str]) -> str:
    """One of several answers; an option's whole text as its letter."""
    text = _text(part)
    named = [letter for letter, option in options.items() if plain(option) == plain(text)]
    return named[0] if len(named) == 1 else text


def _text(value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return value.strip() if isinstance(value, str) else ""
