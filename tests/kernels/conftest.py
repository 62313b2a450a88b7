"""Triton's interpreter must be chosen before a kernel is defined, and then nothing can be compiled: two processes.

test_interpreted.py starts the other one, with TRITON_INTERPRET=1, once for all of interpreted/. One file by hand:
`TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreted/test_rms_norm.py`.
"""

from __future__ import annotations

import os

collect_ignore = ["test_resources.py"] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
