"""Stored tensors compared bit for bit with what they should be, and how much of them is compared.

Bits are compared as integers, so that NaN and -0 count as they are. The stored copies are streamed past the bits due, some
megabytes of each at a time; memory does not grow with their number.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from adaptertool.checkpoint.bytes import two_readings
from adaptertool.checkpoint.header import DTYPE_BITS
from adaptertool.projection.dtypes import DTYPE_NAMES, from_bits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from adaptertool.checkpoint.header import TensorInfo
    from adaptertool.checkpoint.weights import Weights

Level = Literal["none", "sample", "full"]

SAMPLE_WHOLE = 1 << 20
"""Bytes up to which a sample compares a tensor on disk as a whole; of a larger one, three windows."""

SAMPLE_WINDOW = 64 << 10
"""Bytes of each window, at the start, the middle and the end of a tensor."""

REMOTE_WINDOW = 16 << 10
"""The same for a tensor that is read over a network, which is compared as a whole up to three of them."""

REMOTE_COPIES = 3
"""How many of the copies of a projection a sample compares over a network: the first, the middle and the last one."""

REMOTE_REQUESTS = 8
"""Ranges that are read over a network at the same time."""

SPAN = 1 << 20
"""Bytes of a tensor on disk that are compared, in all its copies, before the next ones are: what is due stays in the cache."""

REMOTE_SPAN = 8 << 20
"""The same for a tensor that is read over a network, where each range is a request."""

THREADS = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
"""Threads that compare: reading and comparing go on outside of Python's lock, and memory is faster than one of them."""


@dataclass(frozen=True)
class Difference:
    """The first element in which a stored tensor is not what it should be.

    Attributes:
        tensor: Its name.
        index: Where in the tensor.
        stored: The value in the file; its bits in hexadecimal where the dtype is none that projections have.
        due: The value that it should have.
        among: How many of the elements that were compared with it differ; the comparison stops soon after the first.
    """

    tensor: str
    index: tuple[int, ...]
    stored: float | str
    due: float | str
    among: int

    def __str__(self) -> str:
        """Tensor, element and both values."""
        where = ", ".join(str(number) for number in self.index)
        return f"{self.tensor} differs first at element [{where}]: {self.stored} is stored, {self.due} is due"


class Reference(Protocol):
    """The bits that a tensor should have."""

    def bits(self, start: int, stop: int) -> NDArray[Any]:
        """Those of the elements from `start` to before `stop`, as unsigned integers."""


