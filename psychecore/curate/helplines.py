"""Public help lines, whose numbers are no contact data: a reply to a person at risk should name one."""

from __future__ import annotations

import re

CHINA = "12356 12320 12338 12355 12345 110 119 120 4001619995 4008211215 8008101117 01082951332 02164383562"
# 988, its old number, texts to 741741; domestic violence, SAMHSA, RAINN, Childhelp, Trevor Project, NAMI, Boys Town,
# eating disorders; Canada's suicide prevention and Kids Help Phone; all without the leading 1
NORTH_AMERICA = (
    "988 911 8002738255 741741 8007997233 8006624357 8006564673 8004224453 8664887386 8009506264 8004483000 8883757767 "
    "8334564566 8006686868"
)
# emergency, Samaritans, Childline; Australia's Lifeline, Beyond Blue and Kids Helpline
ELSEWHERE = "112 999 116123 116111 08001111 131114 1300224636 1800551800"
NUMBERS = frozenset(f"{CHINA} {NORTH_AMERICA} {ELSEWHERE}".split())
_TOLL_FREE = re.compile(r"1?8(?:00|33|44|55|66|77|88)\d{7}")
_NAMED = re.compile(  # right before the number
    r"(?:hot ?line|help ?line|lifeline|crisis (?:line|cent(?:er|re)))s?(?: (?:number|phone|at|is|on))*\W*\Z", re.I
)


def is_help_line(text: str, start: int, end: int) -> bool:
    """Whether the number at text[start:end] is a known help line's, or a toll-free one right behind the name of one.

    >>> is_help_line("Call 1-800-662-4357.", 5, 19), is_help_line("the Texas Crisis Hotline at 800-989-6884", 28, 40)
    (True, True)
    """
    digits = re.sub(r"\D", "", text[start:end])
    first = next((at for at in range(start, end) if text[at] in "+(0123456789"), end)  # a label may stand before it
    known = {digits, digits.removeprefix("1"), digits.removeprefix("86")}
    if not known.isdisjoint(NUMBERS):
        return True
    return bool(_TOLL_FREE.fullmatch(digits) and _NAMED.search(text[max(0, first - 80) : first]))
