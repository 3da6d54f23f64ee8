"""A folder of a Hub repo at one commit, and its files, read in ranges.

The revision is resolved once; every address that is read names the commit. Names and sizes come from the repo's tree,
so they are known before anything in a file is trusted. Files that huggingface_hub's cache holds for that commit are
read from there, and in offline mode only from there; the cache is never written to.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn
from urllib.parse import quote

from adaptertool.checkpoint.bytes import CHUNK, LocalBytes, os_error
from adaptertool.checkpoint.hub_client import (
    Answer,
    HubClient,
    Patience,
    Subject,
    TransientError,
    content_length,
    origin,
)
from adaptertool.errors import CorruptError, NetworkError, NotFoundError, OfflineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adaptertool.checkpoint.bytes import Bytes

PREFETCH = 128 << 10
"""Bytes that the first read at a file's beginning fetches: about what the header of a 1,000-tensor adapter takes."""

MAX_TREE_PAGES = 50
"""Pages of the tree that are read: the Hub puts 1,000 entries on one."""

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubFile:
    """A file as the repo's tree describes it.

    Attributes:
        name: In its folder.
        size: Length in bytes, of the content and not of a git-LFS pointer.
        sha256: Of the content, for files in large file storage; None otherwise.
        blob_id: Git's SHA-1 of the content, for all other files; None otherwise.
    """

    name: str
    size: int
    sha256: str | None
    blob_id: str | None

    def digest(self) -> _Digest | None:
        """What checks a whole file's content; None where the tree names no digest."""
        if self.sha256 is not None:
            return _Digest(hashlib.sha256(), self.sha256)
        if self.blob_id is not None:
            git = hashlib.sha1(usedforsecurity=False)
            git.update(b"blob %d\0" % self.size)
            return _Digest(git, self.blob_id)
        return None


@dataclass(frozen=True)
class _Digest:
    running: hashlib._Hash
    due: str

    def update(self, data: bytes | memoryview) -> None:
        self.running.update(data)

    def holds(self) -> bool:
        return self.running.hexdigest() == self.due


