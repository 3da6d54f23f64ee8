"""Requests to the Hub: redirects, where the token goes, time limits.

The connection itself is huggingface_hub's (`get_session`), so that its proxies, certificates and offline mode hold. All
else is done here, because a ranged read needs what that library does not promise: the token goes to the endpoint's own
origin and nowhere else, no answer is trusted further than its headers prove, and every wait has an end.
"""

from __future__ import annotations

import json
import platform
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from adaptertool import __version__
from adaptertool.checkpoint.hub.addresses import address, origin, shown
from adaptertool.checkpoint.hub.numbers import whole_number
from adaptertool.checkpoint.hub.patience import TIMEOUT_VARIABLE, Patience, TransientError, time_limit
from adaptertool.checkpoint.hub.refusals import Subject, redacted, refusal, retry_after
from adaptertool.checkpoint.hub.session import http_library, hub_session, is_offline, stored_token, transport_errors
from adaptertool.errors import AdapterToolError, NetworkError, OfflineError, UnauthorizedError, UsageError
from adaptertool.words import shortened

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_REDIRECTS = 5

MAX_JSON_BYTES = 64 << 20
"""Beyond any answer of the API that is asked for here; a larger one is not read."""


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
            raise UsageError(
                f"HF_ENDPOINT is {shown(self.endpoint)!r} where the address of a Hub is due, with http(s)://"
            )
        self.timeout = time_limit()
        self.requests = 0
        self._lock = threading.Lock()
        if not token and not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN and not self.offline:
            token = stored_token()
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
        return is_offline()

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
                        few=True,
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
        if target is None or self.is_endpoint(target):
            return target
        # A mirror passes on what the Hub says, with the Hub's address in it. The token stays with the mirror.
        parts = urlsplit(target)
        return f"{self.endpoint}{parts.path}?{parts.query}"

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
        with self._lock:
            self.requests += 1
        try:
            with patience.waiting():
                if http.__name__ == "requests":
                    timeout = (patience.connect, patience.silence)
                    return session.get(url, headers=sent, stream=True, allow_redirects=False, timeout=timeout)
                limits = http.Timeout(patience.silence, connect=patience.connect)
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
        silent = any("Timeout" in name for name in names)
        reason = "it did not answer in time" if silent else redacted(_reason(error), self.token)
        if connecting:
            return TransientError(
                NetworkError(
                    f"cannot reach {origin(url)} for {subject.name}: {reason}",
                    hint=f"Check the connection, the proxy and HF_ENDPOINT. (No local path {subject.repo_id} exists either.)",
                ),
                few=True,
            )
        return TransientError(
            NetworkError(f"lost the connection to {origin(url)} over {subject.name}: {reason}", hint="Try again."),
            few=silent,
        )

    def broken(self, answer: Answer, subject: Subject, reason: str) -> TransientError:
        """An answer that breaks the protocol or contradicts what is known."""
        return TransientError(
            NetworkError(
                f"{origin(answer.url)} answered about {subject.name} what cannot be used: {shortened(reason, 300)}",
                hint="A proxy or mirror in between? Otherwise download the repo and name the folder.",
            ),
            few=True,
        )

    def refused(self, answer: Answer, subject: Subject) -> TransientError | AdapterToolError:
        """What a status that is no success means, and whether another try may help."""
        status = answer.status
        if not self.is_endpoint(answer.url) and status not in (408, 429) and status < 500:
            return self.broken(answer, subject, f"the storage server refused with status {status}")
        failure = refusal(status, answer.headers, subject, self.token)
        if status in (408, 429) or status >= 500:
            return TransientError(failure, after=retry_after(answer.headers))
        return failure


def _reason(error: BaseException) -> str:
    """What the operating system or the TLS library says, which HTTP libraries wrap in errors of theirs."""
    said, inner, depth = str(error) or type(error).__name__, error, 0
    while depth < 10:
        if isinstance(inner, OSError) and inner.strerror and inner.errno is not None:
            said = inner.strerror
        nested = (inner.__cause__, getattr(inner, "reason", None), *inner.args[:1], inner.__context__)
        found = next((one for one in nested if isinstance(one, BaseException)), None)
        if found is None:
            break
        inner, depth = found, depth + 1
    return said


def content_length(headers: Mapping[str, str]) -> int | None:
    """The length of the body that the headers promise, in bytes."""
    return whole_number(headers.get("content-length"))
