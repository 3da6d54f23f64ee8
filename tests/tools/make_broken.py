"""Make `fixtures/broken/`: small checkpoints and base models, each broken in one way, and the tables of what is to be said.

    python -m tests.tools.make_broken

Every case is a folder named after it; base models are in `bases/`. `expected.json` says for each what the tests hold the
command line to, and `README.md` is the same table for people. The files are the same bytes whenever this runs; pickles that
torch has to write need the torch of the `dev` extra.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import shutil
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "fixtures" / "broken"
BASES = "bases"

WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
CONFIG = "adapter_config.json"

LORA = {"peft_type": "LORA", "r": 2, "base_model_name_or_path": "org/base"}
RANDLORA = {"peft_type": "RANDLORA", "r": 2, "base_model_name_or_path": "org/base", "projection_prng_key": 0}

RECIPE: dict[str, Any] = {
    "key": 0,
    "basis": "dense",
    "sampler": "torch>=2.12",
    "fused_multiply_add": True,
    "generated_dtype": "bfloat16",
    "casts": ["bfloat16", "float32"],
    "stored_dtype": "float32",
}
"""What draws the projections of `RANDLORA`, as a fingerprint says it."""

LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 16384\n"
)


@dataclass(frozen=True)
class Case:
    """One broken checkpoint.

    Attributes:
        name: Its folder.
        about: What is wrong with it.
        files: Path in the folder -> content.
        kind: The error kind that every command reports with exit code 3; None where the checkpoint can be read.
        code: The finding code of that error, where one stands for it.
        findings: Where it can be read: the codes that `inspect --verify full` finds.
        slim: The exit code of `slim`; by default 3 where it can't be read.
        restore: The exit code of `restore`, alike.
        merge: The exit code of `check-merge`: 1 where the checkpoint can be read and what it holds can't be merged.
    """

    name: str
    about: str
    files: Mapping[str, bytes]
    kind: str | None = None
    code: str | None = None
    findings: tuple[str, ...] = ()
    slim: int | None = None
    restore: int | None = None
    merge: int = 3

    @property
    def exits(self) -> dict[str, int]:
        """The exit code of each command."""
        readable = 3 if self.kind else 0
        return {
            "inspect": readable,
            "slim": readable if self.slim is None else self.slim,
            "restore": readable if self.restore is None else self.restore,
            "check-merge": self.merge,
        }


def fingerprint(shapes: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says that was stripped of tensors of these shapes; its digests are those of nothing."""
    return {
        "schema": "adaptertool/fingerprint/1",
        "version": "0.1.0",
        "recipe": dict(recipe),
        "tensors": {kind: {"shape": shape, "dtype": "F32", "sha256": "0" * 64} for kind, shape in shapes.items()},
        "loads_with": [],
    }


