"""What colours mean: green is fine, yellow wants a look, red is wrong, magenta could not be found out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

ROLES: Mapping[str, str] = {
    "trainable": "green",
    "saved-module": "cyan",
    "bias": "cyan",
    "projection": "yellow",
    "projection-copy": "red",
    "other": "dim",
}
FIX = "cyan"
"""Commands and hints: what to do."""

SEVERITIES: Mapping[str, str] = {"error": "bold red", "warning": "yellow", "info": "blue"}
PROJECTIONS: Mapping[str, tuple[str, str, str]] = {
    "regenerable": ("regenerable", "green", "PEFT draws these very bits from the seed"),
    "regenerable-elsewhere": (
        "regenerable elsewhere",
        "yellow",
        "another torch draws them, the one that loads them does not",
    ),
    "not-regenerable": ("not regenerable", "red", "no known recipe draws them"),
    "copies-differ": ("copies differ", "bold red", "what should be one tensor is not"),
    "unverified": ("unverified", "yellow", "nothing was compared"),
    "absent": ("not in the file", "blue", "PEFT draws them when it loads the adapter"),
}
"""By verdict: as a person reads it, its colour, and what it means."""

MERGES: Mapping[str, str] = {
    "mergeable": "bold green",
    "not-mergeable": "bold red",
    "lossy": "bold yellow",
    "unknown": "bold magenta",
}
LAYERS: Mapping[str, str] = {"ok": "green", "blocked": "red", "lossy": "yellow", "unknown": "magenta"}
ACTIONS: Mapping[str, tuple[str, str, str]] = {
    "stripped": ("stripped", "to be stripped", "green"),
    "kept-one-copy": ("reduced to one copy", "to be reduced to one copy", "green"),
    "restored": ("restored", "to be restored", "green"),
    "nothing-to-do": ("nothing to do", "nothing to do", "dim"),
    "refused": ("refused", "refused", "bold red"),
}
"""By action: done, as a dry run, and its colour."""
