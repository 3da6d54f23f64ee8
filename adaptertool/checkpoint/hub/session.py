"""What is huggingface_hub's own: its connection, its token, its cache.

Works on 0.x, whose connection is that of requests, on 1.x (httpx) and on 2.x (httpx2).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptertool.errors import NetworkError, UnauthorizedError

if TYPE_CHECKING:
    from types import ModuleType


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
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model")
