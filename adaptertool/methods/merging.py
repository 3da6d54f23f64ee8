"""The vocabulary of merge rules: what a method's merge needs of the base model, and when it has none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from adaptertool.checkpoint.header import TensorInfo
    from adaptertool.methods.shapes import Declaration, Place, Places, Settings, Shapes


LINEAR = frozenset({"linear"})
"""`nn.Linear`."""

CONV1D = frozenset({"conv1d"})
"""The layer of GPT-2 that is an `nn.Linear` with its weight turned."""

EMBEDDING = frozenset({"embedding"})
"""`nn.Embedding`."""

CONV = frozenset({"conv"})
"""`nn.Conv2d` and its like."""

ATTENTION = frozenset({"attention"})
"""`nn.MultiheadAttention`."""


@dataclass(frozen=True)
class BiasUpdate:
    """A trained bias that the merge adds to the base layer's.

    Attributes:
        tensor: What the adapter's tensor is called in its module.
        raises: What PEFT raises where the base layer has no bias.
        scale: The factor that the merge applies, from the config and the module path; None for 1.
        wanted: Whether PEFT makes one under this config. Where it does, it merges one, whether the file holds it or not.
        quantised: As in `MergeRule`, of a layer that has such a bias.
        alone: Whether it is all that the method merges.
        instead: How else it could be trained, so that no such bias is merged: the rest of "train it again".
        squeezed: Whether a single value of it is added as a scalar, which takes no part in torch's type promotion.
    """

    tensor: str
    raises: str
    instead: str
    scale: Callable[[Mapping[str, Any], str], float] | None = None
    wanted: Callable[[Mapping[str, Any]], bool] = lambda _: True
    quantised: frozenset[str] = frozenset()
    alone: bool = False
    squeezed: bool = False


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


PlacesOf: TypeAlias = (
    "Callable[[Settings, str, Mapping[str, TensorInfo], tuple[int, ...] | None], tuple[range, ...] | None]"
)
"""See `MergeRule.places`."""

ANY_PLACE = (range(1 << 63),)
"""Of places in a weight whose shape is not known."""


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
        kernels: Whether it merges rightly into a convolution whose kernel is larger than 1.
        scaled: Whether it merges rightly into an embedding that the model multiplies by a factor.
        around: What an embedding's class may do beside torch's forward (`own_forward`) without the merge changing outputs.
        any_saved_module: Whether the merge can put back a `modules_to_save` module that has no weight of its own, such as
            RoBERTa's classification head. `BaseTuner._replace_module` (PEFT 0.21.2) can't, and raises AttributeError;
            the LoRA and HiRA tuners have their own.
        quantised: The formats of quantised weights that it merges into, as a base's config calls them. Into the others it
            raises, when the adapter is attached or merged, or it adds to the packed numbers.
        plain_only: Why PEFT does not merge into such a format under this config all the same, as a sentence.
        tensors: The tensors that PEFT makes for a layer, and their shapes; None where that is not declared.
        misfit: What else contradicts the base in a layer's tensors, so that PEFT raises, as the rest of a sentence; from the
            config, the layer and the tensors by their name in the module. None where nothing does.
        misfit_of_parameters: The same of the tensors of a parameter (`target_parameters`), for which nothing is declared: from
            the config, the parameter's path, its tensors, and its shape where that is known.
        starts_at_zero: Whether an update that PEFT makes and nobody trained is zero under this config.
        zeros: The tensors of which that is so because PEFT makes them as zeros: the others are drawn.
        shared: The tensors that all layers share, by their name right under `base_model.`, where PEFT takes them from the
            file under this config; from all layers that the adapter is attached to.
        redraws: Whether PEFT draws those again that the file lacks, as they were drawn before.
        undecided: What no file tells and decides whether a merge that raises nothing is right, as a sentence; None where
            nothing is open.
        product: The layer's update, where it is a product of two tensors.
        normalised: Tensors whose columns the merge divides by their lengths.
        orthogonal: Whether, under this config, it takes out of each of those columns what the ones before it have.
        shares: Tensors along whose last dimension are shares of one; PEFT takes the logarithm of each, and of what is left.
        places: What the values of a tensor choose from, where they are places and no numbers that were trained: one range
            for all of them, or one a row. From the config, the tensor's name in its module or right under `base_model.`, the
            tensors beside it by the same names, and the shape of the base's weight where it is known. None for others.
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
    kernels: bool = True
    scaled: bool = True
    around: frozenset[str] = frozenset()
    any_saved_module: bool = False
    quantised: frozenset[str] = frozenset()
    plain_only: Callable[[Mapping[str, Any], str], str | None] = lambda *_: None
    tensors: Declaration | None = None
    misfit: Callable[[Settings, Place, Mapping[str, TensorInfo]], str | None] = lambda *_: None
    misfit_of_parameters: Callable[[Settings, str, Mapping[str, TensorInfo], tuple[int, ...] | None], str | None] = (
        lambda *_: None
    )
    starts_at_zero: Callable[[Mapping[str, Any]], bool] = lambda _: False
    zeros: frozenset[str] = frozenset()
    shared: Callable[[Settings, Places], Shapes] = lambda *_: {}
    redraws: bool = False
    undecided: Callable[[Mapping[str, Any]], str | None] = lambda _: None
    product: Callable[[Mapping[str, Any], str, Mapping[str, TensorInfo]], Product | None] = lambda *_: None
    normalised: tuple[str, ...] = ()
    orthogonal: Callable[[Settings], bool] = lambda _: False
    shares: tuple[str, ...] = ()
    places: PlacesOf = lambda *_: None
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


INTO_WEIGHTS = MergeRule()
"""The rule of most methods."""


def no_merge(why: str) -> MergeRule:
    """The rule of a method that has none.

    Args:
        why: The method's reason, as the rest of a sentence.
    """
    return MergeRule(never=lambda _: why)
