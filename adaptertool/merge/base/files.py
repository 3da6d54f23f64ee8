"""The base model: its config, and its tensors from the index and from those shard headers that are needed."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from adaptertool.checkpoint.bytes import LFS_POINTER, fetch_the_file, two_readings
from adaptertool.checkpoint.header import Header, TensorInfo, read_header
from adaptertool.errors import CorruptError, NotFoundError, UnsupportedError
from adaptertool.words import shortened

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from adaptertool.checkpoint.bytes import Bytes
    from adaptertool.checkpoint.folder import Folder
    from adaptertool.checkpoint.target import Target

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")

MAX_JSON_BYTES = 256 << 20
"""The index of a model with a million tensors takes about 100 MB; a longer file is not read."""

LONGEST_NAME = 255
"""Bytes of a file's name, on every file system that models are kept on."""

THREADS = 8
"""Files read at the same time: enough to hide a network's latency, few enough to be polite to a server."""


WHOLE = 4 << 20
"""Bytes of a weights file up to which, over a network, all of it is read, for its digest to prove. A part has none: of a
larger file, what the answer depends on is read twice, which shows no damage that comes twice."""

GAP = 64 << 10
"""Bytes between two tensors that are read with them: over a network, less than another request costs."""

PIECE = 4 << 20
"""Bytes of two tensors that are compared at a time."""

HEAD_BYTES = 512
"""What a header takes beside its tensors: its length, and metadata such as the format."""

ENTRY_BYTES = 120
"""What a header says of a tensor beside its name: dtype, shape and two offsets of up to twelve digits."""


class Base:
    """A base model on disk or on the Hub, opened without reading its weights.

    Attributes:
        folder: Where it is.
        config: Its `config.json`.
        files: The weights file that each tensor stands in, by the tensor's name as stored.
        missing: Shards that the index names and that are not there.
    """

    def __init__(self, folder: Folder, config: Mapping[str, Any], files: Mapping[str, str]) -> None:
        self.folder = folder
        self.config = config
        self.files = files
        self.missing: tuple[str, ...] = ()
        self._headers: dict[str, tuple[Bytes, Header]] = {}
        self._header_bytes: dict[str, int] = {}

    def check_complete(self) -> None:
        """Refuse a base that lacks a shard, read or not: transformers loads no model from it.

        Raises:
            NotFoundError: it does.
        """
        if self.missing:
            raise _incomplete(self.folder, self.missing[0])

    def load_headers(self, names: Iterable[str]) -> None:
        """Read the headers of the files that hold these tensors, in parallel; a header is read once.

        Raises:
            NotFoundError: a shard of the index is missing.
            CorruptError: a header breaks the format, or lacks a tensor that the index names.
        """
        missing = sorted({self.files[name] for name in names} - self._headers.keys())
        if not missing:
            return
        if not self._header_bytes:
            for name, shard in self.files.items():
                self._header_bytes[shard] = self._header_bytes.get(shard, HEAD_BYTES) + ENTRY_BYTES + len(name.encode())
        with ThreadPoolExecutor(min(THREADS, len(missing))) as pool:
            self._headers.update(zip(missing, pool.map(self._read_header, missing), strict=True))

    def shape_if_read(self, name: str) -> tuple[int, ...] | None:
        """One tensor's shape; None where the header that tells it was not read, or lacks it."""
        _, header = self._headers.get(self.files.get(name, ""), (None, None))
        info = header.tensors.get(name) if header is not None else None
        return None if info is None else info.shape

    def tensor(self, name: str) -> TensorInfo:
        """One tensor's dtype, shape and place, from the header of its file.

        Raises:
            CorruptError: the index names a file that lacks the tensor.
        """
        self.load_headers((name,))
        file, header = self._headers[self.files[name]]
        if name not in header.tensors:
            raise CorruptError(
                f"{file.name} lacks {name}, which {INDEX} says is in it", hint="Download the base model again."
            )
        return header.tensors[name]

    def ranges(self, names: Iterable[str]) -> list[list[str]]:
        """These tensors, those together that are read as one range because they lie close to each other."""
        wanted = list(dict.fromkeys(names))
        self.load_headers(wanted)
        ranges: list[list[str]] = []
        end, last = 0, None
        for name in sorted(wanted, key=lambda name: (self.files[name], self.tensor(name).start)):
            info = self.tensor(name)
            if self.files[name] == last and info.start - end <= GAP:
                ranges[-1].append(name)
            else:
                ranges.append([name])
            end, last = info.start + info.nbytes, self.files[name]
        return ranges

    def read(self, ranges: Sequence[list[str]]) -> dict[str, bytes]:
        """The bytes of tensors, read in parallel.

        Args:
            ranges: As `ranges` gives them.
        """
        if not ranges:
            return {}
        found: dict[str, bytes] = {}
        with ThreadPoolExecutor(min(THREADS, len(ranges))) as pool:
            for contents in pool.map(self._read_range, ranges):
                found.update(contents)
        return found

    def stream(self, name: str) -> Iterator[memoryview]:
        """One tensor's bytes in pieces, for tensors too large to hold."""
        info = self.tensor(name)
        file, header = self._headers[self.files[name]]
        return file.stream(header.data_start + info.start, info.nbytes)

    def read_again(self, name: str, start: int, length: int) -> bytes:
        """A part of a tensor, brought anew from where the file is; see `Bytes.read_again`."""
        info = self.tensor(name)
        file, header = self._headers[self.files[name]]
        return file.read_again(header.data_start + info.start + start, length)

    def differ(self, one: str, other: str) -> bool:
        """Whether two tensors differ: on disk anywhere, over a network within their first bytes."""
        first, second = self.tensor(one), self.tensor(other)
        if (first.dtype, first.shape) != (second.dtype, second.shape):
            return True
        most = first.nbytes if self.folder.kind == "local" else min(first.nbytes, GAP)
        for start in range(0, most, PIECE):
            length = min(PIECE, most - start)
            if self._part(one, start, length) != self._part(other, start, length):
                return True
        return False

    def _part(self, name: str, start: int, length: int) -> bytes:
        file, header = self._headers[self.files[name]]
        return self._read_surely(file, header.data_start + self.tensor(name).start + start, length, name)

    def _read_range(self, names: list[str]) -> dict[str, bytes]:
        file, header = self._headers[self.files[names[0]]]
        first, last = self.tensor(names[0]), self.tensor(names[-1])
        extent = header.data_start + first.start, last.start + last.nbytes - first.start
        content = self._read_surely(file, *extent, names[0])
        found = {}
        for name in names:
            info = self.tensor(name)
            found[name] = content[info.start - first.start : info.start - first.start + info.nbytes]
        return found

    def _read_surely(self, file: Bytes, start: int, length: int, name: str) -> bytes:
        """Bytes on which the answer depends: no digest proves a part of a file, if it is larger than `WHOLE`."""
        content = file.read(start, length)
        if self.folder.kind == "hub" and file.read_again(start, length) != content:
            raise two_readings(f"{name} in {file.name}")
        return content

    def _read_header(self, name: str) -> tuple[Bytes, Header]:
        try:
            file = self.folder.open(name, ahead=self._header_bytes.get(name), whole=WHOLE)
        except NotFoundError as error:
            raise _incomplete(self.folder, name) from error
        return file, read_header(file)