def tensor(dtype: str, shape: Any, start: Any, end: Any) -> dict[str, Any]:
    """A header's entry."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with this header, which is a JSON document, or text or bytes as they are."""
    text = header if isinstance(header, (bytes, str)) else json.dumps(header)
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def tensors(content: Mapping[str, tuple[str, list[int], bytes]], metadata: Mapping[str, str] | None = None) -> bytes:
    """A valid file."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, (dtype, shape, data) in content.items():
        header[name] = tensor(dtype, shape, end, end + len(data))
        end += len(data)
    return safetensors(header, b"".join(data for _, _, data in content.values()))


A, B = "base_model.model.q_proj.lora_A.weight", "base_model.model.q_proj.lora_B.weight"
GOOD_ENTRY = tensor("F32", [2, 2], 0, 16)
GOOD = safetensors({A: GOOD_ENTRY, B: tensor("F32", [2, 2], 16, 32)}, bytes(32))


def with_weights(content: bytes, config: Mapping[str, Any] = LORA, name: str = WEIGHTS) -> dict[str, bytes]:
    """A good config and these weights."""
    return {CONFIG: json.dumps(config, indent=2).encode() + b"\n", name: content}


def with_config(content: bytes | str, weights: bytes = GOOD) -> dict[str, bytes]:
    """This config and good weights."""
    return {CONFIG: content.encode() if isinstance(content, str) else content, WEIGHTS: weights}


def header_cases() -> Iterator[Case]:
    """The rules of the safetensors format, each broken once."""

    def corrupt(name: str, about: str, content: bytes, kind: str = "corrupt", code: str | None = None) -> Case:
        return Case(name, about, with_weights(content), kind, code)

    def one(entry: object) -> bytes:
        return safetensors({A: entry}, bytes(16))

    yield corrupt("length-beyond-file", "header length beyond the end of the file", safetensors({}, length=1000))
    yield corrupt("length-beyond-cap", "header length beyond 100 MB", safetensors({}, length=1 << 40))
    yield corrupt("length-greatest", "header length of 2^64 - 1", safetensors({}, length=2**64 - 1))
    yield corrupt("length-zero", "header length of zero", safetensors("", bytes(16)))
    yield corrupt("length-too-small", "header length that cuts the JSON", safetensors({A: GOOD_ENTRY}, bytes(16), 20))
    yield corrupt("shorter-than-a-length", "a file of five bytes", b"short")
    yield corrupt("empty", "an empty file", b"", code="ADP303")
    yield corrupt("lfs-pointer", "a git-LFS pointer", LFS_POINTER, code="ADP303")
    yield corrupt("not-safetensors", "a web page", b"<!DOCTYPE html><html><body>404</body></html>")
    yield corrupt("no-tensors", "a header without tensors", safetensors({}), code="ADP303")
    yield corrupt("metadata-alone", "metadata and no tensors", safetensors({"__metadata__": {"a": "b"}}), code="ADP303")

    for name, text in {"list": "[]", "number": "7", "null": "null", "string": '"a"'}.items():
        yield corrupt(f"header-{name}", f"a header that is a JSON {name}", safetensors(text, bytes(16)))
    yield corrupt("header-cut", "JSON that ends in the middle", safetensors('{"a": {"dtype": "F32"', bytes(16)))
    yield corrupt("header-two-documents", "two JSON documents", safetensors("{}{}", bytes(16)))
    yield corrupt("header-leading-space", "a space before the JSON", safetensors(" {}"))
    yield corrupt("header-not-utf8", "bytes that are no UTF-8", safetensors(b'{"\xff\xfe": 1}'))
    yield corrupt("header-surrogate", "half a surrogate pair", safetensors('{"\\ud800": {}}'))
    yield corrupt("header-raw-control", "a raw newline in a string", safetensors('{"a\nb": {}}'))
    yield corrupt("header-deep", "10,000 nested lists", safetensors('{"a":' + "[" * 10_000 + "]" * 10_000 + "}"))
    yield corrupt("header-huge-number", "a number of 5,000 digits", safetensors('{"a":' + "9" * 5000 + "}"))
    yield corrupt("header-nan", "NaN, which is no JSON", one(tensor("F32", [float("nan")], 0, 16)))

    entry = json.dumps(GOOD_ENTRY)
    yield corrupt("twice-tensor", "a name twice", safetensors(f'{{"a": {entry}, "a": {entry}}}', bytes(16)))
    yield corrupt("twice-field", "a field twice", safetensors(f'{{"a": {entry[:-1]}, "dtype": "F16"}}}}', bytes(16)))
    yield corrupt(
        "twice-metadata",
        "a metadata key twice",
        safetensors(f'{{"__metadata__": {{"k": "1", "k": "2"}}, "a": {entry}}}', bytes(16)),
    )
    yield corrupt(
        "twice-long-name",
        "a name of 10,000 characters twice",
        safetensors(f'{{"{"n" * 10_000}": {entry}, "{"n" * 10_000}": {entry}}}', bytes(16)),
    )
    yield corrupt(
        "twice-control-characters",
        "a name that would clear the screen, twice",
        safetensors(f'{{"\\u001b[2J\\n\\u202e": {entry}, "\\u001b[2J\\n\\u202e": {entry}}}', bytes(16)),
    )

    yield corrupt(
        "metadata-list", "metadata that is a list", safetensors({"__metadata__": [], A: GOOD_ENTRY}, bytes(16))
    )
    yield corrupt(
        "metadata-number", "a number in the metadata", safetensors({"__metadata__": {"a": 1}, A: GOOD_ENTRY}, bytes(16))
    )
    yield corrupt(
        "metadata-nested",
        "an object in the metadata",
        safetensors({"__metadata__": {"a": {}}, A: GOOD_ENTRY}, bytes(16)),
    )

    yield corrupt("entry-number", "a number where a tensor is due", one(7))
    yield corrupt("entry-list", "a list where a tensor is due", one(["F32", [2, 2], [0, 16]]))
    for field in GOOD_ENTRY:
        without = {key: value for key, value in GOOD_ENTRY.items() if key != field}
        yield corrupt(f"entry-without-{field.replace('_', '-')}", f"a tensor without {field}", one(without))
    yield corrupt("dtype-number", "a dtype that is a number", one({**GOOD_ENTRY, "dtype": 32}))
    yield corrupt("dtype-unknown", "a dtype of no known version", one({**GOOD_ENTRY, "dtype": "F31"}), "unsupported")
    yield corrupt(
        "dtype-lower-case", "a dtype in torch's spelling", one({**GOOD_ENTRY, "dtype": "float32"}), "unsupported"
    )

    shapes: dict[str, tuple[str, Any]] = {
        "no-list": ("a shape that is a number", 4),
        "strings": ("a shape of strings", ["2", "2"]),
        "negative": ("a negative shape", [-2, -2]),
        "floats": ("a shape of floats", [2.0, 2.0]),
        "booleans": ("a shape of booleans", [True, 4]),
        "nested": ("a shape of lists", [[2], [2]]),
        "too-small": ("shape times dtype less than the data", [2, 1]),
        "too-large": ("shape times dtype more than the data", [2, 3]),
        "overflow": ("a shape whose product passes 64 bits", [1 << 33, 1 << 33]),
        "overflow-with-zero": ("one that does before a zero", [1 << 33, 1 << 33, 0]),
        "overflow-in-bytes": ("one that does once it is counted in bits", [1 << 62]),
        "long": ("a shape of 10,000 dimensions that does not fit", [1] * 9_999 + [2]),
    }
    for name, (about, shape) in shapes.items():
        yield corrupt(f"shape-{name}", about, one({**GOOD_ENTRY, "shape": shape}))
    yield corrupt("shape-half-byte", "three 4-bit elements", safetensors({A: tensor("F4", [3], 0, 2)}, bytes(2)))

    offsets: dict[str, tuple[str, Any]] = {
        "no-list": ("offsets that are a number", 16),
        "three": ("three offsets", [0, 8, 16]),
        "negative": ("a negative offset", [-16, 0]),
        "reversed": ("an end before the start", [16, 0]),
        "floats": ("offsets that are floats", [0.0, 16.0]),
        "huge": ("an offset of 2^64", [2**64, 2**64 + 16]),
        "not-from-zero": ("data that does not begin at zero", [8, 24]),
        "beyond-file": ("data that ends beyond the file", [1 << 40, (1 << 40) + 16]),
    }
    for name, (about, value) in offsets.items():
        yield corrupt(f"offsets-{name}", about, one({**GOOD_ENTRY, "data_offsets": value}))
    yield corrupt(
        "offsets-overlap", "overlapping data", safetensors({A: GOOD_ENTRY, B: tensor("F32", [2, 2], 8, 24)}, bytes(24))
    )
    yield corrupt("offsets-same", "two names for the same data", safetensors({A: GOOD_ENTRY, B: GOOD_ENTRY}, bytes(16)))
    yield corrupt(
        "offsets-gap", "a gap in the data", safetensors({A: GOOD_ENTRY, B: tensor("F32", [2, 2], 24, 40)}, bytes(40))
    )
    yield corrupt("data-truncated", "data that is cut off", GOOD[:-1])
    yield corrupt("data-missing", "a header and nothing else", GOOD[:-32])
    yield corrupt("data-trailing", "bytes that belong to no tensor", GOOD + b"\0")


def folder_cases() -> Iterator[Case]:
    """Files that are missing, or folders in their place."""
    good = with_weights(GOOD)
    yield Case("weights-missing", "no weights", {CONFIG: good[CONFIG]}, "not-found")
    yield Case(
        "weights-folder",
        "a folder in place of the weights",
        {CONFIG: good[CONFIG], f"{WEIGHTS}/README.md": b"a folder\n"},
        "corrupt",
    )
    yield Case("config-missing", "no config", {WEIGHTS: GOOD}, "not-found", "ADP304")
    yield Case(
        "config-folder",
        "a folder in place of the config",
        {f"{CONFIG}/README.md": b"a folder\n", WEIGHTS: GOOD},
        "corrupt",
        "ADP304",
    )
    yield Case(
        "sharded",
        "weights in shards, which PEFT does not load",
        {
            CONFIG: good[CONFIG],
            "adapter_model-00001-of-00002.safetensors": GOOD,
            "adapter_model-00002-of-00002.safetensors": GOOD,
        },
        "not-found",
    )


def config_cases() -> Iterator[Case]:
    """Configs that are none, or that make no sense."""

    def broken(name: str, about: str, content: bytes | str) -> Case:
        return Case(f"config-{name}", about, with_config(content), "corrupt", "ADP304")

    yield broken("empty", "an empty config", "")
    yield broken("cut", "a config that ends in the middle", '{"peft_type": "LO')
    yield broken("list", "a config that is a list", "[]")
    yield broken("string", "a config that is a string", '"LORA"')
    yield broken("null", "a config that is null", "null")
    yield broken("yaml", "a config in YAML", "peft_type: LORA\nr: 8\n")
    yield broken("lfs-pointer", "a git-LFS pointer in place of the config", LFS_POINTER)
    yield broken("not-utf8", "bytes that are no UTF-8", b'{"peft_type": "LORA\xff"}')
    yield broken("utf16", "a config in UTF-16", '{"peft_type": "LORA"}'.encode("utf-16"))
    yield broken("byte-order-mark", "a byte order mark, which PEFT can't read", b'\xef\xbb\xbf{"peft_type": "LORA"}')
    yield broken("deep", "10,000 nested lists", '{"peft_type": "LORA", "a":' + "[" * 10_000 + "]" * 10_000 + "}")
    yield broken("long-number", "a number of 5,000 digits", '{"peft_type": "LORA", "r": ' + "9" * 5000 + "}")
    yield broken("without-type", "a base model's config", '{"model_type": "llama", "hidden_size": 8}')
    yield broken("type-number", "a peft_type that is a number", '{"peft_type": 7}')
    yield broken("type-empty", "an empty peft_type", '{"peft_type": ""}')

    basis = projections()
    values: dict[str, tuple[str, str]] = {
        "rank-zero": ("r", "0"),
        "rank-negative": ("r", "-8"),
        "rank-huge": ("r", "100000000000000000000000"),
        "rank-float": ("r", "2.0"),
        "rank-infinite": ("r", "1e999"),
        "rank-string": ("r", '"2"'),
        "rank-null": ("r", "null"),
        "rank-boolean": ("r", "true"),
        "rank-object": ("r", '{"default": 2}'),
        "rank-deep": ("r", "[" * 900 + "]" * 900),
        "seed-beyond-64-bits": ("projection_prng_key", "18446744073709551616"),
        "seed-far-negative": ("projection_prng_key", "-9223372036854775809"),
        "seed-float": ("projection_prng_key", "0.5"),
        "seed-string": ("projection_prng_key", '"zero"'),
        "flag-string": ("save_projection", '"yes"'),
        "sparse-number": ("sparse", "1"),
        "base-model-list": ("base_model_name_or_path", "[]"),
        "version-number": ("peft_version", "0.21"),
    }
    for name, (field, value) in values.items():
        fields = {key: json.dumps(one) for key, one in RANDLORA.items()} | {field: value}
        text = "{" + ", ".join(f'"{key}": {one}' for key, one in fields.items()) + "}"
        yield Case(
            f"config-{name}",
            f"{field} that makes no sense",
            with_config(text, basis),
            "corrupt",
            "ADP304",
            slim=3,
            restore=3 if field in ("save_projection", "base_model_name_or_path", "peft_version") else 0,
        )


def projections(
    dtype: str = "F32", element: bytes = bytes(4), a: tuple[int, ...] = (2, 1, 4), b: tuple[int, ...] = (4, 2, 2)
) -> bytes:
    """A file with a RandLoRA pair that nothing draws, one copy of it, and trained tensors."""

    def filled(shape: tuple[int, ...]) -> tuple[str, list[int], bytes]:
        count = 1
        for dim in shape:
            count *= dim
        return dtype, list(shape), element * count

    layer = "base_model.model.q_proj"
    return tensors(
        {
            "base_model.randlora_A": filled(a),
            "base_model.randlora_B": filled(b),
            f"{layer}.randlora_A": filled(a),
            f"{layer}.randlora_B": filled(b),
            **trained(layer),
        }
    )


def trained(layer: str = "base_model.model.q_proj") -> dict[str, tuple[str, list[int], bytes]]:
    """The trained tensors of one RandLoRA layer."""
    return {
        f"{layer}.randlora_gamma": ("F32", [2, 4], bytes(32)),
        f"{layer}.randlora_lambda": ("F32", [2, 2], bytes(16)),
    }


def value_cases() -> Iterator[Case]:
    """Files that are well-formed and hold what they should not."""
    not_finite = {
        "F64": (struct.pack("<d", float("nan")), struct.pack("<d", float("-inf"))),
        "F32": (struct.pack("<f", float("nan")), struct.pack("<f", float("-inf"))),
        "BF16": (b"\xc0\x7f", b"\x80\xff"),
        "F16": (b"\x00\x7e", b"\x00\xfc"),
        "F8_E4M3": (b"\x7f", None),
        "F8_E5M2": (b"\x7e", b"\xfc"),
        "F8_E4M3FNUZ": (b"\x80", None),
        "F8_E5M2FNUZ": (b"\x80", None),
        "F8_E8M0": (b"\xff", None),
        "C64": (bytes(4) + struct.pack("<f", float("nan")), struct.pack("<ff", float("inf"), 0)),
    }
    for dtype, values in not_finite.items():
        for what, value in zip(("nan", "infinity"), values, strict=True):
            if value is not None:
                name = f"{what}-in-{dtype.lower().replace('_', '-')}"
                content = {A: (dtype, [3], bytes(2 * len(value)) + value), B: (dtype, [1], bytes(len(value)))}
                yield Case(name, f"{what} in {dtype}", with_weights(tensors(content)), findings=("ADP301",))
    yield Case(
        "names-with-control-characters",
        "names that would steer a terminal",
        with_weights(
            tensors({f"a\x1b[2J\r\n\u202e\x00.lora_{one}": ("F32", [1], b"\x00\x00\x80\x7f") for one in "AB"})
        ),
        findings=("ADP301",),
    )
    yield Case(
        "names-of-10000-characters",
        "very long names",
        with_weights(tensors({"x." * 4997 + f"lora_{one}": ("F32", [1], b"\x00\x00\xc0\x7f") for one in "AB"})),
        findings=("ADP301",),
    )
    yield Case(
        "config-with-control-characters",
        "a base model and a type that would steer a terminal",
        with_config(json.dumps({"peft_type": "\x1b[31mNEW", "base_model_name_or_path": "a\x1b]0;b\x07\u202e\ud800"})),
        slim=3,
        restore=3,
    )
    yield Case(
        "no-elements",
        "tensors without elements",
        with_weights(tensors({A: ("F32", [0, 4], b""), B: ("F32", [4, 0], b"")})),
    )


def projection_cases() -> Iterator[Case]:
    """RandLoRA projections that are none, and fingerprints that nobody wrote."""

    def unknown(
        name: str, about: str, content: bytes, *more: str, slim: int = 1, merge: int = 3, **fields: Any
    ) -> Case:
        found = tuple(sorted(("ADP104", *more)))
        return Case(name, about, with_weights(content, {**RANDLORA, **fields}), findings=found, slim=slim, merge=merge)

    yield unknown("projections-zero", "projections that nothing draws", projections(), "ADP102")
    yield unknown(
        "projections-nan",
        "NaN in projections",
        projections(element=struct.pack("<f", float("nan"))),
        "ADP102",
        "ADP301",
        merge=1,
    )
    for dtype, size in {"I32": 4, "F8_E4M3": 1, "BOOL": 1, "C64": 8}.items():
        yield unknown(
            f"projections-{dtype.lower().replace('_', '-')}",
            f"projections of dtype {dtype}",
            projections(dtype, bytes(size)),
            "ADP102",
        )
    yield unknown(
        "projections-4-bit",
        "projections of half a byte an element",
        projections("F4", b"", (2, 1, 0), (0, 0, 2)),
        "ADP102",
    )
    yield unknown(
        "projections-no-elements", "projections without elements", projections(a=(2, 1, 0), b=(0, 0, 2)), "ADP102"
    )
    yield unknown("projections-scalar", "projections without dimensions", projections(a=(), b=()), "ADP102", merge=1)
    yield unknown("projections-other-rank", "projections of another rank", projections(), "ADP102", merge=1, r=4)
    yield unknown("projections-negative-seed", "a negative seed", projections(), "ADP102", projection_prng_key=-1)
    yield unknown(
        "projection-alone",
        "one half of the pair",
        tensors({"base_model.randlora_A": ("F32", [2, 1, 4], bytes(32)), **trained()}),
    )
    layer = "base_model.model.q_proj"
    shape = [1] * 70 + [2]
    yield Case(
        "projections-of-71-dimensions",
        "copies that differ, of more dimensions than numpy can count",
        with_weights(
            tensors(
                {
                    "base_model.randlora_A": ("F32", shape, bytes(8)),
                    f"{layer}.randlora_A": ("F32", shape, bytes(7) + b"\x01"),
                }
            ),
            RANDLORA,
        ),
        findings=("ADP105",),
        slim=1,
    )
    yield Case(
        "copies-of-other-shape",
        "copies of another shape",
        with_weights(
            tensors(
                {
                    "base_model.randlora_A": ("F32", [2, 1, 4], bytes(32)),
                    "base_model.randlora_B": ("F32", [4, 2, 2], bytes(64)),
                    f"{layer}.randlora_B": ("F32", [2, 2, 4], bytes(64)),
                    **trained(),
                }
            ),
            RANDLORA,
        ),
        findings=("ADP105",),
        slim=1,
    )
    for dtype, size in {"I32": 4, "F8_E4M3": 1}.items():
        yield Case(
            f"copies-differ-{dtype.lower().replace('_', '-')}",
            f"copies of dtype {dtype} that differ",
            with_weights(
                tensors(
                    {
                        "base_model.randlora_A": (dtype, [2], bytes(2 * size)),
                        f"{layer}.randlora_A": (dtype, [2], bytes(2 * size - 1) + b"\x01"),
                    }
                ),
                RANDLORA,
            ),
            findings=("ADP105",),
            slim=1,
        )

    document = fingerprint({"randlora_A": [2, 1, 4], "randlora_B": [4, 2, 2]}, RECIPE)

    def stripped(name: str, about: str, text: object, code: str, restore: int) -> Case:
        metadata = {"format": "pt", "adaptertool": text if isinstance(text, str) else json.dumps(text)}
        config = {**RANDLORA, "save_projection": False}
        return Case(
            f"fingerprint-{name}",
            about,
            with_weights(tensors(trained(), metadata), config),
            findings=(code,),
            restore=restore,
        )

    yield stripped("no-json", "a fingerprint that is no JSON", "sha256:0", "ADP107", 3)
    yield stripped("list", "one that is a list", [], "ADP107", 3)
    yield stripped("deep", "one of 10,000 nested lists", "[" * 10_000 + "]" * 10_000, "ADP107", 3)
    yield stripped(
        "later-schema", "one of a later version", {**document, "schema": "adaptertool/fingerprint/9"}, "ADP107", 3
    )
    yield stripped("without-tensors", "one without tensors", {**document, "tensors": {}}, "ADP107", 3)
    yield stripped("without-recipe", "one without a recipe", {**document, "recipe": None}, "ADP107", 3)
    yield stripped(
        "long-seed", "one with a seed of 4,000 digits", {**document, "recipe": {**RECIPE, "key": 10**4000}}, "ADP107", 3
    )
    yield stripped(
        "unhashable", "one with lists for names", {**document, "recipe": {**RECIPE, "generated_dtype": []}}, "ADP107", 3
    )
    yield stripped("wrong-digest", "one whose digests nothing has", document, "ADP108", 1)
    yield stripped(
        "other-kinds",
        "one of tensors that RandLoRA does not have",
        fingerprint({"x": [4]}, RECIPE),
        "ADP108",
        1,
    )
    # What a config can't draw must not be drawn on the word of a fingerprint.
    yield stripped(
        "drawn-in-float32",
        "a dense basis drawn in float32, which no torch does",
        {**document, "recipe": {**RECIPE, "generated_dtype": "float32", "sampler": "any", "fused_multiply_add": None}},
        "ADP108",
        1,
    )
    for name, larger, smaller in (
        ("huge", 1 << 36, 1 << 36),
        ("huge-a", 1 << 38, 1 << 38),
        ("large", 1 << 17, 1 << 17),
    ):
        shapes = {"randlora_A": [2, 1, smaller], "randlora_B": [larger, smaller // 2, 2]}
        yield stripped(name, f"one of {larger:,} by {smaller:,}", fingerprint(shapes, RECIPE), "ADP108", 3)


class _Code:
    """Unpickled, it would run code that leaves a file behind."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("the-pickle-ran", "w")


