"""X-LoRA: a classifier that weighs several LoRA adapters by the input.

Source: `peft/tuners/xlora/model.py`, read at 0.21.2. The experts are loaded under the names `0`, `1`, …, whatever the config
calls them, and the merge looks for them by the config's names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptertool.methods.merging import MergeRule
from adaptertool.methods.plain import PlainMethod

if TYPE_CHECKING:
    from collections.abc import Mapping


def _never(config: Mapping[str, Any]) -> str | None:
    experts = config.get("adapters")
    if not isinstance(experts, dict):
        return None
    missing = [name for name in experts if name not in {str(number) for number in range(len(experts))}]
    if not missing:
        return None
    return (
        f"PEFT loads the experts under numbers and merges them by their names in the config (KeyError: {missing[0]!r})"
    )


XLORA = PlainMethod(
    "XLORA",
    "internal_xlora_classifier",
    merge=MergeRule(
        never=_never,
        hazard=lambda _: "X-LoRA weighs its experts by the input, and merge_and_unload leaves that out",
    ),
)
