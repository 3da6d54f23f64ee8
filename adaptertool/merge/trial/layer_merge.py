"""One layer and what is merged into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptertool.merge.adapter.adapted import PEFT_PREFIX
from adaptertool.merge.adapter.tokens import is_token_layer

if TYPE_CHECKING:
    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.checkpoint.header import TensorInfo
    from adaptertool.merge.adapter.adapted import AdaptedLayer
    from adaptertool.merge.base.layer import Layer
    from adaptertool.methods.merging import BiasUpdate, MergeRule, Product


@dataclass(frozen=True)
class LayerMerge:
    """What is merged into a layer.

    Attributes:
        adapted: What the adapter holds of it.
        layer: What is known of the base's.
        update: The bias that the adapter adds to the base's, if it does.
        product: What the adapter adds to its weight, where that is a product of two tensors.
        copy: A weight in the adapter's own file, which takes the base's place: PEFT saves one of each adapted embedding.
        copied_bias: The same of its bias.
    """

    adapted: AdaptedLayer
    layer: Layer
    update: BiasUpdate | None
    product: Product | None
    copy: TensorInfo | None
    copied_bias: TensorInfo | None

    @property
    def of_tokens(self) -> bool:
        """Whether single rows of an embedding are replaced."""
        return is_token_layer(self.adapted)

    @property
    def weight(self) -> str:
        """What the base's weight is called in its file, if it is there under this name."""
        return f"{self.layer.stored}.weight"

    @property
    def into_weight(self) -> list[str]:
        """The tensors whose update goes into the layer's weight, by their name in the module."""
        return [name for name in self.adapted.tensors if self.update is None or name != self.update.tensor]


def layer_merge(adapter: Adapter, rule: MergeRule, adapted: AdaptedLayer, layer: Layer) -> LayerMerge:
    """Find out what is merged into a layer.

    Args:
        adapter: The adapter.
        rule: What its method's merge needs.
        adapted: What the adapter holds of the layer.
        layer: What is known of the base's.
    """
    fields = adapter.config.fields
    bias = rule.bias if rule.bias is not None and rule.bias.wanted(fields) and not is_token_layer(adapted) else None
    wrapper = "token_adapter." if "token_adapter.trainable_tokens_delta" in adapted.tensors else ""
    wrapped = f"{PEFT_PREFIX}{adapted.module}.{wrapper}base_layer"
    copies = (adapter.weights.tensors.get(f"{wrapped}.{leaf}") for leaf in ("weight", "bias"))
    # The tensors of a layer that is blocked need not be what its product takes.
    product = rule.product(fields, adapted.module, adapted.tensors) if layer.status == "ok" else None
    return LayerMerge(adapted, layer, bias, product, *copies)