def pickle_cases() -> Iterator[Case]:
    """`adapter_model.bin` of every kind."""
    import torch

    def case(name: str, about: str, content: bytes, kind: str, code: str | None = None) -> Case:
        return Case(f"pickle-{name}", about, with_weights(content, name=PICKLE), kind, code)

    yield case("empty", "an empty pickle", b"", "corrupt", "ADP303")
    yield case("lfs-pointer", "a git-LFS pointer", LFS_POINTER, "corrupt", "ADP303")
    yield case("garbage", "no pickle at all", bytes(range(256)), "corrupt")
    yield case("code", "a pickle that runs code", pickle.dumps({A: _Code()}, protocol=2), "unsupported")
    yield case(
        "code-in-zip",
        "the same as torch.save would wrap it",
        _zipped(pickle.dumps({A: _Code()}, protocol=2)),
        "unsupported",
    )
    yield case(
        "system", "a pickle that calls os.system", b"cposix\nsystem\n(S'touch the-pickle-ran'\ntR.", "unsupported"
    )
    yield case("list", "a list of tensors", _saved([torch.zeros(2)]), "unsupported")
    yield case(
        "number-inside", "a dictionary that holds a number", _saved({A: torch.zeros(2), "epoch": 3}), "unsupported"
    )
    yield case("number-keys", "a dictionary with numbers for names", _saved({1: torch.zeros(2)}), "unsupported")
    yield case("no-tensors", "an empty dictionary", _saved({}), "corrupt", "ADP303")
    yield case(
        "expanded",
        "a tensor of 4 TB that repeats one element",
        _saved({A: torch.zeros(1).expand(10**6, 10**6)}),
        "unsupported",
    )
    yield case("sparse", "a sparse tensor", _saved({A: torch.eye(2).to_sparse()}), "unsupported")
    yield case("cut", "a file that ends in the middle", _saved({A: torch.zeros(64)})[:-400], "corrupt")
    yield case(
        "compressed",
        "an archive that unpacks to a thousand times its size",
        _zipped(bytes(1 << 22), compress=True),
        "unsupported",
    )


