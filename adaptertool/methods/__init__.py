"""What the tool knows about each PEFT method: which tensor plays which role, what is drawn from a seed, what merges.

A method with more to say than a prefix has a file of its own; adding one is that file and a line in the table here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptertool.methods.adamss import ADAMSS
from adaptertool.methods.beft import BEFT
from adaptertool.methods.cartridge import CARTRIDGE
from adaptertool.methods.delora import DELORA
from adaptertool.methods.frod import FROD
from adaptertool.methods.glora import GLORA
from adaptertool.methods.lily import LILY
from adaptertool.methods.lora import LORA
from adaptertool.methods.plain import PLAIN_METHODS, UnknownMethod
from adaptertool.methods.prompt_learning import PROMPT_LEARNING
from adaptertool.methods.randlora import RANDLORA
from adaptertool.methods.shira import SHIRA
from adaptertool.methods.supertuning import SUPERTUNING
from adaptertool.methods.tinylora import TINYLORA
from adaptertool.methods.trainable_tokens import TRAINABLE_TOKENS
from adaptertool.methods.unilora import UNILORA
from adaptertool.methods.vera import PVERA, VERA
from adaptertool.methods.xlora import XLORA

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.checkpoint.config import AdapterConfig
    from adaptertool.methods.base import Method

_WITH_A_FILE: tuple[Method, ...] = (
    ADAMSS,
    BEFT,
    CARTRIDGE,
    DELORA,
    FROD,
    GLORA,
    LILY,
    LORA,
    *PROMPT_LEARNING,
    PVERA,
    RANDLORA,
    SHIRA,
    SUPERTUNING,
    TINYLORA,
    TRAINABLE_TOKENS,
    UNILORA,
    VERA,
    XLORA,
)

METHODS: Mapping[str, Method] = {method.peft_type: method for method in (*PLAIN_METHODS, *_WITH_A_FILE)}
"""All methods of PEFT 0.21.2, by `peft_type`."""


def method_of(config: AdapterConfig) -> Method:
    """The method that a config names; one that claims nothing where this version does not know it."""
    return METHODS.get(config.peft_type.upper()) or UnknownMethod(config.peft_type)
