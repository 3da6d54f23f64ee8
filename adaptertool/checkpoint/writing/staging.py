"""Folders in which files are made before a rename puts them in their place, and what lets that happen undisturbed.

A staging folder is named as one (`.NAME.adaptertool-HOST-PROCESS-….tmp`) and locked for as long as its process lives. What a
killed process leaves of it is found by the next one that writes there, finished or undone as it has to be, and removed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from adaptertool.checkpoint.weights import PICKLE_WEIGHTS, SAFETENSORS_WEIGHTS
from adaptertool.signals import uninterrupted

_STAGING = re.compile(r"\..*\.adaptertool-(?P<host>.*)-(?P<process>\d{1,9})-[0-9a-f]+\.tmp")
_NOTE = "finish.json"

NEW = "new"
"""The subfolder of a staging folder that holds files on their way to the folder that it is in."""

REPLACED = "replaced"
"""The subfolder that holds the files that they take the place of, at the same paths."""


def is_staging(name: str) -> bool:
    """Whether a folder of this name is one of ours."""
    return _STAGING.fullmatch(name) is not None


def holds_replaced_files(staging: Path) -> bool:
    """Whether files of the user lie in a staging folder, set aside by a run that did not finish."""
    try:
        return any((staging / REPLACED).iterdir())
    except OSError:
        return False


@contextlib.contextmanager
def staging(folder: Path, name: str) -> Iterator[Path]:
    """A new staging folder, private to the user, which is gone afterwards unless it was renamed.

    Args:
        folder: Where it is made: on the file system of what is to be replaced.
        name: What it is for, as part of its name.

    Raises:
        OSError: it can't be made.
    """
    claimed: list[tuple[Path, int | None]] = []
    try:
        # Long names are cut: with the mark they could pass what file systems allow.
        prefix = f".{name[:100]}.adaptertool-{socket.gethostname()[:60]}-{os.getpid()}"
        while not claimed or not _still_there(*claimed[-1]):
            path = folder / f"{prefix}-{secrets.token_hex(4)}.tmp"
            claimed.append((path, None))
            path.mkdir(mode=0o700)
            claimed[-1] = (path, _lock(path))
        yield claimed[-1][0]
    finally:
        with uninterrupted():
            for path, handle in claimed:
                with contextlib.suppress(OSError):
                    remove(path)
                if handle is not None:
                    os.close(handle)


def note_to_finish(staging: Path, placed: Path, obsolete: Sequence[Path]) -> None:
    """Leave a note that once `placed` is in its place, these files are to go; see `clear`.

    Args:
        staging: The staging folder.
        placed: The file in it that is about to be renamed.
        obsolete: Files in the folder around it.
    """
    note = {"placed": _identity(placed), "obsolete": {path.name: _identity(path) for path in obsolete}}
    with (staging / _NOTE).open("x", encoding="utf-8") as file:
        json.dump(note, file)
        file.flush()
        os.fsync(file.fileno())


def clear(folder: Path) -> None:
    """Finish or undo what killed runs of this user on this machine left in a folder, and remove their staging folders.

    A pickle goes if the safetensors file that was made of it is in its place; files that were set aside come back where no
    new weights took their place.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for path in entries:
        match = _STAGING.fullmatch(path.name)
        if match is not None and match["host"] == socket.gethostname()[:60]:
            # One that can't be looked at is no reason to leave the others.
            with contextlib.suppress(OSError):
                _clear_one(path, int(match["process"]))


def _clear_one(staging: Path, process: int) -> None:
    """Do so with one staging folder, unless it is another user's, or the process that made it is at work."""
    if not _is_mine(staging):
        return
    handle = _lock(staging)
    try:
        # Where there are no locks, the number of the process has to do.
        if handle is None and (_have_locks(staging) or _runs(process)):
            return
        with uninterrupted():
            _finish(staging)
            _put_back(staging)
            remove(staging)
    finally:
        if handle is not None:
            os.close(handle)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, if it is there.

    Raises:
        OSError: it is a file, and can't be removed.
    """
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    for folder, _, _ in os.walk(path):
        with contextlib.suppress(OSError):
            Path(folder).chmod(0o700)  # copies of read-only folders are read-only
    shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs of this program from replacing files there meanwhile; some network file systems have no locks."""
    if os.name == "nt":
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Flush renames to disk; folders can't be opened for that on Windows.

    Raises:
        OSError: the disk is full or fails.
    """
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # file systems that can't flush a folder
            raise
    finally:
        os.close(handle)


def _finish(staging: Path) -> None:
    """Remove what a run was about to remove when it was killed, if nothing else changed since."""
    try:
        note = json.loads((staging / _NOTE).read_text(encoding="utf-8"))
        placed, obsolete = note["placed"], dict(note["obsolete"])
    except (OSError, ValueError, LookupError, TypeError):
        return  # there is none, or it was cut short
    folder = staging.parent
    if any(path.is_file() and _identity(path) == placed for path in folder.glob("*.safetensors")):
        for name, identity in obsolete.items():
            path = folder / name
            if path.is_file() and _identity(path) == identity:
                path.unlink()
        sync_folder(folder)


def _put_back(staging: Path) -> None:
    """Move files that were set aside back, unless new weights came."""
    aside = staging / REPLACED
    folder = staging.parent
    if not aside.is_dir() or any(os.path.lexists(folder / name) for name in (SAFETENSORS_WEIGHTS, PICKLE_WEIGHTS)):
        return
    # Weights make a checkpoint of it, so they come last.
    files = [path for path in aside.rglob("*") if path.is_symlink() or not path.is_dir()]
    for path in sorted(files, key=lambda one: one.name in (SAFETENSORS_WEIGHTS, PICKLE_WEIGHTS)):
        path.replace(folder / path.relative_to(aside))
    sync_folder(folder)


def _identity(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]


def _is_mine(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISDIR(status.st_mode) and (not hasattr(os, "geteuid") or status.st_uid == os.geteuid())


def _lock(path: Path) -> int | None:
    """Lock a folder for as long as the descriptor is open; None where another process holds it, or there are no locks."""
    if os.name == "nt":
        return None
    import fcntl

    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _have_locks(path: Path) -> bool:
    if os.name == "nt":
        return False
    import fcntl

    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _still_there(path: Path, handle: int | None) -> bool:
    """Whether another run took the folder for a dead one's before it was locked."""
    if handle is None:
        return path.is_dir()
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


def _runs(process: int) -> bool:
    if os.name == "nt":  # os.kill would end the process there
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
