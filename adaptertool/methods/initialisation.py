"""LoRA initialisations that move a part of each base weight into the adapter, and what PEFT makes of them at loading.

Source: `LoraLayer.update_layer` in `peft/tuners/lora/layer.py`, read at 0.21.2. It initialises at loading as it does before
training, and then puts the stored values into place. PiSSA and OLoRA take the same part out of the base again (SVD, QR), and
what was trained comes out. The initialisations here don't, or not for certain.
`save_pretrained(path_initial_model_for_weight_conversion=…)` writes a plain LoRA instead, with `init_lora_weights: true`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def drawn_anew(config: Mapping[str, Any]) -> str | None:
    """Why PEFT changes the base otherwise than before training: `torch.svd_lowrank` starts from random numbers."""
    how = _initialisation(config)
    if not how.startswith("pissa_niter_"):
        return None
    return (
        "PEFT moved a part of each base weight into the adapter when training began, found with random numbers, and takes "
        "another one out when it loads the adapter, unless the same seed was set right before: that is not what was trained "
        f"(init_lora_weights is {how})"
    )


def left_out(config: Mapping[str, Any]) -> str | None:
    """Why PEFT leaves a base as it is that had been changed before training: the gradients that it needs are gone."""
    how = _initialisation(config)
    if how != "lora_ga":
        return None
    return (
        "PEFT moved a part of each base weight into the adapter when training began, and does not when it loads the adapter: "
        f"that is what was trained only on a base that was saved in between (init_lora_weights is {how})"
    )


def quantised_anew(config: Mapping[str, Any]) -> str | None:
    """What LoftQ's base depends on at loading: the quantised weights are computed again, on an accelerator only."""
    how = _initialisation(config)
    if how != "loftq":
        return None
    return (
        "PEFT quantises each base weight again when it loads the adapter, which takes bitsandbytes and an accelerator, and "
        f"whether the outcome is that of the training run no file tells (init_lora_weights is {how})"
    )


def unknown(config: Mapping[str, Any]) -> str | None:
    """What a PEFT that does not know an initialisation can't tell: it raises ValueError at loading."""
    how = _initialisation(config)
    if how.startswith(("pissa", "corda")) or how.lower() in ("olora", "mica", "gaussian") or how in _AS_WRITTEN:
        return None
    return (
        f"init_lora_weights is {how}, which PEFT 0.21.2 does not know: it raises ValueError when it loads the adapter"
    )


_AS_WRITTEN = ("True", "False", "None", "loftq", "eva", "orthogonal", "lora_ga")


def undecided(config: Mapping[str, Any]) -> str | None:
    """See `MergeRule.undecided`."""
    return left_out(config) or quantised_anew(config) or unknown(config)


def refused(config: Mapping[str, Any]) -> str | None:
    """Why PEFT raises when it loads the adapter: it looks for what `preprocess_corda` leaves in the base's layers."""
    how = _initialisation(config)
    if not how.startswith("corda"):
        return None
    return (
        "PEFT raises ValueError when it loads the adapter, unless preprocess_corda was run on the base before "
        f"(init_lora_weights is {how})"
    )


def loads_otherwise(config: Mapping[str, Any]) -> str | None:
    """Why PEFT does not load the adapter that was trained; None where it does."""
    return drawn_anew(config) or left_out(config) or refused(config)


def plain_only(config: Mapping[str, Any], quantisation: str) -> str | None:
    """Why PEFT refuses to initialise layers that are quantised."""
    how = _initialisation(config)
    if how.startswith("pissa") or how.lower() == "mica":
        refusing = True
    elif how.lower() == "olora":
        refusing = quantisation != "bitsandbytes"
    else:
        refusing = how == "orthogonal" and quantisation == "bitsandbytes"
    return f"init_lora_weights is {how}, for which PEFT raises when it attaches to such a layer" if refusing else None


def _initialisation(config: Mapping[str, Any]) -> str:
    return str(config.get("init_lora_weights", True))
