"""Open pull requests on a repo: what was offered already is not offered again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptertool.checkpoint.bytes import CHUNK
from adaptertool.checkpoint.hub.folder import HubFolder
from adaptertool.checkpoint.hub.tree import not_a_hub
from adaptertool.errors import NotFoundError, UnauthorizedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from adaptertool.checkpoint.hub.entry import HubFile


MAX_PAGES = 20
"""Pages of open pull requests that are read."""


def offered(folder: HubFolder, titles: tuple[str, ...]) -> Iterator[tuple[HubFolder, str]]:
    """Open pull requests against the branch of a folder's repo, whose titles begin with one of these.

    What the answers hold is read from `HfApi.get_repo_discussions` and `get_discussion_details`, huggingface_hub 2.4.0.

    Yields:
        The folder as the pull request has it, and its address. Nothing where the Hub does not list them.

    Raises:
        GatedError, OfflineError, NetworkError: as it happens.
    """
    client = folder.client
    page = f"{client.endpoint}/{folder.repo_id}/discussions"
    for number, title in _open(folder):
        if title.startswith(titles) and _target(folder, number) in (None, folder.branch or "main"):
            there = HubFolder(
                folder.repo_id, revision=f"refs/pr/{number}", subfolder=folder.subfolder, token=client.token
            )
            yield there, f"{page}/{number}"


def _open(folder: HubFolder) -> Iterator[tuple[int, str]]:
    """Number and title of each open pull request."""
    client, seen = folder.client, 0
    url = f"{client.endpoint}/api/models/{folder.repo_id}/discussions?type=pull_request&status=open"
    for page in range(MAX_PAGES):
        try:
            document, _ = client.json(f"{url}&p={page}", folder.subject())
        except (NotFoundError, UnauthorizedError):
            return
        entries = document.get("discussions") if isinstance(document, dict) else None
        if not isinstance(entries, list):
            raise not_a_hub(client, f"its list of the pull requests on {folder.repo_id} is none")
        for entry in entries:
            number, title = (entry.get("num"), entry.get("title")) if isinstance(entry, dict) else (None, None)
            if type(number) is int and isinstance(title, str) and entry.get("status", "open") in ("open", "draft"):
                yield number, title
        seen += len(entries)
        count = document.get("count")
        if not entries or type(count) is not int or seen >= count:
            return


def _target(folder: HubFolder, number: int) -> str | None:
    """The branch that a pull request is against; None where the Hub does not say."""
    url = f"{folder.client.endpoint}/api/models/{folder.repo_id}/discussions/{number}"
    try:
        document, _ = folder.client.json(url, folder.subject())
    except (NotFoundError, UnauthorizedError):
        return None
    changes = document.get("changes") if isinstance(document, dict) else None
    base = changes.get("base") if isinstance(changes, dict) else None
    return base.removeprefix("refs/heads/") if isinstance(base, str) else None


def same_change(folder: HubFolder, files: Mapping[str, Path], title: str, deletes: Sequence[str] = ()) -> str | None:
    """The address of an open pull request of that title that holds these very files; None where there is none.

    Args:
        folder: Its repo and subfolder.
        files: Files on disk, by their names in the folder.
        title: How its title begins.
        deletes: Names of files that it must not hold.

    Raises:
        GatedError, OfflineError, NetworkError: as it happens.
    """
    for there, address in offered(folder, (title,)):
        try:
            held = {name: _entry(there, name) for name in (*files, *deletes)}
        except NotFoundError:
            continue  # it was closed meanwhile
        if all(_is(held[name], path) for name, path in files.items()) and not any(held[name] for name in deletes):
            return address
    return None


def _entry(folder: HubFolder, name: str) -> HubFile | None:
    return folder.listed(folder.path_in_repo(name)) if name in folder.files() else None


def _is(entry: HubFile | None, path: Path) -> bool:
    """Whether a file of a repo is the one on disk, as far as its digest tells."""
    if entry is None or entry.size != path.stat().st_size:
        return False
    with path.open("rb") as file:
        return entry.is_content(iter(lambda: file.read(CHUNK), b"")) is True
