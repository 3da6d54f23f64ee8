"""The header reader never accepts what safetensors' own parser rejects, and accepts every file that safetensors writes."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adaptertool.checkpoint.bytes import LocalBytes
from adaptertool.checkpoint.header import DTYPE_BITS, Header, read_header
from adaptertool.errors import AdapterToolError

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(0, 4), max_size=3)


def read(content: bytes) -> Header:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        path.write_bytes(content)
        file = LocalBytes(path)
        try:
            return read_header(file)
        finally:
            file.close()


def accepted(content: bytes) -> bool:
    """Whether the reader takes it; anything but an error of ours is a failure of the test."""
    try:
        read(content)
    except AdapterToolError:
        return False
    return True


def oracle(content: bytes) -> list[tuple[str, dict[str, Any]]] | None:
    try:
        return list(safetensors.deserialize(content))  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError:
        return None


def file_of(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@st.composite
def written_files(draw: st.DrawFn) -> bytes:
    """What safetensors writes."""
    tensors = {}
    for name in draw(st.lists(NAMES, min_size=1, max_size=5, unique=True)):
        dtype, shape = draw(st.sampled_from(DTYPES)), draw(SHAPES)
        count = dtype.itemsize * math.prod(shape)
        data = draw(st.binary(min_size=count, max_size=count))
        tensors[name] = torch.tensor(list(data), dtype=torch.uint8).view(dtype).reshape(shape)
    metadata = draw(st.none() | st.dictionaries(NAMES, st.text(st.characters(exclude_categories=["Cs"]), max_size=8)))
    return safetensors.torch.save(tensors, metadata)


@given(written_files())
def test_what_safetensors_writes_is_read_as_safetensors_reads_it(content: bytes) -> None:
    header = read(content)
    due = dict(oracle(content) or [])
    assert header.tensors.keys() == due.keys()
    for name, tensor in header.tensors.items():
        start = header.data_start + tensor.start
        assert list(tensor.shape) == due[name]["shape"]
        assert tensor.dtype == due[name]["dtype"]
        assert content[start : start + tensor.nbytes] == bytes(due[name]["data"])


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**64 + 1) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
NUMBERS = st.integers(0, 24) | st.sampled_from([-1, 2**31, 2**32, 2**63, 2**64 - 1, 2**64, 0.0, 1.0, True, None, "1"])
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPE_BITS, "f32", "", None, 1]) | JSON_VALUES,
        "shape": st.lists(NUMBERS, max_size=3) | JSON_VALUES,
        "data_offsets": st.tuples(NUMBERS, NUMBERS) | st.lists(NUMBERS, max_size=3) | JSON_VALUES,
    },
    optional={"extra": JSON_VALUES},
)
HEADERS = st.dictionaries(
    st.sampled_from(["a", "b", "c", "__metadata__"]), ENTRIES | JSON_VALUES | st.dictionaries(NAMES, NAMES), max_size=4
)


@settings(max_examples=600)
@given(HEADERS, st.binary(max_size=24))
@example({"a": entry()}, bytes(8))
@example({"a": entry(shape=[2**32, 2**32], offsets=[0, 0])}, b"")
@example({"a": entry(shape=[2**63, 2, 0], offsets=[0, 0])}, b"")
@example({"a": entry(dtype="F4", shape=[3], offsets=[0, 1])}, b"\0")
@example({"a": entry(offsets=[8, 0])}, b"")
@example({"a": entry(), "b": entry(offsets=[8, 16])}, bytes(17))
@example({"a": entry(), "b": entry(offsets=[0, 8])}, bytes(8))
@example({"a": entry(), "b": entry(offsets=[9, 17])}, bytes(17))
@example({"__metadata__": {"a": 1}, "a": entry()}, bytes(8))
@example({"__metadata__": None, "a": entry()}, bytes(8))
@example({"a": entry() | {"extra": 1}}, bytes(8))
def test_made_up_headers(header: dict[str, object], data: bytes) -> None:
    content = file_of(header, data)
    if accepted(content):
        assert oracle(content) is not None


@settings(max_examples=600)
@given(written_files(), st.data())
def test_damaged_files(content: bytes, data: st.DataObject) -> None:
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        match data.draw(st.sampled_from(["change", "insert", "delete", "cut"])):
            case "change":
                damaged[at] = data.draw(st.integers(0, 255))
            case "insert":
                damaged[at:at] = data.draw(st.sampled_from([b"0", b"1", b"-", b".", b"e9", b",", b'"', b"{", b"\xff"]))
            case "delete":
                del damaged[at]
            case "cut":
                del damaged[at + 1 :]
        damaged = damaged or bytearray(b"\0")
    if accepted(bytes(damaged)):
        assert oracle(bytes(damaged)) is not None


def hand_written() -> Iterator[tuple[str, bytes]]:
    plain = json.dumps({"a": entry()}).encode()
    yield "surrogate in a name", file_of(plain.replace(b'"a"', b'"\\ud800"'), bytes(8))
    yield "NaN", file_of(plain.replace(b"[2]", b"[NaN]"), bytes(8))
    yield "negative zero", file_of(plain.replace(b"[0, 8]", b"[-0, 8]"), bytes(8))
    yield "float offsets", file_of(plain.replace(b"[0, 8]", b"[0, 8.0]"), bytes(8))
    yield "exponent", file_of(plain.replace(b"[0, 8]", b"[0, 8e0]"), bytes(8))
    yield "leading zero", file_of(plain.replace(b"[0, 8]", b"[0, 08]"), bytes(8))
    yield "byte order mark", file_of(b"\xef\xbb\xbf" + plain, bytes(8))
    yield "trailing comma", file_of(plain[:-1] + b",}", bytes(8))
    yield "a second document", file_of(plain + b"{}", bytes(8))
    yield "trailing zero bytes", file_of(plain + b"\0\0", bytes(8))
    yield "raw newline in a name", file_of(plain.replace(b'"a"', b'"a\n"'), bytes(8))
    yield "no UTF-8", file_of(plain.replace(b'"a"', b'"\xff"'), bytes(8))
    yield "too deep", file_of(b'{"a":' + b"[" * 100_000, b"")
    yield "huge number", file_of(plain.replace(b"[2]", b"[1e999]"), bytes(8))
    yield "a number of 5000 digits", file_of(plain.replace(b"[2]", b"[" + b"9" * 5000 + b"]"), bytes(8))
    yield "length beyond the cap", (100_000_001).to_bytes(8, "little") + bytes(100)
    yield "length of 2^64 - 1", b"\xff" * 8 + bytes(100)
    yield "length zero", bytes(8)


@pytest.mark.parametrize(("name", "content"), list(hand_written()), ids=[name for name, _ in hand_written()])
def test_what_safetensors_rejects_is_rejected(name: str, content: bytes) -> None:
    assert oracle(content) is None
    assert not accepted(content)


@pytest.mark.parametrize("padding", [b"", b" ", b"\n\t  "], ids=["none", "space", "white"])
def test_padding_after_the_header_is_fine(padding: bytes) -> None:
    content = file_of(json.dumps({"a": entry()}).encode() + padding, bytes(8))
    assert oracle(content) is not None
    assert read(content).tensors["a"].nbytes == 8


def test_a_name_that_occurs_twice_is_rejected_though_safetensors_takes_one() -> None:
    one = json.dumps(entry())
    content = file_of(f'{{"a": {one}, "a": {one}}}'.encode(), bytes(8))
    assert not accepted(content)


def test_a_header_begins_with_a_brace_though_safetensors_skips_white_space() -> None:
    """The format's documentation asks for it."""
    assert not accepted(file_of(b" " + json.dumps({"a": entry()}).encode(), bytes(8)))


@pytest.mark.parametrize("dtype", sorted(DTYPE_BITS))
def test_every_dtype_of_the_format_has_safetensors_width(dtype: str) -> None:
    size = DTYPE_BITS[dtype]
    content = file_of({"a": entry(dtype, [8], [0, size])}, bytes(size))
    assert accepted(content)
    assert oracle(content) is not None
    assert oracle(file_of({"a": entry(dtype, [8], [0, size + 1])}, bytes(size + 1))) is None
