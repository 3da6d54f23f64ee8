"""Lily: layers share their B, and blocks of them their A; PEFT writes the shared tensors under every layer.

Source: `peft/tuners/lily/model.py`, `_post_injection_hook`, read at 0.21.2. All layers of one target and one shape share
`lily_B`; each `stride_A` of them in a row share `lily_A`. When PEFT loads an adapter they are one module already, so one
copy fills them all. Groups are made finer here than PEFT makes them, by names that differ in nothing but the layer's number:
every copy that goes is one of PEFT's group.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptertool.methods.layered import natural
from adaptertool.methods.merging import no_merge
from adaptertool.methods.plain import PlainMethod
from adaptertool.methods.shared import SharedTensors
from adaptertool.projection.stored import Stored

if TYPE_CHECKING:
    from adaptertool.checkpoint.config import AdapterConfig


@dataclass(frozen=True)
class LilyTensors(SharedTensors):
    """See `adaptertool.methods.base.Projections`."""

    pattern: str = r"(?P<module>.*)\.(?P<kind>lily_[AB])\.weight"
    trained_pattern: str = r"(?P<module>.*)\.lily_(?:A|B|router)\.weight"

    def stored(self, names: Iterable[str], config: AdapterConfig | None = None) -> tuple[Stored, ...]:
        """Groups of layers, the first layer's tensor before the others."""
        stride = config.integer("stride_A", 1, least=1) if config is not None else 1
        groups: dict[tuple[str, str, str], list[str]] = {}
        for name, module, kind in self.names(sorted(names, key=natural)):
            numbers = re.findall(r"(?<=\.)\d+(?=\.)", module)
            # Where more than one number stands in a name, which of them counts the layers is not certain.
            path = re.sub(r"(?<=\.)\d+(?=\.)", "*", module) if len(numbers) == 1 else module
            target = _target(module, config)
            groups.setdefault((kind, target, path if target else module), []).append(name)
        found = []
        for (kind, _, _), group in groups.items():
            step = len(group) if kind == "lily_B" else stride
            blocks = (group[begin : begin + step] for begin in range(0, len(group), step))
            found += [Stored(block[0], block[0], tuple(block[1:])) for block in blocks]
        return tuple(found)


def _target(module: str, config: AdapterConfig | None) -> str:
    """The target that PEFT groups a module by: an expression as a whole, or the one suffix that fits; empty if none does.

    `all-linear` becomes a list of whole names, so that no layers share anything. Where several suffixes fit, PEFT takes
    the last of a set, whose order changes with every process.
    """
    targets = config.fields.get("target_modules") if config is not None else None
    if isinstance(targets, str):
        return targets
    fitting = {target for target in targets or () if isinstance(target, str) and target and module.endswith(target)}
    return fitting.pop() if len(fitting) == 1 else ""


LILY = PlainMethod("LILY", "lily_", "r", projections=LilyTensors(), merge=no_merge("its routers choose by the input"))
