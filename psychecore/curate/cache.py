"""What models have answered, kept on disk, so that a killed run goes on without asking, or paying, twice.

The file is JSONL and only ever grows: {"key", "left", "text", "logprob"} a line. The key is the content address of the
request (generator.request_key). Replies that arrived together are written together, `left` counting down to 0; what
follows the last line with `left` 0 was torn by a kill, and is cut off. Memory is some 150 bytes a reply, not the texts.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from psychecore.curate.generator import Announcing, Generator, Reply, Request, request_key

_PREFIX = b'{"key": "'


class Cache:
    """An append-only file of replies by key; one process at a time writes it.

    Raises ValueError with file and line for one that is no such file, BlockingIOError where another run has it open.
    """

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a+b")  # noqa: SIM115 - open as long as the cache, closed by close()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise BlockingIOError(f"{path} is in use by another run: wait for it, or give this run its own") from None
        self._places = self._read_places()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return bytes.fromhex(key) in self._places

    def get(self, key: str) -> Reply | None:
        """The reply to the request of this key, if it is known."""
        place = self._places.get(bytes.fromhex(key))
        if place is None:
            return None
        self._file.seek(place)
        row = json.loads(self._file.readline())
        return Reply(row["text"], row["logprob"], cut=row.get("cut", False))

    def add(self, replies: Mapping[str, Reply]) -> None:
        """Keep some replies by key; they are on the disk when this returns."""
        place, lines = self._file.seek(0, os.SEEK_END), []
        for left, (key, reply) in zip(range(len(replies) - 1, -1, -1), replies.items(), strict=True):
            row = {"key": key, "left": left, "text": reply.text, "logprob": reply.logprob}
            row |= {"cut": True} if reply.cut else {}
            lines.append(json.dumps(row).encode() + b"\n")
            self._places[bytes.fromhex(key)] = place
            place += len(lines[-1])
        self._file.write(b"".join(lines))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; another run may open it then."""
        self._file.close()

    def _read_places(self) -> dict[bytes, int]:
        """Where each key's line starts; a torn end is cut off."""
        places: dict[bytes, int] = {}
        pending: dict[bytes, int] = {}
        whole = place = 0
        self._file.seek(0)
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                key, left, text, logprob = bytes.fromhex(row["key"]), row["left"], row["text"], row["logprob"]
                if (
                    type(left) is not int
                    or not isinstance(text, str)
                    or not isinstance(logprob, (int, float, type(None)))
                    or type(row.get("cut", False)) is not bool
                ):
                    raise TypeError(f"left {left!r:.20}, text {text!r:.40}, logprob {logprob!r:.20}")
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{self.path} line {number}: no reply ({type(error).__name__}: {error}); the cache is damaged: "
                    "restore it, or remove it and all is asked again"
                ) from None
            pending[key] = place
            place += len(line)
            if left == 0:
                places |= pending
                pending, whole = {}, place
        self._file.truncate(whole)
        return places


class CachedGenerator:
    """A generator that asks only what the cache doesn't hold, and keeps each reply as it arrives, but for refusals.

    `asked` and `found` count the requests that went to the model and those that were answered from the cache, `refused`
    those that had no room. The first time that the cache answers, a line on stderr says so: what a server calls a model
    may have become another one.
    """

    def __init__(self, generator: Generator, cache: Cache):
        self.generator, self.cache, self.name = generator, cache, generator.name
        self.identity: str = getattr(generator, "identity", generator.name)
        self.max_length: int | None = getattr(generator, "max_length", None)  # of prompt and reply, of a local model
        self.asked = self.found = self.refused = 0
        self._told = False

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply a request, in order; equal requests are asked once."""
        keys = [request_key(self.identity, request) for request in requests]
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in self.cache}
        self._tell(len(set(keys)) - len(missing), len(set(keys)))
        self.asked += len(missing)
        self.found += len(requests) - len(missing)
        names, asked = list(missing), list(missing.values())
        refused: dict[str, Reply] = {}

        def arrived(replies: Mapping[int, Reply]) -> None:
            refused.update({names[number]: reply for number, reply in replies.items() if reply.refused})
            self.cache.add({names[number]: reply for number, reply in replies.items() if not reply.refused})

        if asked and isinstance(self.generator, Announcing):
            self.generator.generate_each(asked, arrived)
        elif asked:
            arrived(dict(enumerate(self.generator.generate(asked))))
        replies = [refused.get(key) or self.cache.get(key) for key in keys]
        if unanswered := [number for number, reply in enumerate(replies) if reply is None]:
            raise RuntimeError(f"generator {self.name!r} left {len(unanswered)} of {len(requests)} requests unanswered")
        self.refused += len(refused)
        if refused:
            room = f" within max_length {self.max_length}" if self.max_length else ""
            tqdm.write(f"{self.name}: no room{room} for {len(refused)} of {len(asked)} requests", file=sys.stderr)
        return [reply for reply in replies if reply is not None]

    def _tell(self, known: int, total: int) -> None:
        if known and not self._told:
            self._told = True
            line = f"{self.name}: {known} of {total} answers from {self.cache.path}"
            if "://" in self.identity:  # an address; weights are known by their hash
                line += f"; if another model is at {self.identity.rpartition(' at ')[2]} now, remove that file"
            tqdm.write(line, file=sys.stderr)  # which leaves a progress bar whole
