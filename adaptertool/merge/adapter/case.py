"""An adapter on a base: what PEFT attaches to which layers, by files and configs, or by the built model where it is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptertool.merge.adapter.attached import NamesToday
from adaptertool.merge.adapter.placement import place
from adaptertool.merge.adapter.saved import open_entries
from adaptertool.merge.adapter.settings import settings_of
from adaptertool.merge.adapter.targets import Targets
from adaptertool.merge.base.code import ModelCode
from adaptertool.merge.base.layers import BaseLayers
from adaptertool.merge.base.live import build_live_model
from adaptertool.merge.base.read_layers import model_types
from adaptertool.merge.base.sizes import mismatches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.merge.adapter.adapted import AdaptedLayer
    from adaptertool.merge.adapter.attached import Attached
    from adaptertool.merge.adapter.placement import Placement
    from adaptertool.merge.adapter.targets import Levels
    from adaptertool.merge.base.files import Base
    from adaptertool.merge.base.live import LiveModel
    from adaptertool.merge.base.sizes import Mismatch
    from adaptertool.methods.merging import MergeRule
    from adaptertool.methods.shapes import Settings


@dataclass(frozen=True)
class Case:
    """One adapter on one base, before anything is tried.

    Attributes:
        adapter: The adapter.
        rule: What its method's merge needs.
        adapted: The layers that its file holds tensors of.
        base: The base model.
        code: Its code, as far as its config tells.
        targets: What the adapter's config targets.
        placement: Where the layers are in the base.
        mismatched: Weights of the base that its own config contradicts.
        entries: Entries of `modules_to_save` of which the file holds nothing.
        live: The built model; None where it was not needed or could not be built.
    """

    adapter: Adapter
    rule: MergeRule
    adapted: Sequence[AdaptedLayer]
    base: Base
    code: ModelCode
    targets: Targets
    placement: Placement
    mismatched: tuple[Mismatch, ...]
    entries: tuple[str, ...]
    live: LiveModel | None

    @property
    def layers(self) -> BaseLayers:
        """The base's layers."""
        return self.placement.layers

    @property
    def attached(self) -> Attached:
        """What PEFT attaches, and what not."""
        return self.placement.attached

    @property
    def settings(self) -> Settings:
        """The adapter's config as PEFT has it on this base, with its defaults."""
        return self.targets.settings(settings_of(self.adapter.config, self.code.model_type))

    def parameters(self) -> dict[str, tuple[Levels, ...]]:
        """Modules that the config targets by their parameters, with the ways in which PEFT may nest those."""
        layers = self.live.layers if self.live is not None else {}
        levels = {
            one.module: self.targets.levels_of(one.module, layers.get(one.module) or self.code.layer(one.module))
            for one, _ in self.placement.pairs
            if one.module not in self.attached.experts.modules
        }
        return {module: ways for module, ways in levels.items() if ways}


def case_of(adapter: Adapter, rule: MergeRule, adapted: Sequence[AdaptedLayer], base: Base, *, ask_model: bool) -> Case:
    """Find an adapter's layers in a base.

    Args:
        adapter: The adapter.
        rule: What its method's merge needs.
        adapted: The layers that its file holds tensors of.
        base: The base model.
        ask_model: Whether the model may be built where files and configs don't tell.
    """
    code = ModelCode(base.config)
    targets = Targets(adapter.config, code.model_type, model_types(base.config))
    placement = place(adapter, adapted, rule, targets, BaseLayers(base, code))
    entries = open_entries(adapter, rule, placement.layers.weighted())
    base.load_headers(placement.tensors)
    mismatched = mismatches(base, code)
    live: LiveModel | None = None
    if ask_model and (entries or mismatched or not placement.settled):
        live = build_live_model(base.config, adapter.config.fields, _asked_for(adapted, placement), base.files)
    if live is not None:
        targets.resolve(live.layers, live.bare)
        placement = place(adapter, adapted, rule, targets, BaseLayers(base, code, live.renamed), live, placement)
        mismatched = mismatches(base, code, live)
    return Case(adapter, rule, adapted, base, code, targets, placement, mismatched, entries, live)


def _asked_for(adapted: Sequence[AdaptedLayer], placement: Placement) -> list[str]:
    """The modules by which the model's class is told, under the file's names and under those of today's code."""
    today, experts = NamesToday(placement.layers), placement.attached.experts.modules
    named = [layer.module for layer in adapted if layer.module not in experts] + [*placement.accounted.open]
    return list(dict.fromkeys(name for module in named for name in (module, *today.of(module))))
