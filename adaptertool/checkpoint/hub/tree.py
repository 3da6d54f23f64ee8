"""The files of a repo at one commit, as the Hub lists them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from adaptertool.checkpoint.hub.addresses import origin
from adaptertool.checkpoint.hub.entry import SHA1, SHA256, HubFile, hashes, pointer_hash
from adaptertool.checkpoint.hub.numbers import LARGEST
from adaptertool.checkpoint.hub.refusals import Subject
from adaptertool.errors import AdapterToolError, NetworkError, UnsupportedError

if TYPE_CHECKING:
    from adaptertool.checkpoint.hub.client import HubClient

MAX_PAGES = 50
"""Pages of the tree that are read: the Hub puts 1,000 entries on one."""


def read_tree(
    client: HubClient, repo_id: str, commit: str, folder: str | None, subject: Subject, *, recursive: bool
) -> dict[str, HubFile]:
    """The files in a folder of a repo, by their names in that folder.

    Args:
        client: The connection to the Hub.
        repo_id: The repo.
        commit: The commit.
        folder: The folder; None for the root.
        subject: What messages say the requests are about.
        recursive: Whether files in folders below are listed too.

    Raises:
        NotFoundError: no such folder or commit.
        GatedError, UnauthorizedError, NetworkError: as it happens.
    """
    below = f"/{quote(folder, safe='')}" if folder else ""
    query = "?recursive=true" if recursive else ""
    url: str | None = f"{client.endpoint}/api/models/{repo_id}/tree/{commit}{below}{query}"
    here = f"{folder}/" if folder else ""
    tree: dict[str, HubFile] = {}
    for _ in range(MAX_PAGES):
        if url is None:
            break
        entries, url = client.json(url, subject)
        if not isinstance(entries, list):
            raise not_a_hub(client, f"its list of the files of {subject.name} is none")
        for entry in entries:
            if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
                raise not_a_hub(client, f"its list of the files of {subject.name} has an entry without a path")
            path: str = entry["path"]
            if "\0" in path:
                raise not_a_hub(client, f"its list of the files of {subject.name} has a name with a null byte")
            name = path.removeprefix(here)
            if entry.get("type") != "file" or not path.startswith(here) or ("/" in name and not recursive):
                continue
            file = _file(entry)
            if file is None:
                raise not_a_hub(client, f"it gives {path} of {repo_id} no size")
            tree[name] = file
    if url is not None:
        raise UnsupportedError(
            f"{subject.name} holds more files than are listed: {MAX_PAGES} pages of them were read",
            hint="Name the adapter's own folder with --subfolder.",
        )
    return tree


def read_siblings(
    client: HubClient, repo_id: str, commit: str, folder: str | None, *, recursive: bool
) -> list[str] | None:
    """The names of the files in a folder of a repo, as the Hub's description of the commit lists them.

    Args:
        client: The connection to the Hub.
        repo_id: The repo.
        commit: The commit.
        folder: The folder; None for the root.
        recursive: Whether files in folders below are listed too.

    Returns:
        The names; None where the Hub does not tell.
    """
    here = f"{folder}/" if folder else ""
    url = f"{client.endpoint}/api/models/{repo_id}/revision/{commit}"
    try:
        document, _ = client.json(url, Subject(client.endpoint, repo_id, commit))
    except AdapterToolError:
        return None
    siblings = document.get("siblings") if isinstance(document, dict) else None
    if not isinstance(siblings, list):
        return None
    paths = [one.get("rfilename") for one in siblings if isinstance(one, dict)]
    names = [path.removeprefix(here) for path in paths if isinstance(path, str) and path.startswith(here)]
    return [name for name in names if "\0" not in name and (recursive or "/" not in name)]


def _file(entry: dict[str, Any]) -> HubFile | None:
    size, lfs, oid = entry.get("size"), entry.get("lfs"), entry.get("oid")
    if type(size) is not int or not 0 <= size <= LARGEST:
        return None
    sha256 = lfs.get("oid") if isinstance(lfs, dict) else None
    if isinstance(sha256, str) and SHA256.fullmatch(sha256):
        return HubFile(size, sha256, oid_proven=oid == pointer_hash(sha256, size))
    if lfs is not None or not isinstance(oid, str) or not SHA1.fullmatch(oid):
        return HubFile(size)
    return HubFile(size, blob_id=oid, oid_proven=size == 0 and oid in hashes((), 0))


def not_a_hub(client: HubClient, reason: str) -> NetworkError:
    """An answer of the API in another form than the Hub's."""
    return NetworkError(
        f"{origin(client.endpoint)} does not answer as the Hub does: {reason}",
        hint="Is that address a Hub (HF_ENDPOINT), and no proxy in between?",
    )
