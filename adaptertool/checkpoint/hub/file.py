"""One file of a repo at one commit, read by ranged requests."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING

from adaptertool.checkpoint.bytes import CHUNK, two_readings
from adaptertool.checkpoint.hub.addresses import origin
from adaptertool.checkpoint.hub.ahead import FIRST_SEGMENT, ReadAhead
from adaptertool.checkpoint.hub.digests import SMALL, Reading, other_content
from adaptertool.checkpoint.hub.entry import COMMIT, HubFile, hashes
from adaptertool.checkpoint.hub.heads import Heads
from adaptertool.checkpoint.hub.patience import STEP, Patience, TransientError
from adaptertool.errors import CorruptError, NetworkError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from concurrent.futures import Future

    from adaptertool.checkpoint.hub.client import Answer
    from adaptertool.checkpoint.hub.folder import HubFolder

PREFETCH = 144 << 10
"""Bytes that the first read fetches: about what the header of a 1,000-tensor adapter takes."""

CANARY = 4 << 10
"""Bytes of the file's beginning that are asked for a second time where the answer depends on it."""


class HubBytes:
    """A file of a repo at one commit, read by ranged requests. Several threads may read it at once.

    Every answer is held against the file's known size, the range that was asked for, and what earlier answers said of
    the file. What contradicts them is asked for again, and ends in a NetworkError where that does not mend it. A read
    of the whole file is checked against its digest as well, where the Hub names one.
    """

    of_a_repo = True

    def __init__(
        self, folder: HubFolder, name: str, entry: HubFile | None, ahead: int | None = None, whole: int = 0
    ) -> None:
        """Take the file as the repo's tree describes it, or ask for its beginning and take it as the answer describes it.

        The Hub names size and digest in the headers of its answer, before any redirect, and the commit too. So one
        request for a file's beginning can stand for three: resolving a revision, listing the tree, and reading.

        Args:
            folder: Where it is.
            name: In that folder.
            entry: What the tree says of it; None where the tree was not read.
            ahead: How many bytes the first read fetches; `PREFETCH` by default.
            whole: Of a file up to this many bytes the first read fetches all, wherever it is, and proves it.

        Raises:
            NotFoundError: there is none, as far as the Hub's answer goes.
            GatedError, UnauthorizedError, NetworkError: as it happens.
        """
        self._folder = folder
        self._first = max(1, PREFETCH if ahead is None else ahead)
        self._whole = whole
        self._client = folder.client
        self._path = folder.path_in_repo(name)
        self._subject = folder.subject(self._path)
        self._name = f"{folder.location}/{name}"
        self._heads = Heads(self._client, self._subject)
        self._direct: str | None = None
        self._prefix = b""
        self._canary = b""
        self._prefix_lock = threading.Lock()
        self._count_lock = threading.Lock()
        self._plan: ReadAhead | None = None
        self._closed = False
        self.bytes_read = 0
        self._entry = entry if entry is not None else self._look()

    @property
    def name(self) -> str:
        """`org/name/file`."""
        return self._name

    @property
    def size(self) -> int:
        """The length in bytes, as the Hub gives it."""
        return self._entry.size

    @property
    def sha256(self) -> str | None:
        """The content's SHA-256 as the Hub gives it; None for files that are not in large file storage."""
        return self._entry.sha256

    def read(self, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`; see `Bytes.read`.

        The first read at the beginning fetches further bytes ahead, and later ones are served from them.
        """
        return b"".join(bytes(piece) for piece in self.stream(start, length))

    def stream(self, start: int, length: int) -> Iterator[memoryview]:
        """The same bytes in pieces of `CHUNK` bytes, the last one shorter, that share one buffer.

        A connection that is cut is taken up again where it was.
        """
        if self._closed:
            raise ValueError(f"{self._name} is closed")
        if start < 0 or length < 0 or start + length > self.size:
            raise CorruptError(f"{self._name} ends before byte {start + length}: it is truncated")
        due = self._entry.sha256 if start == 0 and length == self.size else None
        whole = hashlib.sha256()
        buffer = memoryview(bytearray(min(CHUNK, length)))
        filled, done = 0, 0
        for piece in self._pieces(start, length):
            rest = piece
            while rest:
                taken = min(len(rest), len(buffer) - filled)
                buffer[filled : filled + taken] = rest[:taken]
                filled, rest = filled + taken, rest[taken:]
                done += taken
                if filled == len(buffer) or done == length:
                    if due is not None:
                        whole.update(buffer[:filled])
                        if done == length and whole.hexdigest() != due:
                            raise other_content(self._name)
                    yield buffer[:filled]
                    filled = 0

    def read_again(self, start: int, length: int) -> bytes:
        """The same bytes by a request of their own, past what was fetched ahead.

        A server may send the bytes of another range than its headers say. So a part of the file's beginning, which made
        sense, is asked for again as well, the first time.
        """
        if len(self._prefix) == self.size:
            return self.read(start, length)  # checked as a whole
        known, self._canary = self._canary, b""
        if known and self._fetch(8, len(known)) != known:
            raise NetworkError(
                f"{self._name} does not come as it did before: the server sends other bytes of it than it says",
                hint="Try again; a proxy or mirror in between may be broken.",
            )
        return self._fetch(start, length)

    def proven(self) -> Iterator[memoryview] | None:
        """The whole file as it is fetched; see `Bytes.proven`."""
        entry = self._entry
        if entry.sha256 is not None:
            return self._hashed(entry.sha256)
        if (entry.blob_id or self._heads.named) and entry.size <= SMALL:
            return iter((memoryview(self._begin(0, entry.size)),))
        return None

    def _hashed(self, sha256: str) -> Iterator[memoryview]:
        running = hashlib.sha256()
        waiting: Future[None] | None = None
        with ThreadPoolExecutor(1, thread_name_prefix="hash") as pool:
            for piece in self._pieces(0, self.size):
                if waiting is not None:
                    waiting.result()
                # Beside what the reader does with it.
                waiting = pool.submit(running.update, piece)
                yield piece
        if running.hexdigest() != sha256:
            raise other_content(self._name)

    @contextmanager
    def ahead(self, ranges: Iterable[tuple[int, int]]) -> Iterator[None]:
        """See `Bytes.ahead`; several requests at a time fetch what comes next."""
        before = self._plan
        with ReadAhead(self._fetch_ahead, ranges) as plan:
            self._plan = plan
            try:
                yield
            finally:
                self._plan = before

    def changed(self) -> bool:
        """Never: the commit names the content."""
        return False

    def close(self) -> None:
        """Let go of what was fetched ahead."""
        self._closed = True
        self._prefix = b""

    def _pieces(self, start: int, length: int) -> Iterator[memoryview]:
        """The range in pieces as they are fetched; what is there already comes first."""
        through = self._heads.rangeless and start == 0 and self.size > self._whole
        begun = b"" if through else self._begin(start, length)
        return chain((memoryview(begun),), self._rest(start + len(begun), length - len(begun)))

    def _begin(self, start: int, length: int) -> bytes:
        """What of that range is there already, having fetched the beginning if nothing was read so far."""
        whole = self.size <= self._whole or (
            self._entry.sha256 is None and start == 0 and self._first < length == self.size <= SMALL
        )
        with self._prefix_lock:
            if (whole and len(self._prefix) < self.size) or (start == 0 and length and not self._prefix):
                upto = self.size if whole else min(self._first, self.size)
                data = self._fetch(0, upto)
                self._prefix = self._proven(data) if upto == self.size else data
                self._canary = self._prefix[8 : 8 + CANARY]
            return self._prefix[start : start + length]

    def _proven(self, data: bytes) -> bytes:
        """The whole content, held against what the server names for it.

        Raises:
            CorruptError: it is another content, twice.
        """
        if self._entry.sha256 is not None:
            if not self._entry.is_content((data,)):
                data = self._whole_again()
                if not self._entry.is_content((data,)):
                    raise other_content(self._name)
            return data
        digests = self._folder.digests
        reading = self._reading(data)
        if not digests.bears_out(self._path, reading):
            first, data = data, self._whole_again()
            reading = self._reading(data)
            if not digests.bears_out(self._path, reading):
                if data != first:
                    raise two_readings(self._name)
                # The same damage, or hashes of something else than contents.
                self._folder.look_at_hashes(self._path, reading)
        digests.take(self._path, reading)
        return data

    def _whole_again(self) -> bytes:
        self._direct = None
        self._heads.forget()
        return self._fetch(0, self.size)

    def _reading(self, data: bytes) -> Reading:
        return Reading(self._name, hashes((data,), len(data)), self._heads.named)

    def _rest(self, start: int, length: int) -> Iterator[memoryview]:
        plan = self._plan
        if self._heads.rangeless and start == 0:
            for chunk in self._arrivals(0, length, Patience(self._client.timeout)):
                yield memoryview(chunk)
        elif plan is not None and plan.holds(start, length):
            yield from plan.take(start, length)
        elif length <= FIRST_SEGMENT:
            yield memoryview(self._fetch(start, length))
        else:
            with ReadAhead(self._fetch_ahead, [(start, length)]) as own:
                yield from own.take(start, length)

    def _fetch(self, start: int, length: int) -> bytes:
        return b"".join(self._arrivals(start, length, Patience(self._client.timeout)))

    def _fetch_ahead(self, start: int, length: int, stop: threading.Event) -> bytearray:
        """The range in memory; not all of it where `stop` is set meanwhile."""
        data, done = bytearray(length), 0
        for chunk in self._arrivals(start, length, Patience(self._client.timeout, stop)):
            data[done : done + len(chunk)] = chunk
            done += len(chunk)
            if stop.is_set():
                break
        return data

    def _look(self) -> HubFile:
        """Read the file's beginning, and take from the answer's headers what the file is."""
        patience = Patience(self._client.timeout)
        headers = {"range": f"bytes=0-{self._first - 1}"}
        while True:
            pinned = self._folder.known_commit
            url = self._folder.address_of(self._path, pinned)
            try:
                with self._client.get(url, headers, self._subject, patience) as answer:
                    if answer.status not in (200, 206, 416):
                        raise self._client.refused(answer, self._subject)
                    named = answer.hub_headers.get("x-repo-commit", "")
                    if pinned is None and not COMMIT.fullmatch(named):
                        self._folder.pin(None)
                        continue
                    commit = pinned or named
                    entry = self._heads.described(answer)
                    if entry is None:
                        entry = self._folder.listed(self._path)
                        if entry is None:
                            raise self._client.broken(answer, self._subject, "it names no size")
                        self._folder.pin(commit)
                        return entry
                    data = b""
                    if entry.size:
                        self._heads.check(answer, 0, min(self._first, entry.size), entry, commit)
                        data = b"".join(self._body(answer, min(self._first, entry.size), patience))
                break
            except TransientError as fault:
                patience.spend(fault)
        self._folder.pin(commit)
        if answer.url != url:
            self._direct = answer.url
        self._entry = entry
        self._prefix = self._proven(data) if len(data) == entry.size else data
        self._canary = self._prefix[8 : 8 + CANARY]
        return entry

    def _arrivals(self, start: int, length: int, patience: Patience) -> Iterator[bytes]:
        """The range as it arrives, in pieces of whatever length, exactly `length` bytes of it."""
        done = 0
        while done < length:
            try:
                with self._ask(start + done, length - done, patience) as answer:
                    for chunk in self._body(answer, length - done, patience):
                        if done // STEP < (done + len(chunk)) // STEP:
                            patience.renew()
                        done += len(chunk)
                        yield chunk
            except TransientError as fault:  # noqa: PERF203 - a try of its own for each try
                # Signed addresses expire, and a storage server may fail where the next one works.
                self._direct = None
                patience.spend(fault)

    def _body(self, answer: Answer, length: int, patience: Patience) -> Iterator[bytes]:
        """The first `length` bytes of an answer, which must end there unless it is one without a range.

        Raises:
            TransientError: it is shorter or longer, or the connection fails.
        """
        done, last = 0, b""
        for chunk in self._client.arrivals(answer, self._subject, patience):
            with self._count_lock:
                self.bytes_read += len(chunk)
            room = length - done - len(last)
            if len(chunk) > room and answer.status != 200:
                raise self._client.broken(answer, self._subject, "it sends more than was asked for")
            if len(chunk) >= room > 0:
                # Held back until the body proves to end here; one without a range is cut off by us.
                last = chunk[:room]
                if answer.status == 200:
                    break
            else:
                done += len(chunk)
                yield chunk
        if done + len(last) < length:
            raise TransientError(
                NetworkError(
                    f"{origin(answer.url)} sent {done} of {length} bytes of {self._name} and then no more",
                    hint="Try again.",
                )
            )
        yield last

    @contextmanager
    def _ask(self, start: int, length: int, patience: Patience) -> Iterator[Answer]:
        headers = {"range": f"bytes={start}-{start + length - 1}"}
        commit = self._folder.revision
        url = self._folder.address_of(self._path, commit)
        for there in (self._direct, url):
            if there is None:
                continue
            with self._client.get(there, headers, self._subject, patience) as answer:
                if there != url and answer.status in (400, 401, 403, 404, 410):
                    continue  # a signed address that expired
                if answer.status not in (200, 206, 416):
                    raise self._client.refused(answer, self._subject)
                self._heads.check(answer, start, length, self._entry, commit)
                if answer.url != url:
                    self._direct = answer.url
                yield answer
                return
