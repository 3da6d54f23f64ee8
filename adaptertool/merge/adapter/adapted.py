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
        tensors: By their name in the module as PEFT saves it, such as `lora_A.weight`.
        own_named: The names in the file of those that have the adapter's own name in theirs, such as
            `base_model.model.q_proj.lora_A.default.weight`.
        twice: Whether it holds one of them under both names: which PEFT loads last decides.
    """

    module: str
    tensors: Mapping[str, TensorInfo]
    own_named: tuple[str, ...] = ()
    twice: bool = False


def adapted_layers(tensors: Iterable[TensorInfo], prefixes: tuple[str, ...]) -> tuple[AdaptedLayer, ...]:
    """The layers in the order of the model, as far as names tell.

    Args:
        tensors: The adapter's.
        prefixes: What the method's tensors begin with, within their module.
    """
    layers: dict[str, dict[str, TensorInfo]] = {}
    named: dict[str, list[str]] = {}
    twice: set[str] = set()
    for tensor in tensors:
        # What stands right under base_model. is shared by all layers.
        segments = tensor.name.removeprefix(PEFT_PREFIX).split(".")
        at = next((index for index, segment in enumerate(segments) if segment.startswith(prefixes)), 0)
        if at == 0 or (at == 1 and segments[0] == "base_model"):
            continue
        # A layer with adapters on two of its parameters is wrapped twice, and LoRA wraps `out_proj` within an attention.
        if "base_layer" in segments[1:at]:
            at = segments.index("base_layer", 1)
        module, name = ".".join(segments[:at]), ".".join(segments[at:])
        layer = layers.setdefault(module, {})
        saved_as = _without_own_name(name, prefixes)
        if saved_as != name:
            named.setdefault(module, []).append(tensor.name)
        if saved_as in layer:
            twice.add(module)
        layer[saved_as] = tensor
    return tuple(
        AdaptedLayer(module, layers[module], tuple(named.get(module, ())), module in twice)
        for module in sorted(layers, key=natural)
    )


OWN_NAME = "default"
"""What PEFT calls an adapter that is given no name. In a model's own state dict it stands in the names of its tensors."""

_MAGNITUDES = "lora_magnitude_vector"
"""DoRA's magnitudes, which are a parameter in PEFT's files and a module's weight in the model."""


def _without_own_name(name: str, prefixes: tuple[str, ...]) -> str:
    """The name under which PEFT saves a tensor that the file may hold under the one that it has in the model.

    Source: `_remap_adapter_state_dict_for_load` in `peft/tuners/tuners_utils.py`, run at 0.21.2: what is not the name of a
    saved tensor is passed on as it is, and so fits where it is the one in the model. Up to 0.20 PEFT put the name in again.
    """
    segments = name.split(".")
    at = next((index for index in range(len(segments) - 1, -1, -1) if segments[index].startswith(prefixes)), None)
    if at is None or segments[at + 1 : at + 2] != [OWN_NAME]:
        return name
    tail = segments[at + 2 :]
    if segments[at] == _MAGNITUDES:
        return ".".join(segments[: at + 1]) if tail == ["weight"] else name
    return ".".join((*segments[: at + 1], *tail))


def shared_under_own_name(names: Iterable[str]) -> bool:
    """Whether tensors that all layers share have the adapter's own name in theirs.

    Args:
        names: Of the adapter's tensors.
    """
    return any(OWN_NAME in name.split(".") for name in names if not name.startswith(PEFT_PREFIX))


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
