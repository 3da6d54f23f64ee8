"""A folder of a Hub repo at one commit, and its files, read in ranges.

The revision is resolved once; every address that is read afterwards names the commit. Files that huggingface_hub's cache
holds for that commit are read from there, and in offline mode only from there; the cache is never written to.
"""

from __future__ import annotations

import threading
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from adaptertool.checkpoint.hub.addresses import shown
from adaptertool.checkpoint.hub.cached import CachedBytes, CachedFolder
from adaptertool.checkpoint.hub.client import HubClient
from adaptertool.checkpoint.hub.digests import SMALL, Digests
from adaptertool.checkpoint.hub.entry import COMMIT, HubFile
from adaptertool.checkpoint.hub.file import HubBytes
from adaptertool.checkpoint.hub.refusals import BadRequestError, RepoNotFoundError, Subject
from adaptertool.checkpoint.hub.session import cached_commit, repo_cache
from adaptertool.checkpoint.hub.tree import not_a_hub, read_siblings, read_tree
from adaptertool.errors import (
    GatedError,
    NetworkError,
    NotFoundError,
    OfflineError,
    UnauthorizedError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adaptertool.checkpoint.bytes import Bytes, LocalBytes
    from adaptertool.checkpoint.hub.digests import Reading

TEXT = (".json", ".md", ".txt", ".gitattributes")
"""How names of files end that are small, as a rule."""


class HubFolder:
    """A folder of a model repo, pinned to one commit.

    Attributes:
        repo_id: `org/name`.
        subfolder: Folder in the repo, without slashes at its ends; None for the root.
        named_revision: Branch, tag, commit or `refs/pr/N` as the user named it; None for the default branch.
        client: The connection to the Hub.
        known_commit: The commit, once it is known.
        digests: What the server names for the repo's files, and what was read of them.
    """

    kind: Literal["local", "hub"] = "hub"

    def __init__(
        self, repo_id: str, *, revision: str | None = None, subfolder: str | None = None, token: str | None = None
    ) -> None:
        """Take the repo as it is named; nothing is asked yet, unless the cache holds something of it.

        The revision is resolved by the first file that is read, or when it is asked for. A full commit id needs no
        resolving; in offline mode the cache resolves it.

        Args:
            repo_id: `org/name`.
            revision: Branch, tag, commit or `refs/pr/N`.
            subfolder: Folder in the repo.
            token: Access token; by default the one that huggingface_hub finds.

        Raises:
            NotFoundError: no repo can have that name; or, where the cache holds something of it, it is gone.
            OfflineError: offline mode, and the cache does not know the revision.
            GatedError, UnauthorizedError, NetworkError: as it happens.
        """
        from huggingface_hub.errors import HFValidationError

        # Its __init__ loads names lazily, and mypy takes them for ones that it does not export.
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
        self._read: set[str] = set()
        self._tree: dict[str, HubFile | None] | None = None
        self._below: dict[str, HubFile | None] = {}
        self._lock = threading.RLock()
        self.digests = Digests()
        self.known_commit: str | None = None
        if self.named_revision and COMMIT.fullmatch(self.named_revision):
            self.known_commit = self.named_revision
        elif self.client.offline:
            self.known_commit = self._cached_revision()
        elif (repo_cache(repo_id) / "snapshots").is_dir():
            # What is cached can be used only if the commit is known before anything is read.
            try:
                self.known_commit = self.current_commit()
            except NetworkError as error:
                hint = f"{error.hint} With HF_HUB_OFFLINE=1 what the cache holds is read."
                raise NetworkError(error.message, hint=hint) from error

    @property
    def location(self) -> str:
        """`org/name`, or `org/name/sub/folder`."""
        return f"{self.repo_id}/{self.subfolder}" if self.subfolder else self.repo_id

    @property
    def address(self) -> str:
        """`org/name@revision`, or `hf://org/name@revision/sub/folder`, where a slash in a branch's name is %2F."""
        named = self.named_revision
        at = (
            ""
            if named is None
            else "@" + (named if named.startswith(("refs/pr/", "refs/convert/")) else quote(named, safe=""))
        )
        if self.subfolder is None and "%" not in at:
            return f"{self.repo_id}{at}"
        return "/".join(part for part in (f"hf://{self.repo_id}{at}", self.subfolder) if part)

    @property
    def revision(self) -> str:
        """The commit that every read is pinned to; asked for now, where nothing was read so far."""
        with self._lock:
            if self.known_commit is None:
                self.known_commit = self.current_commit()
            return self.known_commit

    @property
    def partial(self) -> bool:
        """In offline mode, where the cache may hold some of the repo's files."""
        return self.client.offline

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

    def address_of(self, path: str, commit: str | None) -> str:
        """Where a file is read.

        Args:
            path: From the root of the repo.
            commit: The commit; None for whatever the named revision leads to now.
        """
        revision = commit or quote(self.named_revision or "main", safe="")
        return f"{self.client.endpoint}/{self.repo_id}/resolve/{revision}/{quote(path)}"

    def pin(self, commit: str | None) -> None:
        """Read that commit from now on, unless another one is read already.

        Args:
            commit: Its id; None to ask the Hub for it.
        """
        with self._lock:
            self.known_commit = self.known_commit or commit or self.current_commit()

    def files(self) -> Sequence[str]:
        """Names of the files right in this folder; in offline mode, of those that the cache holds.

        Raises:
            NotFoundError: no such subfolder or commit.
            GatedError, UnauthorizedError, NetworkError: as it happens.
        """
        return self._snapshot().files() if self.client.offline else sorted(self._entries())

    def walk(self) -> Sequence[str]:
        """Names of all files in this folder and below it; in offline mode, of those that the cache holds.

        Raises:
            NotFoundError: no such subfolder or commit.
            GatedError, UnauthorizedError, NetworkError: as it happens.
        """
        if self.client.offline:
            return self._snapshot().walk()
        self._below = self._read_tree(recursive=True)
        if unlisted := sorted(self._read - self._below.keys()):
            raise not_a_hub(self.client, f"its list of the files of {self.location} lacks {unlisted[0]}, which it sent")
        return sorted(self._below)

    def open(self, name: str, *, ahead: int | None = None, whole: int = 0) -> Bytes:
        """The file of that name: from the cache if it holds the file of this commit, else read in ranges.

        Args:
            name: The file.
            ahead: How many bytes the first read at its beginning fetches; `PREFETCH` by default.
            whole: Of a file up to this many bytes the first read fetches all, and proves it.

        Raises:
            NotFoundError: this folder holds none of that name.
            OfflineError: offline mode, and the cache does not know.
            GatedError, UnauthorizedError, NetworkError: as it happens.
        """
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise NotFoundError(f"{self.location} holds no {name!r}", hint="That is no name of a file.")
        file = (self._cached(name) if self.known_commit is not None else None) or self._remote(name, ahead, whole)
        self._opened.append(file)
        self._read.add(name)
        return file

    def listed(self, path: str) -> HubFile | None:
        """What the repo's tree says of a file; None where it is named, and no more.

        Args:
            path: From the root of the repo.

        Raises:
            NotFoundError: this folder holds no such file.
        """
        name = path.removeprefix(f"{self.subfolder}/") if self.subfolder else path
        known = self._below if name in self._below else self._entries() if "/" not in name else self._all_below()
        if name not in known:
            raise NotFoundError(
                f"{self.location} holds no {name} at revision {self.named_revision or 'main'}",
                hint=f"See {shown(self.client.endpoint)}/{self.repo_id}/tree/{self.revision} for what it holds.",
            )
        return known[name]

    def look_at_hashes(self, path: str, reading: Reading) -> None:
        """Look, once, at what shows whether the server's hashes are of contents: the tree, or another small file.

        Args:
            path: From the root of the repo, the file over which the question came up.
            reading: What arrived of it.

        Raises:
            CorruptError: what is learnt contradicts what was read before.
            NetworkError: the Hub did not answer. (That it knows no tree is an answer.)
        """
        if self.digests.asked:
            return
        self.digests.asked = True
        self._look_at_hashes(path, reading)
        if self.subfolder and self.digests.bears_out(path, reading) is None:
            root = HubFolder(self.repo_id, revision=self.revision, token=self.client.token)
            root.client, root.digests, root._opened = self.client, self.digests, self._opened
            root._look_at_hashes(path, reading)

    def _look_at_hashes(self, path: str, reading: Reading) -> None:
        with suppress(NotFoundError, BadRequestError, UnauthorizedError, GatedError):
            entries = self._entries()
            if self.digests.bears_out(path, reading) is not None:
                return
            # A server that has no tree names its files, at best.
            small = [
                (0 if entry is None else entry.size, name)
                for name, entry in entries.items()
                if self.path_in_repo(name) != path
                and (name.endswith(TEXT) if entry is None else entry.blob_id and 0 < entry.size <= SMALL)
            ]
            if small:
                other = self._remote(min(small)[1])
                self._opened.append(other)
                if other.sha256 is None and other.size <= SMALL:
                    other.read(0, other.size)

    @property
    def branch(self) -> str | None:
        """What a pull request is opened against: the revision as named, unless it is a commit; None for the default."""
        named = self.named_revision
        return None if named is None or COMMIT.fullmatch(named) else named

    def current_commit(self) -> str:
        """The commit that `branch` leads to now, by one request.

        Raises:
            NotFoundError, GatedError, UnauthorizedError, OfflineError, NetworkError: as it happens.
        """
        url = f"{self.client.endpoint}/api/models/{self.repo_id}"
        if self.branch:
            url += f"/revision/{quote(self.branch, safe='')}"
        try:
            try:
                document, _ = self.client.json(f"{url}?expand=sha", self.subject())
            except BadRequestError:
                # A mirror may know nothing of what it is to leave out.
                document, _ = self.client.json(url, self.subject())
        except RepoNotFoundError as error:
            kind = self._other_kind()
            if kind is None:
                raise NotFoundError(error.message, hint=error.hint) from error
            hint = "An adapter is in a model repo; upload it to one, or download the files and name their folder."
            raise NotFoundError(f"{self.repo_id} is a {kind} on the Hub, and no model repo", hint=hint) from error
        sha = document.get("sha") if isinstance(document, dict) else None
        if not isinstance(sha, str) or not COMMIT.fullmatch(sha):
            raise not_a_hub(self.client, f"it names no commit for {self.repo_id}")
        return sha

    def _other_kind(self) -> str | None:
        """`dataset` or `space`, where the Hub has one of that name."""
        for kind in ("dataset", "space"):
            with suppress(NotFoundError, GatedError, UnauthorizedError, NetworkError):
                document, _ = self.client.json(
                    f"{self.client.endpoint}/api/{kind}s/{self.repo_id}?expand=sha", self.subject()
                )
                if isinstance(document, dict) and document.get("id") == self.repo_id:
                    return kind
        return None

    def _remote(self, name: str, ahead: int | None = None, whole: int = 0) -> HubBytes:
        if self._tree is None and name not in self._below:
            try:
                # The first file that is read resolves the revision for all others.
                with self._lock if self.known_commit is None else nullcontext():
                    return HubBytes(self, name, None, ahead, whole)
            except NotFoundError:
                # The repo, the revision, the folder, or the file? The API says which, and whether it agrees: one answer
                # may be wrong.
                self.pin(None)
        return HubBytes(self, name, self.listed(self.path_in_repo(name)), ahead, whole)

    def _cached_revision(self) -> str:
        commit = cached_commit(self.repo_id, self.named_revision)
        if commit is not None:
            return commit
        named = self.named_revision or "main"
        raise OfflineError(
            f"the cache holds no revision {named!r} of {self.repo_id}, and huggingface_hub is in offline mode",
            hint="Unset HF_HUB_OFFLINE, or download the repo first. (No local path of that name exists either.)",
        )

    def _snapshot(self) -> CachedFolder:
        folder = repo_cache(self.repo_id) / "snapshots" / self.revision / (self.subfolder or "")
        if not folder.is_dir():
            raise OfflineError(
                f"the cache holds nothing of {self.location}, and huggingface_hub is in offline mode",
                hint="Unset HF_HUB_OFFLINE, or download the repo first.",
            )
        return CachedFolder(folder)

    def _cached(self, name: str) -> LocalBytes | None:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repo_id, self.path_in_repo(name), revision=self.revision)
        if isinstance(found, str):
            file = CachedBytes(Path(found))
            if self.client.offline:
                file.check()
                return file
            entry = (self._tree or {}).get(name)
            if file.is_whole() and (entry is None or entry.size == file.size):
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

    def _entries(self) -> dict[str, HubFile | None]:
        with self._lock:
            if self._tree is None:
                self._tree = self._read_tree(recursive=False)
            return self._tree

    def _all_below(self) -> dict[str, HubFile | None]:
        with self._lock:
            if not self._below:
                self._below = self._read_tree(recursive=True)
            return self._below

    def _read_tree(self, *, recursive: bool) -> dict[str, HubFile | None]:
        subject = self.subject(self.subfolder)
        try:
            tree = read_tree(self.client, self.repo_id, self.revision, self.subfolder, subject, recursive=recursive)
        except NotFoundError:
            # A mirror may know no trees. What it says of the commit names the files too, without their sizes.
            names = read_siblings(self.client, self.repo_id, self.revision, self.subfolder, recursive=recursive)
            if names is None or (self.subfolder and not names):
                raise
            return dict.fromkeys(names)
        self.digests.take_tree({self.path_in_repo(name): file for name, file in tree.items()})
        return {**tree}
