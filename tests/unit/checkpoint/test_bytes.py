"""Streams of one file at the same time, or one after the other, never get into each other's pieces."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adaptertool.checkpoint.bytes import CHUNK, LocalBytes

SIZE = 3 * CHUNK + 4321


@pytest.fixture(scope="module")
def content() -> bytes:
    return random.Random(0).randbytes(SIZE)


@pytest.fixture
def file(tmp_path: Path, content: bytes) -> LocalBytes:
    path = tmp_path / "file"
    path.write_bytes(content)
    return LocalBytes(path)


def test_streams_that_are_read_in_turn(file: LocalBytes, content: bytes) -> None:
    list(file.stream(0, SIZE))  # its buffer is there to be used again
    first, second, third = file.stream(0, SIZE), file.stream(CHUNK + 7, CHUNK * 2), file.stream(5, 100)
    at = 0
    for piece, other in zip(first, second, strict=False):
        assert next(third, b"") in (b"", content[5:105])
        assert piece == content[at : at + CHUNK]
        assert other == content[at + CHUNK + 7 : at + 2 * CHUNK + 7]
        at += CHUNK


def test_a_piece_of_a_stream_that_was_left_stays(file: LocalBytes, content: bytes) -> None:
    piece = next(file.stream(0, SIZE))
    for _ in file.stream(CHUNK, 2 * CHUNK):
        assert piece == content[:CHUNK]


def test_many_threads(file: LocalBytes, content: bytes) -> None:
    def same(start: int) -> bool:
        length = min(CHUNK + start % 1000, SIZE - start)
        return b"".join(bytes(piece) for piece in file.stream(start, length)) == content[start : start + length]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(same, range(0, SIZE, 10_007)))
    assert file.bytes_read == sum(min(CHUNK + start % 1000, SIZE - start) for start in range(0, SIZE, 10_007))
