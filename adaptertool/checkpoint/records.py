"""What a stripped file remembers of what was taken out of it: JSON documents in its safetensors metadata."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from adaptertool.checkpoint.header import TORCH_DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

R = TypeVar("R")


@dataclass(frozen=True)
class RemovedTensor:
    """A tensor that was taken out.

    Attributes:
        shape: Elements along each dimension.
        dtype: safetensors' name of the dtype that it was stored in.
        sha256: Of its bytes, little-endian and row-major, in hexadecimal.
    """

    shape: tuple[int, ...]
    dtype: str
    sha256: str


def read_record(
    metadata: Mapping[str, str] | None, key: str, schema: str, parse: Callable[[Mapping[str, Any]], R]
) -> R | None:
    """Read one of the documents.

    Args:
        metadata: The file's.
        key: Where it stands in there.
        schema: The kind and version that it has to be of.
        parse: What makes something of it; a KeyError, TypeError or AttributeError of its says that it is incomplete.

    Returns:
        None where the metadata holds none.

    Raises:
        ValueError: it holds one that can't be understood.
    """
    text = (metadata or {}).get(key)
    if text is None:
        return None
    try:
        document = json.loads(text)
        if not isinstance(document, dict) or document.get("schema") != schema:
            raise ValueError("it is of a kind that this version does not know")
        return parse(document)
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError("it is incomplete") from error


def removed_tensor(entry: Mapping[str, Any]) -> RemovedTensor:
    """One tensor of such a document.

    Raises:
        ValueError: it makes no sense.
        KeyError, TypeError: it is incomplete.
    """
    shape, dtype, digest = entry["shape"], entry["dtype"], entry["sha256"]
    if (
        not isinstance(shape, list)
        or not all(type(dim) is int and 0 <= dim < 2**40 for dim in shape)
        or dtype not in TORCH_DTYPES
        or not isinstance(digest, str)
        or not re.fullmatch(r"[0-9a-f]{64}", digest)
    ):
        raise ValueError("a tensor in it makes no sense")
    return RemovedTensor(tuple(shape), str(dtype), digest)
