"""The tensors of a weights file: a safetensors file read in ranges, or a pickle that torch opens safely."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal, Protocol

from adaptertool.checkpoint.bytes import CHUNK, os_error
from adaptertool.checkpoint.header import Header, TensorInfo, read_header
from adaptertool.errors import CorruptError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    import torch

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


class PickleWeights:
    """`adapter_model.bin`, opened by torch with `weights_only=True`, so that no code in it runs."""

    format: Literal["safetensors", "pickle"] = "pickle"
    metadata: Mapping[str, str] | None = None

    def __init__(self, path: Path, file: Bytes) -> None:
        """Open the file, memory-mapped where its format allows.

        Args:
            path: Where it is on disk.
            file: The same file, for its size and for noticing that it changed.

        Raises:
            UnsupportedError: torch is not installed, or the file needs more than tensors to be unpickled.
            CorruptError: it is no such file.
        """
        self.file = file
        if file.size == 0:
            raise CorruptError(f"{path} is empty", code="ADP303", hint="Download or save the weights again.")
        if file.read(0, min(8, file.size)) == b"version ":
            raise CorruptError(
                f"{path} is a git-LFS pointer, not the weights themselves",
                code="ADP303",
                hint="Run `git lfs pull` in that folder.",
            )
        state = _load_pickle(path)
        self._tensors: dict[str, torch.Tensor] = {}
        self.tensors: Mapping[str, TensorInfo] = {}
        infos: dict[str, TensorInfo] = {}
        self._owners: dict[str, str] = {}
        owner_of: dict[tuple[Any, ...], str] = {}
        end = 0
        for name, tensor in state.items():
            dtype = _torch_dtype_names().get(str(tensor.dtype))
            if dtype is None or tensor.layout != _strided():
                raise UnsupportedError(f"tensor {name!r} of {path} is {tensor.dtype}, {tensor.layout}: no dense tensor")
            if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
                raise UnsupportedError(f"tensor {name!r} of {path} repeats its elements: it is a view, not a tensor")
            # Names that share one storage are one tensor on disk; torch.save writes it once.
            identity = (
                tensor.untyped_storage().data_ptr(),
                tensor.storage_offset(),
                tuple(tensor.shape),
                tensor.stride(),
            )
            self._owners[name] = owner_of.setdefault((identity, tensor.dtype), name) if tensor.numel() else name
            self._tensors[name] = tensor
            nbytes = tensor.numel() * tensor.element_size()
            infos[name] = TensorInfo(name, dtype, tuple(tensor.shape), end, nbytes)
            end += nbytes
        if not infos:
            raise CorruptError(f"{path} holds no tensors", code="ADP303", hint="Save the adapter again.")
        self.tensors = infos

    @property
    def file_bytes(self) -> int:
        """The file's length."""
        return self.file.size

    def stream(self, name: str, start: int = 0, length: int | None = None) -> Iterator[memoryview]:
        """The tensor's bytes, in pieces."""
        import torch

        flat = self._tensors[name].detach().contiguous().reshape(-1).view(torch.uint8)
        view = flat.numpy().data.toreadonly()
        stop = len(view) if length is None else start + length
        for begin in range(start, stop, CHUNK):
            yield view[begin : min(begin + CHUNK, stop)]

    def hold(self) -> None:
        """Nothing: they are in memory."""

    def read_again(self, name: str, start: int, length: int) -> bytes:
        """A part of a tensor."""
        return b"".join(bytes(piece) for piece in self.stream(name, start, length))

    def ahead(self, parts: Iterable[tuple[str, int, int]]) -> AbstractContextManager[None]:
        """The file is on disk, and the operating system reads ahead."""
        del parts
        return nullcontext()

    def stored_as(self, name: str) -> str:
        """The first name whose storage this is."""
        return self._owners[name]

    def changed(self) -> bool:
        """Whether the file is another one now."""
        return self.file.changed()


def _load_pickle(path: Path) -> dict[str, torch.Tensor]:
    try:
        import torch
    except ImportError as error:
        raise UnsupportedError(
            f"{path} is a pickle, which only torch can open safely, and torch is not installed",
            hint="pip install 'adaptertool[torch]'",
        ) from error
    try:
        # Files of the format before torch 1.6 are no zip archives and can't be memory-mapped.
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _refuse_compression(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        asked_for = re.search(r"GLOBAL (\S+)", str(error))
        if asked_for is None and "Unsupported operand" in str(error):
            raise _not_saved_by_torch(path) from error
        what = f"asks for {asked_for[1]} to be run" if asked_for else "holds more than tensors"
        raise UnsupportedError(
            f"{path} {what}, and is not unpickled: that could run any code",
            hint="Convert it to safetensors in an environment that you trust.",
        ) from error
    except OSError as error:
        raise os_error(error, path) from error
    except _BROKEN_PICKLE as error:
        raise _not_saved_by_torch(path) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items()
    ):
        raise UnsupportedError(f"{path} is no dictionary of tensors", hint="PEFT writes one; was this saved otherwise?")
    return state


_BROKEN_PICKLE = (
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    struct.error,
    zipfile.BadZipFile,
)
"""What torch's readers raise where the bytes are not what they expect."""


def _not_saved_by_torch(path: Path) -> CorruptError:
    return CorruptError(f"{path} is no file that torch.save wrote", hint="Download or copy the file again.")


def _refuse_compression(path: Path) -> None:
    """torch.save never compresses; an archive that unpacks to more than its size is not unpacked."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise UnsupportedError(
            f"{path} is a compressed archive, which torch.save does not write",
            hint="Convert it to safetensors in an environment that you trust.",
        )


def _torch_dtype_names() -> dict[str, str]:
    return {
        "torch.bool": "BOOL",
        "torch.uint8": "U8",
        "torch.int8": "I8",
        "torch.int16": "I16",
        "torch.int32": "I32",
        "torch.int64": "I64",
        "torch.float16": "F16",
        "torch.bfloat16": "BF16",
        "torch.float32": "F32",
        "torch.float64": "F64",
        "torch.float8_e4m3fn": "F8_E4M3",
        "torch.float8_e5m2": "F8_E5M2",
        "torch.complex64": "C64",
    }


def _strided() -> torch.layout:
    import torch

    return torch.strided
