"""An adapter on its base: the base's layers that PEFT attaches it to, as far as files and configs tell, or the built model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptertool.merge.adapter.accounted import accounted
from adaptertool.merge.adapter.attached import attached_layers
from adaptertool.merge.adapter.demands import layer_for
from adaptertool.merge.adapter.tokens import trained_tokens, without_copies
from adaptertool.merge.adapter.whole import lacking
from adaptertool.merge.base.shared_tensors import SharedTensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.merge.adapter.accounted import Accounted
    from adaptertool.merge.adapter.adapted import AdaptedLayer
    from adaptertool.merge.adapter.attached import Attached
    from adaptertool.merge.adapter.targets import Targets
    from adaptertool.merge.adapter.tokens import TrainedTokens
    from adaptertool.merge.base.layer import Layer
    from adaptertool.merge.base.layers import BaseLayers
    from adaptertool.merge.base.live import LiveModel
    from adaptertool.methods.merging import MergeRule


@dataclass(frozen=True)
class Placement:
    """Where an adapter's layers are in its base.

    Attributes:
        layers: The base's layers.
        shared: Those of them that are one tensor.
        tokens: Those whose tokens the adapter trained.
        attached: What PEFT attaches, and what not.
        pairs: Every layer that the adapter changes, in the order of its file, with what is known of the base's.
        unheld: Tensors that PEFT looks up in the adapter's file and that it lacks, if the model has such modules.
        accounted: What became of the tensors of the adapter's file.
        settled: Whether files and configs, or the built model, tell all of this.
    """

    layers: BaseLayers
    shared: SharedTensors
    tokens: TrainedTokens
    attached: Attached
    pairs: tuple[tuple[AdaptedLayer, Layer], ...]
    unheld: tuple[str, ...]
    accounted: Accounted
    settled: bool

    @property
    def modules(self) -> set[str]:
        """The paths of all layers that the adapter changes."""
        return {adapted.module for adapted, _ in self.pairs}

    @property
    def tensors(self) -> list[str]:
        """The tensors of the base's files that are merged into, as far as they are known: a layer's bias, or its weight."""
        named = (layer.bias or f"{layer.stored}.weight" for _, layer in self.pairs if layer.status == "ok")
        return [name for name in named if name in self.layers.base.files]


def place(
    adapter: Adapter,
    adapted: Sequence[AdaptedLayer],
    rule: MergeRule,
    targets: Targets,
    layers: BaseLayers,
    live: LiveModel | None = None,
    before: Placement | None = None,
) -> Placement:
    """Find an adapter's layers in its base.

    Args:
        adapter: The adapter.
        adapted: The layers that its file holds tensors of.
        rule: What its method's merge needs.
        targets: What its config targets.
        layers: The base's layers.
        live: The built model, where it was built.
        before: What was found without it: of layers that were certain then, that stays.
    """
    fields = adapter.config.fields
    tree = live.layers if live is not None else None
    shared = SharedTensors(layers, fields, live.ties if live is not None else None)
    tokens = trained_tokens(adapter, targets, shared)
    own = without_copies(adapter, adapted, tokens, targets, shared)
    attached = attached_layers(adapter, own, targets, layers, rule, live)
    beside = (one for one in tokens.layers if all(one.module != other.module for other in own))
    known = {
        layer.module: layer for _, layer in (before.pairs if before is not None else ()) if layer.status != "unknown"
    }
    pairs = tuple(
        (
            one,
            known.get(one.module)
            or layer_for(
                adapter,
                layers,
                one,
                rule,
                targets,
                attached.experts,
                tree.get(one.module) if tree is not None else None,
            ),
        )
        for one in (*attached.layers, *beside)
    )
    unheld = lacking(adapter, layers, {one.module for one, _ in pairs}, live)
    unsure = any(layer.status == "unknown" or shared.of(layer.module) is None for _, layer in pairs)
    if live is None:
        levels = ((one, targets.levels_of(one.module, layers.code.layer(one.module))) for one in attached.layers)
        unsure = unsure or any(
            targets.is_open(one, ways) for one, ways in levels if one.module not in attached.experts.modules
        )
    # Experts that PEFT fuses have names of their own in the file.
    of_layers = {
        tensor.name: None if layer.module in attached.experts.modules else rule.base_module(fields, layer.module)
        for layer in adapted
        for tensor in layer.tensors.values()
    }
    tied = {*tokens.owners, *(layer.module for layer in adapted if fields.get("ensure_weight_tying"))}
    found = accounted(adapter, layers, {one.module for one, _ in pairs} | tied, of_layers, live)
    unsure = unsure or bool(found.open or found.mismatch)
    settled = not (targets.open or attached.open or attached.undecided or unheld or unsure)
    return Placement(layers, shared, tokens, attached, pairs, unheld, found, settled)
