"""The layers of a base as its live model names them, as patterns with `#` for layer numbers."""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING

from adaptertool.merge.base.paths import pattern_of
from adaptertool.merge.base.stored import Stored

if TYPE_CHECKING:
    from collections.abc import Iterable

    from adaptertool.merge.base.code import CodeLayer
    from adaptertool.merge.base.layers import BaseLayers
    from adaptertool.merge.base.live import LiveModel


def live_tree(layers: BaseLayers, known: Iterable[str], live: LiveModel | None) -> dict[str, CodeLayer]:
    """What the code says of each layer of the base; empty where the code is not known.

    A base class and one with a head name a layer differently, and a file is read by either. Which of them the model is of
    is told by layers that are known to be in it.

    Args:
        layers: The base's layers.
        known: Paths of layers that are in the live model.
        live: The built model, where it was built.
    """
    if live is not None:
        return _patterns(live)
    anchors = [pattern_of(path).split(".") for path in known]
    stored = stored_patterns(layers)
    names: dict[str, list[str]] = {}
    for pattern in layers.code.patterns():
        if (module := stored.find(pattern).module) is not None:
            names.setdefault(module, []).append(pattern)
    tree: dict[str, CodeLayer] = {}
    for same in names.values():
        pattern = max(same, key=lambda one: (_shared(one, anchors), -len(one)))
        if (layer := layers.code.layer(pattern)) is not None:
            tree[pattern] = layer
    return tree


def stored_patterns(layers: BaseLayers) -> Stored:
    """What the base's file holds, asked by patterns instead of paths."""
    tensors = {f"{pattern_of(module)}.{leaf}": "" for module, leaves in layers.modules.items() for leaf in leaves}
    return Stored(tensors, layers.code, {})


def _patterns(live: LiveModel) -> dict[str, CodeLayer]:
    tree: dict[str, CodeLayer] = {}
    for path, layer in live.layers.items():
        pattern = pattern_of(path)
        before = tree.get(pattern, layer)
        tree[pattern] = layer if before.bias is layer.bias else replace(layer, bias=None)
    return tree


def _shared(pattern: str, anchors: Iterable[list[str]]) -> int:
    """The most segments with which a pattern begins as one of the anchors does."""
    parts = pattern.split(".")
    pairs = (zip(parts, one, strict=False) for one in anchors)
    return max(sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], one)) for one in pairs)
