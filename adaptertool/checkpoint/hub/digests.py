"""What the hashes prove that a server names for the files of a repo.

A SHA-256, of a file in large file storage, is told by its length. A hash of 40 digits, of any other file, is named twice: by
the ETag that comes with the file, and by the `oid` of its entry in the tree. On the Hub both are git's, the SHA-1 of "blob",
the length and the content. Other servers name what they have: Artifactory's ETag is the plain SHA-1 of the content, and
that of another one may be a hash of something else. So a content that has none of these hashes is damaged only where
ETag and tree name the same one, as they do on the Hub, or where hashes of that source were seen to be of contents.

The tree can show that without any ETag: the `oid` of a file in large file storage is git's hash of the git-LFS pointer, the
text of which follows from the SHA-256 and the size that the entry names as well. ("There is exactly one valid encoding for a
pointer file", docs/spec.md of git-lfs says. Six entries of the Hub's trees that are quoted in public repositories, of
ggerganov/whisper.cpp, nvidia/OpenMathInstruct-2 and dulimov's Qwen3-1.7B for rk3588, have that very hash, all of them.)
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptertool.checkpoint.hub.entry import SHA256
from adaptertool.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.checkpoint.hub.entry import HubFile

SMALL = 16 << 20
"""Bytes up to which a file that is not in large file storage is read as a whole; the Hub allows 10 MiB in git."""


@dataclass(frozen=True)
class Reading:
    """The whole of a file, as it arrived.

    Attributes:
        name: How messages name the file.
        hashes: Those of the content.
        etag: The hash that came with it; None where there was none.
    """

    name: str
    hashes: frozenset[str]
    etag: str | None


class Digests:
    """The hashes that a server names for the files of a repo at one commit, and what was read of them.

    What is learnt later counts for what was read before.

    Attributes:
        asked: Whether files were looked at already for no other reason than to learn what the server's hashes are.
    """

    def __init__(self) -> None:
        """Begin with nothing known."""
        self.asked = False
        self._lock = threading.Lock()
        self._listed: dict[str, str] = {}
        self._readings: dict[str, Reading] = {}
        self._trees_name_contents = False
        self._etags_name_contents = False

    def take_tree(self, files: Mapping[str, HubFile]) -> None:
        """Learn what the tree names.

        Args:
            files: By their paths in the repo.

        Raises:
            CorruptError: that contradicts what was read before.
        """
        with self._lock:
            self._listed.update((path, due) for path, file in files.items() if (due := file.sha256 or file.blob_id))
            if any(file.oid_proven for file in files.values()):
                self._trees_name_contents = True
            self._review()

    def take(self, path: str, reading: Reading) -> None:
        """Learn what was read, and remember it.

        Args:
            path: In the repo.
            reading: The whole file.

        Raises:
            CorruptError: it is not what the commit holds, or shows that of something that was read before.
        """
        with self._lock:
            self._readings[path] = reading
            self._trees_name_contents |= self._listed.get(path) in reading.hashes
            self._etags_name_contents |= reading.etag in reading.hashes
            self._review()

    def bears_out(self, path: str, reading: Reading) -> bool | None:
        """Whether a content is what the hashes say that are named for it.

        Args:
            path: In the repo.
            reading: The whole file.

        Returns:
            None where none is named, and where nothing shows what they are of. Two readings that agree have to do then:
            servers with hashes of their own could not be used otherwise.
        """
        listed = self._listed.get(path)
        certain = self._trees_name_contents or listed == reading.etag
        if listed is not None and (certain or SHA256.fullmatch(listed)):
            return listed in reading.hashes
        if {listed, reading.etag} & reading.hashes:
            return True
        return False if reading.etag is not None and self._etags_name_contents else None

    def _review(self) -> None:
        for path, reading in self._readings.items():
            if self.bears_out(path, reading) is False:
                raise other_content(reading.name)


def other_content(name: str) -> CorruptError:
    """That a file arrived with another content than the commit holds.

    Args:
        name: How messages name the file.
    """
    return CorruptError(
        f"what arrived of {name} is not what the commit holds: its digest is another one",
        hint="Try again; a proxy or mirror in between may have damaged or replaced it.",
    )
