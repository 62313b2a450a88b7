"""torchrun set-up and tear-down, rank-0 output, signals, time-outs, and the few collectives on plain numbers.

Started by plain python there is one rank and no process group: every collective below then does nothing but return.
"""

from __future__ import annotations

import atexit
import faulthandler
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist

EXIT_STUCK = 3
# Back ends by device. gloo stands beside nccl for plain numbers, and for what lies in host memory (CPU offload).
COLLECTIVES = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
# For plain numbers that must arrive: gloo sees at once that a rank is gone, and works where CUDA has failed.
CPU = torch.device("cpu")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # the last: a terminal that was closed


class PeerError(RuntimeError):
    """Another rank failed; the message says which, in what, and how."""


@dataclass(frozen=True)
class Runtime:
    """This process's place in the run."""

    rank: int
    world_size: int
    device: torch.device
    watch: Watch = field(default_factory=lambda: Watch(), repr=False, compare=False)

    @property
    def first(self) -> bool:
        """Whether this rank prints and writes."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print once per run, past any progress bar."""
        if self.first:
            with suppress(
                BrokenPipeError
            ):  # a reader that is gone (`| tee`, on Ctrl-C) must not keep a run from saving
                print(text, flush=True)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A stretch of work that must end within the time-out; an error in it, or a lost rank, is told by its name."""
        self.watch.enter(name)
        try:
            with _naming_the_network(f"rank {self.rank}, phase {name!r}") if self.world_size > 1 else nullcontext():
                yield
        except PeerError:
            raise
        except Exception as error:
            error.add_note(f"(rank {self.rank}, phase {name!r})")
            raise
        finally:
            self.watch.leave()

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        """Work that ranks do apart (no collectives in it): where it fails on one rank, every rank raises.

        A rank that waits in the next collective for one that has failed would learn of it only by the time-out.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        told = None if failure is None else f"{type(failure).__name__}: {failure}"
        reports = gather_json(told, CPU)
        if failure is not None:
            failure.agreed = True  # type: ignore[attr-defined]  # recipes/cli.py: only the first rank tells it
            raise failure
        for rank, report in enumerate(reports):
            if report is not None:
                other = PeerError(f"rank {rank}, {what}: {report}")
                other.agreed = True  # type: ignore[attr-defined]
                raise other

    def stop_signal(self) -> str | None:
        """The name of a signal that some rank has received, asking for an orderly end (a collective)."""
        (number,) = max_over_ranks([float(self.watch.signal or 0)], CPU)
        return signal.Signals(int(number)).name if number else None


