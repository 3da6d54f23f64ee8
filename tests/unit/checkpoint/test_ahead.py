"""Ranges that are fetched ahead: the right bytes, in whatever order, in bounded memory, and nothing left running."""

from __future__ import annotations

import random
import threading
import time

import pytest

from adaptertool.checkpoint.hub.ahead import CONNECTIONS, FIRST_SEGMENT, SEGMENT, WINDOW, ReadAhead

DATA = random.Random(0).randbytes(40 << 20)


class Source:
    """Counts what is asked for."""

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.asked: list[tuple[int, int]] = []
        self.active = self.most = 0
        self.lock = threading.Lock()

    def fetch(self, start: int, length: int, stop: threading.Event) -> bytes:
        with self.lock:
            self.asked.append((start, length))
            self.active += 1
            self.most = max(self.most, self.active)
        stop.wait(self.delay)
        with self.lock:
            self.active -= 1
        return DATA[start : start + length]


def test_random_plans_give_the_right_bytes() -> None:
    chance = random.Random(1)
    for _ in range(30):
        ranges = [(start, chance.randrange(0, 3 << 20)) for start in (chance.randrange(37 << 20) for _ in range(12))]
        source = Source()
        with ReadAhead(source.fetch, ranges) as ahead:
            for start, length in ranges:
                if chance.random() < 0.7 and length and ahead.holds(start, length):
                    assert b"".join(ahead.take(start, length)) == DATA[start : start + length]


def test_ranges_that_touch_share_requests() -> None:
    source = Source()
    ranges = [(start, 1000) for start in range(0, 1_000_000, 1000)]
    with ReadAhead(source.fetch, ranges) as ahead:
        for start, length in ranges:
            assert b"".join(ahead.take(start, length)) == DATA[start : start + length]
    assert source.asked == [(0, 1_000_000)]


def test_a_reader_that_stops_early_has_fetched_little() -> None:
    source = Source()
    with ReadAhead(source.fetch, [(0, len(DATA))]) as ahead:
        next(ahead.take(0, len(DATA)))
    assert sum(length for _, length in source.asked) <= FIRST_SEGMENT


def test_a_slow_reader_is_not_outrun() -> None:
    source = Source()
    with ReadAhead(source.fetch, [(0, len(DATA))]) as ahead:
        taken = 0
        for piece in ahead.take(0, len(DATA)):
            taken += len(piece)
            time.sleep(0.02)
            assert sum(length for _, length in source.asked) - taken <= WINDOW * SEGMENT
    assert taken == len(DATA)


def test_several_requests_run_at_once_and_no_more() -> None:
    source = Source(delay=0.02)
    ranges = [(start, 100) for start in range(0, 60_000, 1000)]
    with ReadAhead(source.fetch, ranges) as ahead:
        for start, length in ranges:
            assert b"".join(ahead.take(start, length)) == DATA[start : start + length]
    assert 1 < source.most <= CONNECTIONS


def test_the_end_waits_for_nothing_long() -> None:
    source = Source(delay=30.0)
    begin = time.monotonic()
    with ReadAhead(source.fetch, [(0, 100), (1000, 100)]) as ahead:
        ahead._ask_for(0)
    assert time.monotonic() - begin < 5
    assert not source.active


def test_what_was_not_announced_is_not_held() -> None:
    with ReadAhead(Source().fetch, [(0, 100)]) as ahead:
        assert ahead.holds(50, 50)
        assert not ahead.holds(50, 51)
        assert not ahead.holds(100, 1)
        with pytest.raises(ValueError, match="not announced"):
            next(ahead.take(500, 1))
