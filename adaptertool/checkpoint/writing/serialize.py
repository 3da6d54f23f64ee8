"""A safetensors file written tensor by tensor, then read back and compared with what it was made from."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptertool.checkpoint.bytes import LocalBytes, os_error, two_readings
from adaptertool.checkpoint.header import DTYPE_BITS, read_header
from adaptertool.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from adaptertool.checkpoint.weights import Weights


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written.

    Attributes:
        name: Its name.
        dtype: The format's name of its dtype.
        shape: Elements along each dimension.
        nbytes: Its length.
        stream: Gives its bytes in pieces, afresh at each call.
        source: The file that it is taken from as it is; None for a tensor that is made.
        sha256: What its bytes must have; where that is None, they are streamed a second time to be compared.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    stream: Callable[[], Iterable[memoryview]]
    source: Weights | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class NewWeights:
    """A weights file to be written.

    Attributes:
        tensors: In the order of their data; wider dtypes first, as safetensors orders them, so that all are aligned.
        metadata: The file's `__metadata__`.
    """

    tensors: tuple[NewTensor, ...]
    metadata: Mapping[str, str] | None

    def header(self) -> bytes:
        """Length and JSON of the header, padded so that the data begins at a multiple of eight bytes."""
        document: dict[str, object] = {} if self.metadata is None else {"__metadata__": dict(self.metadata)}
        end = 0
        for tensor in self.tensors:
            offsets = [end, end + tensor.nbytes]
            document[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
            end += tensor.nbytes
        text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    @property
    def file_bytes(self) -> int:
        """How long the file will be."""
        return len(self.header()) + sum(tensor.nbytes for tensor in self.tensors)


@contextlib.contextmanager
def _streamed(tensors: Iterable[NewTensor]) -> Iterator[None]:
    """Within the block these tensors are streamed in their order, which a source far away is told."""
    sources: dict[int, tuple[Weights, list[tuple[str, int, int]]]] = {}
    for tensor in tensors:
        if tensor.source is not None:
            _, parts = sources.setdefault(id(tensor.source), (tensor.source, []))
            parts.append((tensor.name, 0, tensor.nbytes))
    with contextlib.ExitStack() as stack:
        for source, parts in sources.values():
            stack.enter_context(source.ahead(parts))
        yield


def kept(weights: Weights, names: Iterable[str]) -> list[NewTensor]:
    """Tensors of an existing file, to be written again as they are.

    Where a digest is known for that file, it is read as a whole now, if it was not yet: what is written must be what the
    digest proves.

    Raises:
        CorruptError: the file has another digest.
    """
    digests = weights.digests() or {}

    def stream_of(name: str) -> Callable[[], Iterator[memoryview]]:
        return lambda: weights.stream(name)

    return [
        NewTensor(info.name, info.dtype, info.shape, info.nbytes, stream_of(info.name), weights, digests.get(info.name))
        for info in (weights.tensors[name] for name in names)
    ]


def in_order(tensors: Iterable[NewTensor]) -> tuple[NewTensor, ...]:
    """Wider dtypes first; tensors of one width stay in their order."""
    return tuple(sorted(tensors, key=lambda tensor: -DTYPE_BITS[tensor.dtype]))


def joined(there: Iterable[NewTensor], more: Iterable[NewTensor]) -> tuple[NewTensor, ...]:
    """A file's tensors and others: all as safetensors' own writer puts them where the file's are so, else the others last.

    That is by dtype, in the order of `Dtype` in safetensors' `tensor.rs` from its end, and by name (read and run at 0.8.0).
    """
    dtypes = [*DTYPE_BITS]

    def place(tensor: NewTensor) -> tuple[int, str]:
        return -dtypes.index(tensor.dtype), tensor.name

    held, others = [*there], [*more]
    if held == sorted(held, key=place):
        return tuple(sorted([*held, *others], key=place))
    return in_order([*held, *others])


def private(path: str, flags: int) -> int:
    """Open a new file that nobody else can read until it gets the mode of what it replaces."""
    return os.open(path, flags, 0o600)


def write_weights(weights: NewWeights, path: Path, progress: Callable[[int], None] = lambda _: None) -> None:
    """Write a new file, flush it to disk, read it back and compare.

    Args:
        weights: What it shall hold.
        path: A file that does not exist yet.
        progress: Told how many bytes were written since the last call.

    Raises:
        NoSpaceError, PermissionDeniedError: as the operating system says.
        CorruptError: what was read back is not what was written, or the source changed in between.
    """
    try:
        with open(path, "xb", opener=private) as file, _streamed(weights.tensors):
            file.write(weights.header())
            for tensor in weights.tensors:
                written, running = 0, hashlib.sha256()
                for piece in tensor.stream():
                    file.write(piece)
                    written += len(piece)
                    if tensor.sha256 is not None:
                        running.update(piece)
                    progress(len(piece))
                if tensor.sha256 not in (None, running.hexdigest()):
                    raise two_readings(tensor.name)
                if written != tensor.nbytes:
                    raise CorruptError(f"{tensor.name} has {written} bytes where its header says {tensor.nbytes}")
            file.flush()
            os.fsync(file.fileno())
            # What is compared next should come from the disk, not from the pages that were just written.
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        raise os_error(error, path.parent, "write to") from error
    _compare(weights, path)


def _compare(weights: NewWeights, path: Path) -> None:
    file = LocalBytes(path)
    with contextlib.closing(file), _streamed(tensor for tensor in weights.tensors if tensor.sha256 is None):
        header = read_header(file)
        if header.metadata != weights.metadata or list(header.tensors) != [one.name for one in weights.tensors]:
            raise CorruptError(f"{path} reads back with another header than was written")
        for tensor in weights.tensors:
            if not _reads_back(tensor, file, header.data_start + header.tensors[tensor.name].start):
                raise CorruptError(
                    f"{path} reads back differently from its source at {tensor.name}",
                    hint="The source changed while it was read, or the disk is failing. Nothing was changed.",
                )


def _reads_back(tensor: NewTensor, file: LocalBytes, start: int) -> bool:
    """Whether a tensor stands in a file as it should, from that byte on."""
    if tensor.sha256 is not None:
        running = hashlib.sha256()
        for piece in file.stream(start, tensor.nbytes):
            running.update(piece)
        return running.hexdigest() == tensor.sha256
    for piece in tensor.stream():
        if file.read(start, len(piece)) != piece:
            return False
        start += len(piece)
    return True
