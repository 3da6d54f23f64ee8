"""Are the stored projections what a known recipe draws? Compared bit for bit, one drawn basis in memory at a time.

Bits are compared as integers, so that NaN and -0 count as they are. The stored copies are streamed past the drawn one, some
megabytes of each at a time; memory does not grow with their number.
"""

from __future__ import annotations

import hashlib
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
from adaptertool.projection.drawn import Drawn, load_dtypes, stored_bits
from adaptertool.projection.dtypes import DTYPE_NAMES, FLOATS, from_bits
from adaptertool.projection.generation import Generation
from adaptertool.projection.recipe import Recipe, conditions, draws, recipe_for, why_not

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from adaptertool.checkpoint.header import TensorInfo
    from adaptertool.checkpoint.weights import Weights
    from adaptertool.projection.basis import Basis
    from adaptertool.projection.loader import Loader
    from adaptertool.projection.stored import Stored

Level = Literal["none", "sample", "full"]
Verdict = Literal["regenerable", "regenerable-elsewhere", "not-regenerable", "copies-differ", "unverified", "absent"]
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


@dataclass(frozen=True)
class Verification:
    """What was found out about stored projections.

    Attributes:
        level: How much was compared.
        verdict: The answer.
        recipe: What draws these bits, where something does.
        loads_with: The conditions under which PEFT draws them again, a sentence each.
        reason: Why the verdict is not `regenerable`, in a sentence.
        digests: SHA-256 of each kind's canonical tensor; only after a full comparison.
    """

    level: Level
    verdict: Verdict
    recipe: Recipe | None = None
    loads_with: tuple[str, ...] = ()
    reason: str | None = None
    digests: Mapping[str, str] = field(default_factory=dict)


class Reference(Protocol):
    """The bits that a tensor should have."""

    def bits(self, start: int, stop: int) -> NDArray[Any]:
        """Those of the elements from `start` to before `stop`, as unsigned integers."""


@dataclass(frozen=True)
class DrawnReference:
    """Bits that were drawn."""

    drawn: Drawn
    casts: tuple[str, ...]

    def bits(self, start: int, stop: int) -> NDArray[Any]:
        """Drawn, and cast."""
        return stored_bits(self.drawn, self.casts, start, stop)


@dataclass(frozen=True)
class StoredReference:
    """Bits that another tensor of the file has."""

    comparison: Comparison
    tensor: str

    def bits(self, start: int, stop: int) -> NDArray[Any]:
        """Read."""
        return self.comparison.bits(self.tensor, start, stop)


@dataclass(frozen=True)
class _Match:
    """A generation and a chain of casts that give the canonical tensors."""

    generation: Generation
    casts: tuple[str, ...]
    references: Mapping[str, DrawnReference]
    digests: Mapping[str, str]


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
        size = np.dtype(bit_type(info.dtype)).itemsize
        count = info.nbytes // size
        whole, window = (3 * REMOTE_WINDOW, REMOTE_WINDOW) if self.remote else (SAMPLE_WHOLE, SAMPLE_WINDOW)
        if self.level == "full" or info.nbytes <= whole:
            return [(0, count)]
        window //= size
        middle = (count - window) // 2
        return [(begin, begin + window) for begin in (0, middle, count - window)]

    def bytes_of(self, tensor: str) -> int:
        """How many bytes of a tensor are compared."""
        info = self.weights.tensors[tensor]
        size = np.dtype(bit_type(info.dtype)).itemsize
        return size * sum(stop - start for start, stop in self.extents(tensor))

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
            info = self.weights.tensors[tensor]
            size = np.dtype(bit_type(info.dtype)).itemsize
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
        kind = np.dtype(bit_type(self.weights.tensors[tensor].dtype))
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
        step = (REMOTE_SPAN if self.remote else SPAN) // np.dtype(bit_type(self.weights.tensors[tensor].dtype)).itemsize
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
            size = np.dtype(bit_type(self.weights.tensors[tensors[0]].dtype)).itemsize if tensors else 1
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


