"""The format reward: the reasoning in one think block, then the answer (PAPER.md, Reward)."""

from __future__ import annotations


def format_score(text: str) -> float:
    """1.0 if the text is one non-empty <think>...</think> block followed by a non-empty answer, else 0.0.

    Nothing but white space may stand before the block. Linear in the text; never raises.
    """
    body = text.strip()
    if not body.startswith("<think>") or body.count("<think>") != 1 or body.count("</think>") != 1:
        return 0.0
    think, _, answer = body.removeprefix("<think>").partition("</think>")
    return float(bool(think.strip()) and bool(answer.strip()))
