"""Whether the advice of a reply stands in another wording of it too.

A sentence of the source is advice if it tells to do something: a modal or a cue ("should", "try", "建议", "不要"), or
an imperative. It is kept if, somewhere in the rewrite, up to three neighbouring sentences hold a given share of its
content words, and what it tells not to do is not told to be done there, or the reverse. The rule asks for the source's
own words: a free paraphrase counts as lost, so the check errs towards rejecting.
"""

from __future__ import annotations

import re

from psychecore.curate.wording import content_words, patterns, plain, sentences

WINDOW = 3  # neighbouring sentences of the rewrite in which one piece of advice may be spread

_VERBS = re.sub(
    r"\s+",
    "|",
    """
    accept add agree allow answer apologise apologize arrange arrive ask avoid be begin block book breathe bring
    build buy call change charge check choose close contact cook count cut decide describe discuss divide do
    draw drink drop eat exercise expect explain fill find finish fix focus follow form get give go hand have
    hold hug include invite join keep lay learn leave let limit list listen lock look lower make mark meet move
    mute name note offer open pack pass pay phone pick plan plant play practice practise praise prepare put
    reach read reconsider reduce refuse remember remind repeat replace report rest return review reward save say
    schedule see seek send set share show sign sit sleep speak spend stand start stay stop store study take talk
    tell tense test thank think try turn unfollow use visit volunteer wait walk watch weigh work write
    """.strip(),
)
_ADVICE = patterns(
    r"""
    \b(?:should|could|can|must|ought to|have to|need to|try|consider|recommend\w*|suggest\w*|advis\w+|avoid|make sure)\b
    \b(?:do not|don't|never)\b|\b(?:it|this) (?:often |usually |also )?helps\b|\bbetter to\b
    (?:^|[,;:] )(?:(?:and|or|then|so|please|instead|also|first|next|afterwards|next year|today|tomorrow|until then|now)\
    ,? )*(?:<VERBS>)\b
    建议|可以|试|不妨|应该|最好|[想需只]?要|请|先|把|让|去|记|每[天周晚节]|别|避免|少|改成|保持|坚持|约|找|写|问|告诉|参加|了解|看
    跟|和|给|整理|关|离开|规定|收|准备|联系|多|用
    """,
    VERBS=_VERBS,
)
_NOT_TO = patterns(
    r"""
    (?:\bnot|n't|\bnever|\bavoid|\bwithout|\bstop|\binstead of|\brather than|\bleave out|\bskip\
    |\bno (?:use|point|sense|need)(?: in)?|\b(?:wrong|useless|pointless|a bad idea) to)\b\
    (?P<en>(?: [\w'-]+){1,6})
    (?:不要|别|避免|不能|不必|不用|不宜|不)(?P<zh>[\u3400-\u9fff]{1,6})
    """
)


def advice_sentences(reply: str) -> list[str]:
    """The sentences of a reply that tell to do, or not to do, something that content words name."""
    return [
        one for one in sentences(reply) if not one.endswith(("?", "？")) and _ADVICE.search(plain(one)) and _words(one)
    ]


def lost_advice(source: str, rewrite: str, share: float = 0.5) -> list[str]:
    """The advice of `source` that is not found again in `rewrite`, as its sentences; [] where all is kept.

    `share`: the part of a sentence's content words, from 0 to 1, that must stand together in the rewrite.
    """
    parts = sentences(rewrite)
    windows = [" ".join(parts[start : start + WINDOW]) for start in range(max(len(parts) - WINDOW + 1, 1))]
    known = [(set(content_words(window)), _refused(window)) for window in windows]
    return [
        one
        for one in advice_sentences(source)
        if not any(_holds(one, words, refused, share) for words, refused in known)
    ]


def _holds(advice: str, words: set[str], refused: set[str], share: float) -> bool:
    wanted = _words(advice)
    found = wanted & words
    if len(found) < share * len(wanted):
        return False
    told_not, refused_here = _refused(advice) & wanted, refused & wanted
    if told_not:
        return bool(told_not & refused_here)
    turned = content_words(advice)[0] in refused_here and len(refused_here) > 1  # "don't ask your doctor"
    return not turned and 2 * len(refused_here) < max(len(found), 2)


def _words(text: str) -> set[str]:
    return set(content_words(text))


def _refused(text: str) -> set[str]:
    """The content words that stand right behind a "do not" or its like."""
    behind = (found["en"] or found["zh"] for found in _NOT_TO.finditer(plain(text)))
    return {word for piece in behind for word in content_words(piece)}
