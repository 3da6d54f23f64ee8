"""The layers that PEFT attaches an adapter to, and what it loads for each: the config decides, the file only fills in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptertool.merge.adapter.adapted import AdaptedLayer
from adaptertool.merge.adapter.experts import fused_experts
from adaptertool.merge.adapter.tokens import is_token_layer
from adaptertool.merge.base.names import Names, split_path
from adaptertool.merge.base.paths import numbers_in, pattern_of, with_numbers
from adaptertool.words import natural

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.merge.adapter.experts import FusedExperts
    from adaptertool.merge.adapter.targets import Targets
    from adaptertool.merge.base.code import CodeLayer
    from adaptertool.merge.base.layers import BaseLayers
    from adaptertool.merge.base.live import LiveModel
    from adaptertool.methods.merging import MergeRule


@dataclass(frozen=True)
class Attached:
    """What PEFT attaches, and what not.

    Attributes:
        layers: The layers that it attaches to, with the tensors that it loads; those that nobody trained have none.
        named: Modules of which it is not certain whether PEFT loads tensors that have the adapter's own name in theirs.
        ignored: Names of the tensors in the file that it leaves out.
        ignored_layers: How many layers it leaves out altogether.
        undecided: Whether it is not certain of a layer of the file that it attaches to it.
        open: Modules that it may attach to as well: whether they are in the model can't be told from its files.
        experts: Those of the layers that are experts that it fuses.
    """

    layers: tuple[AdaptedLayer, ...]
    named: frozenset[str]
    ignored: tuple[str, ...]
    ignored_layers: int
    undecided: bool
    open: tuple[str, ...]
    experts: FusedExperts


def attached_layers(
    adapter: Adapter,
    adapted: Sequence[AdaptedLayer],
    targets: Targets,
    layers: BaseLayers,
    rule: MergeRule,
    live: LiveModel | None = None,
) -> Attached:
    """What PEFT makes of this config and this file.

    Args:
        adapter: The adapter.
        adapted: The layers that its file holds tensors of.
        targets: What its config targets.
        layers: The base's layers.
        rule: What the adapter's method needs.
        live: The built model, where it was built.
    """
    fields = adapter.config.fields
    tree = live.layers if live is not None else None
    kept: list[AdaptedLayer] = []
    ignored: list[str] = []
    doubtful: list[str] = []
    left_out = 0
    undecided = False
    today = NamesToday(layers)
    experts = fused_experts(fields, adapted, targets, layers.base.config, layers.code.patterns())

    def code_of(module: str) -> CodeLayer | None:
        return (tree.get(module) if tree is not None else None) or layers.code.layer(module)

    for layer in adapted:
        if layer.module in experts.modules:
            kept.append(layer)
            continue
        if live is None:
            names = today.of(layer.module)
        elif live.has(rule.base_module(fields, layer.module)):
            names = (layer.module,)
        else:
            names = (live.today[layer.module],) if layer.module in live.today else ()
        matches = [targets.match(name, code_of(name)) for name in names]
        undecided = undecided or (
            bool(targets.parameters) and bool(matches) and all(match is None for match in matches)
        )
        if all(match is False for match in matches):
            # The name can be an older one, or today's in a class that the table does not know: the model tells.
            if tree is None and targets.match(layer.module, code_of(layer.module)):
                doubtful.append(layer.module)
            ignored += [tensor.name for tensor in layer.tensors.values()]
            left_out += 1
            continue
        kept.append(layer)
    if tree is not None:
        held = {(live.today if live is not None else {}).get(layer.module, layer.module) for layer in kept}
        fresh = [
            path
            for path, layer in tree.items()
            if path not in held and targets.match(path, layer) and not experts.hold(path)
        ]
        open_ones: list[str] = []
    else:
        fresh, open_ones = _targeted(kept, adapted, targets, layers, today)
        open_ones += _targeted_beside(fields, kept, targets, layers)
    everything = [*kept, *(AdaptedLayer(module, {}) for module in fresh)]
    everything.sort(key=lambda layer: natural(layer.module))
    # What is fused or tied is found by its saved names.
    named = frozenset(
        layer.module
        for layer in everything
        if layer.own_named and (layer.module in experts.modules or is_token_layer(layer) or layer.twice)
    )
    return Attached(tuple(everything), named, tuple(ignored), left_out, undecided, (*doubtful, *open_ones), experts)


def _targeted(
    kept: Sequence[AdaptedLayer],
    adapted: Sequence[AdaptedLayer],
    targets: Targets,
    layers: BaseLayers,
    today: NamesToday,
) -> tuple[list[str], list[str]]:
    """Live modules that the config targets and the file lacks: those that are certainly there, and those that may be.

    A file has one name for a layer, and the classes of a model type have several: the layers that the adapter holds tell
    which class it was. In a stack that it holds a layer of, all layers of the base's file are in the model. Of a stack that it
    holds nothing of, nobody knows: the class may lack it.
    """
    held = {name for layer in kept for name in (layer.module, *today.of(layer.module))}
    stacks: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for layer in adapted:
        stored = layers.stored(layer.module)
        if stored is not None:
            heads = {split_path(name)[0] for name in today.of(layer.module)}
            stacks.setdefault(split_path(stored)[0], set()).update(heads)
    fresh: list[str] = []
    open_ones: list[str] = []
    others = _LiveNames(layers)
    for stored, leaves in layers.modules.items():
        if "weight" not in leaves and not layers.is_quantized(stored):
            continue
        head, tail = split_path(stored)
        numbered = tail[0].isdecimal()
        live_heads = stacks.get(head, set()) if numbered else set()
        names = others.of(stored)
        here = [live for live in names if split_path(live)[0] in live_heads]
        if live_heads and not here:
            here = [".".join((*live_head, *tail)) for live_head in live_heads]
        if any(live in held for live in here or names):
            continue
        for live in here or names:
            if layers.is_beyond(live) or ".experts." in f".{live}.":
                continue
            code = layers.code.layer(live)
            if not targets.match(live, code):
                continue
            if here and (code is not None or not layers.code.known):
                fresh.append(live)
                break
            if (here or numbered or _alone(live, kept, targets)) and not layers.is_fused(stored):
                open_ones.append(live)
                break
    return fresh, open_ones


def _targeted_beside(
    fields: Mapping[str, Any], kept: Sequence[AdaptedLayer], targets: Targets, layers: BaseLayers
) -> Iterator[str]:
    """Live modules that the config targets and neither file has, if the model is of a class that has them, as with a head."""
    held = {layer.module for layer in kept}
    classes = layers.code.likely(fields, held)
    for path in layers.code.patterns():
        if "#" in path or path in held or layers.stored(path) is not None:
            continue
        if targets.match(path, layers.code.layer(path)) and any(
            not layers.code.lacking((path,), one) for one in classes
        ):
            yield path


def _alone(module: str, kept: Iterable[AdaptedLayer], targets: Targets) -> bool:
    """Whether the config's entry for this module fits nothing that the file holds.

    A head or pooler is in some classes of a model type and not in others. An entry that fits other layers was not made for it.
    """
    target = targets.target_of(module)
    return target is not None and all(targets.target_of(layer.module) != target for layer in kept)


class NamesToday:
    """What the model's code calls the layers of an adapter that was saved under an older version of it.

    PEFT renames the tensors of such an adapter at loading, and leaves its config's patterns as they are: a pattern for the
    older names then targets nothing.
    """

    def __init__(self, layers: BaseLayers) -> None:
        self._patterns = frozenset(layers.code.patterns())
        self._names = Names(self._patterns, layers.code.wrappers, layers.code.leading)

    def of(self, module: str) -> tuple[str, ...]:
        """Module paths; the one that was asked for where it is one of today's, or nothing is known of it."""
        pattern = pattern_of(module)
        if pattern in self._patterns or not self._patterns:
            return (module,)
        found = self._names.find(pattern)
        others = (found.module,) if found.module is not None else found.candidates
        numbers = numbers_in(module)
        return tuple(with_numbers(other, numbers) for other in others) or (module,)


class _LiveNames:
    """What a module of the base's file may be called in the model, by all classes of its type."""

    def __init__(self, layers: BaseLayers) -> None:
        patterns = {pattern_of(module) for module in layers.modules}
        names = Names(patterns, layers.code.wrappers, layers.code.leading)
        self._live: dict[str, list[str]] = {}
        for live in layers.code.patterns():
            moved = layers.code.moved(live)
            found = (names.find(moved).module if moved is not None else None) or names.find(live).module
            if found is not None:
                self._live.setdefault(found, []).append(live)

    def of(self, stored: str) -> list[str]:
        """Module paths; the stored name itself where the code is not known."""
        patterns = self._live.get(pattern_of(stored))
        if patterns is None:
            return [stored]
        numbers = numbers_in(stored)
        return [with_numbers(pattern, numbers) for pattern in patterns if pattern.count("#") == len(numbers)]
