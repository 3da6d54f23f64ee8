"""What the tool knows about each PEFT method: which tensor plays which role, what is drawn from a seed, what merges.

A method with more to say than a prefix has a file of its own; adding one is that file and a line in the table here. A file is
imported when a checkpoint is of its method: all of them together cost more than reading a header.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from adaptertool.errors import UnsupportedError
from adaptertool.methods.plain import NOT_KNOWN, PLAIN_METHODS, REMOVED_METHODS, UnknownMethod

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.checkpoint.config import AdapterConfig
    from adaptertool.methods.base import Method

_FILES: Mapping[str, str] = {
    "ADALORA": "adalora",
    "ADAMSS": "adamss",
    "BEFT": "beft",
    "BOFT": "boft",
    "C3A": "c3a",
    "CARTRIDGE": "cartridge",
    "CPT": "prompt_learning",
    "DEFT": "deft",
    "DELORA": "delora",
    "FOURIERFT": "fourierft",
    "FROD": "frod",
    "GLORA": "glora",
    "GRALORA": "gralora",
    "HIRA": "hira",
    "HRA": "hra",
    "IA3": "ia3",
    "LILY": "lily",
    "LOHA": "loha",
    "LOKR": "lokr",
    "LORA": "lora",
    "MISS": "miss",
    "MULTITASK_PROMPT_TUNING": "prompt_learning",
    "OFT": "oft",
    "OSF": "osf",
    "PEANUT": "peanut",
    "PREFIX_TUNING": "prompt_learning",
    "PROMPT_TUNING": "prompt_learning",
    "PSOFT": "psoft",
    "PVERA": "vera",
    "P_TUNING": "prompt_learning",
    "RANDLORA": "randlora",
    "ROAD": "road",
    "SHIRA": "shira",
    "SUPERTUNING": "supertuning",
    "TINYLORA": "tinylora",
    "TRAINABLE_TOKENS": "trainable_tokens",
    "UNILORA": "unilora",
    "VBLORA": "vblora",
    "VERA": "vera",
    "WAVEFT": "waveft",
    "XLORA": "xlora",
}
"""Where the methods are that have a file: each is the constant of its name in that module of this package."""

_PLAIN: Mapping[str, Method] = {method.peft_type: method for method in (*PLAIN_METHODS, *REMOVED_METHODS)}

PEFT_TYPES = frozenset((*_PLAIN, *_FILES)) - {method.peft_type for method in REMOVED_METHODS}
"""All methods of PEFT 0.21.2."""


def method_of(config: AdapterConfig) -> Method:
    """The method that a config names; one that claims nothing where this version does not know it."""
    peft_type = config.peft_type
    if peft_type in _FILES:
        method: Method = getattr(importlib.import_module(f"{__name__}.{_FILES[peft_type]}"), peft_type)
        return method
    return _PLAIN.get(peft_type) or UnknownMethod(peft_type, _in_upper_case(peft_type))


def known_method_of(config: AdapterConfig) -> Method:
    """The method that a config names, for those who change its files.

    Raises:
        UnsupportedError: this version does not know it.
    """
    method = method_of(config)
    if method.known:
        return method
    hint = "Its tensors stay as they are: `adaptertool inspect` lists them. A newer adaptertool may know it."
    if (spelled := _in_upper_case(config.peft_type)) is not None:
        hint = f'PEFT spells its methods in upper case, and raises KeyError here: "peft_type": "{spelled}" is what it takes.'
    raise UnsupportedError(f"{config.name}: peft_type {config.peft_type} is {NOT_KNOWN}", hint=hint)


def _in_upper_case(peft_type: str) -> str | None:
    """The method that is meant, where only the case of a name is wrong."""
    known = peft_type.upper()
    return known if known != peft_type and (known in _FILES or known in _PLAIN) else None
