"""VB-LoRA: each layer's low-rank factors are put together from a bank of vectors that all layers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptertool.methods.merging import MergeRule
from adaptertool.methods.plain import PlainMethod
from adaptertool.methods.shapes import integer, number, refuse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.checkpoint.config import AdapterConfig
    from adaptertool.checkpoint.header import TensorInfo
    from adaptertool.methods.shapes import Place, Places, Settings, Shapes


@dataclass(frozen=True)
class VbLora(PlainMethod):
    """See `adaptertool.methods.base.Method`."""

    def trained(self, tensor: TensorInfo, config: AdapterConfig) -> int:
        """All numbers; of logits of which only the largest are saved (`save_only_topk_weights`), those that were there."""
        if tensor.name.endswith("_topk_indices"):
            return 0
        if tensor.name.endswith("_topk_weights") and len(tensor.shape) == 3:
            return tensor.shape[0] * tensor.shape[1] * config.integer("num_vectors", 256, least=1)
        return super().trained(tensor, config)


def _refused(settings: Mapping[str, Any]) -> str | None:
    for field in ("init_logits_std", "init_vector_bank_bound"):
        if number(settings, field) < 0:
            return f"{field} is below 0, with which PEFT raises"
    return None


def _tensors(settings: Settings, place: Place, _: Places) -> Shapes:
    """With `save_only_topk_weights` the largest logits are in the file, and PEFT makes all of them from those."""
    rank, vectors, length = (integer(settings, field, 1) for field in ("r", "num_vectors", "vector_length"))
    largest = integer(settings, "topk", 1)
    refuse(largest > vectors, f"topk is {largest}, more than num_vectors, and PEFT raises RuntimeError when it merges")
    refuse(
        place.into % length or place.out % length,
        f"a vector_length of {length} does not divide the layer's {place.out} outputs and {place.into} inputs, and PEFT "
        "raises ValueError",
    )
    shapes = {"A": (rank, place.into // length), "B": (place.out // length, rank)}
    if settings.get("save_only_topk_weights"):
        return {
            f"vblora_logits_{side}_topk_{what}": (*shape, largest - less)
            for side, shape in shapes.items()
            for what, less in (("indices", 0), ("weights", 1))
        }
    return {f"vblora_logits_{side}": (*shape, vectors) for side, shape in shapes.items()}


def _shared(settings: Settings, _: Places) -> Shapes:
    return {"vblora_vector_bank": (integer(settings, "num_vectors", 1), integer(settings, "vector_length", 1))}


def _places(settings: Settings, name: str, *_: object) -> tuple[range, ...] | None:
    return (range(integer(settings, "num_vectors", 1)),) if name.endswith("_topk_indices") else None


VBLORA = VbLora(
    "VBLORA",
    "vblora_",
    "r",
    merge=MergeRule(
        tensors=_tensors,
        refused=_refused,
        shared=_shared,
        places=_places,
        shares=tuple(f"vblora_logits_{side}_topk_weights" for side in "AB"),
    ),
)