def open_base(target: Target) -> Base:
    """Open a base model: its config, and the names of its tensors.

    For a sharded model that is the index alone; the headers are read when a dtype, shape or byte range is asked for.

    Raises:
        NotFoundError: there is no `config.json`, or there are no weights.
        UnsupportedError: the weights are pickles.
        CorruptError: the config, the index or the header breaks its format.
    """
    folder = target.folder
    names = folder.files()
    # Where more may be there than is listed, opening it tells.
    if CONFIG not in names and not folder.partial:
        raise NotFoundError(f"{folder.location} is no base model: it has no {CONFIG}", hint=_what_it_is(names))
    config = _read_json(folder, CONFIG)
    weights = target.weights or next((name for name in (SINGLE, INDEX) if name in names), None)
    if weights is None and folder.partial and not any(name in names for name in PICKLES):
        weights = SINGLE
    if weights == INDEX:
        base = Base(folder, config, _weight_map(folder))
        # In offline mode the cache may hold the index without the shards.
        base.missing = () if folder.partial else tuple(sorted({*base.files.values()} - {*names}))
        return base
    if weights is None or not weights.endswith(".safetensors"):
        if weights is not None or any(name in names for name in PICKLES):
            raise UnsupportedError(
                f"{folder.location} holds pickled weights only, whose tensors can't be listed without loading them",
                hint="Save the base as safetensors (save_pretrained does), or name a revision that holds safetensors.",
            )
        raise NotFoundError(
            f"{folder.location} holds no base model weights: neither {SINGLE} nor {INDEX}", hint=_what_it_is(names)
        )
    base = Base(folder, config, {})
    file = folder.open(weights, whole=WHOLE)
    header = read_header(file)
    base.files = dict.fromkeys(header.tensors, weights)
    base._headers[weights] = (file, header)
    return base


def _what_it_is(names: Iterable[str]) -> str:
    if "adapter_config.json" in names:
        return "It holds an adapter. Name the model that the adapter was trained on with --base."
    found = [name for name in names if name.endswith((".json", ".safetensors", ".bin", ".gguf"))][:5]
    return f"It holds {', '.join(found)}." if found else "Name the base model with --base."


def _weight_map(folder: Folder) -> dict[str, str]:
    name = f"{folder.location}/{INDEX}"
    table = _read_json(folder, INDEX).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise CorruptError(f"{name} has no weight_map", hint="Download the base model again.")
    for tensor, file in table.items():
        # Shards lie beside their index; a path could lead out of the folder.
        if not isinstance(file, str) or not file.endswith(".safetensors") or not _is_file_name(file):
            raise CorruptError(
                f"{name} names {shortened(repr(file))} as a shard", hint="Download the base model again."
            )
        if not _is_text(tensor):
            raise CorruptError(f"{name} names a tensor in no valid Unicode", hint="Download the base model again.")
    return table


def _incomplete(folder: Folder, shard: str) -> NotFoundError:
    return NotFoundError(
        f"{folder.location} is incomplete: {shard}, which its index names, is missing",
        hint="Finish the download of the base model.",
    )


def _is_file_name(text: str) -> bool:
    return _is_text(text) and not set(text) & {"/", "\\", "\0"} and len(text.encode()) <= LONGEST_NAME


def _is_text(text: str) -> bool:
    """Whether no half of a surrogate pair, which JSON can spell, is in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_json(folder: Folder, name: str) -> dict[str, Any]:
    file = folder.open(name)
    if file.size > MAX_JSON_BYTES:
        raise CorruptError(f"{file.name} is {file.size} bytes long, too long for what it should be")
    content = file.read(0, file.size)
    file.close()
    if content.startswith(LFS_POINTER):
        raise CorruptError(f"{file.name} is a git-LFS pointer", hint=fetch_the_file(file))
    try:
        value = json.loads(content.decode("utf-8"))  # as transformers reads it; bytes could be UTF-16, too
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise CorruptError(f"{file.name} is no valid JSON: {reason}", hint="Download the base model again.") from error
    if not isinstance(value, dict):
        raise CorruptError(f"{file.name} is no JSON object", hint="Download the base model again.")
    return value
