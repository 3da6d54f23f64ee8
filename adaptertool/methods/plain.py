"""Methods whose checkpoint holds what was trained and nothing else that needs more than its name to be told.

Source of the prefixes: `prefix` of each tuner class in PEFT 0.21.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptertool.methods.base import Role, general_role

if TYPE_CHECKING:
    from adaptertool.checkpoint.config import AdapterConfig


@dataclass(frozen=True)
class PlainMethod:
    """See `adaptertool.methods.base.Method`.

    Attributes:
        peft_type: As in `adapter_config.json`.
        prefix: What the names of its tensors begin with, within their module; None where every tensor is its own.
        rank_field: The config field with the rank.
        projections: None: it has none that are drawn from a seed in the config.
    """

    peft_type: str
    prefix: str | None
    rank_field: str | None = None
    projections: None = None

    def rank(self, config: AdapterConfig) -> int | None:
        """The config's rank; None where the config does not say."""
        if self.rank_field is None or config.fields.get(self.rank_field) is None:
            return None
        return config.integer(self.rank_field, 0)

    def role(self, name: str, config: AdapterConfig) -> Role:
        """Trained, if the name has the method's prefix."""
        if self.prefix is None or name.startswith(self.prefix) or f".{self.prefix}" in name:
            return "trainable"
        return general_role(name, config)


def unknown_method(peft_type: str) -> PlainMethod:
    """A method of a PEFT release newer than this tool: its tensors are listed, and nothing is claimed of them."""
    return PlainMethod(peft_type, prefix="\0", rank_field="r")


PLAIN_METHODS = (
    PlainMethod("LORA", "lora_", "r"),
    PlainMethod("ADALORA", "lora_", "init_r"),
    PlainMethod("ADAMSS", "adamss_", "r"),
    PlainMethod("ADAPTION_PROMPT", None),
    PlainMethod("BEFT", "beft_"),
    PlainMethod("BOFT", "boft_"),
    PlainMethod("C3A", "c3a_"),
    PlainMethod("CARTRIDGE", None),
    PlainMethod("CPT", None),
    PlainMethod("DEFT", "deft_", "r"),
    PlainMethod("DELORA", "delora_", "r"),
    PlainMethod("FOURIERFT", "fourierft_"),
    PlainMethod("FROD", "frod_"),
    PlainMethod("GLORA", "glora_", "r"),
    PlainMethod("GRALORA", "gralora_", "r"),
    PlainMethod("HIRA", "hira_", "r"),
    PlainMethod("HRA", "hra_", "r"),
    PlainMethod("IA3", "ia3_"),
    PlainMethod("LILY", "lily_", "r"),
    PlainMethod("LN_TUNING", "ln_tuning_"),
    PlainMethod("LOHA", "hada_", "r"),
    PlainMethod("LOKR", "lokr_", "r"),
    PlainMethod("MISS", "miss_", "r"),
    PlainMethod("MULTITASK_PROMPT_TUNING", None),
    PlainMethod("OFT", "oft_", "r"),
    PlainMethod("OSF", "osf_"),
    PlainMethod("PEANUT", "peanut_", "r"),
    PlainMethod("POLY", "poly_", "r"),
    PlainMethod("PREFIX_TUNING", None),
    PlainMethod("PROMPT_TUNING", None),
    PlainMethod("PSOFT", "psoft_", "r"),
    PlainMethod("PVERA", "pvera_", "r"),
    PlainMethod("P_TUNING", None),
    PlainMethod("ROAD", "road_"),
    PlainMethod("SHADOW", "shadow_", "r"),
    PlainMethod("SHIRA", "shira_", "r"),
    PlainMethod("SUPERTUNING", "supertuning_", "r"),
    PlainMethod("TINYLORA", "tinylora_", "r"),
    PlainMethod("TRAINABLE_TOKENS", "trainable_tokens_"),
    PlainMethod("UNILORA", "unilora_", "r"),
    PlainMethod("VBLORA", "vblora_", "r"),
    PlainMethod("VERA", "vera_", "r"),
    PlainMethod("WAVEFT", "waveft_"),
    PlainMethod("XLORA", None),
)
