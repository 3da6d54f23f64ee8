"""Projections that all layers share, held against the base: are they of the shapes that PEFT makes, and finite?

Source: `set_peft_model_state_dict` in `peft/utils/save_and_load.py` and `_find_dim` of VeRA, PVeRA and RandLoRA, read and run
at 0.21.2. PEFT makes one pair for the layers that the config targets, and loads what is stored into it: another shape raises.
A second adapter's file has the first one's pair, and may load on a model that holds that one alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptertool.checkpoint.finite import first_not_finite
from adaptertool.findings import Finding
from adaptertool.merge.adapter.adapted import PEFT_PREFIX
from adaptertool.methods import method_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.merge.base.layer import Layer
    from adaptertool.merge.base.layers import BaseLayers
    from adaptertool.methods.base import Projections


def other_shapes(adapter: Adapter, layers: BaseLayers, attached: Sequence[Layer]) -> Iterator[Finding]:
    """Projections in the file that do not fit those that PEFT makes.

    Args:
        adapter: The adapter.
        layers: The base's layers.
        attached: All that PEFT attaches the method to.
    """
    rule = _loaded(adapter)
    sizes = [_size(layers, one) for one in attached]
    known = [size for size in sizes if size is not None]
    if rule is None or not sizes or len(known) < len(sizes):
        return
    due = rule.shapes_for(adapter.config, known)
    modules = {one.module for one in attached}
    for one in rule.stored(adapter.weights.tensors, adapter.config):
        for name in one.tensors:
            # A copy under a layer that PEFT does not attach to is left out.
            if (
                name != rule.canonical_name(one.kind)
                and name.removeprefix(PEFT_PREFIX).rpartition(".")[0] not in modules
            ):
                continue
            shape = adapter.weights.tensors[name].shape
            if shape != due[one.kind]:
                message = (
                    f"{name} is {_text(shape)}, and PEFT makes one of {_text(due[one.kind])} for the layers that the config "
                    "targets in this base: it raises a size mismatch at loading. A second adapter on a model is saved with "
                    "the projections of the first"
                )
                yield Finding("ADP203", message, (name,), 1)
                return


def broken_for_all(adapter: Adapter, most_bytes: float) -> Iterator[Finding]:
    """Projections of which all layers have NaN, whichever these are.

    Args:
        adapter: The adapter.
        most_bytes: Tensors that are larger are not looked at.
    """
    rule, tensors = _loaded(adapter), adapter.weights.tensors
    if rule is None:
        return
    for one in rule.stored(tensors, adapter.config):
        name = one.canonical
        if name != rule.canonical_name(one.kind) or tensors[name].nbytes > most_bytes:
            continue
        if first_not_finite(adapter.weights, name) is not None:
            message = f"{name} holds NaN or infinity, and PEFT makes every layer's update of it"
            yield Finding("ADP204", message, (name,), 1)
            return


def _loaded(adapter: Adapter) -> Projections | None:
    """The rule about what PEFT takes from the file for all layers; None where there is no such thing."""
    rule = method_of(adapter.config).projections
    if rule is None or not rule.shared:
        return None
    return rule if rule.flag is None or adapter.config.flag(rule.flag, rule.flag_default) else None


def _size(layers: BaseLayers, layer: Layer) -> tuple[int, int] | None:
    """(out_features, in_features), where the base's file tells."""
    name = f"{layer.stored}.weight"
    if layer.stored is None or layer.elsewhere or layers.is_quantized(layer.stored) or name not in layers.base.files:
        return None
    shape = layers.base.tensor(name).shape
    if len(shape) != 2 or layer.layer_type not in ("linear", "conv1d"):
        return None
    return (shape[0], shape[1]) if layer.layer_type == "linear" else (shape[1], shape[0])


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "no dimensions"
