"""What a refusal of the Hub means, as an error with a hint.

What the error headers mean (`X-Error-Code`, `X-Error-Message`) is read from `huggingface_hub.utils.hf_raise_for_status`,
2.4.0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from adaptertool.checkpoint.hub.addresses import origin, shown
from adaptertool.checkpoint.hub.numbers import whole_number
from adaptertool.errors import AdapterToolError, GatedError, NetworkError, NotFoundError, UnauthorizedError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Subject:
    """What a request is about, for messages.

    Attributes:
        endpoint: The Hub's address.
        repo_id: The repo.
        revision: As the user named it; None for the default branch.
        path: The file or folder in the repo; None for the repo itself.
    """

    endpoint: str
    repo_id: str
    revision: str | None = None
    path: str | None = None

    @property
    def name(self) -> str:
        """The file or the repo, as messages print it."""
        return f"{self.repo_id}/{self.path}" if self.path else self.repo_id


class RepoNotFoundError(NotFoundError):
    """The Hub knows no such model repo, or does not tell this token of it."""


class BadRequestError(NetworkError):
    """The Hub does not understand what it was asked."""


def refusal(status: int, headers: Mapping[str, str], subject: Subject, token: str | None) -> AdapterToolError:
    """What the Hub's refusal means.

    Args:
        status: The status code, of no success.
        headers: By name, in lower case.
        subject: What the request was about.
        token: The one that was sent with it.
    """
    code = headers.get("x-error-code", "") if status < 500 and status not in (408, 429) else ""
    said = redacted(headers.get("x-error-message", ""), token)
    endpoint = shown(subject.endpoint)
    repo, revision, page = subject.repo_id, subject.revision or "main", f"{endpoint}/{subject.repo_id}"
    # The order is huggingface_hub's, but for the bad token, which the Hub reports for repos of every kind.
    if status == 401 and "invalid credentials" in said.lower():
        return UnauthorizedError(
            f"the Hub does not know the token that was sent for {repo}",
            hint="Run `hf auth login`, or check HF_TOKEN and --token.",
        )
    if code == "GatedRepo":
        return GatedError(
            f"{repo} is gated: its owner gives access on request",
            hint=f"Ask for access at {page}"
            + (", with the account that this token is from." if token else ", then run `hf auth login`."),
        )
    if code == "RevisionNotFound":
        return NotFoundError(f"{repo} has no revision {revision!r}", hint=f"See {page}/tree/main for its branches.")
    if code == "EntryNotFound":
        return NotFoundError(
            f"{repo} holds no {subject.path or 'such file'} at revision {revision}",
            hint="Check the name, and --subfolder, for a typo.",
        )
    if code == "RepoNotFound" or status == 404 or (status == 401 and not token):
        return RepoNotFoundError(
            f"{repo} was not found on {endpoint}: it does not exist, or is private",
            hint="Check the name for a typo (no local path of that name exists either)"
            + (", and that this token may read it." if token else "; for a private repo run `hf auth login`."),
        )
    detail = f": {said}" if said else ""
    if status in (401, 403):
        return UnauthorizedError(
            f"the Hub refused access to {subject.name}{detail or f' (status {status})'}",
            hint="Check what the token is allowed to do at " + f"{endpoint}/settings/tokens.",
        )
    if status == 429:
        after = retry_after(headers)
        return NetworkError(
            f"{origin(subject.endpoint)} limits the rate of requests" + (f" for {after:.0f} s" if after else ""),
            hint="Try again later" + ("." if token else "; requests with a token have a higher limit."),
        )
    kind = BadRequestError if status == 400 else NetworkError
    return kind(
        f"{origin(subject.endpoint)} answered status {status} about {subject.name}{detail}", hint="Try again later."
    )


def redacted(text: str, token: str | None) -> str:
    """Text of others as one line of bounded length, without the token and the signatures of addresses."""
    text = text.replace(token, "***") if token else text
    # Addresses of files at a storage host carry a signature that lets anybody read them.
    return re.sub(r"(https?://[^\s?]+)\?\S+", r"\1", shown(" ".join(text.split())))[:200]


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to wait: `Retry-After` in both its forms, or the Hub's `RateLimit`."""
    limit = re.search(r";\s*r=0\s*;\s*t=(\d+)", headers.get("ratelimit", ""))
    text = headers.get("retry-after", "").strip()
    seconds = (whole_number(limit[1]) if limit else None) or whole_number(text)
    if seconds is not None:
        return float(seconds)
    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        return max(0.0, (moment - datetime.now(timezone.utc)).total_seconds())
    except (TypeError, ValueError, OverflowError):
        return 0.0
