"""Biases of the base that were trained beside any method's own tensors, and that older versions of PEFT did not save.

Measured with PEFT 0.19.1, 0.20.0, 0.21.0 and 0.21.2: under `bias: "all"` all biases of the model are trained, and up to 0.20
only LoRA, AdaLoRA and BOFT save them; under `bias: "lora_only"` and its like those of the adapted layers are, and up to 0.20
no method saves them. Loaded, they are the base's own again, without a word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from adaptertool.checkpoint.config import version_numbers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from adaptertool.checkpoint.config import AdapterConfig
    from adaptertool.methods.base import Method

_SAVED_SINCE = (0, 21)
_SAVED_ALL_BEFORE = ("LORA", "ADALORA", "BOFT")


def lost_biases(config: AdapterConfig, method: Method, names: Iterable[str]) -> Literal["all", "adapted"] | None:
    """Of which layers biases were trained and not saved, if the base has some there; None where none were lost.

    Args:
        config: The adapter's.
        method: Its method.
        names: Of the tensors of its file.
    """
    asked = config.fields.get("bias")
    if not isinstance(asked, str) or asked == "none" or not method.known:
        return None
    if version_numbers(config.text_or_none("peft_version")) >= _SAVED_SINCE:
        return None
    if asked == "all" and config.peft_type in _SAVED_ALL_BEFORE:
        return None
    if any(method.role(name, config) == "bias" for name in names):
        return None
    return "all" if asked == "all" else "adapted"


def words_about(config: AdapterConfig, lost: Literal["all", "adapted"]) -> str:
    """What happened, as a sentence without its end."""
    which = "all biases of the model" if lost == "all" else "the biases of the adapted layers"
    return (
        f"{which} were trained with the adapter (bias is {config.fields['bias']}), and PEFT before 0.21, which wrote it, did "
        "not save them"
    )
