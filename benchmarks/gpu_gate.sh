#!/bin/sh
# All checks that need a GPU, in ten minutes on one card; see gpu_gate.py. PYTHON chooses the interpreter.
set -eu
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
exec "$PYTHON" benchmarks/gpu_gate.py "$@"
