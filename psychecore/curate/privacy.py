"""Names and contact data in a post or a reply: found, and taken out.

Names are found where a text gives them away: after "my name is", a title, a greeting or a relation ("my son Tim"), in
a signature, with letters of a degree, or as one of the commonest given names; in Chinese after 我叫, and as a surname
with a title or with 小. A rarer name that only stands in a sentence is not seen. Public help lines (helplines.py) are
no contact data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from psychecore.curate.helplines import is_help_line
from psychecore.curate.wording import patterns

PLACEHOLDERS = {"en": {"name": "[name]", "contact": "[contact]"}, "zh": {"name": "某某", "contact": "[联系方式]"}}


class Private(NamedTuple):
    """A name or contact datum, `kind` "name" or "contact", at `start` to `end` of the text."""

    kind: str
    text: str
    start: int
    end: int


_GIVEN = (
    "James|John|Robert|Michael|David|William|Richard|Joseph|Thomas|Charles|Daniel|Matthew|Anthony|Andrew|Joshua|Kevin|"
    "Brian|George|Edward|Jason|Jeffrey|Ryan|Jacob|Nicholas|Eric|\
    Jonathan|Stephen|Justin|Brandon|Benjamin|Samuel|Patrick|"
    "Alexander|Tyler|Aaron|Adam|Nathan|Mary|Patricia|Jennifer|Linda|Elizabeth|Barbara|Susan|Jessica|Sarah|Karen|Nancy|"
    "Lisa|Margaret|Sandra|Ashley|Emily|Donna|Michelle|Carol|Amanda|Melissa|Deborah|Stephanie|Rebecca|Laura|Sharon|"
    "Cynthia|Kathleen|Amy|Angela|Anna|Emma|Nicole|Samantha|\
    Katherine|Maria|Rachel|Julia|Sophie|Sophia|Olivia|Hannah|Tom|"
    "Mike|Jake|Dave|Steve|Kate|Jane|Lucy|Chris|Megan|Peter|Paul|Tim|Jim|Bob|Anne|Alice|Sara|Diana|Helen|Julie|Lauren"
)
_RELATION = (
    "husband|wife|partner|boyfriend|girlfriend|ex|son|daughter|brother|sister|mother|father|mom|mum|dad|friend|boss|"
    "manager|colleague|roommate|flatmate|therapist|counsell?or|teacher|neighbou?r|cousin|uncle|aunt|fiancée?"
)
_SURNAMES = (
    "王李张刘陈杨黄赵周吴徐孙马朱胡郭何高林罗郑梁谢宋唐许韩冯邓曹彭曾肖田"
    "董袁潘蒋蔡余杜叶程苏魏吕丁任沈姚卢姜崔钟谭陆汪范金石廖贾夏韦付方白邹"
    "孟熊秦邱江尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵万钱严覃武戴莫孔向汤"
)
_NO_NAME = (
    "There|Everyone|All|Friend|You|Reader|And|But|I|God|Dr|In|On|At|As|The|My|If|When|Is|It|So|Not|Just|Very|Here"
)
# Words that begin like a name, or are one as well: what stands elsewhere need not be the same person.
_WORD = "(?:高[兴中考三]|安静|周[围末]|任何|方便|严[重厉]|何必|马上|万一|白天|金钱|石头|孔子)"
_WORDS = frozenset(
    "Will May Hope Grace Joy Faith Mark Bill Rose Dawn Angel Summer Sunny Please Thanks Sir Madam Doctor Therapist "
    "Counselor Counsellor Guys Folks Everybody Anyone Someone World".split()
)
_CAPITAL, _SMALL = "[A-Z\u00c0-\u00d6\u00d8-\u00de\u0100-\u017f]", "[a-z\u00df-\u00f6\u00f8-\u017f]"
_PART = (  # Tim, Łukasz, Müller, O'Brien, McDonald, Smith-Jones; never half a word
    f"(?:[OD]['’]|Ma?c)?{_CAPITAL}{_SMALL}+(?:-{_CAPITAL}{_SMALL}+)*(?![^\\W\\d_\u4e00-\u9fff])"
)
_NAME = patterns(
    r"""
    (?:[Mm]y name is|[Ii]'m called|[Ii] am called|(?:call|Call) me|named) (?P<a><FULL>)
    [Mm]y name is (?P<l>(?i:<GIVEN>))\b
    \b(?:Mr|Mrs|Ms|Miss|Dr|Prof|Professor|Doctor)\.? (?P<b><PART>)
    (?:\A|\n)\s*(?:Hi|Hello|Dear|Hey),? (?P<c>(?!(?:<NONAME>)\b)<PART>)
    \b(?:[Mm]y|[Hh]is|[Hh]er|[Oo]ur|[Yy]our)(?: [a-z]+)? (?:<RELATION>),? (?P<d>(?!(?:<NONAME>)\b)<PART>)
    (?:\n|[.!] )(?:[-–—~] ?|(?:Best|Regards|Best wishes|Kind regards|Sincerely|Yours|Warmly|Take care|Love),?\s+)\
    (?P<e>[A-Z][a-z]+(?: [A-Z][a-z.]+)?)\s*\Z
    (?P<f>[A-Z][a-z]+(?: [A-Z][a-z.]+)?), ?(?:LMFT|LCSW|LPC|LMHC|PsyD|Psy\.D|Ph\.?D|M\.?A\b|M\.?S\b)
    \b(?P<g>(?:<GIVEN>))\b
    我(?:的名字)?叫(?!<WORD>)(?P<m>(?:<COMPOUND>|<SURNAMES>)[\u4e00-\u9fff]{1,2}?)(?=[\s\d；;]|今年)
    我(?:的名字)?(?:叫|是)(?P<h>(?:<COMPOUND>|<SURNAMES>)[\u4e00-\u9fff]{1,2})(?=[,，。.!！、]|$)
    (?P<i><SURNAMES>[\u4e00-\u9fff]{0,2}?(?=先生|女士|老师|医生|主任|咨询师|教授|律师|经理|阿姨|叔叔))
    我的?(?:老公|丈夫|老婆|妻子|男友|女友|男朋友|女朋友|儿子|女儿|同学|朋友|同事|室友)(?P<k><PLAIN>[\u4e00-\u9fff]{1,2}?)(?=<BEHIND>)
    (?<![大从很最太])(?P<j>小<SURNAMES>)(?![\u4e00-\u9fff]?[虎考末路孩学时事心气声看]|[方白石江金万高龙向])
    """,
    GIVEN=_GIVEN,
    PART=_PART,
    WORD=_WORD,
    FULL=f"{_PART}(?: {_PART})?",
    RELATION=_RELATION,
    SURNAMES=f"[{_SURNAMES}]",
    COMPOUND="(?:欧阳|司马|上官|诸葛|夏侯|皇甫|尉迟|公孙|慕容|司徒|令狐|东方)",
    # surnames that begin no common word
    PLAIN="[王李张刘陈杨赵吴徐朱郭罗梁宋唐韩冯邓曹彭肖董袁潘蒋蔡叶苏魏吕沈姚卢崔谭汪廖贾邹孟秦邱薛闫龚邵]",
    BEHIND="[\\s，。,.!！、？?打骂说是在和跟总每不对也就都又很经没有最去喜从还会要想被把给让因今昨一的常出离走回]|$",
    NONAME=_NO_NAME,
)
_CONTACT = patterns(
    r"""
    [A-Za-z0-9_.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]+)+
    (?:https?://|www\.)[^\s，。）)]+|\b[\w-]{1,63}\.(?:com|org|net|cn|io|co\.uk|info)\b(?:/[^\s，。）)]*)?
    (?<![\w@])@[A-Za-z]\w{2,}
    (?:微信|wechat|WeChat|QQ|qq|[Vv][Xx]|[Vv]信|公众号|[Ss]kype|[Ww]hats[Aa]pp|\
    [Ii]nstagram|[Ff]acebook)(?:号|群|id|ID)?\s*[:：是 ]\s*[A-Za-z0-9_-]{4,}
    (?:微信|[Vv][Xx]|[Vv]信|[Qq][Qq]|[Ww]e[Cc]hat)号?(?=[A-Za-z_-]{0,15}\d)[A-Za-z0-9_-]{5,20}
    [\u4e00-\u9fff]{2,12}(?:路|街|巷|大道|胡同|小区)\d{1,5}(?:号|弄|栋)(?:\d{1,4}(?:号楼|栋|单元|室|号))*
    (?<![\d.])\+?\(?\d[\d ()/-]{4,}\d(?![\d.]*\d)
    (?<![\d.])(?:0\d(?:\.\d\d){4}|1[3-9]\d\.\d{4}\.\d{4}|\d{3}\.\d{3}\.\d{4})(?![\d.]*\d)
    \b\d{1,5} (?:[A-Z][a-z]+ ){1,3}(?:Street|St|Avenue|Ave|Road|Rd|Lane|Drive|Boulevard|Blvd)\b
    """
)


def private_data(text: str, known: Iterable[str] = ()) -> list[Private]:
    """Names and contact data in the text, in order, none overlapping another; `known` names wherever they stand."""
    found = []
    for match in _CONTACT.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        is_number = not re.search("[A-Za-z@\u4e00-\u9fff]", match[0])
        if re.fullmatch(r"(?:19|20)\d\d\D+(?:19|20)\d\d", match[0]):
            continue  # a span of years
        if not is_number or (len(digits) >= 7 and not is_help_line(text, *match.span())):
            found.append(Private("contact", match[0], match.start(), match.end()))
    named = list(_NAME.finditer(text))
    for match in named:
        group = match.lastgroup or ""
        found.append(Private("name", match[group], match.start(group), match.end(group)))
    latin = {one.text for one in found if one.kind == "name" and one.text[0] < "\u4e00"}
    for name in {*known, *latin, *_spreading(named)}:  # wherever else it stands
        before, behind = (r"\b", r"\b") if name[0] < "\u4e00" else ("", f"(?!{name[-1]})")  # 王明 is not in 王明明
        found.extend(
            Private("name", name, *match.span()) for match in re.finditer(before + re.escape(name) + behind, text)
        )
    ordered: list[Private] = []
    for one in sorted(set(found), key=lambda one: (one.start, -one.end)):
        if not ordered or one.start >= ordered[-1].end:
            ordered.append(one)
    return ordered


def names_in(text: str) -> frozenset[str]:
    """Names that the text gives away and that mean the same person elsewhere, whole and of two words the first.

    Not those that are words too ("Hope"); in Chinese what follows 叫: before a title or after 是 may be a word.
    """
    return _spreading(_NAME.finditer(text))


def _spreading(named: Iterable[re.Match[str]]) -> frozenset[str]:
    found: set[str] = set()
    for match in named:
        name = match[match.lastgroup or 0]
        if name[0] < "\u4e00" or ("叫" in match[0] and not re.match(_WORD, name)):
            found |= {name, name.partition(" ")[0]}
    return frozenset(found - _WORDS)


def without_private_data(text: str, language: str, known: Iterable[str] = ()) -> str:
    """The text with each name and contact datum replaced by a placeholder.

    >>> without_private_data("My name is Tim, write to tim@example.org.", "en")
    'My name is [name], write to [contact].'
    """
    for one in reversed(private_data(text, known)):
        text = text[: one.start] + PLACEHOLDERS[language][one.kind] + text[one.end :]
    return text
