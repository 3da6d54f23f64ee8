"""Tensors of the base model that an adapter's file holds copies of: compared with the base's own, left out, and brought back.

PEFT saves embeddings whole where the adapter targets one, where the vocabulary was resized, and on request
(`save_embedding_layers`); nothing trained them. Loading puts them over the base's own, so that a file without them loads to
the same model, if they were the same bytes. A resized embedding is not: the base has another number of rows.

Where the base ties its output layer to its embedding, both names load into one parameter, and the later one wins: they go
only where both are the base's own. The output layer then has no tensor in the base's file, and a base that is loaded untied
(`tie_word_embeddings=False`) takes it from the adapter, or at random: such a copy stays. Run with PEFT 0.21.2.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptertool.checkpoint.bytes import two_readings
from adaptertool.checkpoint.header import TORCH_DTYPES
from adaptertool.checkpoint.records import read_record, removed_tensor
from adaptertool.checkpoint.writing.serialize import NewTensor
from adaptertool.findings import Finding
from adaptertool.merge.adapter.adapted import PEFT_PREFIX
from adaptertool.merge.base.code import ModelCode
from adaptertool.merge.base.names import Names, modules_of
from adaptertool.merge.base.paths import pattern_of
from adaptertool.methods.base import CannotDrawError
from adaptertool.methods.beside import copies_of_the_base
from adaptertool.operations.base_layers import base_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.merge.base.files import Base
    from adaptertool.progress import Progress

METADATA_KEY = "adaptertool.base"
SCHEMA = "adaptertool/base-copies/1"


@dataclass(frozen=True)
class BaseCopy:
    """A tensor that is the base's own, byte for byte.

    Attributes:
        base_tensor: Its name in the base's file.
        shape: Elements along each dimension.
        dtype: safetensors' name of its dtype.
        sha256: Of its bytes, in hexadecimal.
    """

    base_tensor: str
    shape: tuple[int, ...]
    dtype: str
    sha256: str


@dataclass(frozen=True)
class BaseCopies:
    """What was found out about an adapter's copies of its base's tensors.

    Attributes:
        base: Where the base is.
        revision: The commit that was read, on the Hub.
        same: Those that are the base's own and can go, by the adapter's name.
        others: Why each of the rest has to stay, by the adapter's name.
        bytes: What those that are the same take up.
    """

    base: str
    revision: str | None
    same: Mapping[str, BaseCopy]
    others: Mapping[str, str]
    bytes: int

    @property
    def loads_with(self) -> tuple[str, ...]:
        """The conditions under which PEFT loads the same without them, a sentence each."""
        at = f" at {self.revision}" if self.revision else ""
        own = ", ".join(dict.fromkeys(one.base_tensor for one in self.same.values()))
        dtypes = " and ".join(dict.fromkeys(TORCH_DTYPES[one.dtype] for one in self.same.values()))
        return (
            f"The base model's own {own}, unchanged: {self.base}{at}.",
            # With it PEFT puts stored tensors in the place of the base's, dtype and all, instead of copying their values.
            f"The base model loaded in {dtypes}; in another dtype too, but not with low_cpu_mem_usage=True.",
        )

    def to_metadata(self, version: str) -> str:
        """What a stripped file remembers of them, as JSON."""
        return json.dumps(
            {
                "schema": SCHEMA,
                "version": version,
                "base": self.base,
                "revision": self.revision,
                "tensors": {
                    name: {
                        "base_tensor": one.base_tensor,
                        "shape": list(one.shape),
                        "dtype": one.dtype,
                        "sha256": one.sha256,
                    }
                    for name, one in self.same.items()
                },
            }
        )


def compare(adapter: Adapter, base: str, token: str | None, progress: Progress) -> BaseCopies | None:
    """Hold an adapter's copies against the base's own tensors, byte for byte.

    Args:
        adapter: The adapter.
        base: The base model.
        token: Access token for the Hub.
        progress: Who is told how far it got.

    Returns:
        None where it holds none.

    Raises:
        AdapterToolError: the base can't be read.
    """
    names = copies_of_the_base(adapter.weights.tensors, adapter.config)
    if not names:
        return None
    model = base_of(adapter, base, token)
    tensors = adapter.weights.tensors
    progress.phase("comparing with the base", sum(tensors[name].nbytes for name in names))
    same: dict[str, BaseCopy] = {}
    others: dict[str, str] = {}
    with adapter.weights.ahead((name, 0, tensors[name].nbytes) for name in names):
        for name in names:
            found = _compare(adapter, name, model, progress)
            if isinstance(found, BaseCopy):
                same[name] = found
            else:
                others[name] = found
    for name, why in _held_back(same, names, model).items():
        others[name] = why
        del same[name]
    folder = model.folder
    return BaseCopies(folder.location, folder.revision, same, others, sum(tensors[name].nbytes for name in same))


def _compare(adapter: Adapter, name: str, base: Base, progress: Progress) -> BaseCopy | str:
    """The base's tensor that this one is a copy of, or why it is none."""
    own = _in_base(name, base)
    if own is None:
        return f"{base.folder.location} has no tensor that is certain to be {name}"
    info, theirs = adapter.weights.tensors[name], base.tensor(own)
    if info.shape != theirs.shape:
        resized = len(info.shape) == len(theirs.shape) == 2 and info.shape[1] == theirs.shape[1]
        why = "the vocabulary was resized" if resized else "it belongs to another base"
        return f"{name} has shape {list(info.shape)}, and the base's {own} {list(theirs.shape)}: {why}"
    if info.dtype != theirs.dtype:
        its, base_dtype = (TORCH_DTYPES.get(dtype, dtype) for dtype in (info.dtype, theirs.dtype))
        return f"{name} is stored as {its}, and the base's {own} as {base_dtype}"
    if info.dtype not in TORCH_DTYPES:
        return f"{name} is stored as {info.dtype}, and how transformers loads the base's own was not looked into"
    running = hashlib.sha256()
    at = 0
    pieces = _paired(adapter.weights.stream(name), base.stream(own))
    for piece, other in pieces:
        if piece != other:
            # What is a "no" must not be what was damaged on its way.
            for whose, read_again, bits in ((name, adapter.weights.read_again, piece), (own, base.read_again, other)):
                if read_again(whose, at, len(bits)) != bits:
                    raise two_readings(whose)
            first = next(index for index, (one, two) in enumerate(zip(piece, other, strict=True)) if one != two)
            return f"{name} is not the base's {own}: the first byte that differs is {at + first} of {info.nbytes}"
        running.update(piece)
        at += len(piece)
        progress.advance(len(piece))
    return BaseCopy(own, info.shape, info.dtype, running.hexdigest())


