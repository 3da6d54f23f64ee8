"""Inspect and repair PEFT adapter checkpoints.

    >>> import adaptertool
    >>> adaptertool.inspect("./adapter").projections.verdict
    'regenerable'

The functions return the results that the command line prints, as frozen dataclasses of plain values: they can be pickled,
become the JSON document with `to_dict()`, and show themselves in a notebook. What goes wrong is an `AdapterToolError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptertool.checkpoint.discover import find
    from adaptertool.errors import AdapterToolError
    from adaptertool.findings import CODES, Code, Finding
    from adaptertool.merge.result import BaseReport, LayerResult, WayOut
    from adaptertool.operations.check_merge import MergeReport, check_merge
    from adaptertool.operations.inspect import AdapterReport, Inspection, RoleSize, TargetReport, inspect
    from adaptertool.operations.many import Outcome, each
    from adaptertool.operations.projections import ProjectionReport
    from adaptertool.operations.restore import restore
    from adaptertool.operations.rewrite import Rewrite
    from adaptertool.operations.slim import slim

__version__ = "0.1.0"
__all__ = [
    "CODES",
    "AdapterReport",
    "AdapterToolError",
    "BaseReport",
    "Code",
    "Finding",
    "Inspection",
    "LayerResult",
    "MergeReport",
    "Outcome",
    "ProjectionReport",
    "Rewrite",
    "RoleSize",
    "TargetReport",
    "WayOut",
    "__version__",
    "check_merge",
    "each",
    "find",
    "inspect",
    "restore",
    "slim",
]

_HOMES = {
    "adaptertool.checkpoint.discover": ("find",),
    "adaptertool.errors": ("AdapterToolError",),
    "adaptertool.findings": ("CODES", "Code", "Finding"),
    "adaptertool.merge.result": ("BaseReport", "LayerResult", "WayOut"),
    "adaptertool.operations.check_merge": ("MergeReport", "check_merge"),
    "adaptertool.operations.inspect": ("AdapterReport", "Inspection", "RoleSize", "TargetReport", "inspect"),
    "adaptertool.operations.many": ("Outcome", "each"),
    "adaptertool.operations.projections": ("ProjectionReport",),
    "adaptertool.operations.restore": ("restore",),
    "adaptertool.operations.rewrite": ("Rewrite",),
    "adaptertool.operations.slim": ("slim",),
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for, so that the command line pays for none that it does not use."""
    import importlib

    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What completion offers."""
    return sorted(__all__)
