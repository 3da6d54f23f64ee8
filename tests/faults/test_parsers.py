"""The parsers held against their oracles, on files that nobody would write."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from adaptertool import inspect, slim
from adaptertool.checkpoint.config import AdapterConfig, read_config
from adaptertool.checkpoint.folder import LocalFolder
from adaptertool.checkpoint.header import DTYPE_BITS, parse_header
from adaptertool.errors import AdapterToolError
from adaptertool.projection.fingerprint import METADATA_KEY, Fingerprint
from tests.faults.conftest import refusal
from tests.tools.make_broken import FOLDER, GOOD, LORA, RANDLORA, RECIPE, fingerprint, projections, tensors, trained

QUICK = settings(
    max_examples=400,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

NUMBERS = st.one_of(
    st.integers(-2, 40),
    st.sampled_from([2**31, 2**32, 2**61, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, -(2**63)]),
    st.floats(allow_nan=False, allow_infinity=False),
)
JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)


def accepted_by_safetensors(content: bytes) -> bool:
    try:
        safetensors.deserialize(content)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError:
        return False
    return True


def accepted(text: bytes, data: int) -> bool:
    error = refusal(lambda: parse_header(text, data, "a file"))
    if error is not None:
        assert "\n" not in error.message
        assert len(error.message) < 600
    return error is None


def never_more_than_safetensors(text: bytes, data: int) -> None:
    if accepted(text, data):
        assert accepted_by_safetensors(struct.pack("<Q", len(text)) + text + bytes(data))


@st.composite
def nearly_valid_headers(draw: st.DrawFn) -> tuple[bytes, int]:
    """A valid header with a few of its values replaced, and the length of the data that it asks for, or nearly that."""
    entries: dict[str, Any] = {}
    end = 0
    for name in draw(st.lists(st.text(max_size=3), max_size=3, unique=True)):
        dtype = draw(st.sampled_from(sorted(DTYPE_BITS)))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        bits = DTYPE_BITS[dtype]
        for dim in shape:
            bits *= dim
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + bits // 8]}
        end += bits // 8
    for name in list(entries):
        if draw(st.integers(0, 3)) == 0:
            field = draw(st.sampled_from(["dtype", "shape", "data_offsets", "more", ""]))
            wrong = draw(st.one_of(JSON_VALUES, st.lists(NUMBERS, max_size=3)))
            entries[name] = {**entries[name], field: wrong} if field else wrong
    if draw(st.booleans()):
        metadata = st.one_of(
            st.none(), st.dictionaries(st.text(max_size=2), st.text(max_size=2), max_size=2), JSON_VALUES
        )
        entries["__metadata__"] = draw(metadata)
    text = json.dumps(entries, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    return text + b" " * draw(st.integers(0, 2)), end + draw(st.sampled_from([0, 0, 0, 1, -1])) % 1000


@settings(QUICK, max_examples=1500)
@given(nearly_valid_headers())
def test_nearly_valid_headers(header: tuple[bytes, int]) -> None:
    never_more_than_safetensors(*header)


@settings(QUICK, max_examples=1500)
@given(st.data())
def test_headers_with_bytes_replaced(data: st.DataObject) -> None:
    length = int.from_bytes(GOOD[:8], "little")
    text = bytearray(GOOD[8 : 8 + length])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        action = data.draw(st.sampled_from(["replace", "insert", "delete"]))
        byte = data.draw(st.one_of(st.integers(0, 255), st.sampled_from(list(b'{}[]",:-+.eE0123456789 \\utfn'))))
        text[at : at + (action != "insert")] = b"" if action == "delete" else bytes([byte])
    never_more_than_safetensors(bytes(text), len(GOOD) - 8 - length)


@QUICK
@given(st.one_of(JSON_VALUES.map(lambda value: json.dumps(value).encode()), st.binary(max_size=40)))
@example(b'{"a":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}')
@example(b'{"a":{"dtype":"F32","shape":[1E0],"data_offsets":[0,4]}}')
@example(b'{"__metadata__":null}')
@example(b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"__metadata__":{"\\ud83d\\ude00":""}}')
def test_any_json(text: bytes) -> None:
    for data in (0, 4):
        never_more_than_safetensors(text, data)


def test_everything_that_safetensors_writes_is_accepted(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    path = tmp_path / "all.safetensors"
    dtypes = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    save_file({name: torch.zeros(3, 2).to(getattr(torch, name)) for name in dtypes}, path, {"format": "pt"})
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = parse_header(content[8 : 8 + length], len(content) - 8 - length, "a file")
    assert set(header.tensors) == set(dtypes)
    assert header.metadata == {"format": "pt"}


def config_from(tmp_path: Path, content: bytes) -> AdapterConfig | None:
    (tmp_path / "adapter_config.json").write_bytes(content)
    error = refusal(lambda: read_config(LocalFolder(tmp_path)))
    if error is None:
        return read_config(LocalFolder(tmp_path))
    assert (error.code, error.exit_code) == ("ADP304", 3)
    return None


def asked_for_everything(config: AdapterConfig) -> None:
    """What commands ask a config for ends in a value or in an error of ours."""
    questions: list[Callable[[], object]] = [
        lambda: config.integer("r", 32, least=1, most=2**31),
        lambda: config.integer("projection_prng_key", 0),
        lambda: config.flag("save_projection", True),
        lambda: config.text_or_none("base_model_name_or_path"),
    ]
    for error in map(refusal, questions):
        assert error is None or error.code == "ADP304"
        assert error is None or len(error.message) < 600 + len(config.name)
    for value in (True, False):
        changed = json.loads(config.with_value("save_projection", value))
        assert changed["save_projection"] is value
        assert {**changed, "save_projection": None} == {**config.fields, "save_projection": None}


@QUICK
@given(
    st.dictionaries(
        st.one_of(st.sampled_from(["r", "projection_prng_key", "save_projection", "peft_type"]), st.text(max_size=3)),
        JSON_VALUES,
        max_size=5,
    ),
    st.booleans(),
    st.sampled_from([None, 0, 2, "\t"]),
)
def test_configs(tmp_path: Path, fields: dict[str, Any], typed: bool, indent: int | str | None) -> None:
    if typed:
        fields["peft_type"] = "RANDLORA"
    config = config_from(tmp_path, json.dumps(fields, indent=indent).encode("utf-8", "surrogatepass"))
    if typed:
        assert config is not None
        asked_for_everything(config)


@QUICK
@given(st.data())
def test_configs_with_bytes_replaced(tmp_path: Path, data: st.DataObject) -> None:
    text = bytearray(json.dumps({**RANDLORA, "save_projection": True, "target_modules": ["q", "v"]}, indent=2).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        byte = data.draw(st.one_of(st.integers(0, 255), st.sampled_from(list(b'{}[]",:-+.eE0123456789 \\utfn'))))
        text[at : at + data.draw(st.integers(0, 2))] = bytes([byte])
    config = config_from(tmp_path, bytes(text))
    if config is not None:
        asked_for_everything(config)


@QUICK
@given(st.one_of(JSON_VALUES.map(json.dumps), st.text(max_size=20)))
def test_any_fingerprint(text: str) -> None:
    with contextlib.suppress(ValueError):
        Fingerprint.from_metadata({METADATA_KEY: text})


PLAUSIBLE = {
    "key": NUMBERS,
    "basis": st.sampled_from(["dense", "sparse", "very-sparse", "round"]),
    "sampler": st.sampled_from(["torch>=2.12", "torch<2.12", "any", None]),
    "fused_multiply_add": st.sampled_from([True, False, None]),
    "generated_dtype": st.sampled_from(["bfloat16", "float16", "float32", "float64"]),
    "casts": st.lists(st.sampled_from(["bfloat16", "float16", "float32", "float64"]), max_size=3),
    "stored_dtype": st.sampled_from(["bfloat16", "float16", "float32", "float64"]),
}


@settings(QUICK, max_examples=150)
@given(st.data())
def test_fingerprints_in_files(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever a fingerprint says, inspect and restore end in a result or in an error of ours."""
    recipe = dict(RECIPE)
    for key in data.draw(st.sets(st.sampled_from(sorted(RECIPE)), max_size=3)):
        recipe[key] = data.draw(st.one_of(PLAUSIBLE[key], JSON_VALUES))
    if data.draw(st.booleans()) and isinstance(recipe["casts"], list):
        recipe["casts"] = [*recipe["casts"], recipe["stored_dtype"]]
    dims = st.sampled_from([0, 1, 2, 3, 4, 2**20, 2**39])
    shapes = {"randlora_A": [2, 1, 4], "randlora_B": [4, 2, 2]}
    for kind in data.draw(st.sets(st.sampled_from(sorted(shapes)))):
        shapes[kind] = data.draw(st.lists(dims, max_size=4))
    metadata = {"adaptertool": json.dumps(fingerprint(shapes, recipe))}
    (tmp_path / "adapter_config.json").write_text(json.dumps({**RANDLORA, "save_projection": False}))
    (tmp_path / "adapter_model.safetensors").write_bytes(tensors(trained(), metadata))
    from adaptertool import restore

    for command in (lambda: inspect(tmp_path, verify="full"), lambda: restore(tmp_path, dry_run=True)):
        error = refusal(command)
        assert error is None or error.exit_code == 3


