"""The JSON documents that scripts rely on, as patterns: keys may be added, none may be missing or of another type."""

from __future__ import annotations

import re
from typing import Any

from adaptertool import __version__


class Choice:
    """One of several patterns."""

    def __init__(self, *patterns: Any) -> None:
        self.patterns = patterns


class Each:
    """A list, all of whose entries fit a pattern."""

    def __init__(self, pattern: Any) -> None:
        self.pattern = pattern


def optional(pattern: Any) -> Choice:
    return Choice(pattern, None)


SIZE = int
SHA256 = re.compile(r"[0-9a-f]{64}")
DTYPE = Choice("bfloat16", "float16", "float32", "float64")
ROLE = Choice("trainable", "projection", "projection-copy", "saved-module", "bias", "other")

TARGET = {
    "location": str,
    "kind": Choice("local", "hub"),
    "revision": optional(re.compile("[0-9a-f]{40}")),
    "weights": str,
    "requests": optional(int),
    "bytes_read": SIZE,
}
ADAPTER = {
    "peft_type": re.compile("[A-Z0-9_]+"),
    "peft_version": optional(str),
    "base_model": optional(str),
    "base_revision": optional(str),
    "rank": optional(int),
    "parameters": int,
}
RECIPE = {
    "key": int,
    "basis": Choice("dense", "sparse", "very-sparse"),
    "sampler": Choice("torch<2.12", "torch>=2.12", "any"),
    "fused_multiply_add": optional(bool),
    "generated_dtype": DTYPE,
    "casts": Each(DTYPE),
    "stored_dtype": DTYPE,
}
PROJECTIONS = {
    "stored": bool,
    "copies": int,
    "bytes": SIZE,
    "one_copy_bytes": SIZE,
    "removable_bytes": SIZE,
    "verification": Choice("none", "sample", "full"),
    "verdict": Choice(
        "regenerable", "regenerable-elsewhere", "not-regenerable", "copies-differ", "unverified", "absent"
    ),
    "recipe": optional(RECIPE),
    "loads_with": Each(str),
    "fingerprint": optional({"randlora_A": SHA256, "randlora_B": SHA256}),
}
FINDING = {
    "code": re.compile(r"ADP[123]\d\d"),
    "name": re.compile("[a-z-]+"),
    "severity": Choice("error", "warning", "info"),
    "message": str,
    "tensors": Each(str),
    "count": int,
    "bytes": optional(SIZE),
    "fix": optional(str),
}
INSPECT = {
    "schema": "adaptertool/inspect/1",
    "version": __version__,
    "target": TARGET,
    "adapter": ADAPTER,
    "size": {"file_bytes": SIZE, "tensors": int, "roles": Each({"role": ROLE, "tensors": int, "bytes": SIZE})},
    "projections": optional(PROJECTIONS),
    "findings": Each(FINDING),
}


def _rewrite(command: str, done: Choice, changed: str) -> dict[str, Any]:
    return {
        "schema": f"adaptertool/{command}/1",
        "version": __version__,
        "target": TARGET,
        "dry_run": bool,
        "action": done,
        "output": optional(str),
        "bytes_before": SIZE,
        "bytes_after": SIZE,
        changed: {"tensors": int, "bytes": SIZE},
        "pull_request": optional(str),
        "projections": optional(PROJECTIONS),
        "findings": Each(FINDING),
    }


SLIM = _rewrite("slim", Choice("stripped", "kept-one-copy", "nothing-to-do", "refused"), "removed")
RESTORE = _rewrite("restore", Choice("restored", "nothing-to-do", "refused"), "restored")
ERROR = {
    "schema": "adaptertool/error/1",
    "version": __version__,
    "error": {
        "code": optional(re.compile(r"ADP[123]\d\d")),
        "kind": Choice(
            "not-found",
            "gated",
            "unauthorized",
            "offline",
            "network",
            "corrupt",
            "unsupported",
            "no-space",
            "permission",
            "usage",
        ),
        "message": str,
        "hint": optional(str),
    },
}


def violations(value: Any, pattern: Any, where: str = "$") -> list[str]:
    """Everything in which a document does not fit a pattern."""
    wrong = [f"{where}: {value!r}"]
    if isinstance(pattern, Choice):
        found = [violations(value, one, where) for one in pattern.patterns]
        return [] if [] in found else wrong if all(len(one) == 1 for one in found) else max(found, key=len)
    if isinstance(pattern, Each):
        if not isinstance(value, list):
            return wrong
        return [fault for at, one in enumerate(value) for fault in violations(one, pattern.pattern, f"{where}[{at}]")]
    if isinstance(pattern, dict):
        if not isinstance(value, dict):
            return wrong
        missing = [f"{where}.{key} is missing" for key in pattern if key not in value]
        present = ((key, one) for key, one in pattern.items() if key in value)
        return missing + [fault for key, one in present for fault in violations(value[key], one, f"{where}.{key}")]
    if isinstance(pattern, re.Pattern):
        return [] if isinstance(value, str) and pattern.fullmatch(value) else wrong
    if isinstance(pattern, type):
        return [] if type(value) is pattern else wrong
    return [] if value == pattern and type(value) is type(pattern) else wrong
