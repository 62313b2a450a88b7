"""What a stage makes of its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rejection:
    """A row, or raw text under "raw", that a stage turned away; `reason` is a short stable code."""

    row: dict[str, Any]
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Outcome:
    """What one input row became."""

    kept: list[dict[str, Any]]
    rejected: list[Rejection]
