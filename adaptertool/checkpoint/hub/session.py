"""What is huggingface_hub's own: its connection, its token, its cache.

Works on 0.x, whose connection is that of requests, on 1.x (httpx) and on 2.x (httpx2).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptertool.checkpoint.hub.entry import COMMIT
from adaptertool.errors import NetworkError, UnauthorizedError

if TYPE_CHECKING:
    from types import ModuleType

REPO_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
"""What can be the name of a repo, a base model's of the Hub's first years included."""


def hub_session() -> Any:
    """huggingface_hub's session: a client of httpx2 or httpx, or a session of requests."""
    # Its __init__ loads names lazily, and mypy takes them for ones that it does not export.
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    return get_session()


def http_library(session: object) -> ModuleType:
    """The library that huggingface_hub's session comes from: httpx2, httpx or requests."""
    for kind in type(session).__mro__:
        root = kind.__module__.partition(".")[0]
        if root in ("httpx2", "httpx", "requests"):
            return sys.modules[root]
    raise NetworkError(f"huggingface_hub's session is a {type(session).__name__}, which this version does not know")


def transport_errors(http: ModuleType) -> tuple[type[BaseException], ...]:
    """What that library raises where a connection fails."""
    if http.__name__ == "requests":
        import urllib3.exceptions

        # requests looks at the address of a redirect even where it does not follow it: ValueError.
        return (http.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError)
    return (http.HTTPError, http.InvalidURL, http.StreamError, OSError)


def stored_token() -> str | None:
    """The token that huggingface_hub finds: in HF_TOKEN, or where `hf auth login` put it.

    Raises:
        UnauthorizedError: it is one that has to be fetched first, and that failed.
    """
    import huggingface_hub
    from huggingface_hub import errors

    # Since 2.x a token may be exchanged or refreshed over the network when it is asked for.
    failures = [getattr(errors, name) for name in ("OIDCError", "DeviceCodeError") if hasattr(errors, name)]
    try:
        return huggingface_hub.get_token()
    except (*failures, *transport_errors(http_library(hub_session()))) as error:
        raise UnauthorizedError(
            f"huggingface_hub could not provide its token ({type(error).__name__})",
            hint="Run `hf auth login`, or set HF_TOKEN.",
        ) from error


def is_offline() -> bool:
    """Whether huggingface_hub is in offline mode."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def repo_cache(repo_id: str) -> Path:
    """Where huggingface_hub's cache keeps a model repo, whether it is there or not: `refs/`, `snapshots/`, `blobs/`."""
    from huggingface_hub import constants

    # As its `repo_folder_name`, whose module takes 0.2 s to import.
    return Path(constants.HF_HUB_CACHE) / constants.REPO_ID_SEPARATOR.join(("models", *repo_id.split("/")))


def cached_commit(repo_id: str, revision: str | None) -> str | None:
    """The commit that a revision led to when the cache last heard of it; None where it never did.

    Args:
        repo_id: `org/name`.
        revision: Branch, tag, commit or `refs/pr/N`; None for the default branch.
    """
    named = revision or "main"
    if COMMIT.fullmatch(named):
        return named
    parts = named.split("/")
    # A revision comes from the command line, so it is kept from naming a path elsewhere.
    if any(part in ("", ".", "..") for part in parts):
        return None
    try:
        sha = repo_cache(repo_id).joinpath("refs", *parts).read_text(encoding="ascii", errors="replace").strip()
    except (OSError, ValueError):
        return None
    return sha if COMMIT.fullmatch(sha) else None


def cached_snapshot(repo_id: str, revision: str | None) -> Path | None:
    """The folder in which the cache shows a repo's files at a revision, all or some of them; None where it holds none.

    Args:
        repo_id: `org/name`, or what may be none.
        revision: As in `cached_commit`.
    """
    if not REPO_ID.fullmatch(repo_id):
        return None
    commit = cached_commit(repo_id, revision)
    folder = repo_cache(repo_id) / "snapshots" / commit if commit is not None else None
    return folder if folder is not None and folder.is_dir() else None
