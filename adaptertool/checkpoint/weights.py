"""The tensors of a weights file, whichever its format, and a safetensors file read in ranges."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Literal, Protocol

from adaptertool.checkpoint.header import Header, TensorInfo, read_header

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from adaptertool.checkpoint.bytes import Bytes

SAFETENSORS_WEIGHTS = "adapter_model.safetensors"
PICKLE_WEIGHTS = "adapter_model.bin"


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
