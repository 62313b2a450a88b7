"""What a rationale concludes: it must not end in another answer than the gold one, which is put behind it."""

from __future__ import annotations

import re

from psychecore.data.records import LETTERS, Question
from psychecore.reward.answer import NOTHING_STATED, named_letters, parse_answer

_PIECES = re.compile(r"(?<=[.!?])(?<!^[A-J]\.)\s+|(?<=[。！？])|\n+", re.MULTILINE)  # "B. Shaping" is one piece


def other_conclusion(rationale: str, question: Question) -> str:
    """What a rationale concludes, where that is not the gold answer, else "".

    The last sentence that states an answer decides, and a last line such as "B. Shaping" states one. So the wrong
    options may be talked through, but a rationale can't end in "so the answer is B" where A is right. What the very
    last sentence only names counts too ("that leaves B"), where it names no right option: rather too strict than not.

    >>> gold_a = Question("q", "?", {"A": "Shaping", "B": "Fading"}, "A", "single")
    >>> other_conclusion("Steps are rewarded. B is tempting. So the answer is B.", gold_a)
    'B'
    """
    pieces = [piece for piece in _PIECES.split(rationale) if piece.strip()]
    named = _named(pieces[-1], question) if pieces else set()
    if named and not named & set(question.answer):
        return "".join(sorted(named))
    for place, piece in enumerate(reversed(pieces)):
        # Behind "…" no letter stands at the start of a line, where it would count as an answer without saying so.
        parsed = parse_answer(piece if place == 0 else f"… {piece}", LETTERS)
        if parsed.letters:
            return "" if parsed.letters == question.answer else parsed.letters
        if parsed.reason != NOTHING_STATED:
            return parsed.reason
    return ""


_CONCLUDES = re.compile(
    r"^\W*(?:so|thus|hence|therefore|consequently|overall)\b|\b(?:answer|correct|right|best|choose|pick|conclude)\b"
    r"|答案|正确|应选|应该?是|^(?:所以|因此|综上|故|由此|可见)",
    re.I,
)
_NOT_BEFORE = re.compile(r"(?:\b(?:not|n't|nor|than|instead of|unlike)|不是|而非|不选|排除)\W*(?:an? |the )?$", re.I)


def _named(sentence: str, question: Question) -> set[str]:
    """The options that a last sentence names, by letter, or by their whole text where it concludes something."""
    letters = set(named_letters(sentence, LETTERS))
    if _CONCLUDES.search(sentence):
        for letter, text in question.options.items():
            found = re.search(rf"(?<![A-Za-z]){re.escape(text.strip())}(?![A-Za-z])", sentence, re.I)
            if text.strip() and found and not _NOT_BEFORE.search(sentence[: found.start()]):
                letters.add(letter)
    return letters
