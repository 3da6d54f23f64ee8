"""The tensors of a weights file, whichever its format, and a safetensors file read in ranges."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from typing import TYPE_CHECKING, Literal, Protocol

from adaptertool.checkpoint.bytes import two_readings
from adaptertool.checkpoint.header import Header, TensorInfo, parse_header, read_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from adaptertool.checkpoint.bytes import Bytes

SAFETENSORS_WEIGHTS = "adapter_model.safetensors"
PICKLE_WEIGHTS = "adapter_model.bin"

HELD_BYTES = 512 << 20
"""How much of a file is held in memory to compare later tensors with."""


class Weights(Protocol):
    """Tensors by name, whose bytes are streamed."""

    @property
    def format(self) -> Literal["safetensors", "pickle"]:
        """How the file stores them."""

    @property
    def file_bytes(self) -> int:
        """The file's length."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """By name, in the order of their data."""

    @property
    def metadata(self) -> Mapping[str, str] | None:
        """The safetensors metadata; None where there is none."""

    def stream(self, name: str, start: int = 0, length: int | None = None) -> Iterator[memoryview]:
        """The tensor's bytes, little-endian and row-major, or `length` of them from `start`."""

    def hold(self) -> None:
        """Read all data at once, so that what is streamed from now on comes from memory: for small files far away."""

    def read_again(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes of a tensor, brought anew from where the file is; see `Bytes.read_again`."""

    def digests(
        self, progress: Callable[[int], None] = lambda _: None, alike: Iterable[Sequence[str]] = ()
    ) -> Mapping[str, str] | None:
        """SHA-256 of each tensor, of one reading of the whole file that has the digest which is known for the file.

        It is read once, however often this is asked.

        Args:
            progress: Told how many bytes were read since the last call.
            alike: Groups of tensors that may be the same bytes: comparing them takes less time than hashing each.

        Returns:
            None where no digest is known, and nothing was read.

        Raises:
            CorruptError: the file has another digest.
        """

    def ahead(self, parts: Iterable[tuple[str, int, int]]) -> AbstractContextManager[None]:
        """Within the block these parts of tensors are streamed in this order, some perhaps not; see `Bytes.ahead`.

        Args:
            parts: Name, start and length in bytes of each.
        """

    def stored_as(self, name: str) -> str:
        """The name of the tensor whose bytes these are: another one where two names share one storage."""

    def changed(self) -> bool:
        """Whether the file is known to be another one now."""


class SafetensorsWeights:
    """A safetensors file, on disk or on the Hub."""

    format: Literal["safetensors", "pickle"] = "safetensors"

    def __init__(self, file: Bytes) -> None:
        """Read the header of `file`.

        Raises:
            CorruptError: see `read_header`.
        """
        self.file = file
        self.header: Header = read_header(file)
        self._held: bytes | None = None
        self._digests: Mapping[str, str] | None = None

    @property
    def file_bytes(self) -> int:
        """The file's length."""
        return self.file.size

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """By name, in the order of their data."""
        return self.header.tensors

    @property
    def metadata(self) -> Mapping[str, str] | None:
        """The file's `__metadata__`."""
        return self.header.metadata

    def stream(self, name: str, start: int = 0, length: int | None = None) -> Iterator[memoryview]:
        """The tensor's bytes, read from the file as they are asked for."""
        tensor = self.tensors[name]
        length = tensor.nbytes - start if length is None else length
        if self._held is not None:
            return iter((memoryview(self._held)[tensor.start + start : tensor.start + start + length],))
        return self.file.stream(self.header.data_start + tensor.start + start, length)

    def hold(self) -> None:
        """Read the whole file, which a digest proves that is known for it."""
        self._held = self.file.read(0, self.file.size)[self.header.data_start :]

    def read_again(self, name: str, start: int, length: int) -> bytes:
        """A part of a tensor, from the file and not from memory."""
        return self.file.read_again(self.header.data_start + self.tensors[name].start + start, length)

    def digests(
        self, progress: Callable[[int], None] = lambda _: None, alike: Iterable[Sequence[str]] = ()
    ) -> Mapping[str, str] | None:
        """Read the whole file past what hashes it, and hold its header against the one that was read first."""
        if self._digests is None and (pieces := self.file.proven()) is not None:
            self._digests = self._hashed(pieces, progress, alike)
        return self._digests

    def _hashed(
        self, pieces: Iterator[memoryview], progress: Callable[[int], None], alike: Iterable[Sequence[str]]
    ) -> dict[str, str]:
        rest = memoryview(b"")

        def following(nbytes: int) -> Iterator[memoryview]:
            nonlocal rest
            while nbytes:
                rest = rest or next(pieces)
                part, rest = rest[:nbytes], rest[nbytes:]
                nbytes -= len(part)
                progress(len(part))
                yield part

        head = b"".join(following(self.header.data_start))
        firsts = self._firsts(alike)
        held: dict[str, bytearray] = {}
        found: dict[str, str] = {}
        for tensor in self.tensors.values():
            name, first = tensor.name, firsts.get(tensor.name)
            if first is None:
                found[name] = _sha256(following(tensor.nbytes))
            elif first == name:
                held[name] = _together(following(tensor.nbytes), tensor.nbytes)
                found[name] = _sha256((held[name],))
            else:
                found[name] = _sha256_beside(following(tensor.nbytes), held[first], found[first])
        for _ in pieces:
            pass  # behind the last byte comes the proof
        if parse_header(head[8:], self.file.size - len(head), self.file.name) != self.header:
            raise two_readings(f"the header of {self.file.name}")
        return found

    def _firsts(self, alike: Iterable[Sequence[str]]) -> dict[str, str]:
        """For each of the tensors that are compared, the one of its group that comes first in the file and is held."""
        firsts: dict[str, str] = {}
        place = {name: number for number, name in enumerate(self.tensors)}
        room = HELD_BYTES
        for group in alike:
            names = sorted(group, key=place.__getitem__)
            nbytes = self.tensors[names[0]].nbytes
            if len(names) > 1 and nbytes <= room:
                room -= nbytes
                firsts.update((name, names[0]) for name in names if self.tensors[name].nbytes == nbytes)
        return firsts

    def ahead(self, parts: Iterable[tuple[str, int, int]]) -> AbstractContextManager[None]:
        """Tell the file which of its ranges come next."""
        if self._held is not None:
            return nullcontext()
        begin = self.header.data_start
        return self.file.ahead((begin + self.tensors[name].start + start, length) for name, start, length in parts)

    def stored_as(self, name: str) -> str:
        """Itself: in a safetensors file no two names share bytes."""
        return name

    def changed(self) -> bool:
        """Whether the file is another one now."""
        return self.file.changed()


def _together(pieces: Iterable[memoryview], length: int) -> bytearray:
    """Pieces in one place, without a moment at which they are in memory twice."""
    found, at = bytearray(length), 0
    for piece in pieces:
        found[at : at + len(piece)] = piece
        at += len(piece)
    return found


def _sha256(pieces: Iterable[memoryview | bytearray]) -> str:
    running = hashlib.sha256()
    for piece in pieces:
        running.update(piece)
    return running.hexdigest()


def _sha256_beside(pieces: Iterable[memoryview], other: bytearray, digest: str) -> str:
    """SHA-256 of bytes that may be the same as others of that length, whose digest is known."""
    at, running = 0, None
    for piece in pieces:
        if running is None and not other.startswith(piece, at):
            running = hashlib.sha256(memoryview(other)[:at])
        if running is not None:
            running.update(piece)
        at += len(piece)
    return digest if running is None else running.hexdigest()
