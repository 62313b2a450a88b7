"""Files and folders that are whole or absent, whenever the process or the machine stops.

A new version is written beside its place, flushed to disk, and renamed. A sealed folder carries manifest.json, the size
and SHA-256 of each of its files, written last: a folder whose manifest holds is as it was sealed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

MANIFEST = "manifest.json"


def replace_file(path: Path, chunks: Iterable[str]) -> None:
    """Write a UTF-8 text of several chunks in place of `path`."""
    temporary = path.with_name(f".{path.name}.partial")
    with open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(chunks)
        file.flush()
        os.fsync(file.fileno())
    descriptor = os.open(path.parent, os.O_RDONLY)  # who sees the file may move its folder at once
    try:
        os.replace(temporary, path)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def create_file(path: Path, chunks: Iterable[str]) -> None:
    """Write a new UTF-8 text file. Raises FileExistsError where something has that name, and leaves that as it is."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        replace_file(temporary, chunks)
        os.link(temporary, path)  # unlike a rename, it never takes another file's place
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def replace_folder(temporary: Path, target: Path) -> None:
    """Put a finished folder in its place, flushed; an old one is moved aside first and removed last."""
    for path in temporary.iterdir():
        sync_file(path)
    sync_folder(temporary)
    old = target.with_name(f".{target.name}.old")
    _remove(old)
    if target.exists():
        target.rename(old)
    temporary.rename(target)
    sync_folder(target.parent)
    _remove(old)


def remove_folder(target: Path) -> None:
    """Remove a folder, or a link to one; stopped half-way, what is left of it no longer bears its name."""
    doomed = target.with_name(f".{target.name}.old")
    _remove(doomed)
    target.rename(doomed)
    _remove(doomed)


def tidy(folder: Path, names: Iterable[str]) -> None:
    """Remove what a process that was killed left half-written or half-removed of these names, which may be patterns."""
    for name in names:
        for left in [*folder.glob(f".{name}.partial"), *folder.glob(f".{name}.old")]:
            _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Flush a file to disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path, digests: dict[str, str]) -> None:
    """Write the folder's manifest; `digests` are the SHA-256 by file name that are known already."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": digests.get(path.name) or digest(path)}
        for path in sorted(folder.iterdir())
    }
    (folder / MANIFEST).write_text(json.dumps(files, indent=2) + "\n", encoding="utf-8")


def damage(folder: Path, part: slice = slice(None), ignored: tuple[str, ...] = ()) -> str | None:
    """What is wrong with a sealed folder, or None; only the `part` of its files is read, so that ranks can share.

    Files named in `ignored` may be there without standing in the manifest.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        expected = [(name, int(entry["bytes"]), str(entry["sha256"])) for name, entry in sorted(files.items())]
        if not expected:
            return f"{MANIFEST} names no file"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    for name, size, sha256 in expected[part]:
        path = folder / name
        if path.name != name or not path.is_file():
            return f"{name} is missing"
        try:
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes, not {size}"
            if digest(path) != sha256:
                return f"{name} is not what was written (its SHA-256 differs)"
        except OSError as error:  # a disk that can no longer read it
            return f"{name} cannot be read ({error})"
    try:
        there = {path.name for path in folder.iterdir()}
    except OSError as error:
        return f"the folder cannot be read ({error})"
    if extra := sorted(there - files.keys() - {MANIFEST, *ignored}):
        return f"{extra[0]} does not stand in {MANIFEST}"
    return None


def require_shared(path: Path, patience: float = 60.0) -> None:
    """Raise OSError where this rank doesn't see what the first has made; a network's file system may take its time."""
    limit = time.monotonic() + patience
    while not path.exists():
        if time.monotonic() > limit:
            raise FileNotFoundError(
                errno.ENOENT,
                "made by rank 0 and not seen here: the run folder must lie where every node sees it",
                str(path),
            )
        time.sleep(0.2)


def require_space(folder: Path, needed: int) -> None:
    """Raise OSError where the disk of `folder` has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{needed / 2**30:.2f} GiB are needed, {free / 2**30:.2f} GiB are free: free space, or keep fewer "
            "checkpoints",
            str(folder),
        )
