"""Characters, punctuation and spaces, made consistent without changing what is said.

NFKC is applied character by character, and only where it is safe: full- and half-width letters and digits, Kangxi
radicals and compatibility ideographs (PDF text is full of them), ligatures, Roman numerals, numbers in brackets, units.
Left as they are, since NFKC would change what they mean or how they are set:

| left | why |
|---|---|
| x², CO₂, ™, m² written as one sign | superscripts and subscripts would become plain digits: 10² is not 102 |
| ① ② | list marks would become bare digits, "①②" twelve |
| ½ | 1½ would become 11/2 |
| ℝ, ℓ and other letterlike signs | a formula may use them beside the plain letter |
| … ‥ and ′ ″ | an ellipsis becomes dots, seconds become two minutes |
| ´ ¨ ¯ and other free-standing accents | NFKC makes them a space with a loose accent |
| ︵ ︶ | as upright brackets they would open or close one that has no partner; faces are drawn with them |
| ，。：（ and other full-width punctuation | decided by the language of the text, below |

NFKC leaves most of the CJK Radicals Supplement (⻓ ⻅ ⺠) alone, though PDF text has it in place of 长 见 民: RADICALS
replaces those, and ⼾ by 户, which NFKC would turn into the traditional form.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

HAN = "\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
RADICALS = str.maketrans(
    "⺁⺄⺈⺋⺟⺠⺸⻅⻆⻈⻉⻋⻓⻔⻘⻙⻚⻛⻜⻝⻢⻣⻤⻥⻦⻧⻨⻩⻬⻮⻰⻳⼾",
    "厂乙刀卩母民羊见角讠贝车长门青韦页风飞食马骨鬼鱼鸟卤麦黄齐齿龙龟户",
)
KEEP_WIDE = "︵︶，。、：；？！（）［］｛｝【】「」『』“”‘’《》〈〉＂＇"
LINE_ENDS = re.compile(r"\r\n?|[\v\f\x1c-\x1e\x85\u2028\u2029]")
SPACES = re.compile(r"[ \t\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]+")
INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ud800-\udfff\ue000-\uf8ff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\uffff"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U0010ffff]"
)
TO_FULL = dict(zip(",:;!?()", "，：；！？（）", strict=True))
TO_HALF = {full: half for half, full in TO_FULL.items()} | {"。": ".", "、": ",", "【": "[", "】": "]"}
CHINESE_MARK = f"[{HAN}，。、：；？！）】」』”’》…—（【「『“‘《]"
ZH_MARK = re.compile(rf"(?<={CHINESE_MARK})([,:;!?])|([,:;!?])(?= ?[{HAN}（《【「“])")
ZH_STOP = re.compile(rf"(?<=[{HAN}）】」』”’》])\.(?=\s|$|[{HAN}”’」』）])", re.M)
ZH_BRACKETS = re.compile(r"[(（]([^()（）\n]*)[)）]")
ZH_SPACES = re.compile(r" *([，。、：；？！]) *")
EN_MARK = re.compile("([，：；！？。、])")
EN_BRACKETS = re.compile("([（【])|([）】])")
EN_NO_SPACE = re.compile(r" +([,:;!?)\]](?![-^'DPp)(/\\|])|\.(?=\s|$))")
ANY_HAN = re.compile(f"[{HAN}]")
WORD = re.compile(rf"[^\W\d_{HAN}]+")
OTHER_SCRIPT = re.compile(r"[^\W\d_a-zA-Z\u00aa-\u024f\u1e00-\u1eff" + HAN + "]")
# The commonest English words; a text of another language in Latin letters has few of them.
FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        """the a an of to in and or is are was were be been it its that this these those for with as on at by from not
        but i you he she we they my your his her our their me him them what which who how when where why if so do does
        did have has had can will would should could may more most than then there no one about into out up all some""",
    )
)


def language_of(text: str, least: int = 20) -> str | None:
    """ "zh" or "en", "other" for any other language, None without letters.

    Chinese: at least a third of the units (Chinese characters, and words of other scripts) are Chinese characters.
    English: Latin letters, and in texts of `least` words or more at least one word in eight a common English one.
    """
    han, words = len(ANY_HAN.findall(text)), WORD.findall(text)
    if not han and not words:
        return None
    if 20 * len(OTHER_SCRIPT.findall(text)) > han + len("".join(words)):
        return "other"
    if 3 * han >= han + len(words):
        return "zh"
    common = sum(1 for word in words if word.lower() in FUNCTION_WORDS)
    return "other" if len(words) >= least and 8 * common < len(words) else "en"


def length_of(text: str) -> int:
    """Chinese characters plus words and numbers of other scripts."""
    return len(re.findall(rf"[{HAN}]|[^\W_{HAN}]+", text))


def fold_characters(text: str) -> str:
    """Remove what is not seen, make spaces and line ends plain, apply NFC and the safe part of NFKC."""
    text = INVISIBLE.sub("", LINE_ENDS.sub("\n", text))
    return SPACES.sub(" ", unicodedata.normalize("NFC", text.translate(safe_nfkc())))


@cache
def safe_nfkc() -> dict[int, str]:
    """A str.translate table with the compatibility characters that are replaced; see the module's table."""
    table: dict[int, str] = {int(code): chr(target) for code, target in RADICALS.items()}
    for code in (*range(0xA0, 0x20000), *range(0x2F800, 0x2FA20)):
        tag, _, parts = unicodedata.decomposition(chr(code)).partition(" ")
        if not tag.startswith("<") or chr(code) in KEEP_WIDE or code in table:
            continue
        inner = "".join(unicodedata.decomposition(chr(int(part, 16)))[:7] for part in parts.split())
        small = any(word in tag + inner for word in ("<super>", "<sub>", "<circle", "<fracti"))
        letterlike = tag == "<font>" and 0x2100 <= code < 0x2150
        if small or letterlike or parts.startswith("0020 ") or chr(code) in "…‥′″‴⁗‵‶‷∬∭∯∰":
            continue
        table[code] = unicodedata.normalize("NFKC", chr(code))
    return table


