"""The format reward: the reasoning in one think block, and the answer after it (arXiv 2508.10848)."""

from __future__ import annotations

from psychecore.text.chat import CLOSE, OPEN


def format_score(text: str) -> float:
    """1.0 if `text` is one non-empty <think>...</think> block and a non-empty answer, else 0.0.

    White space may stand before the block, anything else may not. Non-empty means at least one letter or digit (of any
    script), so that neither blanks nor dots nor invisible characters pass. Time is linear; never raises.

    >>> format_score("<think>The reinforcer is taken away.</think> B. Extinction")
    1.0
    """
    if text.count(OPEN) != 1 or text.count(CLOSE) != 1:
        return 0.0
    before, _, rest = text.partition(OPEN)
    thinking, _, answer = rest.partition(CLOSE)  # with the tags in the wrong order, `answer` is empty
    return float(not before.strip() and _says_something(thinking) and _says_something(answer))


def _says_something(text: str) -> bool:
    return any(character.isalnum() for character in text)
