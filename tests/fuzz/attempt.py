"""What every fuzz test asks: did it work, or was it refused in the way that was promised?"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "100"))  # few in continuous integration, many under `make fuzz`

T = TypeVar("T")


def attempt(call: Callable[[], T], limit: int = 700) -> tuple[T | None, str]:
    """(result, "") or (None, message) where the call raises ValueError or FileNotFoundError; all else passes through.

    The message must be there, no longer than `limit`, and printable on any terminal that speaks UTF-8.
    """
    try:
        return call(), ""
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
    message.encode()
    assert 0 < len(message) <= limit, message[:1000]
    return None, message
