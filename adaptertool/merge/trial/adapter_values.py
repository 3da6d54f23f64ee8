"""The values of an adapter, looked through for NaN, infinity, and numbers with which a merge can overflow."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from adaptertool.checkpoint.finite import first_not_finite
from adaptertool.merge.adapter.adapted import PEFT_PREFIX
from adaptertool.merge.trial.extremes import (
    INFINITE_FROM,
    WITH_WHICH,
    largest,
    odd_factor,
    usual_size,
    usual_size_of_whole,
)
from adaptertool.merge.trial.places import trouble_of_dtype, trouble_of_places
from adaptertool.merge.trial.trouble import Trouble
from adaptertool.methods import method_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.checkpoint.header import TensorInfo
    from adaptertool.merge.trial.layer_merge import LayerMerge
    from adaptertool.methods.merging import MergeRule
    from adaptertool.methods.shapes import Settings

REMOTE_SCAN_BYTES = 64 << 20
"""How much of what is added to weights is looked through for NaN and infinity, over the network."""

_NEXT_TO_NOTHING = 1e-4
"""Of a length, what float32 can't tell from rounding errors."""


class AdapterValues:
    """The values that an adapter adds.

    Args:
        adapter: The adapter.
        rule: What its method's merge needs.
        settings: The adapter's config, with PEFT's defaults.

    Attributes:
        unscanned: How many tensors were left out, because of their size and the network.
    """

    def __init__(self, adapter: Adapter, rule: MergeRule, settings: Settings) -> None:
        self.unscanned = 0
        self._adapter = adapter
        self._rule = rule
        self._settings = settings
        self._budget = math.inf if adapter.folder.kind == "local" else REMOTE_SCAN_BYTES
        self._shared: tuple[str, float] | Trouble | None = None

    def begin(self, dtype: str | None) -> None:
        """Read what all layers need: a small file as a whole, and the tensors that the layers share.

        Args:
            dtype: The dtype in which the base is loaded; None where it is not known.
        """
        weights = self._adapter.weights
        if (
            self._adapter.folder.kind == "hub"
            and sum(tensor.nbytes for tensor in weights.tensors.values()) <= self._budget
        ):
            weights.hold()
            self._budget = math.inf
        self._shared = self._most_extreme_shared(dtype)

    def of(self, tensor: TensorInfo) -> NDArray[Any]:
        """A tensor's values, in its shape, as the floats that PEFT makes of them: float64 for F64, else float32."""
        import numpy as np

        from adaptertool.projection.dtypes import values_of

        content = b"".join(bytes(piece) for piece in self._adapter.weights.stream(tensor.name))
        values = values_of(content, tensor.dtype).reshape(tensor.shape)
        return values if values.dtype.kind == "f" else values.astype(np.float32)

    def factors(self, tensors: Mapping[str, TensorInfo]) -> Mapping[str, NDArray[Any]] | Trouble | None:
        """The values of what is multiplied.

        Args:
            tensors: The factors, by their name in the module.

        Returns:
            By the same names. What is wrong where one is not finite, or no plain float. None where they are too large for the
            network.
        """
        size = sum(tensor.nbytes for tensor in tensors.values())
        if size > self._budget:
            self.unscanned += len(tensors)
            return None
        self._budget -= size
        weights = self._adapter.weights
        for name, tensor in tensors.items():
            if first_not_finite(weights, tensor.name) is not None:
                return Trouble(certain=True, reason=f"the adapter's {name} holds NaN or infinity")
        odd = (trouble_of_dtype(weights, tensor.name, name) for name, tensor in tensors.items())
        if (trouble := next((one for one in odd if one is not None), None)) is not None:
            return trouble
        return {name: self.of(tensor) for name, tensor in tensors.items()}

    def look_through(self, merge: LayerMerge, dtype: str | None, shape: tuple[int, ...] | None) -> Trouble | None:
        """Whether values of a layer's tensors are NaN or infinite, or no places, or can make its merge overflow.

        What is multiplied or added here is left out: it is looked at where that is done.

        Args:
            merge: The layer.
            dtype: The dtype in which it is merged into; None where it is not known.
            shape: That of the base's weight; None where it is not known.
        """
        if isinstance(self._shared, Trouble):
            return self._shared
        # Rows and whole modules take the base's place as they are.
        as_is = self._rule.whole_module is not None or merge.of_tokens
        extreme = None if merge.of_tokens else self._shared
        odd: Trouble | None = None
        for name, tensor in self._looked_through(merge).items():
            if tensor.nbytes > self._budget:
                self.unscanned += 1
                continue
            self._budget -= tensor.nbytes
            ranges = self._rule.places(self._settings, name, merge.adapted.tensors, shape)
            if ranges is not None:
                if (trouble := trouble_of_places(self._adapter.weights, tensor.name, name, ranges)) is not None:
                    return trouble
                continue
            bound = math.inf
            if as_is:
                bound = usual_size_of_whole(dtype)
            elif tensor is not merge.copy:
                bound = self._usual_size(tensor, dtype)
            most = largest(self._adapter.weights, tensor.name, bound)
            if math.isnan(most):
                extreme = (name, most)
                break
            if most > bound:
                extreme = extreme or (name, most)
            if tensor is not merge.copy:
                odd = odd or trouble_of_dtype(self._adapter.weights, tensor.name, name)
            if name in self._rule.normalised and self._has_zero_column(tensor):
                return Trouble(
                    certain=True, reason=f"a column of the adapter's {name} is zero, and PEFT divides by its length"
                )
            if name in self._rule.normalised and self._rule.orthogonal(self._settings) and self._is_dependent(tensor):
                reason = f"a column of the adapter's {name} is made of those before it: what is left is divided by its length"
                return Trouble(certain=False, reason=reason)
            if name in self._rule.shares and (trouble := self._trouble_of_shares(name, tensor)) is not None:
                return trouble
        if extreme is not None and math.isnan(extreme[1]):
            return Trouble(certain=True, reason=f"the adapter's {extreme[0]} holds NaN or infinity")
        if extreme is not None and as_is:
            if extreme[1] > INFINITE_FROM.get(dtype or "", math.inf):
                return Trouble(
                    certain=True, reason=f"the adapter's {extreme[0]} holds values that are infinity in {dtype}"
                )
            reason = f"the adapter's {extreme[0]} holds values of up to {extreme[1]:.3g}, {WITH_WHICH}"
            return Trouble(certain=False, reason=reason)
        if odd is not None:
            return odd
        if extreme is not None and extreme[1] > usual_size(dtype):
            why = f"the adapter's {extreme[0]} holds values of up to {extreme[1]:.3g}"
        elif (
            not as_is
            and merge.product is None
            and merge.into_weight
            and (factor := odd_factor(self._adapter.config.fields, dtype))
        ):
            why = f"the adapter's config has {factor}"
        else:
            return None
        reason = (
            f"{why}, with which the merged weights may overflow {dtype or 'the dtype of the base'}; that is not told "
            "without multiplying everything"
        )
        return Trouble(certain=False, reason=reason)

    def _looked_through(self, merge: LayerMerge) -> dict[str, TensorInfo]:
        product, update = merge.product, merge.update
        computed = set() if product is None else {product.up, product.down, product.lengths}
        computed |= set() if update is None else {update.tensor}
        found = {name: tensor for name, tensor in merge.adapted.tensors.items() if name not in computed}
        return found if merge.copy is None else {**found, "base_layer.weight": merge.copy}

    def _usual_size(self, tensor: TensorInfo, dtype: str | None) -> float:
        config = self._adapter.config
        return usual_size(dtype, trained=method_of(config).role(tensor.name, config) == "trainable")

    def _trouble_of_shares(self, name: str, tensor: TensorInfo) -> Trouble | None:
        """Whether what is left of one is below zero, by rounding for instance: its logarithm is NaN."""
        import numpy as np

        from adaptertool.projection.dtypes import DTYPE_NAMES, FLOATS, rounded

        dtype = DTYPE_NAMES.get(tensor.dtype)
        if not tensor.shape:
            return None
        if dtype not in FLOATS:
            reason = f"the adapter's {name} is stored as {tensor.dtype}: PEFT can't add up its shares, or makes others"
            return Trouble(certain=False, reason=reason)
        values = self.of(tensor)
        # In which order torch adds them up depends on the processor.
        left = [1 - rounded(np.add.accumulate(one, axis=-1)[..., -1:], dtype) for one in (values, values[..., ::-1])]
        below = [bool((one < 0).any()) for one in left] if values.size else []
        if not (any(below) or (values < 0).any()):
            return None
        reason = (
            f"shares in the adapter's {name} add up to more than one, and the logarithm of what is left of it is NaN"
        )
        return Trouble(certain=all(below) or bool((values < 0).any()), reason=reason)

    def _has_zero_column(self, tensor: TensorInfo) -> bool:
        import numpy as np

        from adaptertool.projection.dtypes import READABLE

        if tensor.dtype not in READABLE or len(tensor.shape) != 2:
            return False
        with np.errstate(over="ignore", under="ignore"):
            return not bool(np.linalg.norm(self.of(tensor), axis=0).all())

    def _is_dependent(self, tensor: TensorInfo) -> bool:
        """Whether next to nothing is left of a column without those before it."""
        import numpy as np

        from adaptertool.projection.dtypes import READABLE

        if tensor.dtype not in READABLE or len(tensor.shape) != 2:
            return False
        values = self.of(tensor).astype(np.float64)
        if values.shape[1] > values.shape[0]:
            return True
        left = np.abs(np.diagonal(np.linalg.qr(values)[1]))
        return bool((left < _NEXT_TO_NOTHING * np.linalg.norm(values, axis=0)).any())

    def _most_extreme_shared(self, dtype: str | None) -> tuple[str, float] | Trouble | None:
        """A tensor that all layers share, stored right under `base_model.`, which PEFT loads, and its largest value.

        NaN stands for NaN and infinity. None where all are of the usual size. What else is wrong with one, where something is.
        """
        method, config = method_of(self._adapter.config), self._adapter.config
        rule = method.projections
        ignored = rule is not None and rule.flag is not None and not config.flag(rule.flag, rule.flag_default)
        extreme: tuple[str, float] | None = None
        weights = self._adapter.weights
        shared = {
            name.removeprefix("base_model."): tensor
            for name, tensor in weights.tensors.items()
            if name.startswith("base_model.") and not name.startswith(PEFT_PREFIX)
        }
        for part, tensor in shared.items():
            name = tensor.name
            trained = method.role(name, config) == "trainable"
            if (ignored and not trained) or tensor.nbytes > self._budget:
                continue
            self._budget -= tensor.nbytes
            if (ranges := self._rule.places(self._settings, part, shared, None)) is not None:
                if (trouble := trouble_of_places(weights, name, part, ranges)) is not None:
                    return trouble
                continue
            bound = usual_size(dtype, trained=trained)
            most = largest(weights, name, bound)
            if math.isnan(most):
                return name, most
            if (trouble := trouble_of_dtype(weights, name, part)) is not None:
                return trouble
            if most > bound:
                extreme = extreme or (name, most)
        return extreme
