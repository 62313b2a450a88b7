"""Sentences, content words and length of a Chinese or English text, as the reply checks count them.

No segmenter and no stemmer is needed: Chinese content "words" are pairs of neighbouring characters, English ones are
words cut to a rough stem, so that "sleeping" and "sleep" are equal. Both are for overlap, not for display.
"""

from __future__ import annotations

import re
import unicodedata

CJK = "\u3400-\u9fff"

_QUOTES = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-"})
_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|(?<=[a-z][.!?])(?=[A-Z])|(?<=[。！？!?；…])|\n+")
_WORD = re.compile(r"[a-z][a-z'-]*[a-z]|[a-z]|\d+")
_STOP = frozenset(
    """
    a about above after again all also am an and any are as at be because been before being best but by can
    could did do does doing don't down each else even ever every few first for from further get give go good had
    has have having he help her here hers him his how however i if in into is it it's its just keep kind let
    like make may me might more most much must my need never no nor not now of off often on once one only or
    other our out over own perhaps please put same say see set she should since so some something still such
    take than that that's the their them then there these they thing this those though through to too try under
    until up us very want was way we well were what when where whether which while who whom why will with
    without won't would you you'll you're you've your yours yourself consider suggest recommend maybe really
    """.split()
)
_SUFFIXES = ("ations", "ation", "ments", "ment", "ings", "edly", "ness", "ies", "ing", "ed", "es", "ly", "s", "y", "e")
_STOP_CJK = re.compile(
    "[的了吗呢吧啊呀嘛着过和与及或就都也很还在是有不没你我他她它们这那个一会能可以要去把被让给到从对为而且但]"
)


def plain(text: str) -> str:
    """The text in lower case, compatibility forms and quotes made plain, each run of white space one space."""
    return " ".join(unicodedata.normalize("NFKC", text).translate(_QUOTES).lower().split())


def sentences(text: str) -> list[str]:
    """The sentences of a text, stripped, none empty.

    >>> sentences("Sleep well. Rest!每天散步。少喝酒")
    ['Sleep well.', 'Rest!', '每天散步。', '少喝酒']
    """
    return [piece.strip() for piece in _END.split(text) if piece.strip()]


def content_words(text: str) -> list[str]:
    """Stems of the English words and pairs of Chinese characters that carry content, in order.

    >>> content_words("Keep a diary of your sleeping hours.")
    ['diar', 'sleep', 'hour']
    """
    found: list[str] = []
    for piece in re.findall(rf"[{CJK}]+|[^{CJK}]+", plain(text)):
        if re.match(f"[{CJK}]", piece):
            for run in _STOP_CJK.split(piece):
                found.extend(run[i : i + 2] for i in range(len(run) - 1))
        else:
            found.extend(_stem(word) for word in _WORD.findall(piece) if word not in _STOP)
    return found


def patterns(lines: str, **parts: str) -> re.Pattern[str]:
    r"""One pattern of many, each on a line of its own, or more lines where one ends in \; <NAME> stands for a part."""
    whole = re.sub(r"\\\n\s*", "", lines.strip())
    joined = "|".join(line.strip() for line in whole.splitlines())
    return re.compile(re.sub("<([A-Z]+)>", lambda found: parts[found[1]], joined))


def length(text: str) -> int:
    """English words plus Chinese characters."""
    return len(re.findall(rf"[{CJK}]", text)) + len(re.findall(r"[A-Za-z0-9]+(?:['’-][A-Za-z0-9]+)*", text))


def language_of(text: str) -> str:
    """Chinese ("zh") where a fifth or more of the words and characters are Chinese, else English ("en")."""
    return "zh" if 5 * len(re.findall(rf"[{CJK}]", text)) >= max(length(text), 1) else "en"


def _stem(word: str) -> str:
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            word = word[: -len(suffix)]
            break
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word
