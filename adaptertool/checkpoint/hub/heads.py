"""What the heads of the answers say of a file that is read in ranges, and whether they contradict each other."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from adaptertool.checkpoint.hub.addresses import origin
from adaptertool.checkpoint.hub.client import content_length
from adaptertool.checkpoint.hub.entry import SHA1, SHA256, HubFile
from adaptertool.checkpoint.hub.numbers import whole_number

if TYPE_CHECKING:
    from adaptertool.checkpoint.hub.client import Answer, HubClient
    from adaptertool.checkpoint.hub.refusals import Subject


class Heads:
    """The answers to the requests for one file.

    Attributes:
        named: The hash that came with the file, of whatever it is; see `digests`. None where none came.
        rangeless: Whether a range was ignored.
    """

    def __init__(self, client: HubClient, subject: Subject) -> None:
        """Begin with no answer.

        Args:
            client: The connection to the Hub.
            subject: The file, for messages.
        """
        self._client = client
        self._subject = subject
        self._etags: dict[str, str] = {}
        self._ignored = False
        self.named: str | None = None
        self.rangeless = False

    def forget(self) -> None:
        """Take what comes next for another content, with another hash."""
        self.named = None
        self._etags.clear()

    def described(self, answer: Answer) -> HubFile | None:
        """What the answer to a request for a file's beginning says of the file; None where it names no size.

        Raises:
            TransientError: it contradicts itself.
        """
        headers, first = answer.headers, answer.hub_headers
        found = headers.get("content-range", "")
        match = re.fullmatch(r"bytes 0-\d+/(\d+|\*)" if answer.status == 206 else r"bytes \*/(0)", found, re.ASCII)
        total = content_length(headers) if match is None else whole_number(match[1])
        if answer.status != 200 and (match is None or (total is None and match[1] != "*")):
            reason = f"range {found or 'none'!r} where the file's beginning was asked for"
            raise self._client.broken(answer, self._subject, reason)
        linked = whole_number(first.get("x-linked-size"))
        if linked is not None:
            if total not in (None, linked):
                reason = f"a file of {total} bytes where the commit holds one of {linked}"
                raise self._client.broken(answer, self._subject, reason)
            total = linked
        if total is None:
            return None
        sha256 = SHA256.fullmatch(first.get("x-linked-etag", "").strip('"'))
        return HubFile(total, sha256 and sha256[0])

    def check(self, answer: Answer, start: int, length: int, entry: HubFile, commit: str) -> None:
        """Hold an answer against what was asked for, and what is known of the file.

        Args:
            answer: With status 200, 206 or 416.
            start: Of the range that was asked for.
            length: Of the range that was asked for.
            entry: What the file is.
            commit: That was asked for.

        Raises:
            TransientError: it contradicts that.
            NetworkError: it ignores a range for the second time.
        """
        fault = self._contradiction(answer, start, length, entry, commit)
        if fault is not None:
            raise self._client.broken(answer, self._subject, fault)
        self.named = self.named or self._named_by(answer)

    def _named_by(self, answer: Answer) -> str | None:
        first = answer.hub_headers.get("x-linked-etag", "")
        own = answer.headers.get("etag", "") if self._client.is_endpoint(answer.url) else ""
        tags = (tag.removeprefix("W/").strip('"') for tag in (first, own))
        return next((tag for tag in tags if SHA1.fullmatch(tag) or SHA256.fullmatch(tag)), None)

    def _contradiction(self, answer: Answer, start: int, length: int, entry: HubFile, commit: str) -> str | None:
        headers, first = answer.headers, answer.hub_headers
        if answer.status == 416:
            return f"it has no bytes {start} to {start + length - 1} of a file of {entry.size}"
        if headers.get("content-encoding", "identity") != "identity":
            return "it compresses what must arrive as it is"
        path = self._subject.path or ""
        if headers.get("content-type", "").startswith("text/html") and not path.endswith((".html", ".htm")):
            return "it sends a web page where the file is due"
        self.rangeless = self.rangeless or answer.status == 200
        if answer.status == 200:
            if start:
                reason = "it ignores ranges, and sends files from their beginning only"
                if self._ignored:
                    raise self._client.broken(answer, self._subject, reason).failure
                self._ignored = True
                return reason
            due = entry.size
        else:
            self._ignored = False
            due = length
            found = headers.get("content-range", "none")
            ends = f"bytes {start}-{start + length - 1}/"
            if found not in (f"{ends}{entry.size}", f"{ends}*"):
                return f"range {found!r} where {ends + str(entry.size)!r} was asked for"
        promised = content_length(headers)
        if promised is not None and promised != due:
            return f"{promised} bytes where {due} are due"
        if (first.get("x-repo-commit") or commit) != commit:
            return f"commit {first['x-repo-commit']} where {commit} was asked for"
        if (first.get("x-linked-size") or str(entry.size)) != str(entry.size):
            return f"a file of {first['x-linked-size']} bytes where the commit holds one of {entry.size}"
        linked = first.get("x-linked-etag", "").strip('"')
        if entry.sha256 is not None and SHA256.fullmatch(linked) and linked != entry.sha256:
            return "a file with another digest than the commit holds"
        etag = headers.get("etag", "")
        if etag.startswith('"') and self._etags.setdefault(origin(answer.url), etag) != etag:
            return "the file changed between two reads"
        return None
