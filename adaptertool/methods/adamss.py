"""AdaMSS: low-rank updates of subspaces that each layer's weight is split into."""

from __future__ import annotations

from adaptertool.methods.plain import DECOMPOSITION, OfTheBase, PlainMethod

ADAMSS = PlainMethod(
    "ADAMSS",
    "adamss_",
    "r",
    of_the_base=(
        OfTheBase(
            r".*\.adamss_newB",
            "A frozen singular basis of each layer",
            DECOMPOSITION,
        ),
    ),
)
