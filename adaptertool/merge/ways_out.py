"""What can be done where a base layer has no bias to merge into."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptertool.merge.base.names import Names
from adaptertool.merge.base.paths import pattern_of
from adaptertool.merge.result import WayOut

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adaptertool.merge.base.layer import Layer
    from adaptertool.merge.base.layers import BaseLayers


def ways_out(layers: BaseLayers, blocked: Sequence[Layer]) -> tuple[WayOut, ...]:
    """One way for each flag that would create missing biases, and one for the layers that have no flag.

    Args:
        layers: The base.
        blocked: The layers that lack a bias (ADP201).
    """
    ways: list[WayOut] = []
    flags = tuple(dict.fromkeys(layer.flag for layer in blocked if layer.flag is not None))
    for flag in flags:
        adapted = {pattern_of(layer.module) for layer in blocked if layer.flag == flag}
        others = _others(adapted, layers.code.governed_by(flag), Names((), layers.code.wrappers, layers.code.leading))
        value = not any(
            code.turned for layer in blocked if (code := layers.code.layer(layer.module)) and code.flag == flag
        )
        setting = f"{flag}: {'true' if value else 'false'}"
        text = (
            f"In a copy of the base whose config.json says {setting}, these layers are created with zero biases, and "
            f"{_works(flags, blocked)}. "
        )
        if others:
            text += f"The flag also creates biases that stay zero in {_listed(others)}. "
        text += "Every program that serves the merged model must honour the flag; save and publish the merged model with it."
        ways.append(WayOut(flag, value, others, (), text))
    if any(layer.flag is None for layer in blocked):
        biased = biased_layers(layers)
        text = (
            "No config field of this architecture gives these layers a bias, and PEFT does not add one: merge_and_unload "
            "keeps the architecture. Serve the adapter unmerged, or train it again "
        )
        if biased:
            text += f"on layers of this base that have a bias: {_listed(biased)}."
        else:
            text += "with a method that changes weights: no linear layer of this base has a bias."
        ways.append(WayOut(None, None, (), biased, text))
    return tuple(ways)


def _works(flags: Sequence[str], blocked: Sequence[Layer]) -> str:
    """What one flag leads to: a layer that it is not about still blocks the merge."""
    if any(layer.flag is None for layer in blocked):
        return "the merge still fails at the layers that have no such flag"
    return "the merge works" if len(flags) == 1 else f"the merge works if {' and '.join(flags)} are all set so"


def _others(adapted: Iterable[str], governed: Iterable[str], names: Names) -> tuple[str, ...]:
    """The governed layers that are not adapted, each once, under the name in the tree that the adapted ones are in."""
    known = {names.unwrapped(pattern) for pattern in adapted}
    heads = {pattern.partition("#")[0] for pattern in adapted}
    others: dict[tuple[str, ...], str] = {}
    for pattern in governed:
        key = names.unwrapped(pattern)
        if key not in known and (key not in others or pattern.partition("#")[0] in heads):
            others[key] = pattern
    return tuple(others.values())


def biased_layers(layers: BaseLayers) -> tuple[str, ...]:
    """The linear layers of the base that have a bias, as patterns of their names in the file."""
    found: dict[str, None] = {}
    for module, leaves in layers.modules.items():
        if "bias" not in leaves or (pattern := pattern_of(module)) in found:
            continue
        code = layers.code.layer(module)
        if code is not None and code.kind == "linear" and code.bias:
            found[pattern] = None
    return tuple(found)


def _listed(patterns: Sequence[str], most: int = 6) -> str:
    shown = ", ".join(patterns[:most])
    return shown if len(patterns) <= most else f"{shown} and {len(patterns) - most} more"