BASE_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "head_dim": 4,
    "hidden_size": 8,
    "intermediate_size": 8,
    "model_type": "llama",
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "num_key_value_heads": 2,
    "vocab_size": 8,
}
BASE_SHAPES: dict[str, list[int]] = {
    "lm_head.weight": [8, 8],
    "model.embed_tokens.weight": [8, 8],
    "model.norm.weight": [8],
    **{f"model.layers.0.self_attn.{one}_proj.weight": [8, 8] for one in "qkvo"},
    **{f"model.layers.0.mlp.{one}_proj.weight": [8, 8] for one in ("gate", "up", "down")},
    **{f"model.layers.0.{one}_layernorm.weight": [8] for one in ("input", "post_attention")},
}
"""A Llama of one layer, with nothing wrong."""


LOADS_OR_NOT = ("layers-infinite", "layers-string", "width-negative", "heads-zero")
"""What transformers makes of these numbers, merging a bias does not depend on."""


def base_weights() -> bytes:
    """Its weights."""
    return tensors({name: ("F32", shape, bytes(4 * math.prod(shape))) for name, shape in BASE_SHAPES.items()})


def for_the_base() -> dict[str, dict[str, bytes]]:
    """Adapters for it: one that trains a bias, one with projections, one that was stripped and tells of no torch."""
    layer = "base_model.model.model.layers.0.self_attn.v_proj"
    gamma = {
        f"{layer}.randlora_gamma": ("F32", [4, 8], bytes(128)),
        f"{layer}.randlora_lambda": ("F32", [2, 4], bytes(32)),
    }
    pair = {
        "base_model.randlora_A": ("F32", [2, 1, 8], bytes(64)),
        "base_model.randlora_B": ("F32", [8, 4, 2], bytes(256)),
    }
    targets = {"target_modules": ["v_proj"], "base_model_name_or_path": None}
    return {
        "biased": with_weights(
            tensors({f"{layer}.beft_bias": ("F32", [1, 8], bytes(32))}), {"peft_type": "BEFT", **targets}
        ),
        "with-projections": with_weights(tensors(pair | gamma), {**RANDLORA, **targets}),
        "stripped": with_weights(tensors(gamma), {**RANDLORA, **targets, "save_projection": False}),
    }


