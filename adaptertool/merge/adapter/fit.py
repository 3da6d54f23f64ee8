"""The adapter's tensors held against those that PEFT makes for each layer: by name, and by shape."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from adaptertool.findings import Finding
from adaptertool.merge.adapter.adapted import PEFT_PREFIX
from adaptertool.merge.adapter.tokens import is_token_layer, misfit_of_tokens
from adaptertool.methods import method_of
from adaptertool.methods.shapes import Place, Places, RefusedError, is_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from adaptertool.checkpoint.header import TensorInfo
    from adaptertool.merge.adapter.adapted import AdaptedLayer
    from adaptertool.merge.adapter.case import Case
    from adaptertool.merge.adapter.targets import Levels
    from adaptertool.merge.base.layer import Layer
    from adaptertool.methods.shapes import LayerKind, Shape, Shapes


@dataclass(frozen=True)
class Fitted:
    """What PEFT loads of a file.

    Attributes:
        pairs: The layers, with the tensors that it loads; those that it raises for are blocked.
        lacking: The trained tensors that it makes and the file lacks, by module.
        ignored: Names of tensors of these layers that it leaves out.
        findings: What is wrong with tensors that all layers share.
        untold: What can't be told about those, as a sentence; None where nothing is open.
    """

    pairs: tuple[tuple[AdaptedLayer, Layer], ...]
    lacking: Mapping[str, tuple[str, ...]]
    ignored: tuple[str, ...]
    findings: tuple[Finding, ...] = ()
    untold: str | None = None


class Fitting:
    """A file and what the config makes PEFT make on this base.

    Args:
        case: The adapter on its base.
    """

    def __init__(self, case: Case) -> None:
        self.adapter = case.adapter
        self.base = case.base
        self.rule = case.rule
        self.settings = case.settings
        self.pairs = case.placement.pairs
        self.targets = case.targets
        self.parameters = case.parameters()
        self.base.load_headers(name for pair in self.pairs for name in self._base_tensors(*pair))
        self.places = [self._places(*pair) if self._is_declared(pair[0]) else () for pair in self.pairs]
        # The same layers again and again, but for those of unknown sizes: what does not depend on these is always the same.
        self.worlds = tuple(
            Places(
                places[0] if places else _probe(adapted.module, world)
                for (adapted, _), places in zip(self.pairs, self.places, strict=True)
                if self._is_declared(adapted)
            )
            for world in _WORLDS
        )

    def fitted(self) -> Fitted:
        """What PEFT loads, and where it raises."""
        pairs: list[tuple[AdaptedLayer, Layer]] = []
        lacking: dict[str, tuple[str, ...]] = {}
        ignored: list[str] = []
        for (adapted, layer), places in zip(self.pairs, self.places, strict=True):
            if self._is_declared(adapted):
                found = self._best(adapted, places)
            elif adapted.module in self.parameters:
                found = self._best_levels(adapted, layer)
            else:
                problem = self._undeclared(adapted, layer) if layer.status == "ok" else None
                found = _Outcome(problem, self._lacking_of_whole(adapted, layer), self._beyond_whole(adapted, layer))
            if found.missing or (self.rule.own_tensors and found.made and not adapted.tensors):
                lacking[adapted.module] = found.missing
            ignored += [adapted.tensors[name].name for name in found.extra]
            kept = {name: tensor for name, tensor in adapted.tensors.items() if name not in found.extra}
            pairs.append((replace(adapted, tensors=kept), _blocked(layer, found) if layer.status == "ok" else layer))
        return Fitted(tuple(pairs), lacking, tuple(ignored), *self._shared())

    def _is_declared(self, adapted: AdaptedLayer) -> bool:
        by_parameter = adapted.module in self.parameters
        return self.rule.tensors is not None and not is_token_layer(adapted) and not by_parameter

    def _base_tensors(self, adapted: AdaptedLayer, layer: Layer) -> Iterable[str]:
        """The base tensors whose shapes are asked for."""
        if (name := self._sized_by(adapted, layer)) is not None:
            yield name
        if layer.status == "ok":
            yield from (name for name in self._replaced(adapted, layer) if name in self.base.files)

    def _sized_by(self, adapted: AdaptedLayer, layer: Layer) -> str | None:
        """The base tensor whose shape is the layer's."""
        if layer.status != "ok" or self.rule.whole_module is not None:
            return None
        bias = self.rule.bias
        if bias is not None and bias.alone and layer.bias is not None and not is_token_layer(adapted):
            return layer.bias
        weights = (f"{layer.stored}.weight", f"{layer.stored}.{_OF_ATTENTION}")
        return next((one for one in weights if one in self.base.files and layer.layer_type != "quantized"), None)

    def _places(self, adapted: AdaptedLayer, layer: Layer) -> tuple[Place, ...]:
        """What the layer may be, as far as that makes a difference; empty where its sizes are not known."""
        name = self._sized_by(adapted, layer)
        if name is None:
            return ()
        shape = self.base.tensor(name).shape
        if name == layer.bias:
            return (Place(adapted.module, "linear", (shape[0], 1), True),) if len(shape) == 1 else ()
        possible = ("attention",) if name.endswith(f".{_OF_ATTENTION}") else _kinds(layer, len(shape))
        kinds = [kind for kind in possible if self.rule.kinds is None or kind in self.rule.kinds]
        biases = (True, False) if layer.has_bias is None else (layer.has_bias,)
        return tuple(Place(adapted.module, kind, shape, bias) for kind, bias in product(kinds, biases))

    def _best(self, adapted: AdaptedLayer, places: Iterable[Place]) -> _Outcome:
        """What PEFT does; where it is not known what the layer is, it is what the file's tensors fit."""
        outcomes = [self._outcome(adapted, (place,) * len(self.worlds)) for place in places]
        if not outcomes:
            found = self._outcome(adapted, [_probe(adapted.module, world) for world in _WORLDS])
            # A size that PEFT refuses the layer need not have.
            return _Outcome() if found.refused else found
        if not adapted.tensors:
            return max(outcomes, key=lambda one: len(one.missing))
        return min(outcomes, key=lambda one: (one.problem is not None, len(one.missing) + len(one.extra)))

    def _outcome(self, adapted: AdaptedLayer, places: Sequence[Place]) -> _Outcome:
        try:
            declared = _in_each(self._declared, zip(places, self.worlds, strict=True))
        except RefusedError as error:
            return _Outcome(str(error), refused=True)
        due = _common(declared)
        missing = tuple(name for name in due if name not in adapted.tensors and self._is_trained(adapted.module, name))
        extra = tuple(name for name in adapted.tensors if not any(name in shapes for shapes in declared))
        # Copies of what all layers share stand under the layers, and are none of those tensors.
        everything, stem = self.adapter.weights.tensors, f"{PEFT_PREFIX}{adapted.module}."
        held = {name: tensor for name in due if (tensor := adapted.tensors.get(name) or everything.get(stem + name))}
        wrong = (name for name, tensor in held.items() if not is_of(tensor.shape, due[name]))
        problem = next((_mismatch(name, held[name], due[name]) for name in wrong), None)
        if problem is None and len(set(places)) == 1:
            problem = self.rule.misfit(self.settings, places[0], held)
        return _Outcome(problem, missing, extra, made=bool(due))

    def _declared(self, place: Place, beside: Places) -> Shapes:
        return self.rule.tensors(self.settings, place, beside) if self.rule.tensors is not None else {}

    def _is_trained(self, module: str, name: str) -> bool:
        """Whether PEFT can't make it again as it was: what was drawn or computed from the base it can."""
        method = method_of(self.adapter.config)
        return method.role(f"{PEFT_PREFIX}{module}.{name}", self.adapter.config) == "trainable"

    def _undeclared(self, adapted: AdaptedLayer, layer: Layer) -> str | None:
        """Why PEFT raises for tensors that take the place of others."""
        name = self._sized_by(adapted, layer)
        if is_token_layer(adapted):
            return misfit_of_tokens(self.adapter, adapted, self.base.tensor(name) if name is not None else None)
        for base_name, module in self._replaced(adapted, layer).items():
            if base_name in self.base.files and (due := self.base.tensor(base_name).shape) != module.shape:
                return f"the adapter's module has shape {list(module.shape)}, and the base's {list(due)}"
        return None

    def _best_levels(self, adapted: AdaptedLayer, layer: Layer) -> _Outcome:
        """What PEFT does with the tensors of a module's parameters."""
        if layer.status != "ok" or not adapted.tensors:
            return _Outcome()
        name = self._sized_by(adapted, layer)
        weight = self.base.tensor(name).shape if name is not None else None
        ways = self.parameters[adapted.module]
        reasons = [self._misfit_of_levels(adapted, levels, weight) for levels in ways]
        if None not in reasons:
            return _Outcome(reasons[0])
        if self.targets.is_open(adapted, ways):
            return _Outcome(untold="which parameters the adapter's tensors are for can't be told without the model")
        stems = ("base_layer." * depth for depth in range(len(ways[0])))
        due = {stem + factor for stem in stems for factor in _FACTORS}
        extra = tuple(name for name in adapted.tensors if name not in due)
        return _Outcome(missing=tuple(_other_halves(adapted.tensors)), extra=extra)

    def _misfit_of_levels(self, adapted: AdaptedLayer, levels: Levels, weight: tuple[int, ...] | None) -> str | None:
        """Why PEFT raises if it wraps the parameters in this order; the outermost wrapper holds what it wraps last."""
        for depth, (name, shape) in enumerate(reversed(levels)):
            stem = "base_layer." * depth
            tensors = {
                tail: tensor for tail in _FACTORS if (tensor := adapted.tensors.get(f"{stem}{tail}")) is not None
            }
            due = weight if shape is None and name == "weight" else shape
            reason = self.rule.misfit_of_parameters(self.settings, f"{adapted.module}.{name}", tensors, due)
            if reason is not None:
                return reason
        return None

    def _lacking_of_whole(self, adapted: AdaptedLayer, layer: Layer) -> tuple[str, ...]:
        """The tensors of a module that is trained whole of which the base has some and the adapter's file none."""
        prefix = self.rule.whole_module
        if prefix is None or layer.status != "ok" or is_token_layer(adapted):
            return ()
        names = {f"{prefix}.{leaf}": f"{layer.stored}.{leaf}" for leaf in ("weight", "bias")}
        return tuple(
            name for name, stored in names.items() if stored in self.base.files and name not in adapted.tensors
        )

    def _beyond_whole(self, adapted: AdaptedLayer, layer: Layer) -> tuple[str, ...]:
        """The tensors of such a module of which the base has none."""
        prefix = self.rule.whole_module
        if prefix is None or layer.status != "ok" or is_token_layer(adapted):
            return ()
        has_none = layer.stored is not None and layer.bias is None and f"{layer.stored}.weight" in self.base.files
        due = [f"{prefix}.{leaf}" for leaf in (("weight",) if has_none else ("weight", "bias"))]
        return tuple(name for name in adapted.tensors if name not in due)

    def _replaced(self, adapted: AdaptedLayer, layer: Layer) -> dict[str, TensorInfo]:
        """The base's tensors that the adapter's take the place of."""
        prefix = f"{self.rule.whole_module}."
        found = {name: tensor for name, tensor in adapted.tensors.items() if name.startswith(prefix)}
        return {f"{layer.stored}.{name.removeprefix(prefix)}": tensor for name, tensor in found.items()}

    def _shared(self) -> tuple[tuple[Finding, ...], str | None]:
        """What is wrong with the tensors that all layers share, and what can't be told of them."""
        try:
            due = _common(_in_each(self.rule.shared, ((self.settings, places) for places in self.worlds)))
        except RefusedError as error:
            return (Finding("ADP207", f"PEFT does not load the adapter: {error}"),), None
        held = {name: self.adapter.weights.tensors.get(f"base_model.{name}") for name in due}
        findings = [
            Finding("ADP203", f"In all layers, {_mismatch(name, tensor, due[name])}", (tensor.name,), 1)
            for name, tensor in held.items()
            if tensor is not None and not is_of(tensor.shape, due[name])
        ]
        absent = next((name for name, tensor in held.items() if tensor is None), None)
        if absent is None or self.rule.redraws:
            return tuple(findings[:1]), None
        untold = f"the adapter's file lacks {absent}, which all layers share: PEFT raises, or makes it anew, untrained"
        return tuple(findings[:1]), untold


