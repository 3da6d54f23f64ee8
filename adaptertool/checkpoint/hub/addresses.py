"""Addresses of the web."""

from __future__ import annotations

import re
from urllib.parse import urljoin, urlsplit


def address(text: str, base: str = "") -> str | None:
    """An absolute address of the web; None where it is none.

    Args:
        text: The address, or one relative to `base`.
        base: Where it was found.
    """
    try:
        url = urljoin(base, text)
        parts = urlsplit(url)
        # A port that is no number shows when it is asked for.
        return url if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 else None
    except ValueError:
        return None


def shown(url: str) -> str:
    """An address as messages print it: without the user and password that it may hold."""
    return re.sub(r"(?<=://)[^/\s@]*@", "", url)


def origin(url: str) -> str:
    """Scheme, host and port of an address, without what would be secret in it."""
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    port = f":{parts.port}" if parts.port not in (None, default) else ""
    host = parts.hostname or ""
    return f"{parts.scheme}://[{host}]{port}" if ":" in host else f"{parts.scheme}://{host}{port}"
