"""Which checkpoints a tree of folders, a repo, or an organisation of the Hub holds.

A tree is walked as `find` and `grep -r` walk it, hidden folders left out. A symlink to a folder is followed once all real
folders are known, and only where it leads to one that was not walked and that the tree itself is not in, so that nothing is
found twice and loops end.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import quote

from adaptertool.checkpoint.config import CONFIG_NAME
from adaptertool.checkpoint.weights import PICKLE_WEIGHTS, SAFETENSORS_WEIGHTS
from adaptertool.errors import AdapterToolError, NotFoundError, OfflineError, UsageError
from adaptertool.words import natural

if TYPE_CHECKING:
    from adaptertool.checkpoint.hub.folder import HubFolder

MARKS = (CONFIG_NAME, SAFETENSORS_WEIGHTS, PICKLE_WEIGHTS)
"""Names of files that make a folder a checkpoint, a broken one where the others are missing."""

MAX_LIST_PAGES = 100
"""Pages of an organisation's list that are read: the Hub puts 1,000 repos on one."""

_ORGANISATION = re.compile(r"hf://(?P<name>[\w.-]+)/?")
_SKIPPED = ("__pycache__",)


@dataclass(frozen=True)
class Found:
    """A checkpoint to work on.

    Attributes:
        target: What `open_target` takes.
        place: Where it is below what was named, with slashes; `.` for that itself.
        linked: Whether a symlink to a folder led there.
        problem: Why it can't be looked for, or nothing was found there.
    """

    target: str
    place: str = "."
    linked: bool = False
    problem: AdapterToolError | None = None


