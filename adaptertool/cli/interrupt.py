"""Ctrl-C."""

from __future__ import annotations

INTERRUPTED = 130
"""The exit code that shells expect."""


class InterruptedWorkError(Exception):
    """Work on many targets was interrupted, and what was done has been reported."""
