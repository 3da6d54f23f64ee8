"""The header of a safetensors file, held against the rules of the format.

The rules are those of safetensors' own parser (`safetensors/src/tensor.rs`, read at 0.8.0): eight bytes of little-endian
length, a JSON object, then data that the tensors' offsets tile exactly. What that parser rejects is rejected here. Three
things that it lets pass are rejected as well: a name that occurs twice, of which it silently takes one, nested values in
fields that the format does not know, and white space before the opening brace, which the format's documentation forbids.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from adaptertool.checkpoint.bytes import head_of
from adaptertool.errors import CorruptError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.checkpoint.bytes import Bytes

MAX_HEADER_BYTES = 100_000_000
"""safetensors' own cap."""

DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Bits of one element, for every dtype of the format, in the order that the format's own code has them in."""

TORCH_DTYPES: Mapping[str, str] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "I64": "int64",
}
"""The names that torch and people use for the dtypes that random tensors have."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as a header describes it.

    Attributes:
        name: As stored.
        dtype: The format's name, such as `BF16`.
        shape: Elements along each dimension.
        start: First byte, counted from the beginning of the data.
        nbytes: Length in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """A valid header.

    Attributes:
        tensors: By name, in the order of their data.
        metadata: The `__metadata__` of the file; None where it has none.
        data_start: Where the data begins in the file, in bytes.
    """

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] | None
    data_start: int


def read_header(file: Bytes) -> Header:
    """Read and validate the header; the data is not touched.

    Raises:
        CorruptError: a rule of the format is broken. ADP303 where the file is empty, a git-LFS pointer, or holds no tensors.
    """
    head = head_of(file)
    if len(head) < 8:
        raise CorruptError(f"{file.name} is too short for a safetensors header ({file.size} bytes)", hint=_AGAIN)
    length = int.from_bytes(head, "little")
    if length > MAX_HEADER_BYTES:
        raise CorruptError(
            f"{file.name} is no safetensors file: its header would be {length} bytes long, beyond the format's cap of "
            f"{MAX_HEADER_BYTES}",
            hint=_AGAIN,
        )
    if 8 + length > file.size:
        raise CorruptError(
            f"{file.name} is truncated: its header is {length} bytes long, and the file has {file.size}", hint=_AGAIN
        )
    header = parse_header(file.read(8, length), file.size - 8 - length, file.name)
    if not header.tensors:
        raise CorruptError(
            f"{file.name} holds no tensors",
            code="ADP303",
            hint="Save it again; of an X-LoRA adapter `adaptertool explain ADP303` says how.",
        )
    return header


_AGAIN = "Download or copy the file again."


def parse_header(text: bytes, data_bytes: int, name: str) -> Header:
    """Validate a header that was read already.

    Args:
        text: The JSON, padding included.
        data_bytes: How many bytes of data follow it in the file.
        name: How messages name the file.

    Raises:
        CorruptError: a rule of the format is broken.
    """

    def broken(reason: str) -> NoReturn:
        raise CorruptError(f"the header of {name} is broken: {reason}", hint=_AGAIN)

    if text[:1] != b"{":
        broken("it does not begin with {")
    try:
        # Surrogates that JSON escapes can spell have no place in UTF-8, and safetensors rejects them.
        document = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_reject_constant,
        )
    except RecursionError:
        broken("it is nested too deeply")
    except ValueError as error:
        broken(f"it is no valid JSON ({error})")
    metadata = document.pop("__metadata__", None)
    if metadata is not None:
        if not isinstance(metadata, dict):
            broken("__metadata__ is no object")
        for key, value in metadata.items():
            if not isinstance(value, str):
                broken(f"__metadata__ maps {_quoted(key)} to something that is no string")
    tensors = [_tensor(key, entry, broken) for key, entry in document.items()]
    # Zero-sized tensors share their start with the next one, so the end decides second.
    tensors.sort(key=lambda tensor: (tensor.start, tensor.nbytes))
    end = 0
    for tensor in tensors:
        if tensor.start != end:
            broken(f"the data of {_quoted(tensor.name)} begins at byte {tensor.start} where {end} is due")
        end += tensor.nbytes
    if end != data_bytes:
        fault = "truncated" if end > data_bytes else "followed by bytes that belong to no tensor"
        raise CorruptError(
            f"{name} is {fault}: the header describes {end} bytes of data, and {data_bytes} follow it", hint=_AGAIN
        )
    return Header({tensor.name: tensor for tensor in tensors}, metadata, 8 + len(text))


def _tensor(name: str, entry: Any, broken: Any) -> TensorInfo:
    if not isinstance(entry, dict):
        broken(f"the entry of {_quoted(name)} is no object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str):
        broken(f"{_quoted(name)} has no dtype")
    if dtype not in DTYPE_BITS:
        raise UnsupportedError(
            f"tensor {_quoted(name)} has dtype {_quoted(dtype)}, which this version does not know",
            hint="A newer version may know it. Otherwise download or copy the file again.",
        )
    if not isinstance(shape, list) or not all(type(dim) is int and dim < 2**64 for dim in shape):
        broken(f"the shape of {_quoted(name)} is no list of whole numbers")
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(offset) is int and offset < 2**64 for offset in offsets)
    ):
        broken(f"the data_offsets of {_quoted(name)} are no pair of whole numbers")
    if len(entry) > 3 and any(
        isinstance(value, (dict, list)) for key, value in entry.items() if key not in ("shape", "data_offsets")
    ):
        broken(f"the entry of {_quoted(name)} holds a field that the format does not know")
    start, end = offsets
    # The product is checked dimension by dimension, as safetensors does in 64 bits: a zero does not excuse an overflow
    # before it.
    numel = 1
    for dim in shape:
        numel *= dim
        if numel >= 2**64:
            broken(f"the shape of {_quoted(name)} overflows")
    bits = numel * DTYPE_BITS[dtype]
    if bits >= 2**64:
        broken(f"the shape of {_quoted(name)} overflows")
    if bits % 8:
        broken(f"{_quoted(name)} does not end on a whole byte")
    if end < start or end - start != bits // 8:
        broken(
            f"{_quoted(name)} has shape {_cut(str(shape))} and dtype {dtype}, so {bits // 8} bytes, and its data_offsets span "
            f"{end - start}"
        )
    return TensorInfo(name, dtype, tuple(shape), start, end - start)


def _quoted(text: str) -> str:
    return repr(_cut(text))


def _cut(text: str) -> str:
    """What a message shows of something that may be as long as the header."""
    return text if len(text) <= 120 else f"{text[:80]}...{text[-20:]}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"{_quoted(twice)} occurs twice")
    for key, value in pairs:
        key.encode("utf-8")
        if isinstance(value, str):
            value.encode("utf-8")
    return result


def _integer(digits: str) -> int | float:
    # "-0" is a float to safetensors' JSON parser; a negative number is no offset. Both end in "no whole number".
    return float(digits) if digits.startswith("-") or len(digits) > 20 else int(digits)


def _number(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"number {_cut(digits)} is out of range")
    return value


def _reject_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")
