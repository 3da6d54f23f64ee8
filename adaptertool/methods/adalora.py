"""AdaLoRA: LoRA with a diagonal between its factors, of which training prunes entries.

Source: `peft/tuners/adalora/`, read at 0.21.2. Its model is LoRA's with other layers; those for quantised weights have no
merge. What training left of each rank is the config's `rank_pattern`: PEFT cuts the layers to that before it loads them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptertool.methods.merging import CONV, CONV1D, LINEAR, MergeRule, not_into_mamba
from adaptertool.methods.plain import PlainMethod
from adaptertool.methods.replication import base_module, hazard
from adaptertool.methods.shapes import RefusedError, flattened, integer, number, refuse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.methods.shapes import Place, Places, Settings, Shapes


def _refused(settings: Mapping[str, Any]) -> str | None:
    if settings.get("use_dora"):
        return "its config has use_dora, with which PEFT raises ValueError for AdaLoRA"
    steps, first, last = (number(settings, field) for field in ("total_step", "tinit", "tfinal"))
    if steps <= 0:
        return f"total_step is {steps!r}, and PEFT raises ValueError where it is not above 0"
    if first >= steps - last:
        return f"tinit is {first}, tfinal {last} and total_step {steps}, which leaves no steps between: PEFT raises ValueError"
    patterns = settings.get("rank_pattern")
    if isinstance(patterns, dict) and not all(isinstance(kept, list) for kept in patterns.values()):
        return "its rank_pattern has entries that are no lists, and PEFT raises"
    if number(settings, "orth_reg_weight") < 0:
        return "orth_reg_weight is below 0, with which PEFT raises ValueError"
    return None


def _undecided(config: Mapping[str, Any]) -> str | None:
    """Its config class inherits what only LoRA's layers use."""
    field = next((field for field in _OF_LORA if config.get(field) is not None), None)
    return f"its config has {field}, of which AdaLoRA makes nothing: PEFT may raise for it" if field else None


_OF_LORA = ("arrow_config", "kasa_config", "monteclora_config", "use_bdlora", "velora_config")


def _tensors(settings: Settings, place: Place, _: Places) -> Shapes:
    rank = integer(settings, "init_r", 0)
    kept = _kept(settings, place.module)
    if kept is not None:
        refuse(
            len(kept) != rank,
            f"its rank_pattern has {len(kept)} entries for a layer, and init_r is {rank}: PEFT raises IndexError",
        )
        rank = sum(kept)
    return {
        "lora_A": (rank, flattened(place)),
        "lora_B": (place.out, rank),
        "lora_E": (rank, 1),
    }


def _kept(settings: Settings, module: str) -> list[bool] | None:
    patterns = settings.get("rank_pattern")
    if patterns is None:
        return None
    try:
        # The last part is lora_E, and may be followed by the adapter's name.
        found = [
            kept
            for name, kept in patterns.items()
            if name.split(".lora_E")[0].removeprefix("base_model.model.") == module
        ]
        return [bool(one) for one in found[0]] if found else None
    except (AttributeError, TypeError):
        raise RefusedError("its rank_pattern is no table of lists, and PEFT raises") from None


ADALORA = PlainMethod(
    "ADALORA",
    "lora_",
    "init_r",
    merge=MergeRule(
        tensors=_tensors,
        refused=_refused,
        undecided=_undecided,
        kinds=LINEAR | CONV1D | CONV,
        hazard=hazard,
        base_module=base_module,
        any_saved_module=True,
        refuses=not_into_mamba,
    ),
)