@dataclass(frozen=True)
class _Outcome:
    """What PEFT does with the tensors of a layer.

    Attributes:
        problem: Why it raises.
        missing: What it makes itself.
        extra: What it leaves out.
        refused: Whether it raises before it loads anything.
        made: Whether it makes any.
        untold: What can't be told, as a sentence; None where nothing is open.
    """

    problem: str | None = None
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    refused: bool = False
    made: bool = True
    untold: str | None = None


def _blocked(layer: Layer, found: _Outcome) -> Layer:
    if found.untold is not None:
        return replace(layer, status="unknown", reason=found.untold)
    if found.problem is None:
        return layer
    return replace(layer, status="blocked", code="ADP207" if found.refused else "ADP203", reason=found.problem)


_OF_ATTENTION = "in_proj_weight"
"""What torch's `MultiheadAttention` has in place of a weight, for queries, keys and values."""

_FACTORS = ("lora_A.weight", "lora_B.weight")
"""LoRA alone adapts parameters."""


def _kinds(layer: Layer, dimensions: int) -> tuple[LayerKind, ...]:
    """What a layer may be, by what is known of it and by the dimensions of its weight."""
    if layer.layer_type in ("linear", "conv1d", "embedding"):
        return (layer.layer_type,) if dimensions == 2 else ()
    if layer.layer_type == "experts":
        # Each is a matrix in the file.
        return ("linear",) if dimensions == 2 else ()
    return ("linear", "conv1d", "embedding") if dimensions == 2 else ("conv",) if dimensions > 2 else ("other",)


