"""What shells complete beside commands and options: paths, and codes of findings."""

from __future__ import annotations

import os
from pathlib import Path


def paths(incomplete: str) -> list[str]:
    """Folders and weights files, for fish.

    Other shells complete paths themselves where a program offers nothing, and know better where a space belongs.
    """
    if not os.environ.get("_ADAPTERTOOL_COMPLETE", "").endswith("fish"):
        return []
    folder, _, name = incomplete.rpartition("/")
    where = Path(f"{folder}/").expanduser() if "/" in incomplete else Path()
    try:
        entries = sorted(where.iterdir())
    except OSError:
        return []
    lead = f"{folder}/" if "/" in incomplete else ""
    shown = [entry for entry in entries if entry.name.startswith(name) and (name or not entry.name.startswith("."))]
    return [
        f"{lead}{entry.name}{'/' if entry.is_dir() else ''}"
        for entry in shown
        if entry.is_dir() or entry.suffix in (".safetensors", ".bin")
    ]


def codes(incomplete: str) -> list[tuple[str, str]]:
    """Codes of findings, with their names."""
    from adaptertool.findings import CODES

    return [(code, known.name) for code, known in CODES.items() if code.startswith(incomplete.upper())]