def set_punctuation(text: str, language: str | None) -> str:
    """Full-width marks beside Chinese text, half-width ones in English; formulae, times and ratios keep theirs.

    Chinese: , : ; ! ? after a Chinese character or mark, or before a Chinese character; a full stop between Chinese and
    a space, a line end or Chinese; brackets whose content is or stands among Chinese, pairs of one kind. English: every
    full-width mark, with the space that it needs. Quotation marks stay as they are. Other languages are left alone.
    """
    if language == "zh":
        text = ZH_BRACKETS.sub(_zh_brackets, text)
        text = ZH_MARK.sub(lambda match: TO_FULL[match[0]], text)
        return ZH_SPACES.sub(r"\1", ZH_STOP.sub("。", text))
    if language == "en":
        text = EN_MARK.sub(_en_mark, text)
        return EN_NO_SPACE.sub(r"\1", EN_BRACKETS.sub(_en_bracket, text))
    return text


def set_spaces(text: str) -> str:
    """One space between words, none at line ends, at most one empty line."""
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" *\n *", "\n", SPACES.sub(" ", text))).strip()


def _zh_brackets(match: re.Match[str]) -> str:
    inside, text = match[1], match.string
    before, after = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
    empty = not inside.strip() and bool(ANY_HAN.match(before) or ANY_HAN.match(after))
    mixed = (match[0][0] == "(") != (match[0][-1] == ")")
    return f"（{inside}）" if ANY_HAN.search(inside) or empty or mixed else match[0]


def _en_mark(match: re.Match[str]) -> str:
    text, at = match.string, match.end()
    mark = TO_HALF[match[0]]
    before, after = text[match.start() - 1 : match.start()], text[at : at + 1]
    if ANY_HAN.match(before) and (not after or ANY_HAN.match(after) or after in "”’」』"):
        return match[0]  # within a Chinese quotation
    return mark + " " if after.isalnum() and not (before.isdigit() and after.isdigit()) else mark


def _en_bracket(match: re.Match[str]) -> str:
    text = match.string
    mark = TO_HALF[match[0]]
    if match[1]:
        before = text[match.start() - 1 : match.start()]
        return " " + mark if before.isalnum() else mark
    return mark + " " if text[match.end() : match.end() + 1].isalnum() else mark
