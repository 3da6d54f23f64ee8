"""The bytes of one file, wherever it is. Only these classes know a disk from the Hub."""

from __future__ import annotations

import errno
import os
import stat
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from adaptertool.errors import (
    AdapterToolError,
    CorruptError,
    NoSpaceError,
    NotFoundError,
    PermissionDeniedError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager

CHUNK = 512 << 10
"""Bytes handed out at a time by `stream`: small enough that a comparison finds them in the processor's cache."""

SPARE_BUFFERS = 8
"""How many buffers of a file are kept for the next one who streams from it."""


class Bytes(Protocol):
    """A file of known size that is read in ranges."""

    @property
    def name(self) -> str:
        """How messages name the file."""

    @property
    def of_a_repo(self) -> bool:
        """Whether it is a repo's on the Hub, be it read from the cache."""

    @property
    def size(self) -> int:
        """The file's length in bytes, known before anything in it is trusted."""

    @property
    def bytes_read(self) -> int:
        """How many of its bytes were read so far, repeats included."""

    def read(self, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`.

        Raises:
            CorruptError: the file ends before that, or is not what it was when it was opened.
            NetworkError: a remote file could not be read within the retries and the time allowed.
        """

    def stream(self, start: int, length: int) -> Iterator[memoryview]:
        """The same bytes in pieces, in order. A piece is valid until the next one is asked for."""

    def read_again(self, start: int, length: int) -> bytes:
        """The same bytes, brought anew from where they are: what was damaged on its way is not what comes then.

        Raises:
            NetworkError: what is known for certain of a remote file does not come as it did before.
        """

    def proven(self) -> Iterator[memoryview] | None:
        """The whole file in pieces, in order, of which the last is followed by the proof; None where no digest is known of it.

        Pieces stay valid.

        Raises:
            CorruptError: at the end, where the pieces together don't have the digest.
        """

    def ahead(self, ranges: Iterable[tuple[int, int]]) -> AbstractContextManager[None]:
        """Within the block these ranges are streamed in this order, some perhaps not: a file far away fetches them ahead.

        Args:
            ranges: Start and length of each.
        """

    def changed(self) -> bool:
        """Whether the file is known to be another one now than when it was opened."""

    def close(self) -> None:
        """Let go of the file; it can't be read afterwards."""


def os_error(error: OSError, path: Path | str, doing: str = "read") -> AdapterToolError:
    """What the operating system refused, as an error of ours.

    Args:
        error: What was raised.
        path: The file or folder that it was raised for.
        doing: The verb of the message.
    """
    reason = error.strerror or str(error)
    if isinstance(error, FileNotFoundError) and Path(path).is_symlink():
        return NotFoundError(f"{path} is a symlink that leads nowhere", hint="Download or copy the file again.")
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{path} does not exist", hint="Check the path for a typo.")
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return PermissionDeniedError(f"cannot {doing} {path}: {reason}", hint="Check its owner and permissions.")
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return NoSpaceError(
            f"cannot {doing} {path}: {reason}", hint="Free some space, or write to another disk with -o DIR."
        )
    return UnsupportedError(f"cannot {doing} {path}: {reason}")


def two_readings(what: str) -> CorruptError:
    """That the same range of a file was read twice, with different outcomes."""
    return CorruptError(
        f"two readings of {what} gave different bytes",
        hint="The file changes while it is read, or it is damaged on its way. Try again.",
    )


LFS_POINTER = b"version https://git-lfs"
"""How the pointer begins that git-lfs puts into a commit in place of a file."""


def fetch_the_file(file: Bytes) -> str:
    """What to do where a git-LFS pointer is found in place of a file."""
    if file.of_a_repo:
        return "The repo itself holds the pointer. Upload the file that it stands for, with `hf upload`."
    return "Run `git lfs pull` in that folder."


def head_of(weights: Bytes) -> bytes:
    """The first eight bytes of a file of weights, whatever their format; fewer where it is shorter.

    Raises:
        CorruptError: what is there in their place is empty, or a git-LFS pointer (ADP303).
    """
    if weights.size == 0:
        raise CorruptError(f"{weights.name} is empty", code="ADP303", hint="Download or save the weights again.")
    head = weights.read(0, min(8, weights.size))
    if head == LFS_POINTER[:8]:
        raise CorruptError(
            f"{weights.name} is a git-LFS pointer, not the weights themselves",
            code="ADP303",
            hint=fetch_the_file(weights),
        )
    return head


class LocalBytes:
    """A file on disk, read with plain reads.

    A memory map would be as fast, but a file that is truncated while it is mapped kills the process with SIGBUS, and the
    mapped pages count as the process's memory.
    """

    of_a_repo = False

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            NotFoundError, PermissionDeniedError, UnsupportedError: as the operating system says.
            CorruptError: it is no file but a folder, a pipe or a device.
        """
        self.path = path
        try:
            mode = path.stat().st_mode
            if not stat.S_ISREG(mode):
                what = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
                raise CorruptError(f"{path} is {what} where a file is expected")
            self._file = path.open("rb", buffering=0)
            opened = os.fstat(self._file.fileno())
        except OSError as error:
            raise os_error(error, path) from error
        self._identity = _identity(opened)
        self._size = opened.st_size
        self._lock = threading.Lock()
        self._spare: list[memoryview] = []
        self.bytes_read = 0

    @property
    def name(self) -> str:
        """The path as it was given."""
        return str(self.path)

    @property
    def size(self) -> int:
        """The length when it was opened."""
        return self._size

    def read(self, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`; see `Bytes.read`."""
        # Nothing is allocated on the word of a header: a range beyond the file is refused before it is read.
        if start < 0 or length < 0 or start + length > self._size:
            raise CorruptError(f"{self.path} ends before byte {start + length}: it is truncated")
        return b"".join(bytes(piece) for piece in self.stream(start, length))

    def stream(self, start: int, length: int) -> Iterator[memoryview]:
        """The same bytes in pieces that share one buffer; several threads can stream at the same time."""
        # New memory costs the system as much as reading into it; a buffer whose stream was read to its end is used again.
        buffer = self._buffer() if length >= CHUNK else memoryview(bytearray(length))
        done = 0
        while done < length:
            want = buffer[: min(len(buffer), length - done)]
            try:
                got = self._read_at(start + done, want)
            except OSError as error:
                raise os_error(error, self.path) from error
            if not got:
                raise CorruptError(f"{self.path} ends before byte {start + length}: it is truncated")
            done += got
            with self._lock:
                self.bytes_read += got
            yield want[:got]
        if len(buffer) == CHUNK and len(self._spare) < SPARE_BUFFERS:
            self._spare.append(buffer)

    def _buffer(self) -> memoryview:
        try:
            return self._spare.pop()
        except IndexError:
            return memoryview(bytearray(CHUNK))

    def _read_at(self, place: int, into: memoryview) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [into], place)
        with self._lock:
            self._file.seek(place)
            return self._file.readinto(into) or 0

    def read_again(self, start: int, length: int) -> bytes:
        """The same as `read`."""
        return self.read(start, length)

    def proven(self) -> Iterator[memoryview] | None:
        """Nobody says what a file on disk should hold."""

    def ahead(self, ranges: Iterable[tuple[int, int]]) -> AbstractContextManager[None]:
        """The operating system reads ahead."""
        del ranges
        return nullcontext()

    def changed(self) -> bool:
        """Whether the path now leads to another file, or to another length or time of change."""
        try:
            return self._identity != _identity(self.path.stat())
        except OSError:
            return True

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _identity(status: os.stat_result) -> tuple[int, ...]:
    # The time of the last change of the inode can't be set back, as that of the content can.
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
