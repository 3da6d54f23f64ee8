"""What an adapter's layer demands of the base's: its method's rule, put to what is known of the layer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from adaptertool.merge.adapter.tokens import is_token_layer
from adaptertool.methods.trainable_tokens import TRAINABLE_TOKENS

if TYPE_CHECKING:
    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.merge.adapter.adapted import AdaptedLayer
    from adaptertool.merge.adapter.experts import FusedExperts
    from adaptertool.merge.adapter.targets import Targets
    from adaptertool.merge.base.code import CodeLayer
    from adaptertool.merge.base.layer import Layer
    from adaptertool.merge.base.layers import BaseLayers
    from adaptertool.methods.merging import MergeRule


def layer_for(
    adapter: Adapter,
    layers: BaseLayers,
    adapted: AdaptedLayer,
    rule: MergeRule,
    targets: Targets,
    experts: FusedExperts,
    live: CodeLayer | None = None,
) -> Layer:
    """What is known of the base's layer, and whether PEFT attaches the adapter's to it and can merge it.

    Args:
        adapter: The adapter.
        layers: The base's layers.
        adapted: What the adapter holds of one of them.
        rule: What its method's merge needs.
        targets: What its config targets.
        experts: The layers that are experts which PEFT fuses.
        live: What the built model says of the layer, where it was built.
    """
    fields = adapter.config.fields
    if is_token_layer(adapted) and TRAINABLE_TOKENS.merge is not None:
        rule = TRAINABLE_TOKENS.merge
    module = rule.base_module(fields, adapted.module)
    held = targets.parameters_of(adapted.module, live or layers.code.layer(module))
    kinds = rule.kinds if held == () else None
    trained = bool(adapted.tensors)
    if rule.bias is not None and rule.bias.wanted(fields):
        layer = layers.needs_bias(
            module, kinds=kinds, trained=trained, weight=not rule.bias.alone, live=live, quantised=rule.bias.quantised
        )
    else:
        layer = layers.needs_weight(
            module,
            live=live,
            kinds=kinds,
            trained=trained,
            quantised=rule.quantised,
        )
    layer = replace(layer, module=adapted.module)
    if adapted.module in experts.modules and layer.status == "unknown" and layer.layer_type == "experts":
        why = experts.modules[adapted.module]
        certain = why is None and layer.stored is not None
        layer = replace(layer, status="ok" if certain else "unknown", reason=why or (None if certain else layer.reason))
    if layer.status == "ok" and layer.layer_type == "quantized" and layers.quantization is not None:
        why = rule.plain_only(fields, layers.quantization)
        if why is not None:
            reason = f"the base layer is quantised with {layers.quantization}: {why}"
            layer = replace(layer, status="blocked", code="ADP207", reason=reason)
    refused = rule.refuses(layers.code.model_type, module)
    if refused is None and held:
        refused = rule.refuses_parameters(fields) or targets.conflict(adapted.module, live or layers.code.layer(module))
    if refused is not None:
        return replace(layer, status="blocked", code="ADP207", reason=refused)
    return layer
