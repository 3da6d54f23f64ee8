"""Ranges of a file, fetched by several connections before they are asked for, in bounded memory.

One connection to a storage host gives a part of what the line can carry, and every request costs a round trip. What is read
in a known order is therefore fetched by several requests at a time, a window of them ahead of the reader. The window begins
with one small request and grows while the reader goes on, so that a reader that stops early has fetched little in vain.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future
    from types import TracebackType

CONNECTIONS = 6
"""Requests at the same time."""

FIRST_SEGMENT = 1 << 20
SEGMENT = 8 << 20
"""Bytes of the first and of the largest request; each is twice the one before."""

WINDOW = 8
"""Segments that are fetched or being fetched: 64 MiB at most are in memory."""


class ReadAhead:
    """A plan of ranges that are taken in order; any of them may be left out.

    Ranges that touch share requests. To be used as a context manager: what is under way ends with it.
    """

    def __init__(
        self, fetch: Callable[[int, int, threading.Event], bytes | bytearray], ranges: Iterable[tuple[int, int]]
    ) -> None:
        """Make the plan; nothing is fetched yet.

        Args:
            fetch: Gives `length` bytes from `start`; returns early, with whatever it has, when the event is set.
            ranges: Start and length of each range, in the order in which they will be taken.
        """
        self._fetch = fetch
        self._segments = list(_segments(ranges))
        self._futures: dict[int, Future[bytes | bytearray]] = {}
        self._at = 0
        self._window = 1
        self._stop = threading.Event()
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._futures.clear()

    def holds(self, start: int, length: int) -> bool:
        """Whether that range is still to come, as a whole."""
        return self._find(start, length) is not None

    def take(self, start: int, length: int) -> Iterator[memoryview]:
        """The bytes of one of the ranges, in pieces of whatever length."""
        index, end = self._find(start, length), start + length
        if index is None:
            raise ValueError("the range was not announced")
        while start < end:
            begin, size = self._segments[index]
            data = self._ask_for(index).result()
            stop = min(end, begin + size)
            yield memoryview(data)[start - begin : stop - begin]
            start = stop
            if stop == begin + size:
                del self._futures[index]
                index += 1
                self._at = index
                self._window = min(2 * self._window, WINDOW)

    def _find(self, start: int, length: int) -> int | None:
        """The first of the segments to come, one after the other, that hold the range."""
        for index in range(self._at, len(self._segments)):
            begin, size = self._segments[index]
            if begin <= start < begin + size:
                end, last = begin + size, index
                while end < start + length and last + 1 < len(self._segments) and self._segments[last + 1][0] == end:
                    last += 1
                    end += self._segments[last][1]
                if end >= start + length:
                    return index
        return None

    def _ask_for(self, index: int) -> Future[bytes | bytearray]:
        for passed in [one for one in self._futures if one < index]:
            self._futures.pop(passed).cancel()
        self._at = index
        if self._pool is None:
            self._pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="read-ahead")
        for one in range(index, min(index + self._window, len(self._segments))):
            if one not in self._futures:
                self._futures[one] = self._pool.submit(self._fetch, *self._segments[one], self._stop)
        return self._futures[index]


def _segments(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Start and length of each request."""
    runs: list[tuple[int, int]] = []
    for start, length in ranges:
        if runs and sum(runs[-1]) == start:
            runs[-1] = runs[-1][0], runs[-1][1] + length
        elif length:
            runs.append((start, length))
    size = FIRST_SEGMENT
    for start, length in runs:
        done = 0
        while done < length:
            take = min(size, length - done)
            yield start + done, take
            done += take
            size = min(2 * size, SEGMENT)
