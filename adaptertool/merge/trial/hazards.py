"""Merges that raise nothing and give something else than the adapter.

A layer that the model never calls computes without its adapter as long as that is not merged. And of embeddings, an update
that one of two tied layers has, or that the two have apart, reaches both once it is in the one tensor that they share. Rows
that replace the embedding's are right in both, as far as PEFT adapts both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptertool.merge.adapter.saved import saved_entries
from adaptertool.merge.adapter.tokens import is_token_layer
from adaptertool.merge.base.embeddings import runs_by_ties, scales_embeddings
from adaptertool.merge.base.paths import pattern_of
from adaptertool.merge.base.read_layers import is_read, is_read_in_steps, own_forward

if TYPE_CHECKING:
    from collections.abc import Container

    from adaptertool.merge.adapter.adapted import AdaptedLayer
    from adaptertool.merge.adapter.case import Case
    from adaptertool.merge.base.layer import Layer
    from adaptertool.merge.base.ties import Tie
    from adaptertool.methods.merging import BiasUpdate

_READ = (
    "the model's code reads the layer's weight and never calls the layer: the adapter, which acts in that call, does nothing "
    "until it is merged, and changes the outputs then"
)
_READ_IN_STEPS = (
    "the model's code calls the layer over a whole sequence, and reads its weight alone where it generates token by token: "
    "what it generates is without the adapter there until that is merged, and changes then"
)
_OWN_FORWARD = (
    "the layer's class does more than to look up or to multiply: the adapter acts around that, and gives something else when "
    "it is merged into the weight within, or the model does not run until then"
)
_SHARED = "are one tensor (tie_word_embeddings): merged into one, the update changes the other as well"


class Hazards:
    """What is wrong with merging into a layer, although PEFT raises nothing.

    Args:
        case: The adapter on its base.
    """

    def __init__(self, case: Case) -> None:
        self._adapter = case.adapter
        self._rule = case.rule
        self._layers = case.layers
        self._shared = case.placement.shared
        self._tokens = case.placement.tokens
        self._general = case.rule.hazard(case.adapter.config.fields)
        self._saved = saved_entries(case.adapter)
        if self._general is None and runs_by_ties(case.code.model_type) and self._shared.ends_apart(self._saved):
            # `_unload_and_optionally_merge` in peft/tuners/tuners_utils.py, read at 0.21.2.
            self._general = (
                "the base computes by tie_word_embeddings, and its input and output embeddings are two tensors: PEFT turns "
                "that field off when it merges, and the outputs are scaled otherwise"
            )

    def of(self, adapted: AdaptedLayer, layer: Layer, update: BiasUpdate | None) -> str | None:
        """Why the merge would give something else, as a sentence; None where it would not.

        Args:
            adapted: The layer, with what the adapter holds of it.
            layer: What is known of the base's.
            update: The bias that the adapter adds to the base's, if it does.
        """
        if self._general is not None:
            return self._general
        if is_read(self._layers.base.config, layer.module) and not self._is_zero(adapted):
            return _READ
        if is_read_in_steps(self._layers.base.config, layer.module) and not self._is_zero(adapted):
            return _READ_IN_STEPS
        if self._computes_more(layer, tokens=is_token_layer(adapted)) and not self._is_zero(adapted):
            return _OWN_FORWARD
        if is_token_layer(adapted):
            return self._of_tokens(adapted.module)
        if not self._rule.scaled and layer.layer_type == "embedding" and scales_embeddings(self._layers.base.config):
            return (
                "the base multiplies its embeddings by a factor, which this method leaves out of its update as long as it is "
                "not merged"
            )
        module = layer.module
        weight = update is None or len(adapted.tensors) > 1
        ties = [*(self._shared.of(module) or () if weight else ())]
        ties += (self._shared.of(module, "bias") or ()) if update is not None else ()
        return next((_reason(tie) for tie in ties if self._reaches(tie, module, {})), None)

    def open_question(self, adapted: AdaptedLayer, layer: Layer) -> str | None:
        """Why it can't be told whether the merge would give something else; None where it can.

        Args:
            adapted: See `of`.
            layer: See `of`.
        """
        if adapted.module in self._tokens.uncertain:
            return (
                "whether the base ties other layers to this one, and PEFT lets them use its rows, can't be told from its "
                "config"
            )
        if (
            self._rule.whole_module is None
            and layer.layer_type == "unknown"
            and own_forward(self._layers.base.config, layer.module) is not None
        ):
            return "the layer is a convolution whose class does more than torch's, and what a merge changes there is not known"
        if self._shared.of(adapted.module) is None:
            return "whether input and output embeddings of the base are one tensor can't be told from its config"
        return None

    def _computes_more(self, layer: Layer, *, tokens: bool) -> bool:
        """Whether a layer's class computes more than torch's, and a merge into its weight so changes the outputs."""
        effect = own_forward(self._layers.base.config, layer.module)
        if effect is None or self._rule.whole_module is not None:
            return False
        if layer.layer_type == "embedding":
            return tokens or effect not in self._rule.around
        return layer.layer_type in ("linear", "quantized")

    def _is_zero(self, adapted: AdaptedLayer) -> bool:
        """Whether the update is zero, as PEFT makes it: where the layer is never called, no gradient reaches it."""
        fields, tensors = self._adapter.config.fields, adapted.tensors
        if not tensors:
            return self._rule.starts_at_zero(fields)
        made = [tensor.name for name, tensor in tensors.items() if name in self._rule.zeros]
        if len(made) < len(tensors):
            product = self._rule.product(fields, adapted.module, tensors)
            if product is None or product.lengths is not None:
                return False
        return bool(made) and not any(
            any(bytes(piece)) for name in made for piece in self._adapter.weights.stream(name)
        )

    def _of_tokens(self, module: str) -> str | None:
        owners = self._tokens.owners
        alike = {pattern_of(one): owner for one, owner in owners.items() if owner == module}
        for member in (one for one, owner in owners.items() if owner == module):
            if member in self._tokens.twice or (member != module and self._is_saved(member)):
                return (
                    f"PEFT lets {member} use the trained tokens of the embedding, and it is adapted by itself as well: such a "
                    "model does not run until it is merged"
                )
            layer = self._layers.needs_weight(member)
            if layer.layer_type != "embedding" and layer.has_bias:
                return (
                    f"the trained tokens of {member}, an output layer with a bias, are used without the bias as long as they "
                    "are not merged"
                )
            for tie in self._shared.of(member) or ():
                if self._reaches(tie, member, alike):
                    return _reason(tie)
        return None

    def _reaches(self, tie: Tie, module: str, alike: Container[str]) -> bool:
        """Whether a merge into one layer of a tie changes others that do not have the same update."""
        return any(other not in alike and not self._is_saved(other) for other in self._shared.others(tie, module))

    def _is_saved(self, module: str) -> bool:
        """Whether a layer is trained and saved whole, and so has a tensor of its own: see `_set_trainable` in PEFT."""
        return bool(self._saved) and module.endswith(self._saved)


def _reason(tie: Tie) -> str:
    if any("#" in layer for layer in tie.layers):
        return f"the base shares one {tie.leaf} among several layers: the updates of all of them are merged into it"
    return f"input and output embeddings of the base {_SHARED}"