def is_organisation(target: str | Path) -> bool:
    """Whether a target names all adapters of an organisation or user: `hf://org/`."""
    return _ORGANISATION.fullmatch(str(target)) is not None


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder on disk is a checkpoint of its own, be it a broken one."""
    return any(os.path.lexists(folder / name) for name in MARKS)


def find(*targets: str | Path, recursive: bool = True, token: str | None = None) -> Iterator[str]:
    """The checkpoints in trees of folders, in repos, and of organisations, one by one as they are found.

    Args:
        targets: Folders, repos as `org/name`, or all adapters of an organisation or user as `hf://org/`.
        recursive: Whether folders below are looked at.
        token: Access token for the Hub.

    Yields:
        What `inspect`, `slim` and `check_merge` take as their target. A folder that can't be listed is among them: opening
        it says why.

    Raises:
        NotFoundError: a tree holds no checkpoint.
        AdapterToolError: a repo or an organisation can't be listed.
    """
    for found in discover(targets, recursive=recursive, token=token):
        if found.problem is not None:
            raise found.problem
        yield found.target


def discover(
    targets: Iterable[str | Path],
    *,
    recursive: bool,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | None = None,
    exclude: Path | None = None,
) -> Iterator[Found]:
    """What `find` finds, with where each checkpoint is, and what went wrong as a value. None is given twice.

    Args:
        targets: See `find`.
        recursive: See `find`.
        revision: The revision of the one repo that is named.
        subfolder: The folder to begin at in the one folder or repo that is named.
        token: Access token for the Hub.
        exclude: A folder that is not walked: the one that outputs go to.
    """
    names = [str(target) for target in targets]
    local = [name for name in names if _is_local(name)]
    top = _common(local)
    walk = _Walk(exclude)
    for name in names:
        if is_organisation(name) and name not in local:
            yield from walk.new(_organisation(name, recursive=recursive, alone=len(names) == 1, token=token))
        elif name in local:
            root = Path(name, subfolder or "")
            if recursive and root.is_dir():
                yield from walk.tree(root, top)
            elif subfolder and Path(name).is_dir() and not root.is_dir():
                # Named apart, so that the path is not taken for the name of a repo.
                problem = NotFoundError(f"{root} does not exist", hint="Check --subfolder for a typo.")
                yield from walk.new([Found(str(root), _place(root, top), problem=problem)])
            else:
                yield from walk.new([Found(str(root) if subfolder else name, _place(root, top))])
        elif recursive:
            repo = _Repo(name, revision, subfolder, token)
            yield from walk.new(repo.checkpoints(below="" if len(names) == 1 else repo.name))
        else:
            yield from walk.new([Found(name, _repo_name(name))])
    yield from walk.links(top)


class _Walk:
    """What was found so far."""

    def __init__(self, exclude: Path | None) -> None:
        self._exclude = os.path.realpath(exclude) if exclude else None
        self._seen: set[tuple[int, int]] = set()
        self._given: set[str] = set()
        self._links: list[Path] = []
        self._roots: list[Path] = []
        self._linked: list[Path] = []

    def new(self, found: Iterable[Found]) -> Iterator[Found]:
        """Those that were not given yet."""
        for one in found:
            identity = _identity(one.target)
            if identity not in self._given:
                self._given.add(identity)
                yield one

    def tree(self, root: Path, top: Path | None) -> Iterator[Found]:
        """The checkpoints of real folders in a tree, each before those below it."""
        self._roots.append(root)
        for folder in self._folders(root):
            yield from self.new([Found(str(folder), _place(folder, top))])

    def links(self, top: Path | None) -> Iterator[Found]:
        """The checkpoints that only symlinks lead to; then a problem for each tree that held none."""
        while self._links:
            link = self._links.pop(0)
            if self._is_above(link):
                continue
            for folder in self._folders(link):
                self._linked.append(folder)
                yield from self.new([Found(str(folder), _place(folder, top), linked=True)])
        for root in self._roots:
            if any(root in folder.parents for folder in self._linked) or self._given_below(root):
                continue
            message = f"{root} holds no PEFT adapter, in no folder below it"
            hint = f"An adapter is a folder with {CONFIG_NAME}; hidden folders are not looked into."
            yield Found(str(root), _place(root, top), problem=NotFoundError(message, hint=hint))

    def _is_above(self, link: Path) -> bool:
        """Whether a symlink leads out of a tree to what the tree itself is in: that is not a part of it."""
        there = Path(os.path.realpath(link))
        return any(there in Path(os.path.realpath(root)).parents for root in self._roots)

    def _given_below(self, root: Path) -> bool:
        path = Path(os.path.realpath(root))
        return any(path == Path(given) or path in Path(given).parents for given in self._given)

    def _folders(self, root: Path) -> Iterator[Path]:
        """Folders that are checkpoints, or can't be listed."""
        waiting = [root]
        while waiting:
            folder = waiting.pop()
            try:
                status = folder.stat()
                if (status.st_dev, status.st_ino) in self._seen or os.path.realpath(folder) == self._exclude:
                    continue
                self._seen.add((status.st_dev, status.st_ino))
                with os.scandir(folder) as listing:
                    entries = sorted(listing, key=lambda entry: natural(entry.name))
            except OSError:
                yield folder
                continue
            if any(entry.name in MARKS for entry in entries):
                yield folder
            below = [entry for entry in entries if entry.name[0] != "." and entry.name not in _SKIPPED]
            self._links += [Path(entry.path) for entry in below if entry.is_symlink() and _leads_to_folder(entry)]
            waiting += [Path(entry.path) for entry in reversed(below) if _is_real_folder(entry)]


def _is_local(name: str) -> bool:
    try:
        return not name.startswith("hf://") and os.path.lexists(name)
    except ValueError:  # a NUL in it
        return False


def _is_real_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of symlinks
        return False


def _common(local: list[str]) -> Path | None:
    """The deepest folder that all local targets are in, absolute."""
    # abspath here too: the symlinks that the user named stay in the places of outputs.
    folders = [os.path.abspath(name if Path(name).is_dir() else Path(name).parent) for name in local]  # noqa: PTH100 - as above
    try:
        return Path(os.path.commonpath(folders)) if folders else None
    except ValueError:  # drives of their own
        return None


def _place(folder: Path, top: Path | None) -> str:
    # abspath, because resolve() would follow the symlinks that the user named.
    path = Path(os.path.abspath(folder.parent if folder.is_file() else folder))  # noqa: PTH100 - as above
    return path.relative_to(top).as_posix() if top is not None else path.name or "."


def _identity(target: str) -> str:
    """The same for all spellings of one place."""
    if not _is_local(target):
        return target if target.startswith("hf://") else f"hf://{target}"
    path = Path(target)
    if path.name in MARKS and path.is_file():
        path = path.parent
    return os.path.realpath(path)


