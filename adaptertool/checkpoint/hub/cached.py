"""A file in huggingface_hub's cache, whose name there is the digest of what it should hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptertool.checkpoint.bytes import CHUNK, LocalBytes
from adaptertool.checkpoint.hub.tree import COMMIT, SHA256, HubFile
from adaptertool.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class CachedBytes(LocalBytes):
    """See `Bytes`.

    The cache keeps files as `blobs/<etag>`: the SHA-256 of those in large file storage, git's hash of others.
    """

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
            blob_id=named if COMMIT.fullmatch(named) else None,
        )

    def is_whole(self) -> bool:
        """Whether it holds what its name says; also where that says nothing."""
        with self._blob.open("rb") as file:
            return self._entry.is_content(iter(lambda: file.read(CHUNK), b"")) is not False

    def proven(self) -> Iterator[memoryview] | None:
        """See `Bytes.proven`. A hash of git's length may be another one, of a mirror, and proves nothing."""
        return self._hashed() if self._entry.sha256 is not None else None

    def _hashed(self) -> Iterator[memoryview]:
        import hashlib

        running = hashlib.sha256()
        for piece in self._copies():
            running.update(piece)
            yield memoryview(piece)
        if running.hexdigest() != self._entry.sha256:
            raise CorruptError(
                f"{self.path} is not what the Hub holds: its digest is another one than the name of the cached file says",
                hint=f"The disk damaged it, or something wrote to it. Delete {self._blob}, and run this again.",
            )

    def _copies(self) -> Iterator[bytes]:
        return (self.read(at, min(CHUNK, self.size - at)) for at in range(0, self.size, CHUNK))
