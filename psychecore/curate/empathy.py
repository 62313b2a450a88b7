"""Sentences of a reply that state feeling and understanding for the person who wrote, in Chinese and English.

Such a sentence speaks to the person ("it sounds", "no wonder", "我能感受到") and names a feeling or something of the
post. A bare formula ("I understand.") names neither and does not count.
"""

from __future__ import annotations

from psychecore.curate.wording import content_words, patterns, plain, sentences

_TURNED_TO = patterns(
    r"""
    \bi (?:can |do |really |truly )*(?:hear|see|imagine|understand|sense|feel)\b
    \bi'm (?:so |very |really |truly )*sorry\b
    \bi am (?:so |very |really |truly )*sorry\b|\bsounds?\b|\bmust (?:be|feel|have)\b|\bno wonder\b|\bunderstandable\b
    \bmake(?:s)? (?:\w+ )?sense\b|\bof course you\b|\banyone (?:would|in your)\b|\bit takes (?:courage|strength)\b
    \byou (?:have been|have carried|are carrying|sound|feel|felt|seem|are feeling|went through|have gone through)\b
    \byou've been\b|\byou're (?:feeling|carrying|going through)\b|\b(?:what|how) you (?:feel|describe|write|are going)\b
    \bit(?:'s| is) (?:\w+ )?(?:natural|painful|hard|exhausting|frightening|heavy|sad|hurtful|lonely)\b
    我(?:真的|完全|很)?(?:能|可以)?(?:够)?(?:理解|明白|听到|听见|感受到|感觉到|看到|体会|懂|想象)
    听(?:起来|得出|上去|你)|看得出|一定(?:很|让|非常|特别)|想必|难怪|难免|很自然|换作谁|换了谁|不容易|心疼
    谢谢你(?:愿意)?(?:说|告诉|信任|把)|你(?:已经)?(?:承受|扛|撑)
    """
)
_FEELING = patterns(
    r"""
    \b(?:sad|sadness|hurts?|hurtful|pain|painful|lonely|loneliness|alone|afraid|fears?|scared|scary|frighten\w*|anxious)\b
    \b(?:anxiety|worr\w+|overwhelm\w*|exhaust\w*|tired|tiring|worn|drain\w*|asham\w+|shame|guilt\w*|angry|anger|frustrat\w+)\b
    \b(?:disappoint\w+|helpless\w*|hopeless\w*|heavy|hard|difficult|tough|torn|stuck|lost|confus\w+|upset\w*|grief|griev\w+)\b
    \b(?:miss|missing|heartbr\w+|unfair|stress\w*|pressure|burden\w*|empty|emptiness|despair\w*|desperate|humiliat\w+)\b
    \b(?:embarrass\w+|invisible|rejected|bitter|homesick|nervous|panic\w*|longing|weighs?|weight|cruel|shaken|trapped)\b
    难过|难受|痛苦|痛|累|疲惫|委屈|孤独|孤单|害怕|恐惧|焦虑|担心|着急|压力|沉重|无助|绝望|愧疚|内疚|自责|羞|生气|愤怒|失望|伤心
    煎熬|不容易|辛苦|迷茫|矛盾|纠结|崩溃|心酸|不安|紧张|心烦|烦躁|心疼|想念|失落|悲伤|心慌|慌
    """
)


def understanding(reply: str, post: str) -> list[str]:
    """The sentences of `reply` that state feeling or understanding for what `post` tells.

    >>> understanding("It sounds exhausting. Go to bed early.", "I can't sleep.")
    ['It sounds exhausting.']
    """
    told = set(content_words(post))
    found = []
    for sentence in sentences(reply):
        words = plain(sentence)
        if _TURNED_TO.search(words) and (_FEELING.search(words) or len(told & set(content_words(words))) >= 2):
            found.append(sentence)
    return found


def added_understanding(post: str, source: str, rewrite: str) -> list[str]:
    """The statements of understanding in `rewrite` that are not in the reply `source` it was made from."""
    old = {plain(sentence) for sentence in sentences(source)}
    return [sentence for sentence in understanding(rewrite, post) if plain(sentence) not in old]
