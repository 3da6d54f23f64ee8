"""The dry run over all layers: shapes, values, what rounding takes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from adaptertool.checkpoint.finite import first_not_finite
from adaptertool.merge.adapter.tokens import is_token_layer, misfit_of_tokens
from adaptertool.merge.result import HAZARD, LayerResult
from adaptertool.merge.trial.extremes import INFINITE_FROM, largest, odd_factor, usual_size
from adaptertool.methods import method_of
from adaptertool.words import plural

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.checkpoint.header import TensorInfo
    from adaptertool.merge.adapter.adapted import AdaptedLayer
    from adaptertool.merge.base.files import Base
    from adaptertool.merge.base.layers import Layer
    from adaptertool.merge.trial.hazards import Hazards
    from adaptertool.methods.merging import BiasUpdate, MergeRule, Product

REMOTE_SCAN_BYTES = 64 << 20
"""How much of what is added to weights is looked through for NaN and infinity, over the network."""

REMOTE_BIASES = 64
"""How many biases of a base are read over a network, a request each, unless all of them are asked for."""

WEIGHT_BYTES = 64 << 20
"""How much of a base's weights on disk is read, to see whether they are finite; of larger ones headers have to do."""


class Trial:
    """A merge that is tried without a model.

    Args:
        adapter: The adapter.
        base: The base model.
        rule: What the adapter's method needs.
        dtype: The dtype in which the base is loaded; None for that of each stored bias.
        threshold: The `rounding_loss` above which a layer is lossy.
        hazards: What is wrong with a merge that raises nothing.
        all_biases: Whether all biases of the base are read over a network, however many.

    Attributes:
        dtypes: The dtypes in which biases were added.
        changes: Whether a layer was seen whose update is not zero, or could not be looked at.
        not_examined: What was not looked at, and so is taken to be in order; a sentence each.
        biases_read: Of how many biases of the base the values were read.
        weights_read: The same of weights.
    """

    def __init__(
        self,
        adapter: Adapter,
        base: Base,
        rule: MergeRule,
        dtype: str | None,
        threshold: float,
        *,
        hazards: Hazards,
        all_biases: bool = False,
    ) -> None:
        self.adapter = adapter
        self.base = base
        self.rule = rule
        self.dtype = dtype
        self.threshold = threshold
        self.hazards = hazards
        self.all_biases = all_biases
        self.dtypes: set[str] = set()
        self.changes = False
        self.not_examined: list[str] = []
        self.biases_read = 0
        self.weights_read = 0
        self._shared: tuple[str, float] | None = None
        self._weights: dict[str, bytes] = {}
        self._biases_unread = False
        self._unscanned = 0
        self._budget = math.inf if adapter.folder.kind == "local" else REMOTE_SCAN_BYTES

    def run(self, pairs: Sequence[tuple[AdaptedLayer, Layer]]) -> tuple[LayerResult, ...]:
        """Try every layer that is `ok` so far; the others are taken as they are."""
        found = [(adapted, layer, self._update(adapted)) for adapted, layer in pairs]
        going = [(adapted, layer, update) for adapted, layer, update in found if layer.status == "ok"]
        self.base.load_headers(
            name for adapted, layer, update in going for name in self._base_tensors(adapted, layer, update)
        )
        checked = [
            (adapted, self._check_shape(adapted, layer, update) if layer.status == "ok" else layer, update)
            for adapted, layer, update in found
        ]
        small = sum(tensor.nbytes for tensor in self.adapter.weights.tensors.values()) <= self._budget
        going_on = any(layer.status == "ok" for _, layer, _ in checked)
        if self.adapter.folder.kind == "hub" and small and going_on:
            self.adapter.weights.hold()
            self._budget = math.inf
        self._shared = self._most_extreme_shared() if going_on else None
        self._weights = self._read_weights(checked)
        wanted = [
            layer.bias
            for _, layer, update in checked
            if layer.status == "ok" and update is not None and layer.bias is not None
        ]
        biases = self._read_biases(wanted, blocked=any(layer.status == "blocked" for _, layer, _ in checked))
        self.biases_read, self.weights_read = len(biases), len(self._weights)
        results = tuple(self._try(adapted, layer, update, biases) for adapted, layer, update in checked)
        self._sum_up(checked)
        return results

    def _read_biases(self, names: Sequence[str], *, blocked: bool) -> dict[str, bytes]:
        """The base's biases: on disk always, over a network where the answer depends on them and they are not too many.

        They lie between gigabytes of weights, so that each costs a request.
        """
        ranges = self.base.ranges(names) if self.base.folder.kind == "local" or not blocked else []
        if self.base.folder.kind == "local" or (ranges and (self.all_biases or len(ranges) <= REMOTE_BIASES)):
            return self.base.read(ranges)
        self._biases_unread = bool(names)
        if names:
            many = f"over a network {REMOTE_BIASES} are read. With --all-biases all of them are"
            why = "the merge fails whatever they are" if blocked else many
            self.not_examined.append(
                f"The values of {plural(len(names), 'bias', 'biases')} of the base, and what rounding takes there: {why}."
            )
        return {}

    def _read_weights(self, checked: Sequence[tuple[AdaptedLayer, Layer, BiasUpdate | None]]) -> dict[str, bytes]:
        """The base's weights that are merged into, where they are on disk and few."""
        if self.base.folder.kind != "local":
            return {}
        names = [
            name
            for adapted, layer, update in checked
            if layer.status == "ok"
            and layer.layer_type != "quantized"
            and self._weight_tensors(adapted, update)
            and self._own_copy(adapted) is None
            and (name := f"{layer.stored}.weight") in self.base.files
        ]
        self.base.load_headers(names)
        return (
            self.base.read(self.base.ranges(names))
            if sum(self.base.tensor(name).nbytes for name in names) <= WEIGHT_BYTES
            else {}
        )

    def _sum_up(self, checked: Sequence[tuple[AdaptedLayer, Layer, BiasUpdate | None]]) -> None:
        into_weights = [
            adapted
            for adapted, layer, update in checked
            if layer.status == "ok"
            and self._weight_tensors(adapted, update)
            and self._own_copy(adapted) is None
            and f"{layer.stored}.weight" not in self._weights
        ]
        if into_weights:
            self.not_examined.append(
                "The values of the base's weights, of which headers alone were read: that they are finite is assumed."
            )
        if any(self._product(adapted) is None for adapted in into_weights):
            self.not_examined.append(
                "Whether the merged weights overflow: what this adapter adds depends on the weights."
            )
        if apart := sum(layer.elsewhere and update is not None for _, layer, update in checked):
            self.not_examined.append(
                f"The values of {plural(apart, 'bias', 'biases')} that the base stores with those of other layers."
            )
        if self._unscanned:
            self.not_examined.append(
                f"{plural(self._unscanned, 'tensor')} of the adapter, for NaN and infinity: over the network "
                f"{REMOTE_SCAN_BYTES >> 20} MB are looked through."
            )

    def _own_copy(self, adapted: AdaptedLayer) -> TensorInfo | None:
        """A base weight in the adapter's own file, which takes the base's place: PEFT saves one of each adapted embedding."""
        wrapper = "token_adapter." if "token_adapter.trainable_tokens_delta" in adapted.tensors else ""
        return self.adapter.weights.tensors.get(f"base_model.model.{adapted.module}.{wrapper}base_layer.weight")

    def _update(self, adapted: AdaptedLayer) -> BiasUpdate | None:
        bias = self.rule.bias
        if bias is None or is_token_layer(adapted) or not bias.wanted(self.adapter.config.fields):
            return None
        return bias

    def _content(self, name: str) -> bytes:
        return b"".join(bytes(piece) for piece in self.adapter.weights.stream(name))

    def _weight_tensors(self, adapted: AdaptedLayer, update: BiasUpdate | None) -> list[str]:
        """The tensors whose update goes into the layer's weight, by their name in the module."""
        return [name for name in adapted.tensors if update is None or name != update.tensor]

    def _product(self, adapted: AdaptedLayer) -> Product | None:
        return self.rule.product(self.adapter.config.fields, adapted.module, adapted.tensors)

    def _base_tensors(self, adapted: AdaptedLayer, layer: Layer, update: BiasUpdate | None) -> Iterable[str]:
        """The base tensors whose shapes are held against the adapter's."""
        if update is not None and layer.bias is not None:
            yield layer.bias
        elif update is not None and f"{layer.stored}.weight" in self.base.files:
            yield f"{layer.stored}.weight"
        if self.rule.whole_module is not None and layer.stored is not None:
            yield from (
                name for name in self._replaced(adapted, layer, self.rule.whole_module) if name in self.base.files
            )
        sized = self._sized(layer) or is_token_layer(adapted) or self._other_dims(adapted, layer) is not None
        if (sized or not self.rule.kernels) and f"{layer.stored}.weight" in self.base.files:
            yield f"{layer.stored}.weight"

    def _replaced(self, adapted: AdaptedLayer, layer: Layer, prefix: str) -> dict[str, TensorInfo]:
        """The base's tensors that the adapter's take the place of."""
        found = {name: tensor for name, tensor in adapted.tensors.items() if name.startswith(f"{prefix}.")}
        return {f"{layer.stored}.{name[len(prefix) + 1 :]}": tensor for name, tensor in found.items()}

    def _sized(self, layer: Layer) -> bool:
        """Whether the layer's weight is a matrix of which the adapter's tensors tell whether they are for it."""
        return self.rule.fits is not None and layer.layer_type in ("linear", "conv1d")

    def _check_shape(self, adapted: AdaptedLayer, layer: Layer, update: BiasUpdate | None) -> Layer:
        if not adapted.tensors:
            return layer
        weight = self.base.tensor(f"{layer.stored}.weight") if self._has_weight_header(adapted, layer, update) else None
        if is_token_layer(adapted):
            misfit = misfit_of_tokens(self.adapter, adapted, weight)
            return layer if misfit is None else replace(layer, status="blocked", code="ADP203", reason=misfit)
        tensor = adapted.tensors.get(update.tensor) if update is not None else None
        if update is not None and tensor is not None:
            if layer.bias is not None:
                shape = self.base.tensor(layer.bias).shape
                out_features = shape[0] if len(shape) == 1 else None
            elif weight is not None and layer.layer_type != "quantized":
                out_features = weight.shape[-1 if layer.layer_type == "conv1d" else 0] if weight.shape else None
            else:
                out_features = tensor.numel
            if out_features is None or tensor.shape != update.shape(out_features):
                return replace(
                    layer,
                    status="blocked",
                    code="ADP203",
                    reason=f"the adapter's {update.tensor} has shape {list(tensor.shape)}, and the base layer's out_features "
                    f"is {out_features}",
                )
        for name, module in self._replaced(adapted, layer, self.rule.whole_module or "").items():
            if name in self.base.files and self.base.tensor(name).shape != module.shape:
                return replace(
                    layer,
                    status="blocked",
                    code="ADP203",
                    reason=f"the adapter's module has shape {list(module.shape)}, and the base's "
                    f"{list(self.base.tensor(name).shape)}",
                )
        if self.rule.fits is not None and self._sized(layer) and weight is not None and len(weight.shape) == 2:
            out, into = weight.shape if layer.layer_type == "linear" else weight.shape[::-1]
            if not self.rule.fits(self.adapter.config.fields, adapted.tensors, out, into):
                name, tensor = next(iter(adapted.tensors.items()))
                return replace(
                    layer,
                    status="blocked",
                    code="ADP203",
                    reason=f"the adapter is for a layer of another shape than the base's ({out} outputs, {into} inputs); its "
                    f"{name} has shape {list(tensor.shape)}",
                )
        dims = self._other_dims(adapted, layer)
        if dims is not None and weight is not None and len(weight.shape) == len(dims) and dims != weight.shape:
            return replace(
                layer,
                status="blocked",
                code="ADP203",
                reason=f"the adapter is for a layer of shape {list(dims)}, and the base layer's is {list(weight.shape)}",
            )
        return layer

    def _other_dims(self, adapted: AdaptedLayer, layer: Layer) -> tuple[int, ...] | None:
        """The shape of the embedding or convolution that a product of the adapter's is for."""
        product = self._product(adapted)
        if product is None or layer.layer_type not in ("embedding", "unknown"):
            return None
        up, down = adapted.tensors[product.up], adapted.tensors[product.down]
        if product.transposed and len(up.shape) == len(down.shape) == 2:
            return down.shape[1], up.shape[0]
        return (up.shape[0], *down.shape[1:]) if len(up.shape) > 2 and len(down.shape) > 2 else None

    def _has_weight_header(self, adapted: AdaptedLayer, layer: Layer, update: BiasUpdate | None) -> bool:
        return f"{layer.stored}.weight" in self._base_tensors(adapted, layer, update)

    def _try(
        self, adapted: AdaptedLayer, layer: Layer, update: BiasUpdate | None, biases: Mapping[str, bytes]
    ) -> LayerResult:
        base_tensor = layer.bias if layer.bias is not None else f"{layer.stored}.weight"
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
        result = self._look_through(adapted, layer, update, result)
        if result.status == "ok" and self._weight_tensors(adapted, update):
            result = self._try_weight(adapted, layer, result)
        if result.status != "ok":
            return result
        if update is not None:
            result = self._try_bias(adapted, layer, update, biases.get(layer.bias or ""), result)
        if result.status != "ok":
            return result
        if (hazard := self.hazards.of(adapted, layer, update) or self._kernel_hazard(layer)) is not None:
            return replace(result, status="lossy", code=HAZARD, reason=hazard)
        if (question := self.hazards.open_question(adapted)) is not None:
            return replace(result, status="unknown", reason=question)
        if layer.layer_type == "quantized" and self._weight_tensors(adapted, update):
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

    def _look_through(
        self, adapted: AdaptedLayer, layer: Layer, update: BiasUpdate | None, result: LayerResult
    ) -> LayerResult:
        """Whether values of the adapter's are NaN or infinite, or can make the merge overflow."""
        dtype = self._dtype_of(layer)
        copy, product = self._own_copy(adapted), self._product(adapted)
        # What is multiplied or added here is looked at where that is done.
        exact = set() if product is None else {product.up, product.down, product.lengths}
        exact |= set() if update is None else {update.tensor}
        method, config = method_of(self.adapter.config), self.adapter.config
        # Rows and whole modules take the base's place as they are.
        as_is = self.rule.whole_module is not None or is_token_layer(adapted)
        extreme = None if is_token_layer(adapted) else self._shared
        for name, tensor in [*adapted.tensors.items(), *([("base_layer.weight", copy)] if copy is not None else [])]:
            if name in exact:
                continue
            if tensor.nbytes > self._budget:
                self._unscanned += 1
                continue
            self._budget -= tensor.nbytes
            bound = math.inf
            if as_is:
                bound = INFINITE_FROM.get(dtype or "", math.inf)
            elif tensor is not copy:
                bound = usual_size(dtype, trained=method.role(tensor.name, config) == "trainable")
            most = largest(self.adapter.weights, tensor.name, bound)
            if math.isnan(most):
                extreme = (name, most)
                break
            if most > bound:
                extreme = extreme or (name, most)
            if name in self.rule.normalised and self._has_zero_column(tensor):
                return self._gives_nan(
                    result, f"a column of the adapter's {name} is zero, and PEFT divides by its length"
                )
        if extreme is not None and math.isnan(extreme[1]):
            return self._gives_nan(result, f"the adapter's {extreme[0]} holds NaN or infinity")
        if extreme is not None and as_is:
            return self._gives_nan(result, f"the adapter's {extreme[0]} holds values that are infinity in {dtype}")
        if extreme is not None and extreme[1] > usual_size(dtype):
            why = f"the adapter's {extreme[0]} holds values of up to {extreme[1]:.3g}"
        elif (
            not as_is
            and product is None
            and self._weight_tensors(adapted, update)
            and (odd := odd_factor(config.fields, dtype))
        ):
            why = f"the adapter's config has {odd}"
        else:
            return result
        reason = (
            f"{why}, with which the merged weights may overflow {dtype or 'the dtype of the base'}; that is not told "
            "without multiplying everything"
        )
        return replace(result, status="unknown", reason=reason)

    def _gives_nan(self, result: LayerResult, why: str) -> LayerResult:
        return replace(result, status="blocked", code="ADP204", reason=f"{why}; {self._noticed}")

    def _dtype_of(self, layer: Layer) -> str | None:
        """The dtype in which the layer is merged into."""
        from adaptertool.checkpoint.header import TORCH_DTYPES

        name = f"{layer.stored}.weight"
        return self.dtype or (TORCH_DTYPES.get(self.base.tensor(name).dtype) if name in self.base.files else None)

    def _has_zero_column(self, tensor: TensorInfo) -> bool:
        import numpy as np

        from adaptertool.merge.trial.arithmetic import values_of
        from adaptertool.projection.dtypes import DTYPE_NAMES, FLOATS

        if DTYPE_NAMES.get(tensor.dtype) not in FLOATS or len(tensor.shape) != 2:
            return False
        values = values_of(self._content(tensor.name), tensor.dtype).reshape(tensor.shape)
        with np.errstate(over="ignore", under="ignore"):
            return not bool(np.linalg.norm(values, axis=0).all())

    def _most_extreme_shared(self) -> tuple[str, float] | None:
        """A tensor that all layers share, stored right under `base_model.`, which PEFT loads, and its largest value.

        NaN stands for NaN and infinity. None where all are of the usual size.
        """
        method, config = method_of(self.adapter.config), self.adapter.config
        rule = method.projections
        ignored = rule is not None and rule.flag is not None and not config.flag(rule.flag, rule.flag_default)
        extreme: tuple[str, float] | None = None
        for name, tensor in self.adapter.weights.tensors.items():
            if not name.startswith("base_model.") or name.startswith("base_model.model."):
                continue
            trained = method.role(name, config) == "trainable"
            if (ignored and not trained) or tensor.nbytes > self._budget:
                continue
            self._budget -= tensor.nbytes
            bound = usual_size(self.dtype, trained=trained)
            most = largest(self.adapter.weights, name, bound)
            if math.isnan(most):
                return name, most
            if most > bound:
                extreme = extreme or (name, most)
        return extreme

    def _try_weight(self, adapted: AdaptedLayer, layer: Layer, result: LayerResult) -> LayerResult:
        """Whether the weight that is merged into is finite, where it was read, and whether what is added overflows."""
        import numpy as np

        from adaptertool.merge.trial.arithmetic import merge_product, merge_rescaled, values_of
        from adaptertool.projection.dtypes import DTYPE_NAMES, FLOATS, rounded

        product = self._product(adapted)
        self.changes = self.changes or product is None
        base_name = f"{layer.stored}.weight"
        stored = DTYPE_NAMES.get(self.base.tensor(base_name).dtype) if base_name in self.base.files else None
        dtype = self.dtype or (stored if stored in FLOATS else None)
        weight = None
        if dtype is not None and base_name in self._weights and stored in FLOATS:
            info = self.base.tensor(base_name)
            weight = rounded(values_of(self._weights[base_name], info.dtype), dtype).reshape(info.shape)
            if not np.isfinite(weight).all():
                return self._gives_nan(result, f"the base's weight holds NaN or infinity in {dtype}")
        if product is None:
            return result
        factors = {name: adapted.tensors[name] for name in (product.up, product.down, product.lengths) if name}
        size = sum(one.nbytes for one in factors.values())
        if size > self._budget:
            self.changes = True
            self._unscanned += len(factors)
            return result
        self._budget -= size
        floats = all(DTYPE_NAMES.get(one.dtype) in FLOATS for one in factors.values())
        values = {}
        for name, one in factors.items():
            if floats:
                values[name] = values_of(self._content(one.name), one.dtype).reshape(one.shape)
            finite = (
                np.isfinite(values[name]).all() if floats else first_not_finite(self.adapter.weights, one.name) is None
            )
            if not finite:
                return self._gives_nan(result, f"the adapter's {name} holds NaN or infinity")
        if dtype is None or not floats:
            self.changes = True
            return result
        left, right = values[product.up], values[product.down]
        turned = product.transposed or layer.layer_type == "conv1d"
        if weight is not None and turned:
            weight = weight.T
        if product.lengths is None:
            merge = merge_product(left, right, product.scale, dtype, weight)
        else:
            merge = merge_rescaled(left, right, product.scale, values[product.lengths], dtype, weight)
        self.changes = self.changes or not merge.zero
        if not merge.finite:
            return self._gives_nan(
                result,
                f"the update overflows {dtype}, by itself or with the base's weight"
                if product.lengths is None
                else f"rescaled to the adapter's {product.lengths}, the weight is not finite in {dtype}",
            )
        if not merge.room:
            return replace(
                result,
                status="unknown",
                reason=f"the update comes near the largest number of {dtype}, and whether its sum with the base's weights "
                "overflows can't be told without reading them"
                if product.lengths is None
                else f"the adapter's {product.lengths} has zeros, or values with which the merged weights may overflow "
                f"{dtype}, and what becomes of them can't be told without reading the base's weights",
            )
        return result

    def _kernel_hazard(self, layer: Layer) -> str | None:
        name = f"{layer.stored}.weight"
        if self.rule.kernels or name not in self.base.files or math.prod(self.base.tensor(name).shape[2:]) == 1:
            return None
        return (
            "the base layer is a convolution, for which this method's merge computes something else than its layer does"
        )

    def _try_bias(
        self, adapted: AdaptedLayer, layer: Layer, update: BiasUpdate, stored: bytes | None, result: LayerResult
    ) -> LayerResult:
        import numpy as np

        from adaptertool.merge.trial.arithmetic import merge_bias, values_of
        from adaptertool.projection.dtypes import DTYPE_NAMES, FLOATS

        tensor = adapted.tensors.get(update.tensor)
        info = None if stored is None or layer.bias is None else self.base.tensor(layer.bias)
        if self._biases_unread or layer.elsewhere or (tensor is None and info is None):
            self.changes = self.changes or tensor is not None
            return result
        stored_as = [one.dtype for one in (tensor, info) if one is not None]
        odd = next((one for one in stored_as if DTYPE_NAMES.get(one) not in FLOATS), None)
        if odd is not None:
            return replace(
                result, status="unknown", reason=f"a bias is stored as {odd}, in which nothing is added here"
            )
        fields = self.adapter.config.fields
        scale = update.scale(fields, adapted.module) if update.scale is not None else 1.0
        bias = values_of(stored, info.dtype) if stored is not None and info is not None else None
        dtype = self.dtype or DTYPE_NAMES[stored_as[-1]]
        self.dtypes.add(dtype)
        # What PEFT makes where the file holds nothing is zero; a method whose does not start there is asked for beforehand.
        values = np.zeros_like(bias) if tensor is None else values_of(self._content(tensor.name), tensor.dtype)
        merge = merge_bias(bias, values, scale, dtype)
        self.changes = self.changes or merge.update_norm != 0
        result = replace(
            result,
            update_norm=_finite(merge.update_norm),
            bias_norm=_finite(merge.bias_norm),
            rounding_loss=merge.rounding_loss,
        )
        if not merge.finite:
            seen = (
                "safe_merge=True raises, and without it the merged bias is broken"
                if merge.noticed
                else f"the sum overflows {dtype}, which not even safe_merge=True notices"
            )
            return replace(
                result, status="blocked", code="ADP204", reason=f"merging in {dtype} gives NaN or infinity: {seen}"
            )
        if merge.rounding_loss is not None and merge.rounding_loss > self.threshold:
            return replace(
                result,
                status="lossy",
                code="ADP205",
                reason=f"more than {self.threshold:.0%} of the update is lost to rounding in {dtype}",
            )
        return result


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def load_dtype(config: Mapping[str, Any]) -> str | None:
    """The dtype in which transformers 5 loads a base by default: what its config says; None where it says nothing.

    Then the stored dtype counts. (transformers 4 loads float32 unless it is asked for another.)
    """
    for part in (config, config.get("text_config")):
        if isinstance(part, dict):
            for key in ("dtype", "torch_dtype"):
                value = part.get(key)
                if isinstance(value, str) and value in ("float64", "float32", "float16", "bfloat16"):
                    return value
    return None
