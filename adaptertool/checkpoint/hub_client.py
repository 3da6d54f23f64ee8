"""Requests to the Hub: redirects, retries, time limits, and what a refusal means.

The connection itself is huggingface_hub's (`get_session`), so that its proxies, certificates and offline mode hold. All
else is done here, because a ranged read needs what that library does not promise: the token goes to the endpoint's own
origin and nowhere else, no answer is trusted further than its headers prove, and every wait has an end.

Works on huggingface_hub 0.x (requests), 1.x (httpx) and 2.x (httpx2), which share `get_session`. What the error headers
mean (`X-Error-Code`, `X-Error-Message`) is read from `huggingface_hub.utils.hf_raise_for_status`, 2.4.0.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from adaptertool import __version__
from adaptertool.errors import (
    AdapterToolError,
    GatedError,
    NetworkError,
    NotFoundError,
    OfflineError,
    UnauthorizedError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import ModuleType

TIMEOUT_VARIABLE = "ADAPTERTOOL_HUB_TIMEOUT"
"""Environment variable that replaces `TIMEOUT`, in seconds."""

TIMEOUT = 60.0
"""Seconds that one step may take on the network, its retries and waits included. A step is one answer of the API, or
one mebibyte of a file: a long transfer may take as long as it needs, as long as it gets on."""

SILENCE = 10.0
"""Seconds without a single byte after which a connection counts as lost."""

CONNECT = 5.0
"""Seconds that a connection may take to be made."""

TRIES = 5
"""How often a step is tried before its failure is reported."""

TRIES_TO_CONNECT = 3
"""The same where nothing answers at all, or something that breaks the protocol: waiting longer rarely helps there."""

FIRST_WAIT = 0.5
"""Seconds before the second try; each further wait is twice as long."""

MAX_REDIRECTS = 5

MAX_JSON_BYTES = 64 << 20
"""Beyond any answer of the API that is asked for here; a larger one is not read."""


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


class TransientError(Exception):
    """A failure that another try may mend. Never leaves this package: `Patience.spend` ends it.

    Args:
        failure: What to raise when the tries are used up.
        after: Seconds that the server asks to wait before the next one.
        tries: How many tries this kind of failure is worth.
    """

    def __init__(self, failure: AdapterToolError, *, after: float = 0.0, tries: int = TRIES) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.after = after
        self.tries = tries


class Patience:
    """The tries and the seconds that one step on the network may cost.

    Time that the caller spends on the bytes between two pieces does not count.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.renew()

    def renew(self) -> None:
        """The step is done: the next one has all of it again."""
        self._tries = 0
        self._spent = 0.0

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, self.seconds - self._spent)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time in which the network is waited for."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self._spent += time.monotonic() - begin

    def spend(self, fault: TransientError) -> None:
        """Wait for the next try.

        Raises:
            AdapterToolError: there is none; this is the fault's own failure.
        """
        self._tries += 1
        pause = max(FIRST_WAIT * 2 ** (self._tries - 1), fault.after)
        if self._tries >= fault.tries or pause >= self.left:
            raise fault.failure from fault
        with self.waiting():
            time.sleep(pause)


@dataclass(frozen=True)
class Answer:
    """The head of a response; its body is read on demand.

    Attributes:
        url: Where it came from, after redirects.
        status: The status code.
        headers: By name, in lower case.
        hub_headers: The endpoint's own headers, those of its redirects included.
    """

    url: str
    status: int
    headers: Mapping[str, str]
    hub_headers: Mapping[str, str]
    _response: Any

    def chunks(self) -> Iterator[bytes]:
        """The body as it arrives, not decoded, in pieces of whatever length."""
        if hasattr(self._response, "iter_raw"):
            yield from self._response.iter_raw()
            return
        # requests: iter_content would wait until a whole piece is there, and hide a server that sends byte by byte.
        raw = self._response.raw
        read = getattr(raw, "read1", raw.read)
        while chunk := read(1 << 16):
            yield chunk


