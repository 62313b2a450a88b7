"""Triton's interpreter must be chosen before a kernel is defined, so its tests run in a process of their own.

test_interpreted.py starts that process, with TRITON_INTERPRET=1, once for all of interpreted/. To run one file by hand:
`TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreted/test_rms_norm.py`.
"""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
