"""The layers that an adapter changes, from the names of its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptertool.words import natural

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from adaptertool.checkpoint.header import TensorInfo


@dataclass(frozen=True)
class AdaptedLayer:
    """A layer and the adapter's tensors for it.

    Attributes:
        module: Its path in the live model.
        tensors: By their name in the module, such as `lora_A.weight`.
    """

    module: str
    tensors: Mapping[str, TensorInfo]


def adapted_layers(tensors: Iterable[TensorInfo], prefixes: tuple[str, ...]) -> tuple[AdaptedLayer, ...]:
    """The layers in the order of the model, as far as names tell.

    Args:
        tensors: The adapter's.
        prefixes: What the method's tensors begin with, within their module.
    """
    layers: dict[str, dict[str, TensorInfo]] = {}
    for tensor in tensors:
        # PeftModel puts base_model.model. before the path; what stands right under base_model. is shared by all layers.
        name = tensor.name.removeprefix("base_model.model.")
        segments = name.split(".")
        at = next((index for index, segment in enumerate(segments) if segment.startswith(prefixes)), 0)
        if at == 0 or (at == 1 and segments[0] == "base_model"):
            continue
        # A layer with adapters on two of its parameters is wrapped twice.
        while segments[at - 1] == "base_layer" and at > 1:
            at -= 1
        layers.setdefault(".".join(segments[:at]), {})[".".join(segments[at:])] = tensor
    return tuple(AdaptedLayer(module, layers[module]) for module in sorted(layers, key=natural))
