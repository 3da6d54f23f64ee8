"""What a stripped file remembers of the projections that were removed from it.

One JSON document under the key `adaptertool` of the file's safetensors metadata.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptertool.checkpoint.header import TORCH_DTYPES
from adaptertool.checkpoint.records import RemovedTensor, read_record, removed_tensor
from adaptertool.projection.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping

METADATA_KEY = "adaptertool"
SCHEMA = "adaptertool/fingerprint/1"


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
        return read_record(metadata, METADATA_KEY, SCHEMA, _parsed)


def _parsed(document: Mapping[str, Any]) -> Fingerprint:
    tensors = {str(kind): removed_tensor(entry) for kind, entry in document["tensors"].items()}
    if not tensors:
        raise ValueError("it names no tensors")
    recipe = Recipe.from_json(document["recipe"])
    # Indices beside floating point tensors are int64 whatever those are stored in.
    if not {TORCH_DTYPES[tensor.dtype] for tensor in tensors.values()} <= {recipe.stored_dtype, "int64"}:
        raise ValueError("its recipe and its tensors name different dtypes")
    loads_with = tuple(str(sentence) for sentence in document.get("loads_with", ()))
    return Fingerprint(recipe, tensors, loads_with)
