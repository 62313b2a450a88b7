"""What a reply to a post with acute risk must hold: it names help, and plays nothing down. Chinese and English.

The rules are word patterns like those of risk.py, and they lean to rejecting: a number counts only where the reply
tells to call it, and a service only where nothing around it turns away from it ("the police won't help you").
"""

from __future__ import annotations

import re

from psychecore.curate.risk import NEAR, before
from psychecore.curate.wording import patterns, plain, sentences


def reply_fault(reply: str) -> tuple[str, str] | None:
    """Why a reply must not train on a post with risk, as (code, detail), or None.

    It must name help: a hotline, an emergency or specialised service, or, now or today, a professional or a trusted
    person; and nothing in it may play the danger down.
    """
    if phrase := plays_down(reply):
        return "risk_played_down", f"the reply says {phrase!r}"
    if not names_help(reply):
        return "risk_without_help", "the reply names no hotline, emergency service, or person to turn to now"
    return None


def names_help(reply: str) -> bool:
    """Whether some sentence tells to turn to a service, or to turn now to a professional or a trusted person."""
    for part in map(plain, sentences(reply)):
        if any(_is_meant(part, match) for match in _SERVICE.finditer(part)):
            return True
        if not _NOW.search(part):
            continue
        for clause in re.split("[:;]", part):  # "now see the funny side: a friend in need"
            if _TURN_TO.search(clause) and any(_is_meant(clause, match) for match in _PERSON.finditer(clause)):
                return True
    return False


def plays_down(reply: str) -> str | None:
    """The words that make light of what was written, in either language, or None."""
    found = _DOWNPLAYED.search(plain(reply))
    return found[0] if found else None


def _is_meant(part: str, match: re.Match[str]) -> bool:
    """Whether the words around a service or person don't turn away from it."""
    after = part[match.end() : match.end() + NEAR]
    return not _REFUSED.search(before(part, match)) and not _NO_HELP.match(after)


_SERVICE = patterns(
    r"""
    \b(?:hot|help|crisis |life)[ -]?lines?\b|\bcrisis (?:text|cent(?:er|re)|team|service|counsel)|\bsamaritans\b
    \bemergency (?:\w+ )?(?:number|service|room|department|line|call)s?\b|\ba&e\b|\bambulance\b|\bpolice\b
    \b(?:call|dial|text|ring|phone)(?:ing)?(?: or (?:call|text))?\W{1,6}(?:988|911|999|112|000|110|120)\b(?! \w+s\b)
    \b(?:116 ?123|741741|1-?800-?\d{3}-?\d{4})\b|\bnearest hospital\b
    \b(?:women's|a|the|nearest|domestic violence) (?:shelter|refuge)\b|\brape crisis|\bchild protect
    \bdomestic (?:violence|abuse) (?:service|advoca|cent|organi|program)
    热线|急诊|急救|(?<!\d)(?:12356|12338|12355|400-?161-?9995)(?!\d)|报警|派出所|警察|妇联|庇护所|危机干预
    (?:拨打?|打|呼叫|致电|打电话[给到])\W{0,6}(?:120|110|119|112|988|999|911)(?![\d分秒步次个天元块])
    """
)
_PERSON = patterns(
    r"""
    \b(?:doctor|gp|therapist|counsell?or|psychologist|psychiatrist|social worker|professional|hospital|clinic)s?\b
    \b(?:midwife|nurse|teacher|parents?|mother|mom|mum|father|dad|sister|brother|friend|partner|husband|wife|family)s?\b
    \b(?:flatmate|roommate|relative)s?\b|\b(?:someone|somebody|person|adult|people) (?:that |whom? )?you trust
    \btrusted (?:adult|person)
    医生|医院|心理(?:咨询|老师|中心|科)|咨询师|精神科|辅导员|老师|\
    班主任|(?:信任|信得过|可靠)的|家人|父母|爸|妈|朋友|室友|身边
    """
)
_TURN_TO = patterns(
    r"""
    \b(?:call|tell|talk|speak|see|contact|reach|go|ask|stay|visit|phone|text|let|have|show)\b
    联系|告诉|找|去|打|叫|陪|说|请|就医
    """
)
_NOW = patterns(
    r"""
    \b(?:now|today|tonight|immediately|right away|straight away|at once|urgent\w*|without delay)\b
    \bas soon as (?:you can|possible)\b|\bthis (?:minute|hour|evening|morning|afternoon|very day)\b
    现在|马上|立[刻即]|今[天晚]|赶紧|尽快|第一时间
    """
)
_REFUSED = re.compile(
    r"(?:(?:\bnot|n't)(?! (?:hesitate|wait|delay|only|be (?:afraid|ashamed|shy))\b)|\bno need|\bnever|\binstead of|"
    r"\bwithout|\brather than|\bunnecessary)(?: \w+){0,4} ?$|(?:不用|不必|不要|没必要|别|无需|用不着|不会).{0,6}$"
)
_NO_HELP = re.compile(
    r"\w*(?: (?:officers?|services?|staff|numbers?|people))? (?:"
    r"(?:(?:\w+n't|cannot|(?:\w+ )?(?:not|never)) (?:\w+ ){0,2}?(?:help|work|come|listen|care|believe|answer|"
    r"understand|use|useful|good|do))|(?:is|are|will be|would be|seems?|feels?) (?:\w+ )?(?:useless|pointless|"
    r"no (?:use|good|help)|a waste|a joke))\b"
    r"|.{0,6}?(?:没用|没有用|帮不了|不管用|不会(?:帮|管|来|理)|不可信|靠不住|不用|不必)"
)
_DOWNPLAYED = patterns(
    r"""
    \b(?:others?|other people|many people|people) (?:have|has|had) it (?:much |far )?worse|\bit could be worse
    \b(?:it's|it is|is|this is|just|only) (?:just |only )?a phase\b|\bgrow out of (?:it|this)
    \bget over it\b|\bsnap out of|\bcheer up\b|\bcalm down\b|\bjust (?:relax|think positive)
    \b(?:don't|do not|stop) be(?:ing)? (?:so )?(?:silly|dramatic|selfish|weak|ridiculous|a baby|sensitive)
    \b(?:over-?reacting|exaggerating|being dramatic|attention[- ]seeking|(?:want|just)(?:s|ing)? attention)\b
    \b(?:not|n't) (?:(?:really|that|so|such) )+(?:a )?(?:bad|serious|big|dangerous|deal)\b|\b(?:no|not a) big deal\b
    \bnothing to worry about\b|\bno need to worry\b|\bdon't (?:really|actually) mean (?:it|that)\b|\bit's nothing\b
    \beveryone (?:feels|goes through|has) (?:like )?(?:this|that|it|such)\b
    \bprovoked (?:him|her|it)\b|\bonly because (?:he|she) loves\b|\bthat is selfish\b|\bsuicide is selfish
    想开(?:一?点|些)|别(?:想太多|多想|矫情|闹|小题大做)|没什么大不了|\
    不(?:算|是)什么大事|小题大做|太敏感|矫情|懦弱|自私|想不开
    比你(?:惨|苦|更)|谁(?:没|都)(?:有|会)|至于吗|不至于|忍一?忍(?:就|\
    吧)|打是亲|家丑|开玩笑(?:的|吧)|过去就好了|太脆弱|坚强一?点
    """
)
