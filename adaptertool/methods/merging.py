"""The vocabulary of merge rules: what a method's merge needs of the base model, and when it has none."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from adaptertool.checkpoint.header import TensorInfo


LINEAR = frozenset({"linear"})
"""`nn.Linear`."""

CONV1D = frozenset({"conv1d"})
"""The layer of GPT-2 that is an `nn.Linear` with its weight turned."""

EMBEDDING = frozenset({"embedding"})
"""`nn.Embedding`."""

CONV = frozenset({"conv"})
"""`nn.Conv2d` and its like."""


@dataclass(frozen=True)
class Sized:
    """See `MergeRule.fits`: some dimensions of some tensors are the layer's.

    Attributes:
        out: A tensor's name in the module, and its dimensions that multiplied are out_features.
        into: The same for in_features.
    """

    out: tuple[str, tuple[int, ...]] | None = None
    into: tuple[str, tuple[int, ...]] | None = None

    def __call__(
        self, _: Mapping[str, Any], tensors: Mapping[str, TensorInfo], out_features: int, in_features: int
    ) -> bool:
        """Whether they are those of this layer; a tensor that is not there tells nothing."""
        return all(
            length in (None, due)
            for length, due in ((_length(tensors, self.out), out_features), (_length(tensors, self.into), in_features))
        )


def _length(tensors: Mapping[str, TensorInfo], place: tuple[str, tuple[int, ...]] | None) -> int | None:
    if place is None or place[0] not in tensors:
        return None
    shape = tensors[place[0]].shape
    return math.prod(shape[axis] for axis in place[1]) if len(shape) > max(place[1]) else None


def low_rank(up: str, down: str) -> Sized:
    """For the factors of a low-rank update, (out_features, r) and (r, in_features).

    Args:
        up: The first one's name in the module.
        down: The second one's.
    """
    return Sized(out=(up, (0,)), into=(down, (1,)))


@dataclass(frozen=True)
class BiasUpdate:
    """A trained bias that the merge adds to the base layer's.

    Attributes:
        tensor: What the adapter's tensor is called in its module.
        raises: What PEFT raises where the base layer has no bias.
        scale: The factor that the merge applies, from the config and the module path; None for 1.
        leading: The dimensions that the tensor has before out_features.
        wanted: Whether PEFT makes one under this config. Where it does, it merges one, whether the file holds it or not.
        quantised: As in `MergeRule`, of a layer that has such a bias.
        alone: Whether it is all that the method merges.
    """

    tensor: str
    raises: str
    scale: Callable[[Mapping[str, Any], str], float] | None = None
    leading: tuple[int, ...] = ()
    wanted: Callable[[Mapping[str, Any]], bool] = lambda _: True
    quantised: frozenset[str] = frozenset()
    alone: bool = False

    def shape(self, out_features: int) -> tuple[int, ...]:
        """The shape that the tensor must have for a layer of that many outputs."""
        return (*self.leading, out_features)


@dataclass(frozen=True)
class Product:
    """A weight update that is the product of two of a layer's tensors, times a factor.

    Attributes:
        up: The tensor (its name in the module) that has a row for each output.
        down: The one that has a column for each input.
        scale: The factor.
        transposed: Whether the layer keeps its weight with inputs and outputs changed, as an embedding does.
        lengths: The tensor to whose values the rows of the sum with the base's weight are rescaled, as DoRA does.
    """

    up: str
    down: str
    scale: float
    transposed: bool = False
    lengths: str | None = None


@dataclass(frozen=True)
class MergeRule:
    """What a method's merge needs; as it stands, it merges into the weight of any layer that the method attaches to.

    Attributes:
        bias: The bias that it adds, if any.
        kinds: The kinds of layers that it attaches to (`CodeLayer.kind`); on others PEFT raises. None for all.
        whole_module: What stands before the names of tensors that take the place of a base module's own, of whatever kind.
        own_tensors: Whether each layer that it trained has tensors of its own in the file; else the config alone tells which.
        looks: Whether `safe_merge=True` makes it look for NaN and infinity.
        never: Why it has no merge; from the config, None where it has one.
        refused: Why PEFT does not even load an adapter of this config, as a sentence; None where it does.
        hazard: Why a merge that raises nothing gives something else than the adapter; None where it does not.
        base_module: The base's module path of a layer of the adapted model, which can have more layers than the base.
        fits: Whether a layer's tensors, by their name in the module, are for a layer of these out_features and in_features
            under this config; None where they do not tell.
        kernels: Whether it merges rightly into a convolution whose kernel is larger than 1.
        scaled: Whether it merges rightly into an embedding that the model multiplies by a factor.
        any_saved_module: Whether the merge can put back a `modules_to_save` module that has no weight of its own, such as
            RoBERTa's classification head. `BaseTuner._replace_module` (PEFT 0.21.2) can't, and raises AttributeError;
            the LoRA and HiRA tuners have their own.
        quantised: The formats of quantised weights that it merges into, as a base's config calls them. Into the others it
            raises, when the adapter is attached or merged, or it adds to the packed numbers.
        plain_only: Why PEFT does not merge into such a format under this config all the same, as a sentence.
        misfit: Why PEFT does not load a layer's tensors under this config, as the rest of a sentence about the adapter; from
            the config, the module path and the layer's tensors by their name in the module. None where it loads them.
        made: The tensors that PEFT makes for a layer under this config, as far as that decides anything: one that the file
            lacks stays as it was made, and one of the other names that `unmade` lists is left out.
        unmade: Tensors that a file may hold and this config makes no place for.
        starts_at_zero: Whether an update that PEFT makes and nobody trained is zero under this config.
        zeros: The tensors of which that is so because PEFT makes them as zeros: the others are drawn.
        shared: What the names of tensors begin with that all layers share and PEFT takes from the file under this config,
            right under `base_model.`.
        lengths: Dimensions that a config field decides: a tensor's name in the module, its axis, and the field.
        undecided: What no file tells and decides whether a merge that raises nothing is right, as a sentence; None where
            nothing is open.
        product: The layer's update, where it is a product of two tensors.
        normalised: Tensors whose columns the merge divides by their lengths.
        refuses: Why PEFT does not attach to a layer of this name in a model of this type; None where it does. (`mamba` in
            `peft/tuners/tuners_utils.py`, read at 0.21.2.)
        refuses_parameters: Why, under this config, it does not attach to parameters (`target_parameters`).
    """

    bias: BiasUpdate | None = None
    kinds: frozenset[str] | None = LINEAR | CONV1D
    whole_module: str | None = None
    own_tensors: bool = True
    looks: bool = True
    never: Callable[[Mapping[str, Any]], str | None] = lambda _: None
    refused: Callable[[Mapping[str, Any]], str | None] = lambda _: None
    hazard: Callable[[Mapping[str, Any]], str | None] = lambda _: None
    base_module: Callable[[Mapping[str, Any], str], str] = lambda _, module: module
    fits: Callable[[Mapping[str, Any], Mapping[str, TensorInfo], int, int], bool] | None = None
    kernels: bool = True
    scaled: bool = True
    any_saved_module: bool = False
    quantised: frozenset[str] = frozenset()
    plain_only: Callable[[Mapping[str, Any], str], str | None] = lambda *_: None
    misfit: Callable[[Mapping[str, Any], str, Mapping[str, TensorInfo]], str | None] = lambda *_: None
    made: Callable[[Mapping[str, Any], Mapping[str, TensorInfo]], Collection[str]] = lambda *_: ()
    unmade: Callable[[Mapping[str, Any]], Collection[str]] = lambda _: ()
    starts_at_zero: Callable[[Mapping[str, Any]], bool] = lambda _: False
    zeros: frozenset[str] = frozenset()
    shared: Callable[[Mapping[str, Any]], Collection[str]] = lambda _: ()
    lengths: tuple[tuple[str, int, str], ...] = ()
    undecided: Callable[[Mapping[str, Any]], str | None] = lambda _: None
    product: Callable[[Mapping[str, Any], str, Mapping[str, TensorInfo]], Product | None] = lambda *_: None
    normalised: tuple[str, ...] = ()
    refuses: Callable[[str | None, str], str | None] = lambda *_: None
    refuses_parameters: Callable[[Mapping[str, Any]], str | None] = lambda _: None


BITSANDBYTES = frozenset({"bitsandbytes"})
"""Of methods with layers of their own for weights of 8 and 4 bits (`peft/tuners/*/bnb.py`), as far as those merge."""

BACKENDS = frozenset({"bitsandbytes", "torchao"})
"""Of methods that go through `peft/utils/quantization_utils.py`.

