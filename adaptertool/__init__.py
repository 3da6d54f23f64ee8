"""Inspect and repair PEFT adapter checkpoints.

    >>> import adaptertool
    >>> adaptertool.inspect("./adapter").projections.verdict
    'regenerable'

The functions return the results that the command line prints; what goes wrong is an `AdapterToolError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptertool.errors import AdapterToolError
    from adaptertool.operations.check_merge import check_merge
    from adaptertool.operations.inspect import inspect
    from adaptertool.operations.restore import restore
    from adaptertool.operations.slim import slim

__version__ = "0.1.0"
__all__ = ["AdapterToolError", "__version__", "check_merge", "inspect", "restore", "slim"]

_HOMES = {
    "AdapterToolError": "adaptertool.errors",
    "check_merge": "adaptertool.operations.check_merge",
    "inspect": "adaptertool.operations.inspect",
    "restore": "adaptertool.operations.restore",
    "slim": "adaptertool.operations.slim",
}


def __getattr__(name: str) -> Any:
    """Import a function when it is first asked for, so that the command line pays for none that it does not use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
