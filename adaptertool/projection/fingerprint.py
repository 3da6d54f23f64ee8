"""What a stripped file remembers of the projections that were removed from it.

One JSON document under the key `adaptertool` of the file's safetensors metadata.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptertool.checkpoint.header import TORCH_DTYPES
from adaptertool.projection.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping

METADATA_KEY = "adaptertool"
SCHEMA = "adaptertool/fingerprint/1"


@dataclass(frozen=True)
class RemovedTensor:
    """One projection that was removed.

    Attributes:
        shape: Elements along each dimension.
        dtype: safetensors' name of the dtype that it was stored in.
        sha256: Of its bytes, little-endian and row-major, in hexadecimal.
    """

    shape: tuple[int, ...]
    dtype: str
    sha256: str


@dataclass(frozen=True)
class Fingerprint:
    """The projections that a file was stripped of.

    Attributes:
        recipe: How to draw them again.
        tensors: By kind, in the order of drawing.
        loads_with: The conditions under which PEFT draws them again, as they were found when they were stripped.
    """

    recipe: Recipe
    tensors: Mapping[str, RemovedTensor]
    loads_with: tuple[str, ...]

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 by kind."""
        return {kind: tensor.sha256 for kind, tensor in self.tensors.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape by kind."""
        return {kind: tensor.shape for kind, tensor in self.tensors.items()}

    def to_metadata(self, version: str) -> str:
        """The document, as written by this version of the tool."""
        return json.dumps(
            {
                "schema": SCHEMA,
                "version": version,
                "recipe": self.recipe.as_json(),
                "tensors": {
                    kind: {"shape": list(tensor.shape), "dtype": tensor.dtype, "sha256": tensor.sha256}
                    for kind, tensor in self.tensors.items()
                },
                "loads_with": list(self.loads_with),
            }
        )

    @staticmethod
    def from_metadata(metadata: Mapping[str, str] | None) -> Fingerprint | None:
        """Read the fingerprint of a file.

        Returns:
            None where the metadata holds none.

        Raises:
            ValueError: it holds one that can't be understood.
        """
        text = (metadata or {}).get(METADATA_KEY)
        if text is None:
            return None
        try:
            document = json.loads(text)
            if not isinstance(document, dict) or document.get("schema") != SCHEMA:
                raise ValueError("it is of a kind that this version does not know")
            tensors = {str(kind): _tensor(entry) for kind, entry in document["tensors"].items()}
            if not tensors:
                raise ValueError("it names no tensors")
            recipe = Recipe.from_json(document["recipe"])
            # Indices beside floating point tensors are int64 whatever those are stored in.
            if not {TORCH_DTYPES[tensor.dtype] for tensor in tensors.values()} <= {recipe.stored_dtype, "int64"}:
                raise ValueError("its recipe and its tensors name different dtypes")
            loads_with = tuple(str(sentence) for sentence in document.get("loads_with", ()))
            return Fingerprint(recipe, tensors, loads_with)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError("it is incomplete") from error


def _tensor(entry: Mapping[str, object]) -> RemovedTensor:
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