It can merge into weights of HQQ too, but `BaseTuner._replace_module` then assigns a weight to a layer that has none, and
`merge_and_unload` raises AttributeError. For GPTQ, AWQ, AQLM, EETQ and INC it has a forward pass alone.

Here as in all rules, read in PEFT 0.21.2 and tried with bitsandbytes 0.50.2, torchao 0.18.0 and hqq 0.2.8.
"""


def not_into_mamba(model_type: str | None, module: str) -> str | None:
    """What PEFT raises for LoRA and its like on the layers that Mamba's kernels take the weights of.

    Args:
        model_type: Of the base.
        module: The layer's path.
    """
    leaf = module.rpartition(".")[2]
    if model_type not in _MAMBAS or leaf not in ("out_proj", "conv1d"):
        return None
    return f"PEFT raises ValueError: Module '{leaf}' is incompatible with Mamba-based models"


_MAMBAS = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")


def made_of(*names: str) -> Callable[[Mapping[str, Any], Mapping[str, TensorInfo]], Collection[str]]:
    """See `MergeRule.made`: the same tensors for every layer.

    Args:
        names: Theirs in the module.
    """
    return lambda *_: names


def wrong_length(rule: MergeRule, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> str | None:
    """Why PEFT does not load a layer's tensors: a dimension is another than the config says (`MergeRule.lengths`).

    Args:
        rule: The method's.
        config: The adapter's. Where the lengths of single layers follow patterns or the layers' sizes, nothing is said.
        tensors: By their name in the module.
    """
    if config.get("rank_pattern") or config.get("proportional_parameters"):
        return None
    for name, axis, field in rule.lengths:
        due, shape = config.get(field), tensors[name].shape if name in tensors else ()
        if type(due) is not int or due == 0 or len(shape) <= axis or config.get(f"{field}_pattern"):
            continue
        if shape[axis] != due:
            return f"the adapter's {name} is {list(shape)}, and its config says {due} for {field}: PEFT raises a size mismatch"
    return None


INTO_WEIGHTS = MergeRule()
"""The rule of most methods."""


def no_merge(why: str) -> MergeRule:
    """The rule of a method that has none.

    Args:
        why: The method's reason, as the rest of a sentence.
    """
    return MergeRule(never=lambda _: why)
