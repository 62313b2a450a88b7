"""Runs recipes in forked processes, with a fault put in; a process of its own, so that torch is imported once.

Reads one job a line from stdin: {"recipe", "argv", "ranks", "log", "faults": [[name, options], ...], "count": path} and
answers with the exit code of each rank (minus the signal's number where one killed it). Faults are functions of this
file that change what the recipe calls, in the child alone. `limit` seconds after its start a job is killed (code -14).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "recipes"))

import cli  # noqa: E402
import grpo  # noqa: E402
import run_folder  # noqa: E402
import sft  # noqa: E402
import torch  # noqa: E402
import torch._dynamo  # noqa: E402 - AdamW imports it: once here, not in every fork
import torch.distributed.fsdp  # noqa: E402 - as does who shards a model
from grpo_options import GrpoRecipe  # noqa: E402

from psychecore.reward import score  # noqa: E402
from psychecore.rollout import engine  # noqa: E402
from psychecore.runtime import Runtime, runtime  # noqa: E402
from psychecore.train import grpo as grpo_step  # noqa: E402
from psychecore.train import run_state  # noqa: E402
from psychecore.train import sft as sft_step  # noqa: E402
from psychecore.train.optimizer import Optimizer  # noqa: E402

RECIPES = {"sft": (sft, sft.SftRecipe), "grpo": (grpo, GrpoRecipe)}
WRITES = {"open": "write", "os.rename": "rename", "os.remove": "remove", "os.rmdir": "remove", "os.mkdir": "write"}


def wrap(owner: Any, name: str, before: Callable[[], None], after: Callable[[], None] = lambda: None) -> None:
    """Call `before` and `after` around every call of owner.name."""
    inside = getattr(owner, name)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        before()
        result = inside(*arguments, **options)
        after()
        return result

    setattr(owner, name, wrapped)


class Moments:
    """Counts the moments of a run by kind, and kills the process with SIGKILL at the chosen one."""

    def __init__(self, folder: str, kind: str | None, number: int, path: str | None):
        self.folder, self.kind, self.number, self.path = folder, kind, number, path
        self.counts: Counter[str] = Counter()
        wrap(engine, "decode_step", self.at("rollout"), self.at("rollout"))
        for module in (grpo_step, sft_step):
            wrap(module, "batch_logprobs", self.at("forward"))
        wrap(torch.Tensor, "backward", self.at("backward"), self.at("backward"))
        wrap(torch.optim.AdamW, "step", self.at("optimizer"), self.at("optimizer"))
        wrap(Optimizer, "publish", self.at("optimizer"))
        wrap(run_state, "save_file", self.at("save"), self.at("save"))
        wrap(os, "fsync", self.at("save"), self.at("save"))
        self.tear = run_state.save_file
        run_state.save_file = self.torn
        sys.addaudithook(self.audit)

    def at(self, kind: str) -> Callable[[], None]:
        def tick() -> None:
            self.counts[kind] += 1
            if kind == self.kind and self.counts[kind] == self.number:
                os.kill(os.getpid(), signal.SIGKILL)

        return tick

    def torn(self, tensors: Any, path: Any, **options: Any) -> None:
        """Save, but when this is the moment, leave half of the file."""
        self.tear(tensors, path, **options)
        self.counts["torn"] += 1
        if self.kind == "torn" and self.counts["torn"] == self.number:
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """File operations in the run's folder."""
        if event not in WRITES:
            return
        inside = str(arguments[0]).startswith(self.folder)
        if event == "open":
            inside = inside and isinstance(arguments[2], int) and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
        elif event in ("os.remove", "os.rmdir"):
            inside = inside or arguments[1] != -1  # rmtree names files relative to their folder's descriptor
        if inside:
            self.at(WRITES[event])()

    def write(self) -> None:
        if self.path:
            Path(self.path).write_text(json.dumps(self.counts))


def stop_after(step: int, number: int, again: bool = False) -> None:
    """Send this process a signal while the update of `step` runs, and another in the same step if `again`."""
    seen = Counter[str]()

    def send() -> None:
        seen["updates"] += 1
        if seen["updates"] == step:
            for _ in range(1 + again):
                os.kill(os.getpid(), number)
                time.sleep(0.01)

    wrap(grpo, "grpo_update", send)
    wrap(sft, "sft_step", send)


def nonfinite(what: str, step: int, value: float) -> None:
    """Make a loss, gradient or weight NaN or infinite at the given optimizer step."""
    inside, seen = Optimizer.step, Counter[str]()

    def spoilt(self: Optimizer, loss: float = 0.0) -> float:
        seen["steps"] += 1
        if seen["steps"] == step:
            with torch.no_grad():
                if what == "loss":
                    loss = value
                for master in self.masters.values():
                    target = master.grad if what == "gradient" else master if what == "weight" else None
                    if target is not None:
                        local = target.to_local() if hasattr(target, "to_local") else target
                        local.view(-1)[:1] = value
                        break
        return inside(self, loss)

    Optimizer.step = spoilt  # type: ignore[method-assign]


def reward(kind: str) -> None:
    """A reward function that raises, hangs, or returns what is no number, from the third sample on."""
    inside, seen = score._score, Counter[str]()

    def bad(text: str, question: Any, config: Any) -> dict[str, float]:
        seen["samples"] += 1
        if seen["samples"] < 3:
            return inside(text, question, config)
        if kind == "raises":
            raise KeyError("my bug")
        if kind == "hangs":
            while True:
                pass
        return {**inside(text, question, config), "total": float("nan")}

    score._score = bad


