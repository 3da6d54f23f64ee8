"""The vocabulary of merge rules: what a method's merge needs of the base model, and when it has none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from adaptertool.checkpoint.header import TensorInfo


@dataclass(frozen=True)
class BiasUpdate:
    """A trained bias that the merge adds to the base layer's.

    Attributes:
        tensor: What the adapter's tensor is called in its module.
        raises: What PEFT raises where the base layer has no bias.
        scale: The factor that the merge applies, from the config, the module path and the layer's tensors by their name in
            the module; None for 1.
        leading: The dimensions that the tensor has before out_features.
    """

    tensor: str
    raises: str
    scale: Callable[[Mapping[str, Any], str, Mapping[str, TensorInfo]], float] | None = None
    leading: tuple[int, ...] = ()

    def shape(self, out_features: int) -> tuple[int, ...]:
        """The shape that the tensor must have for a layer of that many outputs."""
        return (*self.leading, out_features)


@dataclass(frozen=True)
class MergeRule:
    """What a method's merge needs; as it stands, it merges into the weight of any layer that the method attaches to.

    Attributes:
        bias: The bias that it adds, if any.
        linear_only: Whether it attaches to `nn.Linear` and to nothing else.
        never: Why it has no merge; from the config, None where it has one.
        hazard: Why a merge that raises nothing gives something else than the adapter; None where it does not.
        out_features: The tensor (its name in the module) whose first dimension is the layer's out_features, if any.
        in_features: The tensor whose last dimension is the layer's in_features, if any.
        any_saved_module: Whether the merge can put back a `modules_to_save` module that has no weight of its own, such as
            RoBERTa's classification head. `BaseTuner._replace_module` (PEFT 0.21.2) can't, and raises AttributeError;
            the LoRA and HiRA tuners have their own.
    """

    bias: BiasUpdate | None = None
    linear_only: bool = False
    never: Callable[[Mapping[str, Any]], str | None] = lambda _: None
    hazard: Callable[[Mapping[str, Any]], str | None] = lambda _: None
    out_features: str | None = None
    in_features: str | None = None
    any_saved_module: bool = False


INTO_WEIGHTS = MergeRule()
"""The rule of most methods."""


def no_merge(why: str) -> MergeRule:
    """The rule of a method that has none.

    Args:
        why: The method's reason, as the rest of a sentence.
    """
    return MergeRule(never=lambda _: why)