def _paired(one: Iterator[memoryview], other: Iterator[memoryview]) -> Iterator[tuple[memoryview, memoryview]]:
    """Two streams of the same bytes in pieces of the same length."""
    left = right = memoryview(b"")
    while True:
        left = left if left else next(one, memoryview(b""))
        right = right if right else next(other, memoryview(b""))
        length = min(len(left), len(right))
        if not length:
            return
        yield left[:length], right[:length]
        left, right = left[length:], right[length:]


def _held_back(same: Mapping[str, BaseCopy], names: Collection[str], base: Base) -> dict[str, str]:
    """Of the copies that are the base's own, those that have to stay because of what the base ties, and why."""
    code = ModelCode(base.config)
    modules = {name: _module(name)[0] for name in names}
    tied = {name: {pattern_of(module), *code.tied_with(module)} for name, module in modules.items()}
    stay = {}
    for name, copy in same.items():
        # Of code that is not known nothing says which layers are tied.
        joined = [other for other in names if not code.known or not tied[name].isdisjoint(tied[other])]
        changed = [other for other in joined if other not in same]
        if changed:
            stay[name] = f"{name} is the base's own, and loads into what {changed[0]} loads into, which is not"
        elif _own(name, base) is None:
            stay[name] = (
                f"{name} stays: the base's file has it as {copy.base_tensor} alone, and a base that is loaded with its "
                "embeddings untied takes it from the adapter"
            )
    return stay


def _in_base(name: str, base: Base) -> str | None:
    """The base's tensor that a tensor of the adapter would be a copy of."""
    if (own := _own(name, base)) is not None:
        return own
    # A tied head is stored as the embedding that it is.
    module, leaf = _module(name)
    names = _names(base)
    embeddings = {names.find(other).module for other in ModelCode(base.config).tied_with(module)} - {None}
    found = f"{embeddings.pop()}.{leaf}" if len(embeddings) == 1 else None
    return found if found in base.files else None


