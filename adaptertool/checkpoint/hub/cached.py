"""Files in huggingface_hub's cache, whose names there are the digests of what they should hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptertool.checkpoint.bytes import CHUNK, LocalBytes, os_error
from adaptertool.checkpoint.folder import LocalFolder
from adaptertool.checkpoint.hub.digests import SMALL
from adaptertool.checkpoint.hub.entry import SHA1, SHA256, HubFile
from adaptertool.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from adaptertool.checkpoint.bytes import Bytes


class CachedBytes(LocalBytes):
    """See `Bytes`.

    The cache keeps files as `blobs/<etag>`: the SHA-256 of those in large file storage, git's hash of others.
    """

    of_a_repo = True

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            NotFoundError, PermissionDeniedError, …: as the operating system says.
        """
        super().__init__(path)
        self._blob = path.resolve()
        named = self._blob.name
        self._entry = HubFile(
            self.size,
            sha256=named if SHA256.fullmatch(named) else None,
            blob_id=named if SHA1.fullmatch(named) else None,
        )

    def is_whole(self) -> bool:
        """Whether it holds what its name says; also where that says nothing.

        What is large is taken for whole: it is held against its digest when all of it is read.
        """
        return self.size > SMALL or _holds(self._blob, self._entry)

    def check(self) -> None:
        """Hold the content against the name, where nothing else is left to hold it against.

        A name of 40 digits may be a hash of something else than the content, as a mirror names it: but then it is one of all
        other small files in the cache as well.

        Raises:
            CorruptError: it is another content.
        """
        if self.is_whole():
            return
        if self._entry.sha256 is None:
            blobs = [blob for blob in self._blob.parent.iterdir() if SHA1.fullmatch(blob.name) and blob != self._blob]
            others = [(blob, HubFile(blob.stat().st_size, blob_id=blob.name)) for blob in blobs]
            if others and not any(_holds(blob, entry) for blob, entry in others):
                return
        raise self._damaged()

    def proven(self) -> Iterator[memoryview] | None:
        """See `Bytes.proven`. What has a hash of 40 digits was looked at when it was opened."""
        return self._hashed() if self._entry.sha256 is not None else None

    def _hashed(self) -> Iterator[memoryview]:
        import hashlib

        running = hashlib.sha256()
        for piece in self._copies():
            running.update(piece)
            yield memoryview(piece)
        if running.hexdigest() != self._entry.sha256:
            raise self._damaged()

    def _damaged(self) -> CorruptError:
        return CorruptError(
            f"{self.path} is not what the Hub holds: its digest is another one than the name of the cached file says",
            hint=f"The disk damaged it, or something wrote to it. Delete {self._blob}, and run this again online.",
        )

    def _copies(self) -> Iterator[bytes]:
        return (self.read(at, min(CHUNK, self.size - at)) for at in range(0, self.size, CHUNK))


class CachedFolder(LocalFolder):
    """A repo's files at one commit as the cache shows them, all or some; what is opened is held against its name.

    A symlink stands for a file that the repo holds, also where the blob that it leads to is gone.
    """

    def files(self) -> Sequence[str]:
        """Names of the files, of those that are gone too."""
        links = {path.name for path in self.path.iterdir() if path.is_symlink()}
        return sorted({*super().files(), *links})

    def walk(self) -> Sequence[str]:
        """Names of the files here and below, of those that are gone too."""
        links = {path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if path.is_symlink()}
        return sorted({*super().walk(), *links})

    def open(self, name: str, *, ahead: int | None = None, whole: int = 0) -> Bytes:  # noqa: ARG002 - not for a disk
        """Open the file of that name; see `CachedBytes.check`."""
        file = CachedBytes(self.path / name)
        self._opened.append(file)
        file.check()
        return file


def _holds(blob: Path, entry: HubFile) -> bool:
    try:
        with blob.open("rb") as file:
            return entry.is_content(iter(lambda: file.read(CHUNK), b"")) is not False
    except OSError as error:
        raise os_error(error, blob) from error