class HubClient:
    """The Hub at one endpoint, with one token.

    Attributes:
        endpoint: The Hub's address, without a slash at its end.
        requests: HTTP requests so far, redirects and retries included.
        timeout: Seconds that one step may take.
    """

    def __init__(self, token: str | None) -> None:
        """Find the endpoint, the token and the time limit.

        Args:
            token: Access token; by default the one that huggingface_hub finds.

        Raises:
            UnauthorizedError: the token is none that can be sent.
            UsageError: the endpoint or the time limit in the environment is none.
        """
        import huggingface_hub
        from huggingface_hub import constants

        self.endpoint: str = constants.ENDPOINT.rstrip("/")
        if address(self.endpoint) is None:
            raise UsageError(f"HF_ENDPOINT is {self.endpoint!r} where the address of a Hub is due, with http(s)://")
        self.timeout = _timeout()
        self.requests = 0
        self._lock = threading.Lock()
        if not token and not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN and not constants.HF_HUB_OFFLINE:
            token = _stored_token()
        # A line break in a header ends in an error message of the HTTP library that quotes the token.
        if token and not re.fullmatch(r"[!-~]+", token):
            raise UnauthorizedError(
                "the Hub token holds characters that no token has", hint="Run `hf auth login`, or set HF_TOKEN anew."
            )
        self.token = token or None
        # build_hf_headers does this too, but asks the endpoint for a list of coding agents on the way (2.4.0).
        self._agent = (
            f"adaptertool/{__version__}; hf_hub/{huggingface_hub.__version__}; python/{platform.python_version()}"
        )

    @property
    def offline(self) -> bool:
        """Whether huggingface_hub is in offline mode."""
        from huggingface_hub import constants

        return bool(constants.HF_HUB_OFFLINE)

    def is_endpoint(self, url: str) -> bool:
        """Whether `url` has the endpoint's own scheme, host and port: only there the token is sent."""
        return origin(url) == origin(self.endpoint)

    def json(self, url: str, subject: Subject) -> tuple[Any, str | None]:
        """A JSON document of the API, and the address of its next page if there is one.

        Raises:
            AdapterToolError: as `refusal` says, or NetworkError.
        """
        patience = Patience(self.timeout)
        while True:
            try:
                with self.get(url, {"Accept": "application/json"}, subject, patience) as answer:
                    if answer.status != 200:
                        raise self.refused(answer, subject)
                    body = self._body(answer, subject, patience)
                try:
                    document = json.loads(body)
                except (ValueError, RecursionError) as error:
                    raise TransientError(
                        NetworkError(
                            f"{origin(url)} answered something else than JSON about {subject.name}",
                            hint="Is that address a Hub (HF_ENDPOINT), and no login page in between?",
                        ),
                        tries=TRIES_TO_CONNECT,
                    ) from error
            except TransientError as fault:  # noqa: PERF203 - a try of its own for each try
                patience.spend(fault)
            else:
                return document, self._next_page(answer, url)

    def _body(self, answer: Answer, subject: Subject, patience: Patience) -> bytes:
        body = bytearray()
        for chunk in self.arrivals(answer, subject, patience):
            body += chunk
            if len(body) > MAX_JSON_BYTES:
                raise NetworkError(f"{origin(answer.url)} answered more than can be about {subject.name}")
        due = content_length(answer.headers)
        if due is not None and due != len(body):
            raise self.broken(answer, subject, f"{len(body)} bytes arrived of {due}")
        return bytes(body)

    def _next_page(self, answer: Answer, url: str) -> str | None:
        match = re.search(r'<([^>]*)>\s*;\s*rel="?next"?', answer.headers.get("link", ""))
        if match is None:
            return None
        target = address(match.group(1), url)
        return target if target is not None and self.is_endpoint(target) else None

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str], subject: Subject, patience: Patience) -> Iterator[Answer]:
        """Ask once, redirects followed; the body is let go of at the end of the block.

        Raises:
            TransientError: the connection failed.
            OfflineError: offline mode.
        """
        hub_headers: Mapping[str, str] = {}
        for _ in range(MAX_REDIRECTS + 1):
            response = self._send(url, headers, subject, patience)
            try:
                received = {name.lower(): value for name, value in response.headers.items()}
                if self.is_endpoint(url):
                    hub_headers = {**received, **hub_headers}
                answer = Answer(url, response.status_code, received, hub_headers, response)
                if answer.status not in (301, 302, 303, 307, 308):
                    yield answer
                    return
            finally:
                response.close()
            target = address(received.get("location", ""), url)
            if target is None or (url.startswith("https:") and not target.startswith("https:")):
                raise self.broken(answer, subject, "it redirects to no address that may be followed")
            url = target
        raise self.broken(answer, subject, "it redirects without end")

    def _send(self, url: str, headers: Mapping[str, str], subject: Subject, patience: Patience) -> Any:
        from huggingface_hub.errors import OfflineModeIsEnabled

        sent = {"user-agent": self._agent, "accept-encoding": "identity", **headers}
        if self.token and self.is_endpoint(url):
            sent["authorization"] = f"Bearer {self.token}"
        session = hub_session()
        http = http_library(session)
        silence = max(0.001, min(SILENCE, patience.left))
        with self._lock:
            self.requests += 1
        try:
            with patience.waiting():
                if http.__name__ == "requests":
                    timeout = (min(CONNECT, silence), silence)
                    return session.get(url, headers=sent, stream=True, allow_redirects=False, timeout=timeout)
                limits = http.Timeout(silence, connect=min(CONNECT, silence))
                request = session.build_request("GET", url, headers=sent, timeout=limits)
                return session.send(request, stream=True, follow_redirects=False)
        except OfflineModeIsEnabled as error:
            raise OfflineError(
                f"{subject.name} is not in the cache, and huggingface_hub is in offline mode",
                hint="Unset HF_HUB_OFFLINE, or download the repo first.",
            ) from error
        except transport_errors(http) as error:
            raise self._lost(url, subject, error) from error

    def arrivals(self, answer: Answer, subject: Subject, patience: Patience) -> Iterator[bytes]:
        """The body's bytes as they arrive, no longer than the patience lasts.

        Raises:
            TransientError: the connection is cut, silent or too slow.
        """
        errors = transport_errors(http_library(hub_session()))
        chunks = answer.chunks()
        while True:
            try:
                with patience.waiting():
                    chunk = next(chunks, None)
            except errors as error:
                raise self._lost(answer.url, subject, error) from error
            if chunk is None:
                return
            yield chunk
            if not patience.left:
                raise TransientError(
                    NetworkError(
                        f"{origin(answer.url)} is too slow: no mebibyte of {subject.name} in {self.timeout:g} seconds",
                        hint=f"Try again, or set {TIMEOUT_VARIABLE} to more seconds.",
                    )
                )

    def _lost(self, url: str, subject: Subject, error: BaseException) -> TransientError:
        names = {kind.__name__ for kind in type(error).__mro__}
        connecting = bool(names & {"ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol", "InvalidURL"})
        # requests: a connection that was refused and one that was cut are the same class.
        connecting = connecting or (type(error).__module__ == "requests.exceptions" and "NewConnection" in str(error))
        if any("Timeout" in name for name in names):
            reason = "it did not answer in time"
        else:
            reason = self.redacted(str(error) or type(error).__name__)
        if connecting:
            return TransientError(
                NetworkError(
                    f"cannot reach {origin(url)} for {subject.name}: {reason}",
                    hint="Check the connection, the proxy and HF_ENDPOINT.",
                ),
                tries=TRIES_TO_CONNECT,
            )
        return TransientError(
            NetworkError(f"lost the connection to {origin(url)} over {subject.name}: {reason}", hint="Try again.")
        )

    def broken(self, answer: Answer, subject: Subject, reason: str) -> TransientError:
        """An answer that breaks the protocol or contradicts what is known."""
        return TransientError(
            NetworkError(
                f"{origin(answer.url)} answered about {subject.name} what cannot be used: {reason}",
                hint="A proxy or mirror in between? Otherwise download the repo and name the folder.",
            ),
            tries=TRIES_TO_CONNECT,
        )

    def refused(self, answer: Answer, subject: Subject) -> TransientError | AdapterToolError:
        """What a status that is no success means, and whether another try may help."""
        status = answer.status
        if not self.is_endpoint(answer.url) and status not in (408, 429) and status < 500:
            return self.broken(answer, subject, f"the storage server refused with status {status}")
        failure = self.refusal(status, answer.headers, subject)
        if status in (408, 429) or status >= 500:
            return TransientError(failure, after=_retry_after(answer.headers))
        return failure

    def refusal(self, status: int, headers: Mapping[str, str], subject: Subject) -> AdapterToolError:
        """What the Hub's refusal means."""
        code = headers.get("x-error-code", "")
        said = self.redacted(headers.get("x-error-message", ""))
        repo, revision, page = subject.repo_id, subject.revision or "main", f"{subject.endpoint}/{subject.repo_id}"
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
                + (", with the account that this token is from." if self.token else ", then run `hf auth login`."),
            )
        if code == "RevisionNotFound":
            return NotFoundError(f"{repo} has no revision {revision!r}", hint=f"See {page}/tree/main for its branches.")
        if code == "EntryNotFound":
            return NotFoundError(
                f"{repo} holds no {subject.path or 'such file'} at revision {revision}",
                hint="Check the name, and --subfolder, for a typo.",
            )
        if code == "RepoNotFound" or status == 404 or (status == 401 and not self.token):
            return NotFoundError(
                f"{repo} was not found on {subject.endpoint}: it does not exist, or is private",
                hint="Check the name for a typo (no local path of that name exists either)"
                + (", and that this token may read it." if self.token else "; for a private repo run `hf auth login`."),
            )
        detail = f": {said}" if said else ""
        if status in (401, 403):
            return UnauthorizedError(
                f"the Hub refused access to {subject.name}{detail or f' (status {status})'}",
                hint="Check what the token is allowed to do at " + f"{subject.endpoint}/settings/tokens.",
            )
        if status == 429:
            after = _retry_after(headers)
            return NetworkError(
                f"{origin(subject.endpoint)} limits the rate of requests" + (f" for {after:.0f} s" if after else ""),
                hint="Try again later" + ("." if self.token else "; requests with a token have a higher limit."),
            )
        return NetworkError(
            f"{origin(subject.endpoint)} answered status {status} about {subject.name}{detail}", hint="Try again later."
        )

    def redacted(self, text: str) -> str:
        """Text of others as one line of bounded length, without the token and the signatures of addresses."""
        text = text.replace(self.token, "***") if self.token else text
        # Addresses of files at a storage host carry a signature that lets anybody read them.
        return re.sub(r"(https?://[^\s?]+)\?\S+", r"\1", " ".join(text.split()))[:200]


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


def origin(url: str) -> str:
    """Scheme, host and port of an address, without what would be secret in it."""
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    port = f":{parts.port}" if parts.port not in (None, default) else ""
    host = parts.hostname or ""
    return f"{parts.scheme}://[{host}]{port}" if ":" in host else f"{parts.scheme}://{host}{port}"


def content_length(headers: Mapping[str, str]) -> int | None:
    """The length of the body that the headers promise, in bytes."""
    text = headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() else None


def hub_session() -> Any:
    """huggingface_hub's session: a client of httpx2 or httpx, or a session of requests."""
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


def _stored_token() -> str | None:
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


def _timeout() -> float:
    text = os.environ.get(TIMEOUT_VARIABLE)
    if not text:
        return TIMEOUT
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise UsageError(f"{TIMEOUT_VARIABLE} is {text!r} where a number of seconds is due")
    return seconds


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to wait: `Retry-After` in both its forms, or the Hub's `RateLimit`."""
    limit = re.search(r";\s*r=0\s*;\s*t=(\d{1,9})", headers.get("ratelimit", ""))
    if limit:
        return float(limit.group(1))
    text = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}", text, re.ASCII):
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return max(0.0, (moment - datetime.now(timezone.utc)).total_seconds())