_DIVISIBLE = 2**12 * 3**2 * 5

_WORLDS = ((7 * _DIVISIBLE, 11 * _DIVISIBLE), (13 * _DIVISIBLE, 17 * _DIVISIBLE), (1, 1))
"""Outputs and inputs that a layer of unknown sizes is given: more than any has, which blocks divide, and the least."""


def _probe(module: str, world: tuple[int, int]) -> Place:
    return Place(module, "linear", world, True)


def _in_each(declare: Callable[..., Shapes], worlds: Iterable[tuple[Any, ...]]) -> list[Shapes]:
    """What is declared in each world; not all take the least sizes, which only a layer that is known to have them need have.

    Raises:
        RefusedError: PEFT raises, and does with large sizes as well.
    """
    *large, least = worlds
    declared = [declare(*world) for world in large]
    with suppress(RefusedError):
        declared.append(declare(*least))
    return declared


def _common(declared: Sequence[Shapes]) -> dict[str, Shape]:
    """What all declarations agree in."""
    first, *others = declared
    names = [name for name in first if all(name in other for other in others)]
    dimensions = {name: zip(*(shapes[name] for shapes in declared), strict=True) for name in names}
    return {name: tuple(one[0] if len(set(one)) == 1 else None for one in dimensions[name]) for name in names}


def _other_halves(tensors: Collection[str]) -> Iterator[str]:
    """The factors of parameters that are lacking beside the other one; PEFT makes them anew."""
    for name in tensors:
        this = next((one for one in _FACTORS if name == one or name.endswith(f".{one}")), None)
        for other in _FACTORS if this is not None else ():
            if (due := name.removesuffix(this or "") + other) not in tensors:
                yield due


def _mismatch(name: str, tensor: TensorInfo, shape: Shape) -> str:
    due = ", ".join("?" if one is None else str(one) for one in shape)
    return (
        f"the adapter's {name} has shape {list(tensor.shape)}, and PEFT makes it [{due}] by its config and this base: it "
        "raises a size mismatch"
    )
