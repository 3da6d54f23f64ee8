"""Where a checkpoint or a base model is: a folder on disk, or a folder of a Hub repo at one commit."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal, Protocol

from adaptertool.checkpoint.bytes import LocalBytes, os_error

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from adaptertool.checkpoint.bytes import Bytes


class Folder(Protocol):
    """A place that holds files by name."""

    @property
    def location(self) -> str:
        """The place as reports print it: a path, or `org/name`, with the subfolder where there is one."""

    @property
    def address(self) -> str:
        """The place as a command takes it: with the revision that was named, where one was."""

    @property
    def kind(self) -> Literal["local", "hub"]:
        """On disk or on the Hub."""

    @property
    def revision(self) -> str | None:
        """The commit that every read is pinned to; None on disk."""

    @property
    def partial(self) -> bool:
        """Whether there may be more files than `files` and `walk` list: a repo of which the cache alone is asked."""

    @property
    def requests(self) -> int | None:
        """HTTP requests so far; None on disk."""

    @property
    def bytes_read(self) -> int:
        """Bytes of file content read so far."""

    def files(self) -> Sequence[str]:
        """Names of the files right in this folder, sorted."""

    def walk(self) -> Sequence[str]:
        """Names of all files in this folder and below it, with slashes, sorted."""

    def open(self, name: str, *, ahead: int | None = None, whole: int = 0) -> Bytes:
        """The file of that name, as `files` or `walk` gives it.

        Args:
            name: The file.
            ahead: Over a network, how many bytes the first read at its beginning fetches at least; by default as many as
                most headers take.
            whole: Over a network, a file of up to this many bytes is read as a whole, whatever of it is asked for, and held
                against its digest.

        Raises:
            NotFoundError: there is none.
            PermissionDeniedError, NetworkError, …: as it happens.
        """


class LocalFolder:
    """A folder on disk."""

    kind: Literal["local", "hub"] = "local"
    revision: str | None = None
    partial: bool = False
    requests: int | None = None

    def __init__(self, path: Path) -> None:
        """Take the folder as it is; nothing is read yet."""
        self.path = path
        self._opened: list[LocalBytes] = []

    @property
    def location(self) -> str:
        """The path as it was given."""
        return str(self.path)

    @property
    def address(self) -> str:
        """The same."""
        return self.location

    @property
    def bytes_read(self) -> int:
        """Bytes read from all files that were opened through this folder."""
        return sum(file.bytes_read for file in self._opened)

    def files(self) -> Sequence[str]:
        """Names of the files, symlinks to files included."""
        try:
            with os.scandir(self.path) as entries:
                return sorted(entry.name for entry in entries if is_file(entry))
        except OSError as error:
            raise os_error(error, self.path) from error

    def walk(self) -> Sequence[str]:
        """Names of the files here and in all folders below; symlinks to folders are not followed."""
        return sorted(path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if path.is_file())

    def open(self, name: str, *, ahead: int | None = None, whole: int = 0) -> Bytes:  # noqa: ARG002 - not for a disk
        """Open the file of that name."""
        file = LocalBytes(self.path / name)
        self._opened.append(file)
        return file


def is_file(entry: os.DirEntry[str]) -> bool:
    """Whether an entry of a folder is a file, or a symlink that leads to one."""
    try:
        return entry.is_file()
    except OSError:  # a symlink that leads to itself
        return False