REAL = (("good", GOOD, LORA), ("projections", projections(), RANDLORA))


@pytest.mark.parametrize(("content", "config"), [(one[1], one[2]) for one in REAL], ids=[one[0] for one in REAL])
def test_any_flipped_byte(tmp_path: Path, content: bytes, config: dict[str, Any]) -> None:
    """Bytes of the header and of the data, one at a time, with a bit flipped."""
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    weights = tmp_path / "adapter_model.safetensors"
    chance = random.Random(0)
    for at in range(0, len(content), 3):
        changed = bytearray(content)
        changed[at] ^= 1 << chance.randrange(8)
        weights.write_bytes(changed)
        error = refusal(lambda: inspect(tmp_path, verify="none"))
        if error is None and at % 30 == 0:
            error = refusal(lambda: slim(tmp_path, dry_run=True))
        assert error is None or error.exit_code == 3
        assert error is not None or accepted_by_safetensors(bytes(changed))


def test_any_flipped_byte_of_a_pickle(tmp_path: Path) -> None:
    import torch

    (tmp_path / "adapter_config.json").write_text(json.dumps(LORA))
    weights = tmp_path / "adapter_model.bin"
    state = {"base_model.model.q.lora_A.weight": torch.ones(2, 2), "base_model.model.q.lora_B.weight": torch.ones(2, 2)}
    for zipped in (True, False):
        torch.save(state, weights, _use_new_zipfile_serialization=zipped)
        content = weights.read_bytes()
        chance = random.Random(0)
        for _ in range(400):
            changed = bytearray(content)
            for _ in range(chance.randrange(1, 4)):
                changed[chance.randrange(len(changed))] = chance.randrange(256)
            weights.write_bytes(changed)
            error = refusal(lambda: inspect(tmp_path))
            assert error is None or error.exit_code == 3


