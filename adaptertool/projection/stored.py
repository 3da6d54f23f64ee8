"""Which tensors of a file are its projections."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stored:
    """One kind of projection as a file holds it.

    Attributes:
        kind: Such as `randlora_B`.
        canonical: The tensor that PEFT loads.
        copies: Further tensors that should be the same bytes.
    """

    kind: str
    canonical: str
    copies: tuple[str, ...]

    @property
    def tensors(self) -> tuple[str, ...]:
        """All of them, the canonical one first."""
        return (self.canonical, *self.copies)
