"""The command line: parse, call, report, exit."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from adaptertool.cli.interruption import Interrupted, interruptible

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        arguments: Those after the program's name; by default the process's own.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with interruptible():
        try:
            # Imported here, so that Ctrl-C is answered alike while that takes its time.
            from adaptertool.cli.program import run

            return run(arguments)
        except Interrupted as interruption:
            from adaptertool.cli.program import say_interrupted

            say_interrupted(arguments, interruption.exit_code)
            return interruption.exit_code
