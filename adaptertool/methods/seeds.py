"""Seeds as configs hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adaptertool.checkpoint.config import AdapterConfig

# What torch's Generator.manual_seed accepts.
_LEAST, _MOST = -(2**63), 2**64 - 1


def seed(config: AdapterConfig, field: str, default: int) -> int:
    """A seed for torch's generator.

    Raises:
        CorruptError: it is none (ADP304).
    """
    return config.integer(field, default, least=_LEAST, most=_MOST)