def _organisation(target: str, *, recursive: bool, alone: bool, token: str | None) -> Iterator[Found]:
    match = _ORGANISATION.fullmatch(target)
    author = match["name"] if match else target
    count = 0
    try:
        for name in _adapters_of(author, token):
            count += 1
            place = name.partition("/")[2] if alone else name
            if recursive:
                yield from _Repo(f"hf://{name}", None, None, token).checkpoints(below=place)
            else:
                yield Found(f"hf://{name}", place)
    except AdapterToolError as error:
        yield Found(target, problem=error)
        return
    if not count:
        message = f"the Hub lists no PEFT adapters of {author}"
        hint = "Check the name for a typo; private repos are listed to those who may read them (--token, HF_TOKEN)."
        yield Found(target, problem=NotFoundError(message, hint=hint))


def _adapters_of(author: str, token: str | None) -> Iterator[str]:
    """Names of the repos that the Hub tags as PEFT adapters; what `HfApi.list_models(author=, filter="peft")` asks."""
    from adaptertool.checkpoint.hub.client import HubClient
    from adaptertool.checkpoint.hub.refusals import Subject
    from adaptertool.checkpoint.hub.tree import not_a_hub

    client = HubClient(token)
    if client.offline:
        raise OfflineError(
            f"the adapters of {author} can't be listed: huggingface_hub is in offline mode",
            hint="Unset HF_HUB_OFFLINE, or look at what the cache holds: -r ~/.cache/huggingface/hub",
        )
    url: str | None = f"{client.endpoint}/api/models?filter=peft&author={quote(author, safe='')}"
    for _ in range(MAX_LIST_PAGES):
        if url is None:
            return
        entries, url = client.json(url, Subject(client.endpoint, author))
        if not isinstance(entries, list):
            raise not_a_hub(client, f"its list of the repos of {author} is none")
        for entry in entries:
            name = entry.get("id") if isinstance(entry, dict) else None
            # A name from the network becomes part of a path, so it must be one of this author's.
            if (
                isinstance(name, str)
                and re.fullmatch(r"[\w.-]+/[\w.-]+", name)
                and name.rpartition("/")[2] not in (".", "..")
            ):
                yield name


class _Repo:
    """The folders of a repo that are checkpoints."""

    def __init__(self, target: str, revision: str | None, subfolder: str | None, token: str | None) -> None:
        self._target, self._revision, self._subfolder, self._token = target, revision, subfolder, token

    @property
    def name(self) -> str:
        """`org/name`, for the place of outputs."""
        return _repo_name(self._target)

    def checkpoints(self, below: str) -> Iterator[Found]:
        """Each folder of the repo that holds a file of `MARKS`, pinned to one commit."""
        from adaptertool.checkpoint.hub.folder import HubFolder
        from adaptertool.checkpoint.target import open_target

        try:
            folder = open_target(
                self._target, revision=self._revision, subfolder=self._subfolder, token=self._token
            ).folder
            if not isinstance(folder, HubFolder):
                raise UsageError(f"{self._target} is no repo")
            places = {PurePosixPath(name).parent for name in folder.walk() if PurePosixPath(name).name in MARKS}
        except AdapterToolError as error:
            yield Found(self._target, below or ".", problem=error)
            return
        for place in sorted(places, key=lambda one: [natural(part) for part in one.parts]):
            yield Found(self._named(folder, place), str(PurePosixPath(below, place)))
        if not places:
            message = f"{folder.location} holds no PEFT adapter, in no folder of the repo"
            yield Found(self._target, below or ".", problem=NotFoundError(message))

    def _named(self, folder: HubFolder, place: PurePosixPath) -> str:
        path = PurePosixPath(folder.subfolder or "", place).as_posix()
        named = folder.named_revision
        # A branch with a slash in its name can't be written into an address.
        if named and "/" in named and not re.fullmatch(r"refs/(pr|convert)/[^/]+", named):
            named = folder.revision
        return f"hf://{folder.repo_id}{f'@{named}' if named else ''}" + ("" if path == "." else f"/{path}")


def _repo_name(target: str) -> str:
    match = re.match(r"(hf://(models/)?)?(?P<repo>[\w.-]+/[\w.-]+)(@[^/]+)?(/(?P<sub>.*))?", target)
    if match is None:
        return target
    parts = [part for part in (match["sub"] or "").split("/") if part not in ("", ".", "..")]
    return "/".join([match["repo"], *parts])