class HubFolder:
    """A folder of a model repo, pinned to one commit.

    Attributes:
        repo_id: `org/name`.
        subfolder: Folder in the repo, without slashes at its ends; None for the root.
        named_revision: Branch, tag, commit or `refs/pr/N` as the user named it; None for the default branch.
        revision: The commit.
        client: The connection to the Hub.
    """

    kind: Literal["local", "hub"] = "hub"

    def __init__(
        self, repo_id: str, *, revision: str | None = None, subfolder: str | None = None, token: str | None = None
    ) -> None:
        """Resolve the revision, from the cache in offline mode and by one request otherwise.

        A full commit id needs no resolving, so that whether it exists shows at the first file.

        Args:
            repo_id: `org/name`.
            revision: Branch, tag, commit or `refs/pr/N`.
            subfolder: Folder in the repo.
            token: Access token; by default the one that huggingface_hub finds.

        Raises:
            NotFoundError: no such repo or revision, or it is private.
            GatedError, UnauthorizedError, OfflineError, NetworkError: as it happens.
        """
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise NotFoundError(
                f"{repo_id} does not exist: it is no local path, and no valid name of a Hub repo",
                hint="A Hub repo is written org/name, org/name@revision or hf://org/name.",
            ) from error
        self.repo_id = repo_id
        self.named_revision = revision or None
        self.subfolder = (subfolder or "").strip("/") or None
        if self.subfolder and not all(part not in ("", ".", "..") for part in self.subfolder.split("/")):
            raise UsageError(f"{subfolder!r} is no folder in a repo")
        self.client = HubClient(token)
        self._opened: list[LocalBytes | HubBytes] = []
        self._tree: dict[str, HubFile] | None = None
        self._below: dict[str, HubFile] = {}
        self._lock = threading.Lock()
        self.revision: str = self._resolve()

    @property
    def location(self) -> str:
        """`org/name`, or `org/name/sub/folder`."""
        return f"{self.repo_id}/{self.subfolder}" if self.subfolder else self.repo_id

    @property
    def requests(self) -> int:
        """HTTP requests so far, redirects and retries included."""
        return self.client.requests

    @property
    def bytes_read(self) -> int:
        """Bytes of file content that arrived so far, or were read from the cache."""
        return sum(file.bytes_read for file in self._opened)

    def subject(self, path: str | None = None) -> Subject:
        """What messages say a request is about.

        Args:
            path: File or folder, from the root of the repo.
        """
        return Subject(self.client.endpoint, self.repo_id, self.named_revision, path)

    def path_in_repo(self, name: str) -> str:
        """The path of a file of this folder, from the root of the repo."""
        return f"{self.subfolder}/{name}" if self.subfolder else name

    def files(self) -> Sequence[str]:
        """Names of the files right in this folder; in offline mode, of those that the cache holds.

        Raises:
            NotFoundError: no such subfolder or commit.
            GatedError, UnauthorizedError, NetworkError: as it happens.
        """
        if not self.client.offline:
            return sorted(self._entries())
        folder = self._snapshot()
        try:
            with os.scandir(folder) as entries:
                return sorted(entry.name for entry in entries if entry.is_file())
        except FileNotFoundError as error:
            raise OfflineError(
                f"the cache holds nothing of {self.location}, and huggingface_hub is in offline mode",
                hint="Unset HF_HUB_OFFLINE, or download the repo first.",
            ) from error
        except OSError as error:
            raise os_error(error, folder) from error

    def walk(self) -> Sequence[str]:
        """Names of all files in this folder and below it; in offline mode, of those that the cache holds.

        Raises:
            NotFoundError: no such subfolder or commit.
            GatedError, UnauthorizedError, NetworkError: as it happens.
        """
        if self.client.offline:
            folder = self._snapshot()
            return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        self._below = self._read_tree(recursive=True)
        return sorted(self._below)

    def open(self, name: str, *, ahead: int | None = None) -> Bytes:
        """The file of that name: from the cache if it holds the file of this commit, else read in ranges.

        Args:
            name: The file.
            ahead: How many bytes the first read at its beginning fetches; `PREFETCH` by default.

        Raises:
            NotFoundError: this folder holds none of that name.
            OfflineError: offline mode, and the cache does not know.
            GatedError, UnauthorizedError, NetworkError: as it happens.
        """
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise NotFoundError(f"{self.location} holds no {name!r}", hint="That is no name of a file.")
        cached = self._cached(name)
        if cached is not None:
            self._opened.append(cached)
            return cached
        entry = self._below.get(name) or self._entries().get(name)
        if entry is None:
            raise NotFoundError(
                f"{self.location} holds no {name} at revision {self.named_revision or 'main'}",
                hint=f"See {self.client.endpoint}/{self.repo_id}/tree/{self.revision} for what it holds.",
            )
        file = HubBytes(self, entry, PREFETCH if ahead is None else ahead)
        self._opened.append(file)
        return file

    @property
    def branch(self) -> str | None:
        """What a pull request is opened against: the revision as named, unless it is a commit; None for the default."""
        named = self.named_revision
        return None if named is None or _COMMIT.fullmatch(named) else named

    def current_commit(self) -> str:
        """The commit that `branch` leads to now, by one request.

        Raises:
            NotFoundError, GatedError, UnauthorizedError, OfflineError, NetworkError: as it happens.
        """
        return self._ask_commit(self.branch)

    def _resolve(self) -> str:
        named = self.named_revision
        if named and _COMMIT.fullmatch(named):
            return named
        if self.client.offline:
            return self._cached_revision()
        return self._ask_commit(named)

    def _ask_commit(self, named: str | None) -> str:
        url = f"{self.client.endpoint}/api/models/{self.repo_id}"
        if named:
            url += f"/revision/{quote(named, safe='')}"
        document, _ = self.client.json(f"{url}?expand=sha", self.subject())
        sha = document.get("sha") if isinstance(document, dict) else None
        if not isinstance(sha, str) or not _COMMIT.fullmatch(sha):
            self._no_hub(f"it names no commit for {self.repo_id}")
        return sha

    def _cached_revision(self) -> str:
        named = self.named_revision or "main"
        parts = named.split("/")
        ref = self._repo_cache().joinpath("refs", *parts)
        # A revision comes from the command line, so it is kept from naming a path elsewhere.
        if all(part not in ("", ".", "..") for part in parts) and ref.is_file():
            sha = ref.read_text(encoding="ascii", errors="replace").strip()
            if _COMMIT.fullmatch(sha):
                return sha
        raise OfflineError(
            f"the cache holds no revision {named!r} of {self.repo_id}, and huggingface_hub is in offline mode",
            hint="Unset HF_HUB_OFFLINE, or download the repo first. (No local path of that name exists either.)",
        )

    def _repo_cache(self) -> Path:
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=self.repo_id, repo_type="model")

    def _snapshot(self) -> Path:
        return self._repo_cache() / "snapshots" / self.revision / (self.subfolder or "")

    def _cached(self, name: str) -> LocalBytes | None:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repo_id, self.path_in_repo(name), revision=self.revision)
        if isinstance(found, str):
            file = LocalBytes(Path(found))
            if self._tree is None or name not in self._tree or self._tree[name].size == file.size:
                return file
            file.close()
        if not self.client.offline:
            return None
        if found is not None and not isinstance(found, str):
            raise NotFoundError(
                f"{self.location} holds no {name}, as the cache knows", hint="Check the name for a typo."
            )
        raise OfflineError(
            f"{self.location}/{name} is not in the cache, and huggingface_hub is in offline mode",
            hint="Unset HF_HUB_OFFLINE, or download the repo first.",
        )

    def _entries(self) -> dict[str, HubFile]:
        with self._lock:
            if self._tree is None:
                self._tree = self._read_tree()
            return self._tree

    def _read_tree(self, *, recursive: bool = False) -> dict[str, HubFile]:
        below = f"/{quote(self.subfolder, safe='')}" if self.subfolder else ""
        query = "?recursive=true" if recursive else ""
        url: str | None = f"{self.client.endpoint}/api/models/{self.repo_id}/tree/{self.revision}{below}{query}"
        tree: dict[str, HubFile] = {}
        for _ in range(MAX_TREE_PAGES):
            if url is None:
                break
            entries, url = self.client.json(url, self.subject(self.subfolder))
            if not isinstance(entries, list):
                self._no_hub(f"its list of the files of {self.location} is none")
            for entry in entries:
                file = self._file(entry, recursive=recursive)
                if file is not None:
                    tree[file.name] = file
        return tree

    def _file(self, entry: Any, *, recursive: bool) -> HubFile | None:
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            self._no_hub(f"its list of the files of {self.location} has an entry without a path")
        here = f"{self.subfolder}/" if self.subfolder else ""
        name = entry["path"].removeprefix(here)
        if entry.get("type") != "file" or not entry["path"].startswith(here) or ("/" in name and not recursive):
            return None
        size, lfs, blob_id = entry.get("size"), entry.get("lfs"), entry.get("oid")
        if type(size) is not int or size < 0:
            self._no_hub(f"it gives {entry['path']} of {self.repo_id} no size")
        sha256 = lfs.get("oid") if isinstance(lfs, dict) else None
        return HubFile(
            name,
            size,
            sha256 if isinstance(sha256, str) and re.fullmatch(r"[0-9a-f]{64}", sha256) else None,
            blob_id if lfs is None and isinstance(blob_id, str) and _COMMIT.fullmatch(blob_id) else None,
        )

    def _no_hub(self, reason: str) -> NoReturn:
        raise NetworkError(
            f"{origin(self.client.endpoint)} does not answer as the Hub does: {reason}",
            hint="Is that address a Hub (HF_ENDPOINT), and no proxy in between?",
        )


