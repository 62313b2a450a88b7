"""The first hour on a GPU in ten minutes: every check that needs one, into benchmarks/results/gpu_gate.json.

    benchmarks/gpu_gate.sh              # on one GPU; installs nothing
    benchmarks/gpu_gate.sh --cpu        # rehearsal of the script itself, without a GPU, in seconds

Parts: kernels in bf16 against float64 (kernels), every attention back end that is there against the formula in float64
(attention), sampling with CUDA graphs against eager steps in float64, fp32 and bf16 (sampler), an FSDP2 step on one
rank against a plain one (fsdp), updates and rollouts of two ranks that share the GPU against one (ranks), and the
kernels' times at Qwen2.5-7B's sizes (benchmarks). Each is a process with a time-out of its own; one that fails, hangs
or crashes CUDA leaves the others alone. Exit code: 0 all passed, 1 some failed, 2 no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, machine

HERE = Path(__file__).resolve().parent
# s; together below 600
TIMEOUTS = {"kernels": 120, "attention": 55, "sampler": 80, "fsdp": 60, "ranks": 90, "benchmarks": 190}
NO_GPU = 2


def main(arguments: list[str] | None = None) -> int:
    """Run the parts; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="rehearsal: small sizes, torch references for kernels")
    parser.add_argument("--parts", nargs="*", choices=TIMEOUTS, default=list(TIMEOUTS))
    parser.add_argument("--out", type=Path, help="the result (gpu_gate.json; a rehearsal writes none unless told)")
    parser.add_argument("--part", choices=TIMEOUTS, help="(internal) run this part in this process")
    options = parser.parse_args(arguments)
    if not options.cpu and not torch.cuda.is_available():
        print("gpu_gate: torch sees no CUDA device here, so nothing was checked; --cpu rehearses the script itself")
        return NO_GPU
    if options.part:
        return run_part(options.part, options.cpu)
    result: dict[str, Any] = {"machine": machine(), "rehearsal": options.cpu, "parts": {}}
    out = options.out or (None if options.cpu else RESULTS / "gpu_gate.json")
    for name in options.parts:
        result["parts"][name] = start(name, options.cpu)
        result["passed"] = all(part["passed"] for part in result["parts"].values())
        print(f"{name:<12}{'passed' if result['parts'][name]['passed'] else 'FAILED'}", flush=True)
        if not result["parts"][name]["passed"]:
            print(f"  {result['parts'][name]['error']}", flush=True)
        if out:  # after every part: a machine that is taken away leaves what is known
            out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if result["passed"] else 1


def start(name: str, rehearsal: bool) -> dict[str, Any]:
    """A part in a process of its own: what it found, its seconds, and its error if it has one."""
    command = [sys.executable, str(HERE / "gpu_gate.py"), "--part", name, *(["--cpu"] if rehearsal else [])]
    begin = time.monotonic()
    pipe = subprocess.PIPE
    part = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    try:
        out, errors = part.communicate(timeout=TIMEOUTS[name])
    except subprocess.TimeoutExpired:
        return {"passed": False, "error": f"not done after {TIMEOUTS[name]} s"}
    finally:
        with suppress(ProcessLookupError):
            os.killpg(part.pid, signal.SIGKILL)  # its ranks too, which would hold the GPU
        part.wait()
    row: dict[str, Any] = {"passed": part.returncode == 0, "seconds": round(time.monotonic() - begin, 1)}
    last = out.strip().rpartition("\n")[2]
    if not row["passed"]:
        return row | {"error": (errors.strip() or last)[-1500:]}
    try:
        return row | {"found": json.loads(last)}
    except ValueError:  # a library had the last word: what was found is lost, the other parts are not
        return row | {"passed": False, "error": f"its last line is not what it found: {last[-1500:]!r}"}


def run_part(name: str, rehearsal: bool) -> int:
    """One part, here; the last line printed is what it found, as JSON."""
    device = torch.device("cpu" if rehearsal else "cuda")
    if name == "benchmarks":
        found = benchmarks(rehearsal)
    elif name == "ranks":
        import gate_ranks

        found = gate_ranks.ranks(device, rehearsal)
    else:
        import gate_parts

        found = getattr(gate_parts, name)(device, rehearsal)
    print(json.dumps(found))
    return 0


def benchmarks(rehearsal: bool) -> dict[str, Any]:
    """benchmarks/kernels.py at Qwen2.5-7B's sizes; a rehearsal predicts one kernel."""
    import kernels

    if rehearsal:
        return kernels.predict(kernels.CASES[0], kernels.ON_CPU)
    kernels.main(["--models", "Qwen2.5-7B", "--name", "kernels_gpu"])
    rows = json.loads((RESULTS / "kernels_gpu.json").read_text(encoding="utf-8"))["measured"]
    failed = {row["kernel"]: row["psychecore"]["failed"] for row in rows if "failed" in row["psychecore"]}
    if failed:
        raise RuntimeError(f"kernels that did not run: {failed}")
    return {"measured": rows}


if __name__ == "__main__":
    sys.exit(main())