@dataclass(frozen=True)
class BaseCase:
    """One broken base model.

    Attributes:
        name: Its folder in `bases/`.
        about: What is wrong with it.
        files: Path in the folder -> content.
        kind: The error kind that every command which reads it reports with exit code 3; None where that is no error.
        merge: The exit code of `check-merge` for an adapter that trains a bias for layers that have none here.
    """

    name: str
    about: str
    files: Mapping[str, bytes]
    kind: str | None = "corrupt"
    merge: int = 3


def base_cases() -> Iterator[BaseCase]:
    """Base models with configs, indices and weights that are none."""
    config, small, names = BASE_CONFIG, base_weights(), list(BASE_SHAPES)

    def configured(name: str, about: str, content: object, kind: str | None = "corrupt", merge: int = 3) -> BaseCase:
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        return BaseCase(f"config-{name}", about, {"config.json": text, "model.safetensors": small}, kind, merge)

    yield configured("empty", "an empty config", b"")
    yield configured("cut", "a config that ends in the middle", b'{"model_type": "lla')
    yield configured("list", "a config that is a list", b"[]")
    yield configured("null", "a config that is null", b"null")
    yield configured("deep", "10,000 nested lists", b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}")
    yield configured("long-number", "a number of 5,000 digits", b'{"vocab_size": ' + b"9" * 5000 + b"}")
    yield configured("lfs-pointer", "a git-LFS pointer", LFS_POINTER)
    yield configured("not-utf8", "bytes that are no UTF-8", b'{"model_type": "\xff"}')
    yield configured("utf16", "a config in UTF-16", '{"model_type": "llama"}'.encode("utf-16"))
    yield configured("byte-order-mark", "a byte order mark, which transformers can't read", b"\xef\xbb\xbf{}")
    yield BaseCase("config-missing", "no config", {"model.safetensors": small}, "not-found")
    yield BaseCase(
        "config-folder",
        "a folder in place of the config",
        {"config.json/README.md": b"a folder\n", "model.safetensors": small},
        "not-found",
    )
    # With biases announced that the file does not hold, transformers is asked where the flag is not plainly true.
    biased = {**config, "attention_bias": True}
    for name, about, fields in (
        ("bias-string", "a flag that is a string", {"attention_bias": "yes"}),
        ("bias-number", "a flag that is a number", {"attention_bias": 1}),
        ("bias-null", "a flag that is null", {"attention_bias": None}),
        ("layers-huge", "a billion layers", {"num_hidden_layers": 10**9}),
        ("layers-infinite", "an infinite number of layers", {"num_hidden_layers": float("inf")}),
        ("layers-string", "a number of layers that is a string", {"num_hidden_layers": "two"}),
        ("width-negative", "a negative width", {"hidden_size": -64}),
        ("heads-zero", "no attention heads", {"num_attention_heads": 0}),
        ("quantized-number", "a number of layers that are not quantised", {"quantization_config": {"ignore": 7}}),
        ("type-path", "a model type that is a path", {"model_type": "../../etc"}),
        ("type-list", "a model type that is a list", {"model_type": ["llama"]}),
    ):
        yield configured(name, about, {**biased, **fields}, None, merge=0 if name in LOADS_OR_NOT else 3)
    code = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    yield BaseCase(
        "config-code",
        "a config that brings code along",
        {
            "config.json": json.dumps({**biased, "model_type": "evil", "auto_map": code}).encode(),
            "evil.py": b'"""Code that must not run."""\n\nfrom pathlib import Path\n\nPath("the-code-ran").touch()\n',
            "model.safetensors": small,
        },
        None,
    )
    yield configured(
        "control-characters",
        "a model type that would steer a terminal",
        {**config, "model_type": "\x1b[2J\u202e"},
        None,
        merge=1,
    )

    for case in header_cases():
        yield BaseCase(
            f"weights-{case.name}",
            case.about,
            {"config.json": json.dumps(config).encode(), "model.safetensors": case.files[WEIGHTS]},
            case.kind,
        )
    yield BaseCase("weights-missing", "no weights", {"config.json": json.dumps(config).encode()}, "not-found")
    yield BaseCase(
        "weights-folder",
        "a folder in place of the weights",
        {"config.json": json.dumps(config).encode(), "model.safetensors/README.md": b"a folder\n"},
        "not-found",
    )
    yield BaseCase(
        "weights-pickle",
        "pickled weights",
        {"config.json": json.dumps(config).encode(), "pytorch_model.bin": b"\x80\x02}."},
        "unsupported",
    )

    shard = "model-00001-of-00001.safetensors"

    def indexed(
        name: str, about: str, index: object, content: bytes | None = small, kind: str = "corrupt", merge: int = 3
    ) -> BaseCase:
        text = index if isinstance(index, bytes) else json.dumps(index).encode()
        files = {"config.json": json.dumps(config).encode(), "model.safetensors.index.json": text}
        return BaseCase(f"index-{name}", about, files if content is None else files | {shard: content}, kind, merge)

    yield indexed("empty", "an empty index", b"")
    yield indexed("list", "an index that is a list", [])
    yield indexed("deep", "10,000 nested lists", b'{"weight_map":' + b"[" * 10_000 + b"]" * 10_000 + b"}")
    yield indexed("lfs-pointer", "a git-LFS pointer", LFS_POINTER)
    yield indexed("without-map", "an index without a weight_map", {"metadata": {}})
    yield indexed("map-empty", "one that maps nothing", {"weight_map": {}})
    yield indexed("map-list", "one whose map is a list", {"weight_map": names})
    for name, about, file in (
        ("numbers", "numbers for shards", 7),
        ("lists", "lists for shards", [shard]),
        ("parent", "a shard in another folder", "../model.safetensors"),
        ("absolute", "a shard anywhere", "/etc/model.safetensors"),
        ("pickle", "a pickle for a shard", "model-00001-of-00001.bin"),
        ("null-character", "a NUL in a shard's name", "a\0.safetensors"),
        ("surrogate", "half a surrogate pair in a shard's name", "\ud800.safetensors"),
        ("long", "a shard's name of 5,000 characters", "n" * 5000 + ".safetensors"),
    ):
        yield indexed(f"map-{name}", about, {"weight_map": dict.fromkeys(names, file)})
    yield indexed("map-names", "half a surrogate pair in a tensor's name", {"weight_map": {f"\ud800{names[0]}": shard}})
    # That a layer has no bias, the index says alone; what needs a shape can't be found out.
    whole = {"weight_map": dict.fromkeys(names, shard)}
    yield indexed("shard-missing", "a shard that is missing", whole, None, "not-found", merge=1)
    yield indexed("shard-truncated", "a shard that is cut off", whole, small[:-1], merge=1)
    yield indexed("shard-of-another", "a shard that lacks what the index names", whole, GOOD, merge=1)
    yield indexed("shard-lfs-pointer", "a git-LFS pointer for a shard", whole, LFS_POINTER, merge=1)


