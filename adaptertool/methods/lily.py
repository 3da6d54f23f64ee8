"""Lily: layers share their B, and blocks of them their A; PEFT writes the shared tensors under every layer.

Source: `peft/tuners/lily/model.py`, `_post_injection_hook`, read at 0.21.2. All layers of one target and one shape share
`lily_B`; each `stride_A` of them in a row share `lily_A`. When PEFT loads an adapter they are one module already, so one
copy fills them all. The order of the layers, which decides the blocks, is in the file only as far as their names tell it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptertool.methods.base import ALL_LINEAR
from adaptertool.methods.merging import no_merge
from adaptertool.methods.plain import PlainMethod
from adaptertool.methods.shared import SharedTensors
from adaptertool.projection.stored import Stored
from adaptertool.words import natural

if TYPE_CHECKING:
    from adaptertool.checkpoint.config import AdapterConfig
    from adaptertool.checkpoint.header import TensorInfo


_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True)
class LilyTensors(SharedTensors):
    """See `adaptertool.methods.base.Projections`."""

    pattern: str = r"(?P<module>.*)\.(?P<kind>lily_[AB])\.weight"
    trained_pattern: str = r"(?P<module>.*)\.lily_(?:A|B|router)\.weight"
    conditions: tuple[str, ...] = (
        "The first adapter on the model: layers of further ones (load_adapter) share nothing, and stay untrained.",
    )

    def stored(self, tensors: Mapping[str, TensorInfo], config: AdapterConfig | None = None) -> tuple[Stored, ...]:
        """Groups of layers, the first layer's tensor before the others."""
        stride = config.integer("stride_A", 1, least=1) if config is not None else 1
        modules = sorted(self.target_modules(tensors), key=natural)
        found = []
        for target, family in _by_target(modules, config).items():
            complete = {*family} == {module for module in modules if _may_be(module, target, config)}
            for kind in ("lily_A", "lily_B"):
                for group in _groups(family, kind, tensors):
                    known = complete and _blocks_are_known(group, stride)
                    step = len(group) if kind == "lily_B" else stride if known else 1
                    blocks = (group[begin : begin + step] for begin in range(0, len(group), step))
                    found += [Stored(block[0], block[0], tuple(block[1:])) for block in blocks]
        return tuple(found)


def _by_target(modules: Iterable[str], config: AdapterConfig | None) -> dict[str, list[str]]:
    """Modules by the target that PEFT groups them by; one whose target is not certain stands for itself."""
    families: dict[str, list[str]] = {}
    for module in modules:
        families.setdefault(_target(module, config) or f"={module}", []).append(module)
    return families


def _blocks_are_known(names: Sequence[str], stride: int) -> bool:
    """Whether blocks of that many tensors, sorted by name, are those of PEFT, which has them in the order of the model.

    So it is where the names differ in numbers alone. Where each layer of the model has several of them, their order in it is
    not known; blocks of whole layers do not depend on it.
    """
    paths = {_NUMBER.sub("*", name) for name in names}
    if len(paths) == 1:
        return True
    layers = Counter(name[: match.end()] if (match := _NUMBER.search(name)) else "" for name in names)
    stacks = {_NUMBER.sub("*", layer) for layer in layers}
    numbered = len(stacks) == 1 and all(path.count("*") == 1 for path in paths)
    return numbered and {*layers.values()} == {len(paths)} and stride % len(paths) == 0


def _groups(family: Iterable[str], kind: str, tensors: Mapping[str, TensorInfo]) -> list[list[str]]:
    """The tensors of one kind that layers of the same shape have, as PEFT groups them by the base's weight.

    Where some layers lack it, one copy was kept already, and each of those that are left stands for itself.
    """
    named = {module: f"{module}.{kind}.weight" for module in family}
    present = {module: name for module, name in named.items() if name in tensors}
    groups: dict[object, list[str]] = {}
    for module, name in present.items():
        groups.setdefault(_shapes(module, tensors) if len(present) == len(named) else name, []).append(name)
    return list(groups.values())


def _shapes(module: str, tensors: Mapping[str, TensorInfo]) -> tuple[tuple[int, ...] | None, ...]:
    """What tells the in_features and the out_features of a layer's base."""
    found = (tensors.get(f"{module}.{kind}.weight") for kind in ("lily_A", "lily_B"))
    return tuple(info.shape if info is not None else None for info in found)


def _target(module: str, config: AdapterConfig | None) -> str:
    """The target that PEFT groups a module by: an expression as a whole, or the one suffix that fits; empty if none does.

    `all-linear` becomes a list of whole names, so that no layers share anything. Where several suffixes fit, PEFT takes
    the last of a set, whose order changes with every process.
    """
    targets = config.fields.get("target_modules") if config is not None else None
    if isinstance(targets, str):
        return "" if targets.lower() == ALL_LINEAR else targets
    fitting = {target for target in targets or () if isinstance(target, str) and target and module.endswith(target)}
    return fitting.pop() if len(fitting) == 1 else ""


def _may_be(module: str, target: str, config: AdapterConfig | None) -> bool:
    """Whether PEFT can take a module for one of a target's group."""
    whole = config is not None and isinstance(config.fields.get("target_modules"), str)
    return whole or module.endswith(target)


LILY = PlainMethod("LILY", "lily_", "r", projections=LilyTensors(), merge=no_merge("its routers choose by the input"))
