"""A file of a repo as the Hub names it: by its length, and by a hash of its content."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

SHA1 = re.compile(r"[0-9a-f]{40}")

SHA256 = re.compile(r"[0-9a-f]{64}")

COMMIT = SHA1
"""A commit's full id."""


def hashes(pieces: Iterable[bytes | memoryview], size: int) -> frozenset[str]:
    """The hashes that a server may name for a content: git's, the plain SHA-1, and the SHA-256.

    Args:
        pieces: The content.
        size: Its length in bytes.
    """
    git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    running = (git, hashlib.sha1(usedforsecurity=False), hashlib.sha256())
    for piece in pieces:
        for one in running:
            one.update(piece)
    return frozenset(one.hexdigest() for one in running)


def pointer_hash(sha256: str, size: int) -> str:
    """Git's hash of the git-LFS pointer to a content.

    Args:
        sha256: Of the content.
        size: Its length in bytes.
    """
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    return hashlib.sha1(b"blob %d\0" % len(pointer) + pointer, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class HubFile:
    """A file of a repo at one commit.

    Attributes:
        size: Length in bytes, of the content and not of a git-LFS pointer.
        sha256: Of the content, for files in large file storage; None otherwise.
        blob_id: For all other files the hash of 40 digits that is named for them; see `digests`. None where none is.
        oid_proven: Whether that of the tree is known, without the file, to be a hash of what git holds.
    """

    size: int
    sha256: str | None = None
    blob_id: str | None = None
    oid_proven: bool = False

    def is_content(self, pieces: Iterable[bytes]) -> bool | None:
        """Whether the digest is that of these pieces together; None where no digest is known."""
        if self.sha256 is None:
            return None if self.blob_id is None else self.blob_id in hashes(pieces, self.size)
        running = hashlib.sha256()
        for piece in pieces:
            running.update(piece)
        return running.hexdigest() == self.sha256
