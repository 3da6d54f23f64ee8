"""How long work tells whoever is watching where it is. Nobody watches by default."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """An observer of work that is measured in bytes."""

    def phase(self, what: str, total: int) -> None:
        """A phase begins.

        Args:
            what: A few words, such as `verifying`.
            total: How many bytes it will go through.
        """

    def advance(self, count: int) -> None:
        """So many more bytes are done."""


class Silent:
    """Nobody watches."""

    def phase(self, what: str, total: int) -> None:
        """Nothing is shown."""

    def advance(self, count: int) -> None:
        """Nothing is shown."""


SILENT = Silent()
