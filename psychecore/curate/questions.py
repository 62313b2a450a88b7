"""Stage 2, questions: a passage gives up to n questions, each tied to a span quoted from it (PAPER.md, Pipeline 2).

A model is shown the passage and asked for labelled lines; drafts.py reads what it wrote, and each draft must pass the
checks below. What fails one is rejected under that check's name with the raw text, and nothing is repaired by guess.

unparsable          the object breaks off, an option letter stands twice, or no key can be read
empty_stem          there is no question
missing_options     fewer than `min_options`, or a gap in the letters
duplicate_options   two options are equal but for case, width, spaces, quotes, article or final stop
all_of_the_above    an option speaks of other options ("all of the above", "以上都对", "both A and B"), unless
                    `keep_referring`; then, and where the stem speaks of a letter, the options stay in their order
wrong_letter        the key names an option that is not there, or a letter with another option's text
wrong_kind          single with several letters, or multiple with one
too_long            the stem or an option is longer than the config allows
answer_in_stem      the stem gives the answer away, see `gives_away`
span_not_in_passage no quotation, a very short one, or one that does not stand in the passage
wrong_language      the stem is not in the passage's language
repeated            the same stem came before for this passage
over_limit          the passage has its n questions already
passage_too_long    the passage is longer than the config allows; the model is not asked

Models key A or B too often, so the options of each question change places by a permutation that its id decides.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psychecore.curate.drafts import Draft, read_drafts
from psychecore.curate.generator import Generator, Request
from psychecore.curate.options import plain, read_key
from psychecore.curate.prompts import Prompts
from psychecore.curate.replies import writable
from psychecore.curate.stage import Outcome, Rejection
from psychecore.data.records import LANGUAGES, LETTERS, Question


@dataclass(frozen=True)
class QuestionsConfig:
    """What is asked for and what is let through; lengths are in characters, `min_span` without spaces.

    `count` questions a passage and request, `multiple` of them with several right options; `samples` requests a passage
    (above 1 with a temperature), together at most `count * samples` questions, each of at least `min_options` options
    and at most `max_stem` and `max_option` long, on a passage of at most `max_passage`. `keep_referring` lets options
    pass that refer to others. `temperature`, `seed` and `max_new_tokens` are of a reply. Raises ValueError.
    """

    count: int = 4
    multiple: int = 1
    samples: int = 1
    max_new_tokens: int = 1200
    temperature: float = 0.0
    seed: int = 0
    min_options: int = 4
    min_span: int = 8
    max_passage: int = 8000
    max_stem: int = 600
    max_option: int = 200
    keep_referring: bool = False

    def __post_init__(self) -> None:
        for name in ("count", "samples", "max_new_tokens", "min_span", "max_passage", "max_stem", "max_option"):
            if getattr(self, name) < 1:
                raise ValueError(f"questions.{name} is {getattr(self, name)}, but must be at least 1")
        if not 0 <= self.multiple <= self.count:
            raise ValueError(f"questions.multiple is {self.multiple}, but must be 0 to count ({self.count})")
        if not 2 <= self.min_options <= len(LETTERS):
            raise ValueError(f"questions.min_options is {self.min_options}, but must be 2 to {len(LETTERS)}")
        if not self.temperature >= 0:
            raise ValueError(f"questions.temperature is {self.temperature}, but must be 0 or more")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"questions.samples is {self.samples} at temperature 0: all would be equal")


class Questions:
    """The stage: rows of passages in; rows that Question.from_row reads, with passage_id and span, out."""

    name = "questions"

    def __init__(self, config: QuestionsConfig, generator: Generator, prompts: Prompts):
        self.config, self.generator, self.prompts = config, generator, prompts

    def batch(self, rows: Sequence[dict[str, Any]]) -> list[Outcome]:
        """One Outcome a passage. Raises ValueError that names the passage and the key which is missing or wrong."""
        requests: list[Request] = []
        asked: list[int] = []
        for index, row in enumerate(rows):
            check_passage(row)
            if len(row["text"]) <= self.config.max_passage:
                requests += [self._request(row, sample) for sample in range(self.config.samples)]
                asked += [index] * self.config.samples
        texts: list[list[str]] = [[] for _ in rows]
        for index, reply in zip(asked, self.generator.generate(requests), strict=True):
            texts[index].append(writable(reply.text))
        return [self._outcome(row, replies) for row, replies in zip(rows, texts, strict=True)]

    def _request(self, row: dict[str, Any], sample: int) -> Request:
        config = self.config
        messages = self.prompts.messages(
            "mixed" if config.multiple else "single",
            row["language"],
            passage=row["text"],
            count=str(config.count),
            multiple=str(config.multiple),
        )
        return Request(messages, config.max_new_tokens, config.temperature, config.seed, sample)

    def _outcome(self, passage: dict[str, Any], replies: list[str]) -> Outcome:
        if not replies:
            detail = f"{len(passage['text'])} characters, the limit is {self.config.max_passage}"
            return Outcome([], [Rejection(passage, "passage_too_long", detail)])
        kept, rejected = list[dict[str, Any]](), list[Rejection]()
        finder, stems, number = SpanFinder(passage["text"]), set[str](), 0
        for reply in replies:
            drafts = read_drafts(reply)
            for draft in drafts or [Draft(reply, broken="no question can be read in the reply")]:
                number += 1
                base = {"id": f"{passage['id']}-q{number}", "passage_id": passage["id"]}
                defaults = {"area": "", "language": "", "source": passage["id"]}
                base |= {key: passage.get(key) or default for key, default in defaults.items()}
                base |= {"passage_cluster": passage["cluster"]} if passage.get("cluster") else {}  # twins are relatives
                try:
                    row = build(draft, base, finder, self.config)
                    if plain(row["question"]) in stems:
                        raise Fault("repeated", f"{row['question']!r:.120} came before")
                    if len(kept) == self.config.count * self.config.samples:
                        raise Fault("over_limit", f"the passage has {len(kept)} questions already")
                except Fault as fault:
                    rejected.append(Rejection({**base, "raw": draft.raw}, fault.reason, fault.detail))
                    continue
                stems.add(plain(row["question"]))
                kept.append(row)
        return Outcome(kept, rejected)


def check_passage(row: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the key and its value, unless the row is a passage."""
    for key in ("id", "text", "language"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise ValueError(f"passage {row.get('id')!r}: {key} is {row.get(key)!r:.60}, but must be a non-empty text")
    if row["language"] not in LANGUAGES:
        raise ValueError(f"passage {row['id']!r}: language is {row['language']!r}, but must be one of {LANGUAGES}")


class Fault(Exception):
    """Why a draft is no question."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def build(draft: Draft, base: Mapping[str, Any], finder: SpanFinder, config: QuestionsConfig) -> dict[str, Any]:
    """The question row of a draft; `base` has its id, language and what it inherits. Raises Fault."""
    for reason, detail in _structure(draft, base, config):
        raise Fault(reason, detail)
    answer, problem = read_key(draft.key, draft.options)
    if problem:
        raise Fault("wrong_letter" if "with the text of" in problem else "unparsable", problem)
    if strange := sorted(set(answer) - set(draft.options)):
        raise Fault("wrong_letter", f"the key names {strange[0]}, the options are {''.join(draft.options)}")
    kind = draft.kind or ("single" if len(answer) == 1 else "multiple")
    if (kind == "single") != (len(answer) == 1):
        raise Fault("wrong_kind", f"called {kind}, but the key is {answer}")
    if shown := gives_away(draft.stem, draft.options, answer):
        raise Fault("answer_in_stem", f"the stem holds the right option {shown!r:.80}, and no wrong one")
    span = finder.find(draft.span)
    if span is None:
        raise Fault("span_not_in_passage", f"{draft.span!r:.120}" if draft.span else "no quotation is given")
    if (length := len(_skeleton(span)[0])) < config.min_span:
        raise Fault("span_not_in_passage", f"{span!r} has {length} characters, at least {config.min_span} are asked")
    options, refers = draft.options, any(map(_refers, draft.options.values())) or _names_letter(draft.stem)
    if not refers:
        options, answer = shuffled(options, answer, f"{config.seed}:{base['id']}")
    row = {**base, "question": draft.stem, "options": options, "answer": answer, "kind": kind, "span": span}
    Question.from_row(row)  # the checks above are stricter, so this holds
    return row


def _structure(draft: Draft, base: Mapping[str, Any], config: QuestionsConfig) -> Iterator[tuple[str, str]]:
    options = draft.options
    if draft.broken:
        yield "unparsable", draft.broken
    if not plain(draft.stem):
        yield "empty_stem", f"the stem is {draft.stem!r}"
    letters = "".join(options)
    if len(options) < config.min_options or letters != LETTERS[: len(options)]:
        yield "missing_options", f"options are {letters!r}, at least {LETTERS[: config.min_options]} are asked"
    if empty := [letter for letter, text in options.items() if not plain(text)]:
        yield "missing_options", f"option {empty[0]} is {options[empty[0]]!r}"
    seen: dict[str, str] = {}
    for letter, text in options.items():
        if (other := seen.setdefault(plain(text), letter)) != letter:
            yield "duplicate_options", f"{other} and {letter} are both {text!r:.80}"
    if not config.keep_referring:
        for letter, text in options.items():
            if _refers(text):
                yield "all_of_the_above", f"option {letter} is {text!r:.80}"
    if len(draft.stem) > config.max_stem:
        yield "too_long", f"the stem has {len(draft.stem)} characters, the limit is {config.max_stem}"
    for letter, text in options.items():
        if len(text) > config.max_option:
            yield "too_long", f"option {letter} has {len(text)} characters, the limit is {config.max_option}"
    chinese = len(re.findall(r"[㐀-鿿]", draft.stem)) / max(1, len(re.findall(r"[㐀-鿿]|[^\W\d_㐀-鿿]+", draft.stem)))
    if (base["language"] == "zh") != (chinese >= 0.5):  # of its words, a Chinese character counting as one
        yield "wrong_language", f"the passage is {base['language']}, the stem is {draft.stem!r:.80}"


def gives_away(stem: str, options: Mapping[str, str], answer: str) -> str:
    """The right option whose whole text stands in the stem while no wrong option's does; "" where there is none.

    Words must match as a whole, in their order. So that shared ordinary words don't count, the text must have at least
    3 Chinese characters or 6 Latin letters ("强化" in "正强化", "more" in any stem), and a stem that names a wrong
    option too compares them and gives nothing away.

    >>> gives_away("What makes negative reinforcement differ?", {"A": "Negative reinforcement", "B": "Shaping"}, "A")
    'Negative reinforcement'
    >>> gives_away("Is it negative reinforcement or shaping?", {"A": "Negative reinforcement", "B": "Shaping"}, "A")
    ''
    """
    within = {letter: _stands(plain(text), plain(stem)) for letter, text in options.items()}
    if any(within[letter] for letter in options if letter not in answer):
        return ""
    return next((options[letter] for letter in answer if within[letter]), "")


def _stands(text: str, stem: str) -> bool:
    if len(re.findall(r"[㐀-鿿]", text)) < 3 and len(re.findall(r"[^\W\d_㐀-鿿]", text)) < 6:
        return False
    return re.search(rf"(?<![^\W㐀-鿿]){re.escape(text)}(?![^\W㐀-鿿])", stem) is not None


_LETTER = r"(?<![A-Za-z])[A-J](?![A-Za-z])"
_REFERRING = re.compile(
    r"\b(?:all|none|both|any|neither|some|each|two|three|more than one)\b(?: \w+){0,2} of (?:(?:these|those|them)$"
    r"|(?:the|these|those) (?:\w+ ){0,2}(?:above|below|options?|choices|answers|given|listed))"
    r"|\b(?:the|all|none) above\b"
    r"|(?:以上|上述|前述|前[两三几])(?:选?项|几项|答案|说法|各项|选项)?(?:都|均|全|皆|没有|不)"
    r"|(?:都|均|全)(?:对|不对|正确|不正确|错误?|不是)$"
    r"|^(?:以上|上述)|(?:以上|上述)(?:选项|各项|都|皆|均|全)|^(?:all|none|both)$",
    re.IGNORECASE,
)
_LETTERS_ONLY = re.compile(
    rf"(?i:both |either |neither |only |只有|仅|除|options? |选项)?{_LETTER}(?: ?(?:,|、|and|or|nor|&|和|与|及|或) ?"
    rf"(?:options? )?{_LETTER})+(?: ?(?:only|are (?:both )?(?:correct|right)|都|均|皆|两?项|正确|对|不).{{0,8}})?$"
    rf"|.*(?:\b[Oo]ptions? |\b[Cc]hoices? |\b[Aa]nswers? |选项) ?{_LETTER}|(?:[Oo]nly|只有|仅) ?{_LETTER}"
)


def _refers(option: str) -> bool:
    """Whether an option speaks of other options, so that it means something else in another order."""
    text = unicodedata.normalize("NFKC", option).strip(" .。!")
    return bool(_REFERRING.search(text) or _LETTERS_ONLY.match(text))


def _names_letter(stem: str) -> bool:
    flat = unicodedata.normalize("NFKC", stem)
    return re.search(rf"(?:\b[Oo]ptions? |\b[Cc]hoices? |选项) ?{_LETTER}", flat) is not None


def shuffled(options: Mapping[str, str], answer: str, seed: str) -> tuple[dict[str, str], str]:
    """The options in the order of SHA-256 of (seed, letter), lettered anew, and the key that follows them."""
    order = sorted(options, key=lambda letter: hashlib.sha256(f"{seed}:{letter}".encode()).digest())
    moved = dict(zip(order, LETTERS, strict=False))
    return {moved[old]: options[old] for old in order}, "".join(sorted(moved[letter] for letter in answer))


class SpanFinder:
    """Finds quotations in a passage, equal but for width, case, spaces and the form of quotes and dashes."""

    def __init__(self, passage: str):
        self.passage = passage
        self.skeleton, self.places = _skeleton(passage)

    def find(self, quotation: str) -> str | None:
        """The span as it stands in the passage, or None. Quotes, stops and dots around the quotation don't count."""
        wanted = _skeleton(re.sub(r"[.…]{3,}$|…+$", "", quotation.strip()))[0].strip("\"'.…,;:()[]-。，；：、")
        start = self.skeleton.find(wanted) if wanted else -1
        if start < 0:
            return None
        return self.passage[self.places[start] : self.places[start + len(wanted) - 1] + 1]


_FORMS = {**dict.fromkeys("“”„「」『』«»", '"'), **dict.fromkeys("‘’`´", "'"), **dict.fromkeys("–—−‐‑", "-")}


def _skeleton(text: str) -> tuple[str, list[int]]:
    """The text without spaces, in one width, case and form of quotes; and where each character comes from."""
    chars, places = list[str](), list[int]()
    for place, char in enumerate(text):
        for part in unicodedata.normalize("NFKC", _FORMS.get(char, char)).casefold():
            if not part.isspace():
                chars.append(_FORMS.get(part, part))
                places.append(place)
    return "".join(chars), places
