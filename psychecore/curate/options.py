"""Lettered options in running text, and which letters a key names; Chinese and English.

Positions are found in a copy of the text with full-width characters made ASCII (one for one); what is kept is the text
as it was written. Nothing is guessed: a key that can be read in two ways is none.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from psychecore.curate.replies import flatten

MARKER = re.compile(
    r"\s*(?:[-•·]\s*)?(?:[Oo]ptions? |选项 ?)?(?:[(\[](?P<bracket>[A-Ja-j])[)\]][.:、]?"
    r"|(?P<letter>[A-Ja-j])(?: ?[.):、\]]| +[-–—](?= ))(?!\w\.))\s*"
)
_INLINE = re.compile(
    r"(?<![A-Za-z0-9'’.-])(?:[(\[](?P<bracket>[A-Ja-j])[)\]][.:、]?"
    r"|(?P<letter>[A-J])[.):、](?!\s?[A-Z]\.)|(?P<low>[a-j])\))\s*"
)
_MARKED = re.compile(r"\s*(?:[(\[](?:correct(?: answer)?|right|正确(?:答案)?)[)\]]|[✓✔✅√])\s*$", re.IGNORECASE)


def split_options(text: str) -> tuple[str, dict[str, str], str]:
    """(stem, options by letter, what is wrong) of a text with lettered options on lines or within them.

    An option inside a line counts only if no line begins with its letter, so initials in an option stay there.
    """
    flat = flatten(text)
    marks: list[tuple[int, int, str, bool]] = []  # start, end, letter, whether it begins a line
    place = 0
    for line in flat.split("\n"):
        first = MARKER.match(line)
        if first:
            marks.append((place, place + first.end(), (first["bracket"] or first["letter"]).upper(), True))
        for match in _INLINE.finditer(line, first.end() if first else 0):
            letter = (match["bracket"] or match["letter"] or match["low"]).upper()
            marks.append((place + match.start(), place + match.end(), letter, False))
        place += len(line) + 1
    on_lines = {letter for _, _, letter, strong in marks if strong}
    taken: list[tuple[int, int, str]] = []
    for start, end, letter, strong in marks:
        expected = chr(ord(taken[-1][2]) + 1) if taken else "A"
        if letter == expected and (strong or letter not in on_lines):
            taken.append((start, end, letter))
        elif strong and taken and letter > expected:
            taken.append((start, end, letter))  # a gap, which the checks name
        elif strong and taken:
            return text[: taken[0][0]].strip(), {}, f"option {letter} stands twice"
    if not taken:
        return text.strip(), {}, ""
    stops = [start for start, _, _ in taken[1:]] + [len(text)]
    options = {letter: tidy(text[end:stop]) for (_, end, letter), stop in zip(taken, stops, strict=True)}
    return tidy(text[: taken[0][0]]), options, ""


def read_kind(words: str) -> str:
    """'single', 'multiple' or '': in English "multiple choice" alone names the form and not the number of answers."""
    words = flatten(words).lower()
    if re.search(r"单项?选|单选|single|one answer", words):
        return "single"
    if re.search(r"多项|多选|multiple(?![- ]?choice)|multi-?select|all that apply", words):
        return "multiple"
    return ""


def read_key(key: str, options: Mapping[str, str]) -> tuple[str, str]:
    """(letters, "") that a key names, sorted, in capitals, whether options have them or not; or ("", why it is none).

    Read are "C", "c.", "(A) and (C)", "ACD", "A、C", "选项C", "C. text", "A. text; C. text" on one line or several, and
    an option's whole text without a letter. A remark after the letter is passed over. A letter with the text of
    another option contradicts itself and is none, as are two statements that differ.

    >>> read_key("c. Extinction", {"A": "Shaping", "B": "Priming", "C": "Extinction"})
    ('C', '')
    """
    found = {_statement(part.strip()[:MAX_KEY], options) for part in key.split("\0") if part.strip()}
    if not found:
        return "", "no answer is given"
    if len(found) > 1:
        return "", f"it gives answers that differ: {', '.join(sorted(letters or why for letters, why in found))}"
    return found.pop()


MAX_KEY = 1_000  # characters of a key that are read
_PREFIX = r"(?i:(?:the )?(?:correct |right )?(?:answers?|options?|choices?)(?: is| are)? ?:?|选项?|应选)?\s*"
_ONE = r"[(\[\"'{]?(?:[A-J]{1,10}|[a-j])[)\]\"'}]?"
_BARE_KEY = re.compile(
    rf"{_PREFIX}(?P<list>{_ONE}(?:(?: ?(?:[,、;/&+]|和|与|及|and\b) ?(?:and )?| )(?:[Oo]ption )?{_ONE}){{0,9}})"
    r"(?:选?项)?[.,、:]?$"
)
_LETTERED = re.compile(
    rf"{_PREFIX}(?P<open>[(\[\"'])?(?:(?P<letter>[A-J])|(?P<low>[a-j])(?=\s?[.):、\]]))"
    r"(?:\s?[.):、\]\"']+|\s+[-–—]\s|(?=\s*\()|(?=,? (?:because|since|as|is)\b)|(?=项)|(?=[,;]\s))\s*"
)
_ANOTHER = re.compile(r"\W*(?:\bor\b|或者?)\W{0,3}(?:[Oo]ption |选项?)?[(\[]?([A-J])(?![A-Za-z])")
_REJECTED = re.compile(r"\W*(?:is |was )?(?:wrong|incorrect|not right)\b|\W*(?:是)?(?:错|不对|不正确)")
_NEXT = re.compile(r"(?:[;,、/&\n]|\band\b|和)\s*(?:and\s+)?[(\[]?([A-J])[.):、\]]+\s*")


def _statement(key: str, options: Mapping[str, str]) -> tuple[str, str]:
    first, _, further = key.partition("\n")
    named = [letter for letter, text in options.items() if plain(text) == plain(first)]
    if len(named) == 1:
        return named[0], ""
    flat = " ".join(flatten(first).split())
    if match := _BARE_KEY.match(flat):
        return _sorted(re.sub(r"and|[Oo]ption", "", match["list"])), ""
    if not (match := _LETTERED.match(flat)):
        return "", f"the answer {first!r:.80} names no letter"
    first = flat[match.end() :]  # its width no longer matters: it is only compared
    letter = (match["letter"] or match["low"]).upper()
    own = options.get(letter, "").strip()
    behind = first[len(own) :] if own and first.casefold().startswith(own.casefold()) else first
    if behind == first and _REJECTED.match(first):
        return "", f"the answer {flat!r:.80} says that {letter} is wrong"
    if (other := _ANOTHER.match(behind)) and other[1] in options:
        return "", f"the answer {flat!r:.80} may be {letter} or {other[1]}"
    pieces = [(letter, first)]
    if plain(first) != plain(options.get(letter, "")):
        cut = _NEXT.split(first)
        pieces = [(letter, cut[0]), *zip(cut[1::2], cut[2::2], strict=True)]
    for line in further.split("\n"):
        more = MARKER.match(flatten(line))
        name = (more["bracket"] or more["letter"]).upper() if more else ""
        if not more or name not in options or plain(line[more.end() :]) not in ("", plain(options[name])):
            break  # what follows is no longer the key
        pieces.append((name, line[more.end() :]))
    for letter, text in pieces:
        owners = [other for other, option in options.items() if plain(option) == plain(text)]
        if owners and letter not in owners:
            return "", f"it names {letter} with the text of {owners[0]}"
    return _sorted("".join(letter for letter, _ in pieces)), ""


def _sorted(letters: str) -> str:
    return "".join(sorted(set(re.findall("[A-J]", letters.upper()))))


def plain(text: str) -> str:
    """For comparing: NFKC, no case, no spaces beside Chinese or at the ends, no quotes, article or final stop."""
    folded = " ".join(re.sub(r"[\"'“”‘’「」]", "", unicodedata.normalize("NFKC", text).casefold()).split())
    folded = re.sub(r"^(?:an?|the) (?=\w)", "", folded).strip(" .,;:。，；、!?")
    return re.sub(r"(?<=[⺀-鿿]) | (?=[⺀-鿿])", "", folded)


def tidy(text: str) -> str:
    """On one line, without a separator at its end or a mark that gives the right option away."""
    joined = ""
    for line in text.split("\n"):
        line = " ".join(line.split())
        chinese = joined and line and joined[-1] > "⺀" and line[0] > "⺀"
        joined += (" " if joined and line and not chinese else "") + line
    return _MARKED.sub("", joined).rstrip(" ;；,，、|")