class Watch:
    """What may end a run from outside: signals that ask it to stop, and a phase that lasts too long."""

    def __init__(self, rank: int = 0, timeout_seconds: float | None = None):
        self.rank, self.timeout_seconds = rank, timeout_seconds
        self.signal: int | None = None
        self.over = threading.Event()  # this process leaves the run; threads that wait for others give up
        self._received = 0.0
        self._phase: tuple[str, float] | None = None
        if timeout_seconds is not None:
            threading.Thread(target=self._wait, daemon=True, name="watch").start()

    def enter(self, phase: str) -> None:
        """A phase begins."""
        self._phase = (phase, time.monotonic())

    def leave(self) -> None:
        """The phase is over."""
        self._phase = None

    def on_signal(self, number: int, frame: Any) -> None:
        """Remember the first signal; end at once on a second."""
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._received = number, now
            name = signal.Signals(number).name
            if self.rank == 0:
                text = f"{name}: finishing the step and saving; once more to stop at once\n"
                with suppress(OSError, ValueError):
                    os.write(sys.stderr.fileno(), text.encode())
        elif now - self._received > (3.0 if "TORCHELASTIC_RUN_ID" in os.environ else 0.0):
            # under torchrun a Ctrl-C arrives twice: from the terminal, and passed on by the launcher
            os._exit(128 + number)

    def _wait(self) -> None:
        assert self.timeout_seconds is not None
        while True:
            time.sleep(min(1.0, self.timeout_seconds / 4))
            phase = self._phase
            if phase is not None and time.monotonic() - phase[1] > self.timeout_seconds:
                self._end(phase[0])

    def _end(self, phase: str) -> NoReturn:
        print(
            f"error: rank {self.rank}, phase {phase!r} has lasted longer than --run.timeout_minutes "
            f"{self.timeout_seconds or 0:.0f} s: it hangs, or waits for a rank that is stuck. Where it stands:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        os._exit(EXIT_STUCK)


def device_kind(asked: str, option: str) -> str:
    """ "cpu" or "cuda" for what an option asks: these, or "auto" for CUDA where there is one. Raises ValueError."""
    if asked not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device is {asked!r}, but must be auto, cpu or cuda")
    available = torch.cuda.is_available()
    if asked == "cuda" and not available:
        raise ValueError(f"{option} is cuda, but torch sees no GPU: use cpu or auto")
    return "cuda" if available and asked != "cpu" else "cpu"


@contextmanager
def runtime(device: str = "auto", timeout_minutes: float = 60.0) -> Iterator[Runtime]:
    """Join the process group that torchrun describes (or none), and leave it again.

    After an error on GPUs the process ends with code 1 as soon as the error is told: to leave NCCL's group takes all
    ranks, and the others wait in a collective until torchrun sees that this one has ended.

    device: "cpu", "cuda", or "auto" for CUDA where there is one. CUDA uses nccl, the CPU gloo. A collective that waits
    longer than `timeout_minutes` for another rank ends the run, and so does a phase that lasts longer. SIGTERM,
    SIGINT and SIGHUP are remembered for `Runtime.stop_signal`; a second one ends the process.
    """
    kind = device_kind(device, "--run.device")
    if not 0 < timeout_minutes <= 1e6:
        raise ValueError(f"timeout_minutes is {timeout_minutes}, but must be above 0 and at most 1e6")
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    place = torch.device(kind, local_rank) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(place)
    if world_size > 1:
        timeout = timedelta(minutes=timeout_minutes)
        with _naming_the_network(f"rank {rank}, joining the others"):
            store, rank, world_size = next(dist.rendezvous("env://", rank, world_size, timeout=timeout))
            if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
                # torchrun keeps its store over restarts, and in it the addresses of dead ranks. Nodes may count
                # restarts differently, so README has several nodes take a new store each time.
                store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
            dist.init_process_group(COLLECTIVES[kind], store=store, rank=rank, world_size=world_size, timeout=timeout)
    watch = Watch(rank, 60 * timeout_minutes)
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, watch.on_signal) for number in SIGNALS}
    done = False
    try:
        with _naming_the_network(f"rank {rank}, between phases"):
            yield Runtime(rank, world_size, place, watch)
            if world_size > 1:
                dist.barrier()
        done = True
    finally:
        with suppress(BrokenPipeError):
            sys.stdout.flush()
        watch.over.set()
        if world_size > 1 and (done or kind == "cpu"):
            dist.destroy_process_group()
        elif world_size > 1:
            atexit.register(_leave)  # once the error is told: NCCL's own tear-down would wait for the others
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave() -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(1)


@contextmanager
def _naming_the_network(where: str) -> Iterator[None]:
    """A lost connection becomes a PeerError that says where this rank was; other errors pass."""
    try:
        yield
    except PeerError:
        raise
    except RuntimeError as error:
        words = ("gloo", "nccl", "connection closed", "connection reset", "timed out", "broken pipe", "remote worker")
        if not isinstance(error, dist.DistError) and not any(word in str(error).lower() for word in words):
            raise
        lines = str(error).strip().splitlines()
        reason = lines[0]
        if cause := next((line for line in lines if "out of memory" in line or "Cuda failure" in line), ""):
            raise RuntimeError(f"{where}: {cause.strip():.200}") from error  # this rank's own
        raise PeerError(
            f"{where}: another rank is gone or stuck ({reason:.200}). The run continues from its last checkpoint when "
            "started again"
        ) from error


def sum_over_ranks(values: Sequence[float], device: torch.device) -> list[float]:
    """Each number summed over all ranks, in float64 (a collective)."""
    return _reduce(values, device, dist.ReduceOp.SUM)


def max_over_ranks(values: Sequence[float], device: torch.device) -> list[float]:
    """The largest of each number over all ranks (a collective)."""
    return _reduce(values, device, dist.ReduceOp.MAX)


def _reduce(values: Sequence[float], device: torch.device, operation: dist.ReduceOp.RedOpType) -> list[float]:
    if not dist.is_initialized():
        return list(values)
    tensor = torch.tensor(list(values), dtype=torch.float64, device=device)
    dist.all_reduce(tensor, operation)
    return tensor.tolist()


def gather_json(value: Any, device: torch.device) -> list[Any]:
    """Every rank's JSON value, in the order of ranks, on every rank (a collective). Bytes travel, never pickles."""
    if not dist.is_initialized():
        return [value]
    payload = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
    lengths = [int(n) for n in _gather(torch.tensor([payload.numel()], device=device))]
    padded = torch.zeros(max(lengths), dtype=torch.uint8, device=device)
    padded[: payload.numel()] = payload
    parts = _gather(padded)
    return [json.loads(bytes(part[:n].cpu().numpy())) for part, n in zip(parts, lengths, strict=True)]


def _gather(tensor: torch.Tensor) -> list[torch.Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor)
    return parts
