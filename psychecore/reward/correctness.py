"""The correctness reward: the parsed letters against the gold ones."""

from __future__ import annotations

from typing import Literal

Credit = Literal["strict", "elastic", "jaccard"]


def credit(chosen: str, gold: str, multiple: Credit = "strict") -> float:
    """Credit in [0, 1] for chosen letters against gold ones, both as strings of letters.

    strict: 1 if the sets are equal. elastic: |chosen| / |gold| if every chosen letter is right, 0 as soon as one is
    wrong (PCEB's elastic accuracy). jaccard: |both| / |either|. With one gold letter and one chosen all three agree.

    Example: chosen "AC", gold "ACD": strict 0, elastic 2/3, jaccard 2/3; chosen "AB": 0, 0, 1/4.
    """
    a, b = set(chosen), set(gold)
    if multiple == "strict" or not a:
        return float(a == b)
    if multiple == "elastic":
        return len(a) / len(b) if a <= b else 0.0
    if multiple == "jaccard":
        return len(a & b) / len(a | b)
    raise ValueError(f"credit is {multiple!r}, but must be strict, elastic or jaccard")
