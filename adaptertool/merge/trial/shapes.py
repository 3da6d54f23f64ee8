"""The shapes of the adapter's tensors, held against those of the base's layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptertool.merge.adapter.tokens import misfit_of_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.checkpoint.header import TensorInfo
    from adaptertool.merge.base.files import Base
    from adaptertool.merge.trial.layer_merge import LayerMerge
    from adaptertool.methods.merging import MergeRule


class Shapes:
    """What the base's headers say of an adapter's shapes.

    Args:
        adapter: The adapter.
        base: The base model.
        rule: What the adapter's method needs.
    """

    def __init__(self, adapter: Adapter, base: Base, rule: MergeRule) -> None:
        self._adapter = adapter
        self._base = base
        self._rule = rule

    def held_against(self, merge: LayerMerge) -> Iterator[str]:
        """The base tensors whose shapes decide."""
        stores_weight = merge.weight in self._base.files
        if merge.update is not None and merge.layer.bias is not None:
            yield merge.layer.bias
        elif merge.update is not None and stores_weight:
            yield merge.weight
        if merge.layer.stored is not None:
            yield from (name for name in self._replaced(merge) if name in self._base.files)
        sized = self._is_matrix(merge) or merge.of_tokens or _dims_of_product(merge) is not None
        if (sized or not self._rule.kernels) and stores_weight:
            yield merge.weight

    def misfit(self, merge: LayerMerge) -> str | None:
        """Why PEFT does not load a layer's tensors, or can't merge them, as a sentence; None where shapes do not say so."""
        tensors = merge.adapted.tensors
        if not tensors:
            return None
        weight = self._base.tensor(merge.weight) if merge.weight in self.held_against(merge) else None
        if merge.of_tokens:
            return misfit_of_tokens(self._adapter, merge.adapted, weight)
        if merge.update is not None and merge.update.tensor in tensors:
            tensor = tensors[merge.update.tensor]
            out_features = self._out_features(merge, weight, tensor)
            if out_features is None or tensor.shape != merge.update.shape(out_features):
                return (
                    f"the adapter's {merge.update.tensor} has shape {list(tensor.shape)}, and the base layer's out_features "
                    f"is {out_features}"
                )
        for name, module in self._replaced(merge).items():
            if name in self._base.files and (shape := self._base.tensor(name).shape) != module.shape:
                return f"the adapter's module has shape {list(module.shape)}, and the base's {list(shape)}"
        if self._rule.fits is not None and self._is_matrix(merge) and weight is not None and len(weight.shape) == 2:
            out, into = weight.shape[::-1] if merge.layer.layer_type == "conv1d" else weight.shape
            if not self._rule.fits(self._adapter.config.fields, tensors, out, into):
                name, tensor = next(iter(tensors.items()))
                return (
                    f"the adapter is for a layer of another shape than the base's ({out} outputs, {into} inputs); its "
                    f"{name} has shape {list(tensor.shape)}"
                )
        dims = _dims_of_product(merge)
        if dims is not None and weight is not None and len(weight.shape) == len(dims) and dims != weight.shape:
            return f"the adapter is for a layer of shape {list(dims)}, and the base layer's is {list(weight.shape)}"
        return None

    def _out_features(self, merge: LayerMerge, weight: TensorInfo | None, tensor: TensorInfo) -> int | None:
        """The outputs of the base's layer; the adapter's where nothing tells them, and None for a shape that no layer has."""
        if merge.layer.bias is not None:
            shape = self._base.tensor(merge.layer.bias).shape
            return shape[0] if len(shape) == 1 else None
        if weight is not None and merge.layer.layer_type != "quantized":
            return weight.shape[-1 if merge.layer.layer_type == "conv1d" else 0] if weight.shape else None
        return tensor.numel

    def _replaced(self, merge: LayerMerge) -> dict[str, TensorInfo]:
        """The base's tensors that the adapter's take the place of, by their names in the base's file."""
        prefix = self._rule.whole_module
        return {
            f"{merge.layer.stored}.{name[len(prefix) + 1 :]}": tensor
            for name, tensor in merge.adapted.tensors.items()
            if prefix is not None and name.startswith(f"{prefix}.")
        }

    def _is_matrix(self, merge: LayerMerge) -> bool:
        """Whether the layer's weight is a matrix of which the adapter's tensors tell whether they are for it."""
        return self._rule.fits is not None and merge.layer.layer_type in ("linear", "conv1d", "experts")


def _dims_of_product(merge: LayerMerge) -> tuple[int, ...] | None:
    """The shape of the embedding or convolution that a product of the adapter's is for."""
    product = merge.product
    if product is None or merge.layer.layer_type not in ("embedding", "unknown"):
        return None
    up, down = merge.adapted.tensors[product.up], merge.adapted.tensors[product.down]
    if product.transposed and len(up.shape) == len(down.shape) == 2:
        return down.shape[1], up.shape[0]
    return (up.shape[0], *down.shape[1:]) if len(up.shape) > 2 and len(down.shape) > 2 else None