def _same(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """Whether bytes are equal; eight at a time, since the outcome for each is written to memory before it is looked at."""
    if one.size % 8:
        whole = one.size - one.size % 8
        return _same(one[:whole], other[:whole]) and np.array_equal(one[whole:], other[whole:])
    return bool((one.view(np.uint64) == other.view(np.uint64)).all())


def bit_type(dtype: str) -> type[np.unsignedinteger[Any]]:
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


def verify(comparison: Comparison, stored: Sequence[Stored], basis: Basis, loader: Loader) -> Verification:
    """Compare stored projections with what the known recipes draw.

    Args:
        comparison: The file, and how much of it to compare.
        stored: Its projections, by kind, in dtypes of `DTYPE_NAMES`.
        basis: What the config says to draw, in the shapes that the file has.
        loader: The torch that will load the adapter.
    """
    level = comparison.level
    comparison.prefetch(name for one in stored for name in (one.canonical, *comparison.chosen(one.copies)))
    match, nearest = _identify(comparison, stored, basis, loader)
    if match is None:
        difference = differing_copy(comparison, stored)
        if difference is not None:
            return Verification(level, "copies-differ", reason=difference)
        return Verification(level, "not-regenerable", reason=f"no known recipe draws them; {nearest}")
    recipe = recipe_for(basis, match.generation, match.casts)
    difference = differing_copy(comparison, stored, match.references)
    if difference is not None:
        return Verification(level, "copies-differ", recipe, reason=difference)
    drawn = [reference.drawn for reference in match.references.values()]
    cast = any(kind not in basis.fixed for kind in basis.shapes) and match.generation.dtype in FLOATS
    loads_with = (*conditions(recipe, load_dtypes(drawn, match.casts) if cast else None), *basis.requires)
    if draws(loader, recipe.generation):
        return Verification(level, "regenerable", recipe, loads_with, digests=match.digests)
    reason = why_not(loader, recipe.generation)
    return Verification(level, "regenerable-elsewhere", recipe, loads_with, reason, match.digests)


def differing_copy(
    comparison: Comparison, stored: Sequence[Stored], drawn: Mapping[str, Reference] | None = None
) -> str | None:
    """Compare every copy with its canonical tensor.

    Args:
        comparison: The file, and how much of it to compare.
        stored: Its projections, by kind.
        drawn: Bits that are known to be those of the canonical tensors, so that they are not read again.

    Returns:
        The first difference, in words; None where the copies are all the same.
    """
    weights = comparison.weights
    for one in stored:
        canonical = weights.tensors[one.canonical]
        for copy in one.copies:
            info = weights.tensors[copy]
            if (info.dtype, info.shape) != (canonical.dtype, canonical.shape):
                return f"{copy} is {info.dtype} {info.shape}, {one.canonical} {canonical.dtype} {canonical.shape}"
        reference = (drawn or {}).get(one.kind) or StoredReference(comparison, one.canonical)
        if comparison.whole is not None:
            due = comparison.whole[one.canonical]
            wrong = next((copy for copy in one.copies if comparison.whole[copy] != due), None)
            difference = comparison.known_difference(wrong, reference) if wrong is not None else None
        else:
            same = weights.stored_as(one.canonical)
            copies = [copy for copy in comparison.chosen(one.copies) if weights.stored_as(copy) != same]
            difference = comparison.first_difference(copies, reference)
        if difference is not None:
            return str(difference)
    return None


def _identify(
    comparison: Comparison, stored: Sequence[Stored], basis: Basis, loader: Loader
) -> tuple[_Match | None, Difference | None]:
    """Find the generation and the casts that give the canonical tensors; else the nearest miss."""
    canonical = {one.kind: one.canonical for one in stored}
    dtypes = {one.kind: DTYPE_NAMES[comparison.weights.tensors[one.canonical].dtype] for one in stored}
    cast = [dtype for kind, dtype in dtypes.items() if kind not in basis.fixed]
    nearest: tuple[int, int, Difference] | None = None
    for generation in in_order(basis, loader):
        drawn = drawing(comparison, stored, basis, generation, loader)
        chains = basis.chains(generation, cast[0] if cast else generation.dtype)
        references: dict[str, DrawnReference] = {}
        digests: dict[str, str] = {}
        for position, (kind, projection) in enumerate(drawn):
            fitting = []
            for casts in chains:
                reference = DrawnReference(projection, casts)
                miss, digest = _first_miss(comparison, canonical[kind], reference)
                if miss is not None:
                    # The farther a drawing gets before it differs, and the less it differs then, the nearer it is.
                    if nearest is None or (-position, miss.among) < nearest[:2]:
                        nearest = -position, miss.among, miss
                    continue
                fitting.append(casts)
                if kind not in references:
                    references[kind] = reference
                    digests.update({kind: digest} if digest else {})
                if position == len(basis.shapes) - 1:
                    break
            chains = fitting
            if not chains:
                break
        if chains:
            # Each kind's digest is of the first chain that fitted it, which gives the bits of the others that fit.
            final = {kind: DrawnReference(one.drawn, chains[0]) for kind, one in references.items()}
            return _Match(generation, chains[0], final, digests), None
    return None, nearest[2] if nearest else None


def drawing(
    comparison: Comparison, stored: Sequence[Stored], basis: Basis, generation: Generation, loader: Loader
) -> Iterator[tuple[str, Drawn]]:
    """Draw what is compared."""
    own = loader.installed and draws(loader, generation)
    # A sample is content with the rules of the known samplers.
    if own and (comparison.level == "full" or generation.sampler is None):
        return basis.draw_with_torch(generation.dtype)
    if comparison.level == "full":
        return basis.draw(generation)
    return basis.draw_ranges(generation, {one.kind: comparison.extents(one.canonical) for one in stored})


def _first_miss(comparison: Comparison, tensor: str, reference: DrawnReference) -> tuple[Difference | None, str | None]:
    """The first difference of a tensor from the bits due, or None; and their SHA-256, after a full comparison."""
    if comparison.level != "full":
        return comparison.first_difference([tensor], reference), None
    due = hashlib.sha256()
    if comparison.whole is None:
        return comparison.first_difference([tensor], reference, due), due.hexdigest()
    for start, stop in comparison.spans(tensor):
        due.update(reference.bits(start, stop).view(np.uint8).data)
    if due.hexdigest() == comparison.whole[tensor]:
        return None, due.hexdigest()
    return comparison.known_difference(tensor, reference), None


def in_order(basis: Basis, loader: Loader) -> list[Generation]:
    """Every way of drawing it, the loader's own first."""
    known = sorted(basis.generations, key=lambda generation: not draws(loader, generation))
    if loader.installed and not draws(loader, known[0]):
        return [Generation(loader.sampler, None, loader.dtype), *known]
    return known
