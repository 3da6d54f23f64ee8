"""The layers that an adapter changes, from the names of its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptertool.words import natural

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from adaptertool.checkpoint.header import TensorInfo


PEFT_PREFIX = "base_model.model."
"""What a PeftModel puts before the base model's own module paths."""

_WRAPPERS = ("base_model", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What stands before a path where it was put there twice, or where the saved model was compiled or sharded."""


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
        # What stands right under base_model. is shared by all layers.
        segments = tensor.name.removeprefix(PEFT_PREFIX).split(".")
        at = next((index for index, segment in enumerate(segments) if segment.startswith(prefixes)), 0)
        if at == 0 or (at == 1 and segments[0] == "base_model"):
            continue
        # A layer with adapters on two of its parameters is wrapped twice, and LoRA wraps `out_proj` within an attention.
        if "base_layer" in segments[1:at]:
            at = segments.index("base_layer", 1)
        layers.setdefault(".".join(segments[:at]), {})[".".join(segments[at:])] = tensor
    return tuple(AdaptedLayer(module, layers[module]) for module in sorted(layers, key=natural))


def misnamed_tensors(tensors: Iterable[TensorInfo], prefixes: tuple[str, ...]) -> tuple[str, ...]:
    """The method's tensors that have no name in a PeftModel of a plain base, so that PEFT loads none of them.

    Source: `peft/utils/save_and_load.py`, `set_peft_model_state_dict`, read and run at 0.21.2: names must be those of the
    model's own parameters, and what is unexpected is left out without an error.

    Args:
        tensors: The adapter's.
        prefixes: What the method's tensors begin with, within their module.
    """
    return tuple(
        tensor.name
        for tensor in tensors
        if any(segment.startswith(prefixes) for segment in tensor.name.split(".")[1:])
        and (not tensor.name.startswith("base_model.") or {*tensor.name.split(".")[1:]} & {*_WRAPPERS})
    )