MEASURED = """
import resource, sys
sys.path[:0] = {path!r}
from adaptertool.cli import main
main(["inspect", "--verify", "none", {empty!r}])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
code = main(["inspect", "--verify", "none", {target!r}])
print("peak", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, "code", code)
"""

HOSTILE = {
    "nested-lists": b'{"a":' + b"[" * (4 << 20),
    "empty-lists": b'{"a":[' + b"[]," * (1 << 20) + b"[]]}",
    "empty-objects": b'{"a":[' + b"{}," * (1 << 20) + b"{}]}",
    "many-entries": b"{" + b",".join(b'"%x":7' % number for number in range(1 << 19)) + b"}",
    "metadata": b'{"__metadata__":{' + b",".join(b'"%x":""' % number for number in range(1 << 19)) + b"}}",
    "long-shape": b'{"a":{"dtype":"F32","shape":[' + b"0," * (2 << 20) + b'0],"data_offsets":[0,0]}}',
    "long-name": b'{"' + b"n" * (4 << 20) + b'":7}',
    "spaces": b"{" + b" " * (4 << 20) + b"}",
}


@pytest.mark.parametrize("kind", sorted(HOSTILE))
def test_memory_follows_the_size_of_the_header(tmp_path: Path, kind: str) -> None:
    """A hostile header costs what its own length justifies, whatever it says: at most fifty bytes for each of its own."""
    text = HOSTILE[kind]
    (tmp_path / "adapter_config.json").write_text(json.dumps(LORA))
    (tmp_path / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    script = MEASURED.format(path=sys.path, empty=str(FOLDER / "length-zero"), target=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    words = done.stdout.split()
    assert int(words[words.index("code") + 1]) in (0, 3)
    assert int(words[words.index("peak") + 1]) < 50 * len(text)


@pytest.mark.parametrize("length", [1 << 62, 99_999_999])
def test_nothing_is_allocated_on_the_word_of_a_header(tmp_path: Path, length: int) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(LORA))
    (tmp_path / "adapter_model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
    script = MEASURED.format(path=sys.path, empty=str(FOLDER / "length-zero"), target=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    words = done.stdout.split()
    assert int(words[words.index("peak") + 1]) < 4 << 20


def test_out_of_memory_is_an_error_like_others(tmp_path: Path) -> None:
    text = b'{"a":[' + b"{}," * (4 << 20) + b"{}]}"
    (tmp_path / "adapter_config.json").write_text(json.dumps(LORA))
    (tmp_path / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)

    def starve() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (150 << 20, 150 << 20))

    done = subprocess.run(
        [sys.executable, "-m", "adaptertool", "inspect", "--verify", "none", str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=starve,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3
    assert done.stderr == "error: not enough memory\n"


def test_pipes_and_devices_are_not_read(tmp_path: Path) -> None:
    """Opening a pipe would wait for a writer for ever."""
    (tmp_path / "adapter_model.safetensors").write_bytes(GOOD)
    os.mkfifo(tmp_path / "adapter_config.json")
    with pytest.raises(AdapterToolError, match="a pipe, socket or device where a file is expected"):
        inspect(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    (tmp_path / "adapter_config.json").write_text(json.dumps(LORA))
    (tmp_path / "adapter_model.safetensors").unlink()
    os.mkfifo(tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterToolError, match="a pipe, socket or device where a file is expected"):
        inspect(tmp_path)


def test_symlinks_that_lead_nowhere_are_said_to(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(LORA))
    (tmp_path / "adapter_model.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(AdapterToolError, match="is a symlink that leads nowhere"):
        inspect(tmp_path)