def _own(name: str, base: Base) -> str | None:
    """The base's tensor that goes by the name of one of the adapter."""
    module, leaf = _module(name)
    found = f"{_names(base).find(module).module}.{leaf}"
    return found if found in base.files else None


def _module(name: str) -> tuple[str, str]:
    """The module of the base that a tensor of the adapter belongs to, and the tensor's name in it."""
    path = re.sub(r"\.(token_adapter|original_module|base_layer)(?=\.)", "", name.removeprefix(PEFT_PREFIX))
    module, _, leaf = path.rpartition(".")
    return module, leaf


def _names(base: Base) -> Names:
    code = ModelCode(base.config)
    return Names(modules_of(base.files), code.wrappers, code.leading)


def finding_about(adapter: Adapter, copies: BaseCopies | None = None) -> list[Finding]:
    """That a file holds such tensors, with what is known of them; nothing where it holds none.

    Args:
        adapter: The adapter.
        copies: What a comparison with the base found, where there was one.
    """
    tensors = adapter.weights.tensors
    names = copies_of_the_base(tensors, adapter.config)
    if not names:
        return []
    total = sum(tensors[name].nbytes for name in names)
    base = copies.base if copies is not None else adapter.config.text_or_none("base_model_name_or_path")
    why = "Whether they are the base's own, only the base can tell"
    where = shlex.quote(adapter.folder.address)
    fix: str | None = f"adaptertool slim {where} --base {shlex.quote(base) if base else 'BASE'} -o DIR"
    if copies is not None:
        why = "; ".join(copies.others.values()) or f"They are those of {copies.base}, byte for byte"
        fix = fix if copies.same else None
    message = f"Embeddings of the base model that were not trained are stored with the adapter. {why}."
    return [Finding("ADP110", message, names, len(names), total, fix)]


def recorded(metadata: Mapping[str, str] | None) -> dict[str, BaseCopy]:
    """The tensors that a file was stripped of because its base has them, by the adapter's name.

    Raises:
        ValueError: the record can't be understood.
    """
    return read_record(metadata, METADATA_KEY, SCHEMA, _copies) or {}


def _copies(document: Mapping[str, Any]) -> dict[str, BaseCopy]:
    return {str(name): _copy(entry) for name, entry in document["tensors"].items()}


def _copy(entry: Mapping[str, Any]) -> BaseCopy:
    tensor, base_tensor = removed_tensor(entry), entry["base_tensor"]
    if not isinstance(base_tensor, str):
        raise ValueError("a tensor in it makes no sense")
    return BaseCopy(base_tensor, tensor.shape, tensor.dtype, tensor.sha256)


def brought_back(
    adapter: Adapter, missing: Mapping[str, BaseCopy], base: str | None, token: str | None
) -> list[NewTensor]:
    """The tensors from the base again, read and held against their SHA-256.

    Args:
        adapter: The stripped adapter.
        missing: What its record names.
        base: The base model; by default the one that the adapter's config names.
        token: Access token for the Hub.

    Raises:
        CannotDrawError: the base is not named, or holds something else under these names.
        AdapterToolError: the base can't be read.
    """
    model = base_of(adapter, base, token)
    tensors = []
    for name, one in missing.items():
        if one.base_tensor not in model.files:
            raise CannotDrawError(f"{model.folder.location} has no {one.base_tensor}", "Name the base with --base.")
        info = model.tensor(one.base_tensor)
        running = hashlib.sha256()
        for piece in model.stream(one.base_tensor):
            running.update(piece)
        if (info.shape, info.dtype, running.hexdigest()) != (one.shape, one.dtype, one.sha256):
            raise CannotDrawError(
                f"{one.base_tensor} of {model.folder.location} is not the tensor that {name} was",
                "Name the base that the adapter was slimmed against with --base.",
            )
        stream = _stream_of(model, one.base_tensor)
        tensors.append(NewTensor(name, info.dtype, info.shape, info.nbytes, stream, sha256=one.sha256))
    return tensors


def _stream_of(base: Base, name: str) -> Callable[[], Iterator[memoryview]]:
    return lambda: base.stream(name)
