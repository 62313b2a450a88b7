"""What people and web pages leave in a text that is no part of it: markup, links, contact data, advertisements, emoji.

Each function takes one kind out of a text; clean.py has the table and the order. All run in linear time: a pattern
never scans again what an earlier attempt has scanned, or its length is bounded.
"""

from __future__ import annotations

import html
import re

from psychecore.curate.helplines import is_help_line
from psychecore.curate.typography import HAN

TAGS = (
    "a|abbr|article|aside|b|big|blockquote|body|br|button|caption|center|cite|code|col|dd|del|details|div|dl|dt|em|"
    "figcaption|figure|font|footer|form|h[1-6]|head|header|hr|html|i|iframe|img|input|ins|kbd|label|li|link|main|mark|meta|"
    "nav|noscript|ol|option|p|path|pre|q|rp|rt|ruby|s|samp|script|section|select|small|source|span|strike|strong|style|sub|"
    "summary|sup|svg|table|tbody|td|textarea|tfoot|th|thead|time|title|tr|tt|u|ul|video"
)
ATTRIBUTE = r"""\s+[A-Za-z_:][-A-Za-z0-9_:.]{0,40}\s{0,3}=\s{0,3}(?:"[^"<>]*"|'[^'<>]*'|[^\s<>"'=]+)"""
TAG = re.compile(rf"<(/?)({TAGS})((?:{ATTRIBUTE})*)\s*/?>", re.I)
BLOCK = re.compile(r"br|p|div|li|tr|h[1-6]|ul|ol|table|section|article|blockquote|dd|dt", re.I)
COMMENT = re.compile(r"<!--(?:(?!<!--|-->).)*-->|<!doctype[^<>]*>", re.I | re.S)
SCRIPT = re.compile(r"<(script|style)\b[^<>]*>(?:(?!</?\1\b).)*</\1\s*>", re.I | re.S)
RAISED = re.compile(r"<(sup|sub)>([0-9+\-=()n]{1,12})</\1>", re.I)
SUPERSCRIPTS = str.maketrans("0123456789+-=()n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿ")
SUBSCRIPTS = str.maketrans("0123456789+-=()n", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙ")
ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
IMAGE_OR_LINK = re.compile(r"(!?)\[([^\[\]\n]*)\]\(([^()\s]{1,2000})(?:\s+\"[^\"\n()]*\")?\)")
MARKDOWN = [
    (re.compile(r"^[ ]{0,3}(?:```|~~~)[^`~\n]*$", re.M), ""),  # fences
    (re.compile(r"(?<!`)`([^`\n]+)`(?!`)"), r"\1"),
    (re.compile(r"^[ ]{0,3}#{1,6}[ \t]+", re.M), ""),
    (re.compile(r"^[ ]{0,3}>+[ \t]?(?=\S)(?![_.\d])", re.M), ""),
    (re.compile(r"^[ ]{0,3}(?:(?:\*[ ]?){3,}|(?:-[ ]?){3,}|={3,})$", re.M), ""),
    (re.compile(r"^\|?(?:[ ]*:?-{3,}:?[ ]*\|)+[ ]*(?::?-{3,}:?)?[ ]*$", re.M), ""),  # the line below a table's head
    (re.compile(r"^([ ]*)[*•●▪◦][ \t]+(?=\S)", re.M), r"\1- "),
    (re.compile(r"(?<![A-Za-z0-9*])\*\*(?=[^\s*])([^*\n]+)(?<=\S)\*\*(?![A-Za-z0-9*])"), r"\1"),
    (re.compile(r"(?<![A-Za-z0-9*)\]])\*(?=[^\s*▽^_])([^*\n]+)(?<=[^\s▽^_])\*(?![A-Za-z0-9*(\[])"), r"\1"),
    (re.compile(r"(?<![\w~])~~(?=[^\s~])([^~\n]+)(?<=\S)~~(?![\w~])"), r"\1"),
]

URL_CHARACTER = r"[A-Za-z0-9\-._~/?#@!$&'*+,;=%:()\[\]]"
DOMAIN_END = r"(?:com|cn|net|org|edu|gov|io|cc|top|xyz|vip|info|shop|club|app|site|online)"
LINK = re.compile(
    r"(?:(?:网址|链接|官网|地址|link|url|website)\s{0,3}[:：]\s{0,3})?"
    rf"(?:(?<![A-Za-z0-9])(?:https?|ftp)://{URL_CHARACTER}+|(?<![A-Za-z0-9@.\-])www\.{URL_CHARACTER}+|"
    rf"(?<![A-Za-z0-9@.\-])(?:[A-Za-z0-9\-]{{1,63}}\.){{1,4}}(?-i:{DOMAIN_END}|{DOMAIN_END.upper()})(?![A-Za-z0-9\-@])(?:/{URL_CHARACTER}*)?)",
    re.I,
)
LINK_TAIL = re.compile(r"[.,;:!?'\])]+\Z")

EMAIL = re.compile(
    r"(?:(?:e-?mail|邮箱|电子邮件|邮件)(?:地址)?\s{0,3}[:：]\s{0,3})?"
    r"(?<![A-Za-z0-9._%+\-])[A-Za-z0-9._%+\-]{1,64}@(?:[A-Za-z0-9\-]{1,63}\.){1,4}[A-Za-z]{2,24}(?![A-Za-z0-9])",
    re.I,
)
PHONE = re.compile(
    r"(?:(?:电话|手机|热线|联系方式|tel|phone|call me (?:at|on))(?:号码|号)?\s{0,3}[:：]?\s{0,3})?"
    r"(?<![\dA-Za-z.\-])(?:(?:\+?86[- ]?)?1[3-9]\d[- ]?\d{4}[- ]?\d{4}|[48]00[- ]?\d{3}[- ]?\d{4}|0\d{2,3}[- ]\d{7,8}|"
    r"(?:\+?1[-. ])?(?:\(\d{3}\) ?|\d{3}[-.])\d{3}[-.]\d{4}|"
    r"\+(?=\d(?:[ .\-]?\d){7,14}(?!\d))\d{1,3}(?:[ .\-]?\d{2,5}){2,5})(?![\dA-Za-z]|[.\-]\d)",
    re.I,
)
IDENTITY = re.compile(
    r"(?<![\dA-Za-z])[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?![\dA-Za-z])"
)
MESSENGER = re.compile(
    r"(?:请?(?:添加|加|联系)我?(?:的)?|add (?:me on|my) )?"
    r"(?:微信|薇信|威信|(?<![A-Za-z])(?:we-?chat|weixin|whats-?app|telegram|vx|wx|qq)(?![A-Za-z])|扣扣|企鹅)(?:公众)?"
    r"(?:(?:号码|号|群|\s?id)?\s{0,3}(?:[:：]|是|is\s{1,3}(?=[-A-Za-z]{0,12}[0-9_]))\s{0,3}\+?[A-Za-z0-9][-_A-Za-z0-9]{4,19}|"
    r"(?:号码|号|群|\s?id)?\s{0,3}(?=[-_A-Za-z]{0,12}[0-9_])[A-Za-z0-9][-_A-Za-z0-9]{4,19})(?![-_A-Za-z0-9])",
    re.I,
)
HANDLE = re.compile(
    rf"(?<![A-Za-z0-9._%+\-@])@(?:[A-Za-z_][A-Za-z0-9_]{{2,29}}|[{HAN}A-Za-z0-9_\-]{{2,20}}(?=[\s:：]|$))"
)

ADVERTISEMENT = re.compile(
    "|".join(
        [
            r"(?:欢迎|请|记得|点击|扫码|快来|可以|赶紧|微信)(?:大家)?(?:长按)?(?:搜索)?关注(?:我们?|本|一下)?的?(?:微信|官方|个人)?(?:公众号|订阅号|微博|抖音|账号)",
            r"关注(?:我们?|本)的?(?:微信|官方|个人)?(?:公众号|订阅号|微博|抖音|账号)",
            r"扫(?:描|一扫)?[^。！？\n]{0,8}二维码|扫码(?:关注|添加|领取|进群|咨询|下载|加)|长按[^。！？\n]{0,6}(?:识别|二维码)",
            r"点击(?:下方|上方|左下角|右上角|阅读原文|链接|蓝字)|^[ \t]*(?:请|欢迎)?点击(?:此处|这里)(?!会|时|后|的)"
            r"|点击(?:此处|这里)[^。！？\n]{0,6}(?:领取|购买|报名|下载|咨询|预约|查看|关注|了解|进入)|阅读原文$",
            r"限时(?:抢购|特价|秒杀)|限时(?:优惠|折扣|免费)(?=[！!,，：:。]|仅|只|最后|领)"
            r"|(?:立即|马上|赶快)(?:购买|抢购|报名|下单|下载|领取)",
            r"免费领取(?!的)|领取?优惠券|优惠码|折扣码|(?:全场|限时)?包邮",
            r"\d(?:\.\d)?折(?:优惠|起)",
            r"商务合作|广告(?:位|合作|投放|赞助)[^。！？\n]{0,4}(?:请|联系|微信|[:：])|(?:转载|转发)(?:请|须|需)(?:注明|联系)",
            r"版权所有|侵权(?:必究|即?删)|未经(?:授权|许可|允许)[^。！？\n]{0,6}转载",
            r"加(?:我|群|微信|好友)[^。！？\n]{0,8}(?:领取|咨询|了解|免费|报名|进群)",
            r"私信我?(?:领取|报名|购买)|一键三连|点赞(?:、|，|和)?(?:收藏|转发|关注)",
            r"(?<!asked to )(?<!told to )(?<!had to )\bclick (?:here|the link|below|on the link)\b",
            r"\blink in (?:my |the )?bio\b",
            r"\bsubscribe to (?:our|my|this|the) (?:newsletter|channel|blog|podcast|mailing list)\b",
            r"\bsubscribe (?:now|today)\b",
            r"\b(?:follow|like|find) (?:us|me) on "
            r"(?:facebook|twitter|x|instagram|tiktok|youtube|linkedin|weibo|wechat)\b",
            r"\b(?:limited[- ]time|special|exclusive) (?:offer|discount)\b",
            r"\b(?:get|save|enjoy) (?:up to )?\d{1,2} ?% off\b|\b\d{1,2} ?% off (?:your|all|with)\b",
            r"\bmoney[- ]back guarantee\b",
            r"\b(?:buy|order|shop|enrol+|download) now\b",
            r"\bsign up (?:now|today|for our|for my)\b|\bbook (?:now|(?:your|a) free)\b",
            r"\b(?:promo(?:tion(?:al)?)?|coupon|discount) codes?\b",
            r"\buse code [A-Z0-9]{3,}\b|\bfree (?:trial|shipping|e-?book|download)\b",
            r"\ball rights reserved\b|\bsponsored (?:content|post)\b",
            r"\bvisit (?:our|my) (?:web ?site|site|blog|page|shop|store)\b",
            r"^[ \t]*(?:advertisement|ad|sponsored|广告|推广)[ \t]*$",
        ]
    ),
    re.I | re.M,
)
SENTENCE = re.compile(r"(?:[^。！？!?…\n.]|\.(?!\s|$))*(?:[。！？!?….]+[”’」』）)\"']*[ ]*|\n|\Z)")

EMOJI = re.compile(
    "[\u231a\u231b\u23e9-\u23fa\u25fd\u25fe\u2600-\u263f\u2641\u2643-\u2709\u270a-\u2712\u2714-\u2716\u2718-\u2775"
    "\u27b0\u27bf\u2b05-\u2b07\u2b1b\u2b1c\u2b50\u2b55\u20e3\u3030\u303d\u3297\u3299\U0001f000-\U0001f0ff\U0001f10d-\U0001f10f"
    "\U0001f16c-\U0001f171\U0001f17e\U0001f17f\U0001f18e-\U0001f1ad\U0001f1e6-\U0001f1ff\U0001f201-\U0001f23b"
    "\U0001f250-\U0001f7ff\U0001f900-\U0001faff]"
)
STICKER = re.compile(
    r"\[(?:微笑|撇嘴|色|发呆|得意|流泪|害羞|闭嘴|睡|大哭|尴尬|发怒|调皮|呲牙|惊讶|难过|酷|冷汗|抓狂|吐|偷笑|可爱|白眼|傲慢|饥饿|困|惊恐|流汗|憨笑|"
    r"大兵|奋斗|咒骂|疑问|嘘|晕|折磨|衰|骷髅|敲打|再见|擦汗|抠鼻|鼓掌|糗大了|坏笑|左哼哼|右哼哼|哈欠|鄙视|委屈|快哭了|阴险|亲亲|吓|可怜|玫瑰|爱心|心碎|"
    r"捂脸|笑哭|破涕为笑|抱拳|强|弱|握手|胜利|拥抱|太阳|月亮|蛋糕|礼物|嘿哈|机智|加油|旺柴|doge|允悲|泪|哈哈|心|赞|给力|作揖|偷看)\]"
)
SHORTCODE = re.compile(r"(?<![\w:]):[a-z]{2,20}(?:_[a-z]{1,20}){0,4}:(?![\w:])")
NOSED = re.compile(
    r"(?<![A-Za-z0-9:])[:;=8]['’]?[-^o~][)(DPpO3|/\\*\]\[}{xX]+(?![A-Za-z0-9])|(?<![A-Za-z0-9:])[:;]['’][)(]+"
)
BARE = re.compile(r"(?<![A-Za-z0-9:：;])[:;：；]([)(）（]{1,8}|[DPp|/\\*](?=\s|$|[.,!?。，！？]))(?![A-Za-z0-9:])")
ANSWER_LABEL = re.compile(r"(?:答案|选项?|正确|answers?|options?|keys?|choices?|correct|right)\W{0,2}\Z", re.I)
FACES = re.compile(
    r"(?<![A-Za-z0-9_^])(?:\^[_.\-oO▽]?\^|>[_.﹏]+<|T[_▽]T|Q_Q|[oO]_[oO]|-_-(?:\|{1,3}|#)?|=_=|;_;|u_u|@_@|\+_\+|QwQ|OwO|UwU|orz|Orz|¯\\_[(（]ツ[)）]_/¯)"
    r"(?![A-Za-z0-9_^])"
)
KAOMOJI_SIGNS = "°□ω▽∀д皿╥﹏´｀`Θ≧≦◕‿ツ͡ʖヮ╯╰︵益¬•̀ㅂ́˘・･ﾟ゜｡ﾉ〃＾￣¯ε∇✿◡◠☆⌒›‹๑ᴗᵕ；;＞＜><^_T"
STRONG_SIGNS = "□ω▽∀д皿╥﹏Θ≧≦◕‿ツʖヮ╯╰︵益ㅂ◡◠๑ᴗᵕ￣"
KAOMOJI = re.compile(
    r"[╯╰ヾヽ┐┌٩ლ┬┴─━ヘ¯\\ᕙᕦ凸o*]{0,8}[(（](?=[^()（）\n]{2,16}[)）])([^()（）\n]{2,16})[)）][╯╰ノﾉ┐┌۶ლ*/¯_凸づっσ]{0,4}"
    r"(?: {0,2}︵? {0,2}[┻━┬┴─]{1,5})?"
)
PLAIN = re.compile(rf"[{HAN}0-9]|[A-Za-z]{{2}}")


def without_markup(text: str) -> str:
    """HTML and Markdown become plain text; block tags end a line, <sup>2</sup> becomes a superscript."""
    text = SCRIPT.sub("", COMMENT.sub("", text))
    text = RAISED.sub(lambda m: m[2].translate(SUPERSCRIPTS if m[1].lower() == "sup" else SUBSCRIPTS), text)
    text = TAG.sub(lambda m: "\n" if BLOCK.fullmatch(m[2]) else "", text)
    text = ENTITY.sub(lambda m: html.unescape(m[0]), text)
    text = IMAGE_OR_LINK.sub(lambda m: "" if m[1] else m[2], text)
    for pattern, replacement in MARKDOWN:
        text = pattern.sub(replacement, text)
    return text


def without_links(text: str) -> str:
    """URLs and bare domains go, with a label such as "Link:" before them; the punctuation after them stays."""
    return LINK.sub(lambda match: (LINK_TAIL.search(match[0]) or [""])[0], text)


def without_contacts(text: str) -> str:
    """E-mail addresses, telephone and identity-card numbers, messenger ids and @handles go."""
    text = MESSENGER.sub("", EMAIL.sub("", text))
    text = PHONE.sub(lambda m: m[0] if is_help_line(m.string, *m.span()) else "", IDENTITY.sub("", text))
    return HANDLE.sub("", text)


def without_advertisements(text: str) -> str:
    """Sentences and lines that hold an advertising phrase go."""
    if not ADVERTISEMENT.search(text):
        return text
    return "".join(sentence for sentence in sentences(text) if not ADVERTISEMENT.search(sentence))


def sentences(text: str) -> list[str]:
    """The text cut after each sentence and line end; joined again it is the text."""
    return [match[0] for match in SENTENCE.finditer(text) if match[0]]


def without_emoji(text: str) -> str:
    """Emoji, sticker codes and emoticons go."""
    text = SHORTCODE.sub("", STICKER.sub("", EMOJI.sub("", text)))
    text = KAOMOJI.sub(lambda match: "" if _is_kaomoji(match) else match[0], text)
    text = FACES.sub("", NOSED.sub("", text))
    return "".join(map(_without_bare_faces, text.splitlines(keepends=True))) if BARE.search(text) else text


def _is_kaomoji(match: re.Match[str]) -> bool:
    inside = match[1]
    if not inside.strip("_ "):
        return False  # a blank to be filled in
    if PLAIN.search(inside) or (any(sign in inside for sign in "°℃") and len(inside) < 3):
        return False
    signs = sum(1 for character in inside if character in KAOMOJI_SIGNS)
    return "ツ" in inside or (signs >= 2 and (any(c in STRONG_SIGNS for c in inside) or 2 * signs >= len(inside) + 1))


def _without_bare_faces(line: str) -> str:
    """Take :) and its like out of a line, unless the bracket opens or closes something there."""
    kept: list[str] = []
    at = depth = 0
    balance = _depth(line)
    for match in BARE.finditer(line):
        depth += _depth(line[at : match.start()])
        kept.append(line[at : match.start()])
        at = match.end()
        own, after = _depth(match[0]), balance - depth - _depth(match[0])
        closes, opens = own < 0 and depth > 0, own > 0 and after < 0
        labels = not own and ANSWER_LABEL.search(line[max(0, match.start() - 12) : match.start()])
        if closes or opens or labels:
            kept.append(match[0])
            depth += own
        else:
            balance -= own
    return "".join([*kept, line[at:]])


def _depth(text: str) -> int:
    return text.count("(") + text.count("（") - text.count(")") - text.count("）")
