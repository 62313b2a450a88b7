"""Which option letters an answer names: what stands after `</think>`, in Chinese and English phrasings.

The rules, from the strongest; the first that finds anything decides:

1. **A statement**: "The answer is (B).", "Answer: A, C", "I choose B", "答案：AC", "故选B", "\\boxed{B}". It takes in
   the marked letters on the rest of its line ("Answer: A. x; C. y"). Several statements must agree, else there is no
   answer; one statement beats all else, so "A ... no, the answer is B" is B. A negated one ("不选A") is no statement.
2. **A verdict**: "B is correct", "A and C are the right answers", "B正确"; several add up.
3. **Marked letters**: "B", "B. Term", "(B)", "A, C", "A. x; C. y", at the start of a clause, the first one at the start
   of a line; several add up, so who lists all options has chosen them all.

Only capitals are read. The article in "A person who ...", the pronoun in "I think", types ("A型", "B-cell") and words
("CBT", "ABA") are no letters. Options can be names, so "C. B. F. Skinner" is C, and "B. F. Skinner" alone counts as B.
A letter that the question does not have makes the answer unparsable. Only letters count: where letter and option text
contradict each other ("B. <the text of C>"), the answer is the letter. Options' texts, where they are given, tell what
belongs together: a letter with its own text is not called wrong by it ("B. False memory"), and goes on to the next
letter behind that text ("A. x C. y", "A x、C y", or each in a paragraph of its own). Text without think tags is all
answer, so that a model which never learnt the format can be measured; thinking that is not closed, or several think
tags, give none.

The cost is linear in the text: a search for the tags, then regular expressions on an answer of bounded length.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from psychecore.text.chat import CLOSE, OPEN

NOTHING_STATED = "no option letter is stated"
MAX_ANSWER = 16_000  # characters; a longer answer is none, which bounds the time that hostile text can take


class Parsed(NamedTuple):
    """`letters`: the options named, sorted, each once ("AC"), or None; then `reason` says why."""

    letters: str | None
    reason: str = ""


def parse_answer(text: str, options: str | Mapping[str, str]) -> Parsed:
    """The option letters that `text` answers with, out of the question's options: letters ("ABCD"), or texts by letter.

    The rules are in the module's docstring. Never raises; depends on nothing but its arguments.

    >>> parse_answer("<think>A is tempting.</think>The answers are B and C.", "ABCD").letters
    'BC'
    """
    answer, reason = answer_part(text)
    if not answer:
        return Parsed(None, reason)
    if len(answer) > MAX_ANSWER:
        return Parsed(None, f"the answer has {len(answer):,} characters, more than {MAX_ANSWER:,}")
    letters = "".join(options)
    texts = {letter: _normalise(text) for letter, text in options.items()} if isinstance(options, Mapping) else {}
    answer = _bracket_letters(_without_rejected(_normalise(answer), texts), letters)
    sets = set(_statements(answer, texts))
    if len(sets) > 1 or "" in sets:
        return Parsed(None, "its statements contradict each other or hedge")
    named = sets.pop() if sets else _verdicts(answer) or _marks(answer, texts)
    if not named:
        return Parsed(None, NOTHING_STATED)
    if strange := "".join(sorted(set(named) - set(letters))):
        return Parsed(None, f"it names {strange}, but the options are {letters}")
    return Parsed(named)


def named_letters(text: str, letters: str) -> str:
    """All letters that `text` names anywhere and neither calls wrong nor only explains ("D would need a reward").

    >>> named_letters("That leaves B, and not C.", "ABCD")
    'B'
    """
    found = _bracket_letters(_without_rejected(_normalise(text), {}), letters)
    if not re.search(r"\b(?:best|right|correct|answer|fits?)\b", found):
        found = re.sub(
            r"(?:⟦[A-J]+⟧[, ]*(?:and )?)+(?=[)\]]? ?(?:would|does|do|could|can['’]t|cannot|might)\b)", "", found
        )
    return _sorted(*re.findall("⟦([A-J]+)⟧", found))


def answer_part(text: str) -> tuple[str, str]:
    """What stands after the thinking, stripped, and ""; or "" and the reason why nothing does."""
    opened, closed = text.count(OPEN), text.count(CLOSE)
    if opened > 1 or closed > 1:
        return "", f"there are several think tags ({opened} opening, {closed} closing)"
    if opened > closed:
        return "", "the thinking is not closed"
    if opened and text.find(OPEN) > text.find(CLOSE):
        return "", "the think tags stand in the wrong order"
    answer = text.rpartition(CLOSE)[2].strip()
    return answer, "" if answer else "there is no answer"


_UNSEEN = re.compile(r"[*`$#~⟦⟧\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]+")
_NUMBER = re.compile(r"^\d{1,2}[.)、] ?(?=\(?[A-J](?!\w))", re.MULTILINE)  # "1. A", the number of a list's line
_ITEM = re.compile(r"^([A-J](?:[、,和][A-J])*)选?项(?=。?$)", re.MULTILINE)  # "B项", a line of letters alone


def _normalise(answer: str) -> str:
    """Full-width forms to ASCII, no emphasis marks, invisible characters or line numbers, single spaces and blanks."""
    plain = _UNSEEN.sub("", unicodedata.normalize("NFKC", answer))
    plain = "\n".join(" ".join(line.split()) for line in plain.splitlines())
    return _ITEM.sub(r"\1", _NUMBER.sub("", re.sub(r"\n{2,}", "\n\n", plain).strip()))


# A letter stands alone among non-word characters; Chinese characters do not count as word characters here, since "选B"
# has no space. What follows an article or pronoun is a noun or a verb, so these words can follow only a letter.
_CJK = "\u3040-\u9fff"
_WORD = rf"[^\W{_CJK}]"
_AFTER_LETTER = (
    "and|or|plus|because|since|as|is|are|was|were|which|that|for|due|based|given|but|not|although|while|so|in|on|by"
)
_ARTICLE = rf"[AI](?= [\"'“‘]?(?!(?i:{_AFTER_LETTER})\b|[A-J]\b)[A-Za-z0-9])"
_LETTERS = (
    rf"(?<!{_WORD})(?<![-'’&])(?!{_ARTICLE})[A-J]{{1,10}}"
    rf"(?!{_WORD}|[\u0300-\u036f]|['’-]\w|[型类组级班某]|\.[A-Z]\.)"
)
_OPENER, _CLOSER = r"[(\[\"'“‘「【<]?", r"[)\]\"'”’」】>]?"
_JOIN = (
    r"(?:,? (?:and|plus) | ?[,、/&+](?: ?(?:and |和|与|以?及))? ?| ?(?:和|与|以?及|跟) ?"
    r"| (?!\([A-J]{1,10}[^A-J)]))(?:[Oo]ptions? |选项 ?)?"  # "B (A is too broad)" goes no further than B
)
# "选A,B项说的是惩罚" names A alone: a comma, letters, and what is said of them
_SAID = (
    r"(?: ?(?:选项|项)? ?(?:(?:属|说|表述|描述)(?!法?(?:都|均|也)?(?:正确|准确|对))"
    r"|是(?!正确|对|答案|最|因为|合适|符合|当选|本题|应)|指|则(?!正确)|不选|不属|不包|为(?:干|错))"
    r"| (?:describes|would|refers|means|concerns)(?![a-z]))"
)
_REMARK = r", ?(?:而 ?)?[A-J](?:(?: ?[、和与及,] ?| and )?[A-J]){0,9}" + _SAID
_LIST = re.compile(
    rf"(?<!{_WORD})[A-J](?:\. ?[A-J]){{1,9}}(?=\.?\s*(?:\n|$))"  # "A. B. C."; before a name these are initials
    rf"|{_OPENER}{_LETTERS}(?:(?!{_REMARK})(?:{_CLOSER}{_JOIN}{_OPENER}|[)\]】][(\[【]){_LETTERS})*"
)

# "B: no reinforcer follows", "B (false memory)" and "选B错觉" name an option; so such words must end a clause here.
_END = r"(?= ?[,;:.。!?、)\]\n(–—-]| ?$| [A-J]\b| (?:because|since|as|here|too|for|in)\b|[的了在因])"
_BAD = (
    r"(?i:(?:clearly |also |both )?(?:wrong|incorrect|not (?:correct|right|it)\b))"
    r"|错(?!觉)|不对(?!应)|不正确|不符|有误"
)
_WRONG = rf"(?:(?:都|均|也)?(?:{_BAD}|不是(?! ?[A-J](?!\w)))|(?i:false|no)\b{_END}|[×✗✘❌]{_END})"
_SINGLE, _IS = rf"(?<!{_WORD})[A-J](?!{_WORD})", " (?:is|are|was|were|would be)"
_REJECTED = re.compile(
    rf"(?P<before>{_SINGLE}(?:(?:[、/]| ?[和与及] ?|,? (?:and|or) ){_SINGLE}){{0,9}})"
    rf"(?=[)\]\"'”’」】]?(?: ?选项|项)?(?: ?[:(-])?"
    rf"(?:{_IS} (?i:(?:clearly |also |both )?(?:false|no)\b)|(?:{_IS})? ?{_WRONG}))"
    rf"|^(?P<listed>[A-J])(?=[.、] ?{_WRONG}误?的? ?[.;。]?$)"
    rf"|^(?P<marked>[A-J])(?=[.):、][^\n]{{0,200}}\((?:{_BAD}))"
    r"|(?:\b(?i:not|isn['’]t|aren['’]t|rather than|instead of) (?i:options? )?"
    r"|(?:而非|不是|不选|不应选|排除) ?(?:选项 ?)?)"
    rf"(?P<after>{_SINGLE}(?:(?: ?[、/] ?| ?[和与及或] ?|,? (?:and|or|nor) |, ){_SINGLE}){{0,9}})",
    re.MULTILINE,
)


def _without_rejected(answer: str, texts: Mapping[str, str]) -> str:
    """Letters that are called wrong in lower case, which is not read: "B (A is wrong)", "不是A", "C. x (incorrect)"."""
    several = len(re.findall(r"^[A-J][.、]", answer, re.MULTILINE)) > 1  # verdicts on one option a line

    def reject(match: re.Match[str]) -> str:
        piece = match["before"] or match["marked"] or match["listed"] or match["after"]
        if match["listed"]:
            verdict = answer[match.end() + 1 :].partition("\n")[0].strip(" .;。")
            own = texts.get(piece, "")
            if not several or not texts or (verdict in own and len(own) <= len(verdict) + 2):
                return match[0]
        if match["before"] and _after_own_text(answer, match.end(), piece[-1], texts):
            return match[0]
        return match[0].replace(piece, piece.lower())

    return _REJECTED.sub(reject, answer)


_BEHIND = re.compile(r"[⟧\s.):、\]】(\[:-]{0,5}")  # a letter, before its option's text
_GAP = r"[\s,;.。、)\]】]*(?:(?:and|和|与|及|以及) ?)?[(\[【]?"  # behind that text
_NEXT = re.compile(rf"{_GAP}(?=⟦[A-J]⟧)")
_LAST = re.compile(rf"[ ,;.。、)\]】]*$|{_GAP}⟦", re.MULTILINE)  # an item ends there: "C. Shaping is ..." is a remark


def _after_own_text(answer: str, at: int, letter: str, texts: Mapping[str, str]) -> int:
    """Where the text of this option ends, if it stands behind the letter that ends at `at`; else 0."""
    start, text = _BEHIND.match(answer, at).end(), texts.get(letter, "")  # type: ignore[union-attr]
    return start + len(text) if text and answer[start : start + len(text)].casefold() == text.casefold() else 0


def _chain(answer: str, at: int, letters: str, texts: Mapping[str, str]) -> str:
    """The letters that follow a list which ends at `at`, each behind the whole text of the one before."""
    found, end = "", _after_own_text(answer, at, letters[-1], texts)
    while end and (gap := _NEXT.match(answer, end)):
        following = answer[gap.end() + 1]
        end = _after_own_text(answer, gap.end() + 2, following, texts)
        if following in letters + found or not end or not _LAST.match(answer, end):
            break
        found += following
    return found


_ENDS_IN_LETTER = re.compile(r"(?<!\w)[A-J] ?$")  # and then a remark: "B (A is too narrow)"


def _bracket_letters(answer: str, letters: str) -> str:
    """Put each letter, or list of letters, between ⟦ and ⟧: "(A) and (C) fit" becomes "⟦AC⟧) fit"."""

    def bracket(match: re.Match[str]) -> str:
        named = re.sub("[^A-J]", "", match[0])
        is_word = any(len(set(run)) < len(run) for run in re.findall("[A-J]+", match[0]))  # ABA, ADD, BB
        is_pronoun = named == "I" and "I" not in letters
        ends, before = match.end(), match.string[max(match.start() - 3, 0) : match.start()]
        remark = match[0][0] == "(" and match.string[ends : ends + 1] != ")" and _ENDS_IN_LETTER.search(before)
        return match[0] if is_word or is_pronoun else f"{'(' if remark else ''}⟦{_sorted(named)}⟧"

    return _LIST.sub(bracket, answer)


_LISTED = r"⟦(?P<list>[A-J]+)⟧"
_STATEMENT = re.compile(
    r"(?:"
    r"(?i:\b(?:ans(?:wers?)?|(?:correct|right|best|final|my|appropriate) (?:options?|choices?|selections?|ones?))"
    r"(?: (?:here|(?:to|for|of|in)(?: \w{1,20}){1,4}?))?"
    r"(?:[\"']? ?[:=]| (?:is|are|was|would be|should be|must be|will be|has to be)\b))"
    r"|(?i:\b(?:answers?|options?|it) (?:is|are) not [A-J]+,? but\b)|不是[A-Ja-j]+,? ?而是|(?i:<answers?>)"
    r"|(?i:\b(?:choose|chose|choosing|pick|select|go with|going with)\b)"
    r"|答案 ?(?:应该|应当|应|就)?(?:选择|选|是|为|有|包括|:|=)"
    r"|[【\[]答案[】\]]"
    r"|(?:正确|最(?:合适|恰当|佳|好|符合题意))的?(?:选项|选择|答案)? ?(?:应该|应当|应|就)?(?:是|为|有|包括|:)"
    r"|选择?"
    r"|\\boxed ?\{(?: ?\\text ?\{)?"
    r")"
    r"(?i: ?:?\s{0,2}(?:(?:clearly|definitely|therefore|thus|most|likely|probably|both|only|the|letters?|options?|"
    rf"choices?|选项|是|为) ?){{0,3}}:?\s{{0,2}}){_LISTED}"
    rf"(?P<hedge>{_CLOSER},? ?(?:and/)?(?:or|或者?|还是) ?(?:[Oo]ptions? |选项 ?)?⟦)?"
)
_NEGATED = re.compile(
    r"(?i:\b(?:incorrect|wrong|false|worst|not|never|cannot|neither|none)|n['’]t)"
    r"(?: (?!(?:so|but|thus|hence|therefore|because)\b)[^\s.,;!?]{1,12}){0,3} ?$"
    r"|[不没未勿别非误][^,;:.。、!?\s]{0,2} ?$"
)


def _statements(answer: str, texts: Mapping[str, str]) -> Iterable[str]:
    """The letters of each statement; "" for one that hedges."""
    found = [match for match in _STATEMENT.finditer(answer) if not _is_negated(answer, match)]
    limits = [match.start() for match in found[1:]] + [len(answer)]
    for match, limit in zip(found, limits, strict=False):
        # letters that stand below a cue such as "Answer:" go on to the blank line, all others to the end of the line
        below = "\n" in answer[match.start() : match.start("list")]
        end = answer.find("\n\n" if below else "\n", match.end())
        more = _MARK.finditer(answer, match.end(), limit if end < 0 else min(end, limit))
        lists = [(match["list"], match.end("list")), *((mark["list"], mark.end("list")) for mark in more)]
        yield "" if match["hedge"] else _sorted(*(one + _chain(answer, at, one, texts) for one, at in lists))


# "Some people choose A" is not what the writer chooses.
_OTHERS = re.compile(r"(?i:\b(?:people|students?|others?|someone|some|many|might|may|could)\b[^.,;:!?\n]{0,20}$)")


def _is_negated(answer: str, match: re.Match[str]) -> bool:
    before = answer[max(match.start() - 40, 0) : match.start()]
    chosen = match[0][:2].lower() in ("ch", "pi", "se", "go")
    return _NEGATED.search(before) is not None or (chosen and _OTHERS.search(before) is not None)


_VERDICT = re.compile(
    rf"{_LISTED}{_CLOSER}(?: (?:is|are) (?:both |all |each )?(?:the )?(?:only |most |two |three )?"
    r"(?:correct|right|best|accurate|appropriate|answers?)\b"
    r"| best (?:fits|matches|describes)\b"
    r"| ?(?:选项|[一两二三四]?项)? ?(?:都|均|才|就|最|更)?是?"
    r"(?:正确|对的|答案|合适|恰当|符合题意|当选|对(?=[,;。!、 ]|$)))"
)


def _verdicts(answer: str) -> str:
    return _sorted(*(match["list"] for match in _VERDICT.finditer(answer) if not _is_negated(answer, match)))


# A mark right behind another one is an initial: "A. B. F. Skinner" and "D. A and C" name A and D.
_MARK = re.compile(
    r"(?:^[-•>(]? ?(?:(?i:so|thus|hence|therefore|it['’]s|it is|综上所述|因此|所以|由此可知),? ?)?"
    r"(?:(?i:options?|choices?|answers?|选项|答案) ?)?|"
    r"(?:[,;!?、。] ?|(?<!⟧)[.:)] |\b(?:and|or) |[和与及或] ?))"
    rf"{_LISTED}(?!, ?(?:而 ?)?(?:⟦[A-J]+⟧[,、和与及]? ?){{1,5}}{_SAID})"
    rf"(?= ?[.):、,;\]」】>。!—}}\"”’]| - | ?\(| ?$| (?:because|since)\b"
    rf"| (?![是不也都错和与或及为])[{_CJK}])",
    re.MULTILINE,
)


def _marks(answer: str, texts: Mapping[str, str]) -> str:
    marks = list(_MARK.finditer(answer))
    at_line_start = any(mark.start() == 0 or answer[mark.start() - 1] == "\n" for mark in marks)
    chained = (mark["list"] + _chain(answer, mark.end("list"), mark["list"], texts) for mark in marks)
    return _sorted(*chained) if at_line_start else ""


def _sorted(*lists: str) -> str:
    return "".join(sorted(set("".join(lists))))