@dataclass(frozen=True)
class Comparison:
    """How stored tensors are compared.

    Attributes:
        weights: The file that holds them.
        level: How much is compared.
        progress: Told how many bytes of the file were compared since the last call.
        remote: Whether each range that is read is a request over a network.
        whole: SHA-256 of each tensor, of one reading of the whole file that its digest proves. Then theirs are compared, and
            only what differs is read once more.
    """

    weights: Weights
    level: Level
    progress: Callable[[int], None] = lambda _: None
    remote: bool = False
    whole: Mapping[str, str] | None = None
    _samples: dict[tuple[str, int, int], bytes] = field(default_factory=dict)
    _confirmed: set[tuple[str, int]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def extents(self, tensor: str) -> list[tuple[int, int]]:
        """The elements to compare, as half-open ranges; bytes, where an element is less than one."""
        info = self.weights.tensors[tensor]
        size = self._size(tensor)
        count = info.nbytes // size
        whole, window = (3 * REMOTE_WINDOW, REMOTE_WINDOW) if self.remote else (SAMPLE_WHOLE, SAMPLE_WINDOW)
        if self.level == "full" or info.nbytes <= whole:
            return [(0, count)]
        window //= size
        middle = (count - window) // 2
        return [(begin, begin + window) for begin in (0, middle, count - window)]

    def _size(self, tensor: str) -> int:
        """Bytes of an element, as elements are compared."""
        return np.dtype(_bit_type(self.weights.tensors[tensor].dtype)).itemsize

    def bytes_of(self, tensor: str) -> int:
        """How many bytes of a tensor are compared."""
        return self._size(tensor) * sum(stop - start for start, stop in self.extents(tensor))

    def chosen(self, copies: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the copies that are compared."""
        if self.level == "full" or not self.remote or len(copies) <= REMOTE_COPIES:
            return copies
        return copies[0], copies[len(copies) // 2], copies[-1]

    def prefetch(self, tensors: Iterable[str]) -> None:
        """Read what a sample compares of these tensors, many ranges at a time."""
        if self.level == "full" or not self.remote:
            return
        ranges = []
        for tensor in tensors:
            size = self._size(tensor)
            ranges += [(tensor, start * size, (stop - start) * size) for start, stop in self.extents(tensor)]
        with ThreadPoolExecutor(REMOTE_REQUESTS) as pool:
            for _ in pool.map(lambda one: self._pieces(*one), ranges):
                pass

    def _pieces(self, tensor: str, start: int, length: int) -> Iterable[memoryview]:
        """A range of a stored tensor; what a sample reads over a network is kept, since it is compared many times."""
        if self.level == "full" or not self.remote:
            return self.weights.stream(tensor, start, length)
        key = tensor, start, length
        if key not in self._samples:
            self._samples[key] = b"".join(bytes(piece) for piece in self.weights.stream(tensor, start, length))
        return (memoryview(self._samples[key]),)

    def bits(self, tensor: str, start: int, stop: int) -> NDArray[Any]:
        """Elements of a stored tensor, as unsigned integers."""
        kind = np.dtype(_bit_type(self.weights.tensors[tensor].dtype))
        buffer = np.empty((stop - start) * kind.itemsize, dtype=np.uint8)
        at = 0
        for piece in self._pieces(tensor, start * kind.itemsize, buffer.size):
            buffer[at : at + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
            at += len(piece)
        return buffer.view(kind)

    def spans(self, tensor: str) -> Iterator[tuple[int, int]]:
        """The elements to compare, in ranges that are compared at the same time where that is faster."""
        if self.weights.format == "pickle":
            yield from self.extents(tensor)
            return
        step = (REMOTE_SPAN if self.remote else SPAN) // self._size(tensor)
        for start, stop in self.extents(tensor):
            yield from ((begin, min(begin + step, stop)) for begin in range(start, stop, step))

    def first_difference(self, tensors: Sequence[str], reference: Reference, digest: Any = None) -> Difference | None:
        """Compare stored tensors with the bits that they all should have.

        All tensors are compared in one range before the next one is looked at, so that the bits due are in the processor's
        cache, and in memory no longer than that.

        Args:
            tensors: Their names; all of one dtype and shape.
            reference: The bits due.
            digest: A hashlib object that takes in the bits due, in order.

        Returns:
            The first difference found; None where there is none.
        """
        spans = list(self.spans(tensors[0])) if tensors else []
        for difference, due in self._compared(tensors, reference, spans):
            if difference is not None:
                return difference
            if digest is not None:
                digest.update(due.view(np.uint8).data)
        return None

    def known_difference(self, tensor: str, reference: Reference) -> Difference:
        """The first difference of a tensor whose digest says that there is one.

        Raises:
            CorruptError: there is none.
        """
        difference = self.first_difference([tensor], reference)
        if difference is None:
            raise two_readings(tensor)
        return difference

    def _compared(
        self, tensors: Sequence[str], reference: Reference, spans: list[tuple[int, int]]
    ) -> Iterator[tuple[Difference | None, NDArray[Any]]]:
        """The outcome for each span, in order, and the bits due in it."""

        def compare(span: tuple[int, int]) -> tuple[Difference | None, NDArray[Any]]:
            due = reference.bits(*span)
            differences = (self._difference(tensor, span[0], due) for tensor in tensors)
            return next((one for one in differences if one is not None), None), due

        if self.remote:
            # The network is slower than one thread; what it is waited for is fetched ahead.
            size = self._size(tensors[0]) if tensors else 1
            parts = [(tensor, start * size, (stop - start) * size) for start, stop in spans for tensor in tensors]
            with self.weights.ahead(parts) if self.level == "full" else nullcontext():
                yield from map(compare, spans)
            return
        if THREADS == 1 or len(spans) == 1:
            yield from map(compare, spans)
            return
        pool = ThreadPoolExecutor(THREADS)
        waiting: deque[Future[tuple[Difference | None, NDArray[Any]]]] = deque()
        try:
            for span in spans:
                waiting.append(pool.submit(compare, span))
                if len(waiting) > THREADS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _difference(self, tensor: str, start: int, due: NDArray[Any]) -> Difference | None:
        due_bytes = due.view(np.uint8)
        at = 0
        for piece in self._pieces(tensor, start * due.itemsize, due_bytes.size):
            stored = np.frombuffer(piece, dtype=np.uint8)
            expected = due_bytes[at : at + stored.size]
            if not _same(stored, expected):
                self._confirm(tensor, start * due.itemsize + at, bytes(piece))
                info = self.weights.tensors[tensor]
                wrong = np.flatnonzero(stored != expected)
                elements = np.unique((wrong + at) // due.itemsize)
                first = int(elements[0])
                begin = first * due.itemsize - at
                element = bytes(stored[max(begin, 0) : begin + due.itemsize])
                if len(element) < due.itemsize:  # it lies across two pieces
                    parts = self.weights.stream(tensor, (start + first) * due.itemsize, due.itemsize)
                    element = b"".join(bytes(part) for part in parts)
                return Difference(
                    tensor,
                    _position(start + first, info),
                    _value(np.frombuffer(element, dtype=due.dtype), info.dtype),
                    _value(due[first : first + 1], info.dtype),
                    elements.size,
                )
            at += stored.size
            with self._lock:
                self.progress(stored.size)
        return None

    def _confirm(self, tensor: str, start: int, piece: bytes) -> None:
        """Read a piece that differs a second time, once: what was damaged on its way is no difference.

        Raises:
            CorruptError: it is another one now.
        """
        if (tensor, start) in self._confirmed:
            return
        if self.weights.read_again(tensor, start, len(piece)) != piece:
            raise two_readings(f"{tensor}, {start} bytes from its start,")
        self._confirmed.add((tensor, start))


@dataclass(frozen=True)
class StoredReference:
    """Bits that another tensor of the file has."""

    comparison: Comparison
    tensor: str

    def bits(self, start: int, stop: int) -> NDArray[Any]:
        """Read."""
        return self.comparison.bits(self.tensor, start, stop)


def _same(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """Whether bytes are equal; eight at a time, since the outcome for each is written to memory before it is looked at."""
    if one.size % 8:
        whole = one.size - one.size % 8
        return _same(one[:whole], other[:whole]) and np.array_equal(one[whole:], other[whole:])
    return bool((one.view(np.uint64) == other.view(np.uint64)).all())


def _bit_type(dtype: str) -> type[np.unsignedinteger[Any]]:
    """The unsigned integer of an element's width; a byte where it is narrower."""
    return {16: np.uint16, 32: np.uint32, 64: np.uint64}.get(DTYPE_BITS[dtype], np.uint8)


def _value(bits: NDArray[Any], dtype: str) -> float | str:
    """One element as people read it."""
    return float(from_bits(bits, DTYPE_NAMES[dtype])[0]) if dtype in DTYPE_NAMES else hex(int(bits[0]))


def _position(index: int, info: TensorInfo) -> tuple[int, ...]:
    """Where in a tensor an element is; numpy can count only 64 dimensions."""
    if DTYPE_BITS[info.dtype] < 8:
        return (index,)
    position: list[int] = []
    for dim in reversed(info.shape):
        index, along = divmod(index, dim)
        position.append(along)
    return tuple(reversed(position))