class HubBytes:
    """A file of a repo at one commit, read by ranged requests. Several threads may read it at once.

    Every answer is held against the file's known size, the range that was asked for, and what earlier answers said of
    the file. What contradicts them is asked for again, and ends in a NetworkError where that does not mend it. A read
    of the whole file is checked against the digest in the repo's tree as well.
    """

    def __init__(self, folder: HubFolder, entry: HubFile, ahead: int = PREFETCH) -> None:
        """Take the file as the tree describes it; nothing is read yet."""
        self._ahead = ahead
        self._client = folder.client
        self._entry = entry
        self._commit = folder.revision
        self._subject = folder.subject(folder.path_in_repo(entry.name))
        self._name = f"{folder.location}/{entry.name}"
        path = quote(folder.path_in_repo(entry.name))
        self._url = f"{folder.client.endpoint}/{folder.repo_id}/resolve/{folder.revision}/{path}"
        self._direct: str | None = None
        self._etags: dict[str, str] = {}
        self._prefix = b""
        self._prefix_lock = threading.Lock()
        self._count_lock = threading.Lock()
        self._closed = False
        self.bytes_read = 0

    @property
    def name(self) -> str:
        """`org/name/file`."""
        return self._name

    @property
    def size(self) -> int:
        """The length in bytes, as the repo's tree gives it."""
        return self._entry.size

    @property
    def sha256(self) -> str | None:
        """The content's SHA-256 as the repo's tree gives it; None for files that are not in large file storage."""
        return self._entry.sha256

    def read(self, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`; see `Bytes.read`.

        The first read at the beginning fetches further bytes ahead, and later ones are served from them.
        """
        self._check(start, length)
        begun = self._begin(start, length)
        rest = b"".join(bytes(piece) for piece in self.stream(start + len(begun), length - len(begun)))
        return begun + rest

    def stream(self, start: int, length: int) -> Iterator[memoryview]:
        """The same bytes in pieces of `CHUNK` bytes, the last one shorter, that share one buffer.

        A connection that is cut is taken up again where it was.
        """
        self._check(start, length)
        whole = self._entry.digest() if start == 0 and length == self.size else None
        buffer = memoryview(bytearray(min(CHUNK, length)))
        patience = Patience(self._client.timeout)
        filled, done = 0, 0
        for chunk in self._arrivals(start, length, patience):
            rest = memoryview(chunk)
            while rest:
                taken = min(len(rest), len(buffer) - filled)
                buffer[filled : filled + taken] = rest[:taken]
                filled, rest = filled + taken, rest[taken:]
                done += taken
                if filled == len(buffer) or done == length:
                    patience.renew()
                    if whole is not None:
                        whole.update(buffer[:filled])
                        if done == length and not whole.holds():
                            raise self._other_content()
                    yield buffer[:filled]
                    filled = 0

    def changed(self) -> bool:
        """Never: the commit names the content."""
        return False

    def close(self) -> None:
        """Let go of what was fetched ahead."""
        self._closed = True
        self._prefix = b""

    def _check(self, start: int, length: int) -> None:
        if self._closed:
            raise ValueError(f"{self._name} is closed")
        if start < 0 or length < 0 or start + length > self.size:
            raise CorruptError(f"{self._name} ends before byte {start + length}: it is truncated")

    def _begin(self, start: int, length: int) -> bytes:
        """What of that range is there already, having fetched ahead if nothing was read so far."""
        if start >= self._ahead:
            return b""
        with self._prefix_lock:
            if start == 0 and not self._prefix and 0 < length <= self._ahead:
                self._prefix = b"".join(bytes(piece) for piece in self.stream(0, min(self._ahead, self.size)))
            return self._prefix[start : start + length]

    def _other_content(self) -> NetworkError:
        return NetworkError(
            f"what arrived of {self._name} is not what the commit holds: its digest is another one",
            hint="Try again; a proxy or mirror in between may have damaged or replaced it.",
        )

    def _arrivals(self, start: int, length: int, patience: Patience) -> Iterator[bytes]:
        """The range as it arrives, in pieces of whatever length, exactly `length` bytes of it."""
        done = 0
        while done < length:
            try:
                with self._ask(start + done, length - done, patience) as answer:
                    last = None
                    for chunk in self._client.arrivals(answer, self._subject, patience):
                        with self._count_lock:
                            self.bytes_read += len(chunk)
                        room = length - done - len(last or b"")
                        if len(chunk) > room and answer.status != 200:
                            raise self._client.broken(answer, self._subject, "it sends more than was asked for")
                        if len(chunk) >= room > 0:
                            # Held back until the body proves to end here; one without a range is cut off by us.
                            last = chunk[:room]
                            if answer.status == 200:
                                break
                        else:
                            done += len(chunk)
                            yield chunk
                    if last is None:
                        raise TransientError(
                            NetworkError(
                                f"{origin(answer.url)} sent {done} of {length} bytes of {self._name} and then no more",
                                hint="Try again.",
                            )
                        )
                done += len(last)
                yield last
            except TransientError as fault:
                # Signed addresses expire, and a storage server may fail where the next one works.
                self._direct = None
                patience.spend(fault)

    @contextmanager
    def _ask(self, start: int, length: int, patience: Patience) -> Iterator[Answer]:
        headers = {"range": f"bytes={start}-{start + length - 1}"}
        direct = self._direct
        if direct is not None:
            with self._client.get(direct, headers, self._subject, patience) as answer:
                if answer.status not in (400, 401, 403, 404, 410):
                    yield self._checked(answer, start, length)
                    return
        with self._client.get(self._url, headers, self._subject, patience) as answer:
            yield self._checked(answer, start, length)

    def _checked(self, answer: Answer, start: int, length: int) -> Answer:
        """The answer, if its headers agree with what was asked for and with all that is known of the file."""
        if answer.status not in (200, 206, 416):
            raise self._client.refused(answer, self._subject)
        fault = self._contradiction(answer, start, length)
        if fault is not None:
            raise self._client.broken(answer, self._subject, fault)
        if answer.url != self._url:
            self._direct = answer.url
        return answer

    def _contradiction(self, answer: Answer, start: int, length: int) -> str | None:
        headers, first = answer.headers, answer.hub_headers
        if answer.status == 416:
            return f"it has no bytes {start} to {start + length - 1} of a file of {self.size}"
        if headers.get("content-encoding", "identity") != "identity":
            return "it compresses what must arrive as it is"
        if answer.status == 200:
            if start:
                return "it ignores ranges, and sends files from their beginning only"
            due = self.size
        else:
            due = length
            found = headers.get("content-range", "none")
            ends = f"bytes {start}-{start + length - 1}/"
            if found not in (f"{ends}{self.size}", f"{ends}*"):
                return f"range {found!r} where {ends + str(self.size)!r} was asked for"
        promised = content_length(headers)
        if promised is not None and promised != due:
            return f"{promised} bytes where {due} are due"
        if first.get("x-repo-commit", self._commit) != self._commit:
            return f"commit {first['x-repo-commit']} where {self._commit} was asked for"
        if first.get("x-linked-size", str(self.size)) != str(self.size):
            return f"a file of {first['x-linked-size']} bytes where the commit holds one of {self.size}"
        linked = first.get("x-linked-etag", "").strip('"')
        if self.sha256 is not None and re.fullmatch(r"[0-9a-f]{64}", linked) and linked != self.sha256:
            return "a file with another digest than the commit holds"
        etag = headers.get("etag", "")
        if etag.startswith('"') and self._etags.setdefault(origin(answer.url), etag) != etag:
            return "the file changed between two reads"
        return None