def same_reward() -> None:
    """All samples score the same."""
    score._score = lambda text, question, config: {"format": 1.0, "correct": 0.5, "total": 0.55}


def says_nothing() -> None:
    """A generator that ends every sample at once: the stop token is all that it says."""
    inside = engine.accept

    def stop_at_once(model: Any, state: Any, slot_B: Any, hidden_BD: Any, params: Any) -> None:
        state.stop_V[:] = True
        inside(model, state, slot_B, hidden_BD, params)

    engine.accept = stop_at_once


def never_stops() -> None:
    """No sample ends before the limit."""
    inside = engine.accept

    def go_on(model: Any, state: Any, slot_B: Any, hidden_BD: Any, params: Any) -> None:
        state.stop_V[:] = False
        inside(model, state, slot_B, hidden_BD, params)

    engine.accept = go_on


def stuck(phase: str, step: int, stop: bool = False) -> None:
    """Hang in a phase of a step, in Python or (`stop`) as a process that the system has stopped."""
    inside, seen = Runtime.phase, Counter[str]()

    def hang(self: Runtime, name: str) -> Any:
        seen[name] += 1
        context = inside(self, name)
        if name == phase and seen[name] == step:
            context.__enter__()
            if stop:
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(1000)
        return context

    Runtime.phase = hang  # type: ignore[method-assign]


def killed(phase: str, step: int) -> None:
    """SIGKILL at the beginning of a phase of a step."""
    inside, seen = Runtime.phase, Counter[str]()

    def die(self: Runtime, name: str) -> Any:
        seen[name] += 1
        if name == phase and seen[name] == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return inside(self, name)

    Runtime.phase = die  # type: ignore[method-assign]


def slow(phase: str, seconds: float) -> None:
    """Take longer in every phase of this name."""
    inside = Runtime.phase

    def wait(self: Runtime, name: str) -> Any:
        if name == phase:
            time.sleep(seconds)
        return inside(self, name)

    Runtime.phase = wait  # type: ignore[method-assign]


def trusting() -> None:
    """No look at the free space before a checkpoint, as if the disk filled up while it is written."""
    run_state.require_space = lambda folder, needed: None


def second() -> None:
    """While the first step runs, another process of the same user wants the same run folder."""

    def try_to_lock() -> None:
        pid = os.fork()
        if pid == 0:
            try:
                run_folder._lock(Path(run_folder._LOCKS[-1].name).parent)
            except ValueError as error:
                print(f"second: {error}", flush=True)
            os._exit(0)
        os.waitpid(pid, 0)

    wrap(sft, "sft_step", try_to_lock)


def deaf() -> None:
    """Whoever read the output is gone when the update begins: `| tee` dies of the same Ctrl-C."""

    def close() -> None:
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, 1)
        os.dup2(writing, 2)

    wrap(sft, "sft_step", close)


def blind(name: str) -> None:
    """Files of this name are not there for this rank: a network's file system may be late."""
    inside = Path.exists
    Path.exists = lambda self, **options: self.name != name and inside(self, **options)  # type: ignore[method-assign]


def bad_row() -> None:
    """Only this rank reads the training file wrongly."""

    def fail(path: Path) -> None:
        raise ValueError(f"{path} line 1: not a JSON object")

    sft.read_conversations = fail


FAULTS = {f.__name__: f for f in (stop_after, nonfinite, reward, same_reward, says_nothing, never_stops, stuck, killed)}
FAULTS |= {"slow": slow, "trusting": trusting, "second": second, "deaf": deaf, "blind": blind, "bad_row": bad_row}


def child(job: dict[str, Any], rank: int, port: int) -> None:
    """One rank of a job: never returns."""
    code = 99
    try:
        log = os.open(f"{job['log']}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = in_child(job, rank, port)
    finally:
        os._exit(code)


def in_child(job: dict[str, Any], rank: int, port: int) -> int:
    """Run the recipe; its exit code."""
    if job["ranks"] > 1:
        os.environ |= {"WORLD_SIZE": str(job["ranks"]), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    code = 0
    try:
        with cli.main_guard():
            module, kind = RECIPES[job["recipe"]]
            config = cli.load_config(kind, job["argv"], None)
            moments = None
            if rank == job.get("rank", 0):
                if "kill" in job or "count" in job:
                    moments = Moments(str(config.run.folder), *job.get("kill", (None, 0)), job.get("count"))
                for name, options in job.get("faults", []):
                    FAULTS[name](**options)
            with runtime(config.run.device, config.run.timeout_minutes) as place:
                module.main(config, place)
            if moments is not None:
                moments.write()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 99
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    return code


def serve() -> None:
    """Answer jobs until stdin ends."""
    for line in sys.stdin:
        job = json.loads(line)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        pids = []
        for rank in range(job["ranks"]):
            pid = os.fork()
            if pid == 0:
                child(job, rank, port)
            pids.append(pid)
        codes: dict[int, int] = {}
        start = time.monotonic()
        while len(codes) < len(pids):
            for pid in pids:
                done, status = os.waitpid(pid, os.WNOHANG) if pid not in codes else (0, 0)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
            late = time.monotonic() - start > job["limit"]
            others_are_over = len(codes) == len(pids) - 1 and job.get("abandon")  # what torchrun does with the last one
            if late or others_are_over:
                for pid in pids:
                    if pid not in codes:
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        print(json.dumps([codes[pid] for pid in pids]), flush=True)


if __name__ == "__main__":
    serve()
