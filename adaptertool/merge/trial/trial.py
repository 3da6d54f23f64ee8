"""The merge of every layer, tried without a model: what its values become, and what rounding takes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from adaptertool.merge.result import HAZARD, LayerResult
from adaptertool.merge.trial.adapter_values import REMOTE_SCAN_BYTES, AdapterValues
from adaptertool.merge.trial.base_values import BaseValues
from adaptertool.merge.trial.extremes import USUAL_TENSOR, USUAL_WEIGHT
from adaptertool.merge.trial.hazards import Hazards
from adaptertool.merge.trial.layer_merge import layer_merge
from adaptertool.merge.trial.trouble import Trouble
from adaptertool.words import plural

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from adaptertool.checkpoint.header import TensorInfo
    from adaptertool.merge.adapter.adapted import AdaptedLayer
    from adaptertool.merge.adapter.case import Case
    from adaptertool.merge.base.layer import Layer
    from adaptertool.merge.trial.arithmetic import ProductMerge
    from adaptertool.merge.trial.layer_merge import LayerMerge
    from adaptertool.methods.merging import BiasUpdate, Product


class Trial:
    """A merge that is tried without a model.

    Args:
        case: The adapter on its base.
        dtype: The dtype in which the base is loaded; None for that of each stored bias.
        threshold: The `rounding_loss` above which a layer is lossy.
        all_biases: Whether all biases of the base are read over a network, however many.

    Attributes:
        dtypes: The dtypes in which biases were added.
        changes: Whether a layer was seen whose update is not zero, or could not be looked at.
        not_examined: What was not looked at, and so is taken to be in order; a sentence each.
    """

    def __init__(self, case: Case, dtype: str | None, threshold: float, *, all_biases: bool = False) -> None:
        self.adapter = case.adapter
        self.base = case.base
        self.rule = case.rule
        self.dtype = dtype
        self.threshold = threshold
        self.hazards = Hazards(case)
        self.dtypes: set[str] = set()
        self.changes = False
        self.not_examined: list[str] = []
        self._values = AdapterValues(case.adapter, case.rule, case.settings)
        self._base_values = BaseValues(case.base, all_biases=all_biases)

    @property
    def biases_read(self) -> int:
        """Of how many biases of the base the values were read."""
        return len(self._base_values.biases)

    @property
    def weights_read(self) -> int:
        """The same of weights."""
        return len(self._base_values.weights)

    def run(self, pairs: Sequence[tuple[AdaptedLayer, Layer]]) -> tuple[LayerResult, ...]:
        """Try every layer that is `ok` so far; the others are taken as they are."""
        merges = [layer_merge(self.adapter, self.rule, *pair) for pair in pairs]
        if any(merge.layer.status == "ok" for merge in merges):
            self._values.begin(self.dtype)
        self._base_values.read_weights(merges)
        self._base_values.read_biases(merges)
        results = tuple(self._try(merge) for merge in merges)
        self._sum_up(merges)
        return results

    def _sum_up(self, merges: Sequence[LayerMerge]) -> None:
        if self._base_values.biases_unread is not None:
            self.not_examined.append(self._base_values.biases_unread)
        into_weights = [
            merge
            for merge in merges
            if merge.layer.status == "ok"
            and merge.into_weight
            and merge.copy is None
            and merge.weight not in self._base_values.weights
        ]
        if into_weights:
            self.not_examined.append(
                "The values of the base's weights, of which headers alone were read: that they are finite is assumed."
            )
        if any(merge.product is None for merge in into_weights):
            self.not_examined.append(
                "Whether the merged weights overflow: what this adapter adds depends on the weights."
            )
        if apart := sum(merge.layer.elsewhere and merge.update is not None for merge in merges):
            self.not_examined.append(
                f"The values of {plural(apart, 'bias', 'biases')} that the base stores with those of other layers."
            )
        if self._values.unscanned:
            self.not_examined.append(
                f"{plural(self._values.unscanned, 'tensor')} of the adapter, for NaN and infinity: over the network "
                f"{REMOTE_SCAN_BYTES >> 20} MB are looked through."
            )

    def _try(self, merge: LayerMerge) -> LayerResult:
        layer = merge.layer
        base_tensor = layer.bias if layer.bias is not None else merge.weight
        result = LayerResult(
            layer.module,
            layer.status,
            layer.code,
            layer.layer_type,
            layer.has_bias,
            reason=layer.reason,
            base_tensor=base_tensor if base_tensor in self.base.files else None,
        )
        if layer.status != "ok":
            return result
        trouble = self._values.look_through(merge, self._dtype_of(merge), self._shape_of(merge))
        if trouble is None and merge.into_weight:
            trouble = self._try_weight(merge)
        if trouble is not None and trouble.certain:
            return replace(result, status="blocked", code="ADP204", reason=f"{trouble.reason}; {self._noticed}")
        if trouble is not None:
            return replace(result, status="unknown", reason=trouble.reason)
        if merge.update is not None:
            result = self._try_bias(merge, merge.update, result)
        if result.status != "ok":
            return result
        hazard = self.hazards.of(merge.adapted, layer, merge.update) or self._kernel_hazard(merge)
        if hazard is not None:
            return replace(result, status="lossy", code=HAZARD, reason=hazard)
        if (question := self.hazards.open_question(merge.adapted, layer)) is not None:
            return replace(result, status="unknown", reason=question)
        if layer.layer_type == "quantized" and merge.into_weight:
            return self._quantised_again(result)
        return result

    def _quantised_again(self, result: LayerResult) -> LayerResult:
        """How much of an update is lost where the merged weight is quantised again was not computed, and is never nothing."""
        if self.threshold >= 1:
            return result
        return replace(
            result,
            status="lossy",
            code="ADP205",
            reason="the merged weight is quantised again, as the base's is, and what is below half a step of that is lost",
        )

    @property
    def _noticed(self) -> str:
        if self.rule.looks:
            return "safe_merge=True raises, and without it the merged weights are broken"
        return "this method's merge never looks, not even with safe_merge=True, and the merged weights are broken"

    def _dtype_of(self, merge: LayerMerge) -> str | None:
        """The dtype in which the layer is merged into."""
        from adaptertool.checkpoint.header import TORCH_DTYPES

        if self.dtype is not None or merge.weight not in self.base.files:
            return self.dtype
        return TORCH_DTYPES.get(self.base.tensor(merge.weight).dtype)

    def _shape_of(self, merge: LayerMerge) -> tuple[int, ...] | None:
        """The shape of the weight that is merged into; of a quantised one the file has another."""
        if merge.weight not in self.base.files or merge.layer.layer_type == "quantized":
            return None
        return self.base.tensor(merge.weight).shape

    def _try_weight(self, merge: LayerMerge) -> Trouble | None:
        """Whether the weight that is merged into is finite, where it was read, and whether what is added overflows."""
        import numpy as np

        from adaptertool.projection.dtypes import DTYPE_NAMES, FLOATS, rounded, values_of

        self.changes = self.changes or merge.product is None
        stored = DTYPE_NAMES.get(self.base.tensor(merge.weight).dtype) if merge.weight in self.base.files else None
        dtype = self.dtype or (stored if stored in FLOATS else None)
        weight = None
        if dtype is not None and merge.weight in self._base_values.weights and stored in FLOATS:
            info = self.base.tensor(merge.weight)
            content = self._base_values.weights[merge.weight]
            weight = rounded(values_of(content, info.dtype), dtype).reshape(info.shape)
            if not np.isfinite(weight).all():
                return Trouble(certain=True, reason=f"the base's weight holds NaN or infinity in {dtype}")
        if merge.product is None:
            return None
        names = (merge.product.up, merge.product.down, merge.product.lengths)
        factors = self._values.factors({name: merge.adapted.tensors[name] for name in names if name})
        if isinstance(factors, Trouble):
            return factors
        if dtype is None or not factors:
            self.changes = True
            return None
        if weight is not None and (merge.product.transposed or merge.layer.layer_type == "conv1d"):
            weight = weight.T
        merged = _multiply(merge.product, factors, dtype, weight)
        self.changes = self.changes or not merged.zero
        return _overflow(merge.product, merged, dtype)

    def _kernel_hazard(self, merge: LayerMerge) -> str | None:
        if self.rule.kernels or merge.weight not in self.base.files:
            return None
        if math.prod(self.base.tensor(merge.weight).shape[2:]) == 1:
            return None
        return (
            "the base layer is a convolution, for which this method's merge computes something else than its layer does"
        )

    def _bias_of(self, merge: LayerMerge, update: TensorInfo | None) -> tuple[TensorInfo | None, NDArray[Any] | None]:
        """The bias that is added to: the adapter's own copy where PEFT loads one over the base's, else the base's.

        Returns:
            How it is stored, None where no file holds one or it was not read; and its values, None where nothing is added in
            that dtype.
        """
        from adaptertool.projection.dtypes import DTYPE_NAMES, FLOATS, values_of

        copied, name = merge.copied_bias, merge.layer.bias
        # A copy of another shape is told with the other misfits: PEFT raises at loading.
        if copied is not None and merge.layer.has_bias and (update is None or copied.numel == update.numel):
            floats = DTYPE_NAMES.get(copied.dtype) in FLOATS
            return copied, self._values.of(copied).reshape(-1) if floats else None
        stored = self._base_values.biases.get(name or "")
        if stored is None or name is None:
            return None, None
        info = self.base.tensor(name)
        return info, values_of(stored, info.dtype) if DTYPE_NAMES.get(info.dtype) in FLOATS else None

    def _try_bias(self, merge: LayerMerge, update: BiasUpdate, result: LayerResult) -> LayerResult:
        import numpy as np

        from adaptertool.merge.trial.arithmetic import merge_bias
        from adaptertool.projection.dtypes import DTYPE_NAMES, FLOATS

        tensor = merge.adapted.tensors.get(update.tensor)
        info, bias = self._bias_of(merge, tensor)
        unread = self._base_values.biases_unread is not None and merge.copied_bias is None
        if unread or merge.layer.elsewhere or (tensor is None and info is None):
            self.changes = self.changes or tensor is not None
            return result
        stored_as = [one.dtype for one in (tensor, info) if one is not None]
        odd = next((one for one in stored_as if DTYPE_NAMES.get(one) not in FLOATS), None)
        if odd is not None:
            return replace(
                result, status="unknown", reason=f"a bias is stored as {odd}, in which nothing is added here"
            )
        fields = self.adapter.config.fields
        scale = update.scale(fields, merge.adapted.module) if update.scale is not None else 1.0
        dtype = self.dtype or DTYPE_NAMES[stored_as[-1]]
        self.dtypes.add(dtype)
        # What PEFT makes where the file holds nothing is zero; a method whose does not start there is asked for beforehand.
        values = np.zeros_like(bias) if tensor is None else self._values.of(tensor).reshape(-1)
        merged = merge_bias(bias, values, scale, dtype, squeezed=update.squeezed)
        self.changes = self.changes or merged.update_norm != 0
        result = replace(
            result,
            update_norm=_finite(merged.update_norm),
            bias_norm=_finite(merged.bias_norm),
            rounding_loss=merged.rounding_loss,
        )
        if not merged.finite:
            seen = (
                "safe_merge=True raises, and without it the merged bias is broken"
                if merged.noticed
                else f"the sum overflows {dtype}, which not even safe_merge=True notices"
            )
            return replace(
                result, status="blocked", code="ADP204", reason=f"merging in {dtype} gives NaN or infinity: {seen}"
            )
        if merged.update_norm > USUAL_TENSOR:
            return replace(
                result,
                status="unknown",
                reason=f"the update has a length of {merged.update_norm:.3g}, as no training makes it: what the model "
                f"computes with it may overflow {dtype}",
            )
        if merged.rounding_loss is not None and merged.rounding_loss > self.threshold:
            return replace(
                result,
                status="lossy",
                code="ADP205",
                reason=f"more than {self.threshold:.0%} of the update is lost to rounding in {dtype}",
            )
        return result


def _multiply(
    product: Product, factors: Mapping[str, NDArray[Any]], dtype: str, weight: NDArray[Any] | None
) -> ProductMerge:
    from adaptertool.merge.trial.arithmetic import merge_product, merge_rescaled

    up, down = factors[product.up], factors[product.down]
    if product.lengths is None:
        return merge_product(up, down, product.scale, dtype, weight)
    return merge_rescaled(up, down, product.scale, factors[product.lengths], dtype, weight)


def _overflow(product: Product, merged: ProductMerge, dtype: str) -> Trouble | None:
    """What becomes of a product in words; None where all is well."""
    if not merged.finite:
        return Trouble(
            certain=True,
            reason=f"the update overflows {dtype}, by itself or with the base's weight"
            if product.lengths is None
            else f"rescaled to the adapter's {product.lengths}, the weight is not finite in {dtype}",
        )
    if not merged.room:
        return Trouble(
            certain=False,
            reason=f"the update comes near the largest number of {dtype}, and whether its sum with the base's weights "
            "overflows can't be told without reading them"
            if product.lengths is None
            else f"the adapter's {product.lengths} has zeros, or values with which the merged weights may overflow "
            f"{dtype}, and what becomes of them can't be told without reading the base's weights",
        )
    if not merged.usual:
        return Trouble(
            certain=False,
            reason=f"the update has numbers of more than {USUAL_WEIGHT:.0f}, as no training makes them: what the model "
            f"computes with them may overflow {dtype}",
        )
    return None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
