"""The command line: parse, call, report, exit."""

from adaptertool.cli.program import main

__all__ = ["main"]