def _saved(state: object) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _zipped(content: bytes, *, compress: bool = False) -> bytes:
    """An archive laid out as torch.save does it, with this as its pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in (("data.pkl", content), ("byteorder", b"little"), ("version", b"3\n")):
            info = zipfile.ZipInfo(f"adapter_model/{name}")
            info.compress_type = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
            archive.writestr(info, data)
    return buffer.getvalue()


def all_cases() -> list[Case]:
    """Every case, in the order of the table."""
    return [
        *header_cases(),
        *folder_cases(),
        *config_cases(),
        *value_cases(),
        *projection_cases(),
        *pickle_cases(),
    ]


def expected(cases: list[Case]) -> dict[str, Any]:
    """The table of the adapters as the tests read it."""
    return {
        case.name: {"about": case.about, "exits": case.exits}
        | ({"kind": case.kind, "code": case.code} if case.kind else {"findings": sorted(case.findings)})
        for case in cases
    }


def expected_of_bases(cases: list[BaseCase]) -> dict[str, Any]:
    """The table of the base models as the tests read it."""
    return {case.name: {"about": case.about, "kind": case.kind, "check-merge": case.merge} for case in cases}


def table_of_bases(cases: list[BaseCase]) -> str:
    """The table of the base models as people read it."""
    about = (
        "Made by `tests/tools/make_broken.py`. Commands that read what is broken report an error of the kind below, with exit "
        "code 3; `check-merge` is asked about an adapter that trains a bias for layers that have none."
    )
    lines = [
        "# Broken base models",
        "",
        about,
        "",
        "| folder | what is wrong | error | `check-merge` |",
        "| --- | --- | --- | --- |",
    ]
    lines += [f"| `{case.name}` | {case.about} | {case.kind or 'none'} | {case.merge} |" for case in cases]
    return "\n".join(lines) + "\n"


def table(cases: list[Case]) -> str:
    """The table of the adapters as people read it."""
    about = (
        "Made by `tests/tools/make_broken.py`. What can't be read is an error of the kind and code below, and exit code 3; "
        "what can be read gets the findings below from `inspect --verify full`. Where a config value makes no sense, the "
        "commands whose answer does not depend on it still answer."
    )
    lines = [
        "# Broken checkpoints",
        "",
        about,
        "",
        "| folder | what is wrong | error or findings | `inspect` | `slim` | `restore` | `check-merge` |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in cases:
        said = f"{case.kind} {case.code or ''}".strip() if case.kind else " ".join(sorted(case.findings)) or "none"
        codes = " | ".join(str(code) for code in case.exits.values())
        lines.append(f"| `{case.name}` | {case.about} | {said} | {codes} |")
    return "\n".join(lines) + "\n"


def write(folder: Path) -> None:
    """Write all cases and their tables."""
    shutil.rmtree(folder, ignore_errors=True)
    cases, bases = all_cases(), list(base_cases())
    for place, files in [
        *((folder / case.name, case.files) for case in cases),
        *((folder / BASES / base.name, base.files) for base in bases),
    ]:
        for name, content in files.items():
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    for place, known, text in (
        (folder, expected(cases), table(cases)),
        (folder / BASES, expected_of_bases(bases), table_of_bases(bases)),
    ):
        (place / "expected.json").write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        (place / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(FOLDER)
