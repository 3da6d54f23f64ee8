"""Pickled weights, `adapter_model.bin`, which torch opens without running what is in them."""

from __future__ import annotations

import mmap
import pickle
import re
import struct
import sys
import warnings
import zipfile
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal

from adaptertool.checkpoint.bytes import CHUNK, head_of, os_error
from adaptertool.checkpoint.header import TensorInfo
from adaptertool.errors import CorruptError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    import torch

    from adaptertool.checkpoint.bytes import Bytes


_DTYPES: Mapping[str, str] = {
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
"""torch's names of dtypes -> safetensors'."""


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
        head_of(file)
        self._tensors = _load_pickle(path)
        if not self._tensors:
            raise CorruptError(f"{path} holds no tensors", code="ADP303", hint="Save the adapter again.")
        self.tensors: Mapping[str, TensorInfo] = _described(self._tensors, path)
        self._owners = _owners(self._tensors)
        self._mapped_at = _mapped_at(path, self._tensors.values())

    @property
    def file_bytes(self) -> int:
        """The file's length."""
        return self.file.size

    def stream(self, name: str, start: int = 0, length: int | None = None) -> Iterator[memoryview]:
        """The tensor's bytes, in pieces."""
        import torch

        tensor = self._tensors[name]
        if self._mapped_at is not None and tensor.is_contiguous():
            length = self.tensors[name].nbytes - start if length is None else length
            yield from self.file.stream(tensor.data_ptr() - self._mapped_at + start, length)
            return
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        view = flat.numpy().data.toreadonly()
        stop = len(view) if length is None else start + length
        for begin in range(start, stop, CHUNK):
            yield view[begin : min(begin + CHUNK, stop)]

    def hold(self) -> None:
        """Nothing: they are in memory."""

    def read_again(self, name: str, start: int, length: int) -> bytes:
        """A part of a tensor."""
        return b"".join(bytes(piece) for piece in self.stream(name, start, length))

    def digests(self, progress: Callable[[int], None] = lambda _: None, alike: Iterable[Sequence[str]] = ()) -> None:
        """Nobody says what a file on disk should hold."""
        del progress, alike

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


def _described(tensors: Mapping[str, torch.Tensor], path: Path) -> dict[str, TensorInfo]:
    """As a header would describe them, one after the other.

    Raises:
        UnsupportedError: one of them is no tensor that safetensors could hold.
    """
    infos: dict[str, TensorInfo] = {}
    end = 0
    for name, tensor in tensors.items():
        dtype = _DTYPES.get(str(tensor.dtype))
        if dtype is None or str(tensor.layout) != "torch.strided":
            raise UnsupportedError(f"tensor {name!r} of {path} is {tensor.dtype}, {tensor.layout}: no dense tensor")
        nbytes = tensor.numel() * tensor.element_size()
        if nbytes > tensor.untyped_storage().nbytes():
            raise UnsupportedError(f"tensor {name!r} of {path} repeats its elements: it is a view, not a tensor")
        infos[name] = TensorInfo(name, dtype, tuple(tensor.shape), end, nbytes)
        end += nbytes
    return infos


def _owners(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """For each name the first one of the same elements: such names are one tensor on disk, which torch.save writes once."""
    first: dict[tuple[Any, ...], str] = {}
    owners = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr(), tensor.storage_offset()
        same = (*place, tuple(tensor.shape), tensor.stride(), tensor.dtype)
        owners[name] = first.setdefault(same, name) if tensor.numel() else name
    return owners


def _mapped_at(path: Path, tensors: Iterable[torch.Tensor]) -> int | None:
    """The address at which torch has mapped the file, so that its bytes can be read by plain reads instead.

    A read of a file that was truncated is an error; of a map of one, it ends the process with SIGBUS.

    Returns:
        None where the file is not mapped, or where nothing is certain about it.
    """
    sizes = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.nbytes():
            sizes[storage.data_ptr()] = storage.nbytes()
    if not sizes or not zipfile.is_zipfile(path):
        return None
    try:
        entries, order = _entries(path)
    except _BROKEN_PICKLE:  # torch reads archives that are damaged where it does not look
        return None
    if order != sys.byteorder:
        return None  # torch has swapped the bytes in memory
    places = [min(sizes) - offset for offset in entries]
    possible = [
        at
        for at in places
        if at % mmap.PAGESIZE == 0 and all(entries.get(address - at, -1) >= nbytes for address, nbytes in sizes.items())
    ]
    return possible[0] if len(possible) == 1 else None


def _entries(path: Path) -> tuple[dict[int, int], str]:
    """Where the data of each entry of an archive begins and how long it is, and the byte order that it was written in."""
    found, order = {}, ""
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.filename.endswith("/byteorder"):
                order = archive.read(entry).decode(errors="replace")
            file.seek(entry.header_offset + _NAME_LENGTHS)
            name, extra = struct.unpack("<HH", file.read(4))
            found[entry.header_offset + _NAME_LENGTHS + 4 + name + extra] = entry.file_size
    return found, order


_NAME_LENGTHS = 26
"""Where the header before an entry's data says how long the two fields are that follow it."""


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
