"""The fixed names: codes and their severities, exit codes by kind of error."""

from __future__ import annotations

import pytest

from adaptertool import errors
from adaptertool.findings import CODES

CONTRACT = {
    "ADP101": ("projection-stored-needlessly", "warning"),
    "ADP102": ("projection-copies", "warning"),
    "ADP103": ("projection-from-another-sampler", "warning"),
    "ADP104": ("projection-unknown", "warning"),
    "ADP105": ("projection-copies-differ", "error"),
    "ADP106": ("save-projection-flag-wrong", "warning"),
    "ADP107": ("projection-absent-unproven", "warning"),
    "ADP108": ("projection-absent-mismatch", "error"),
    "ADP201": ("no-bias-to-merge-into", "error"),
    "ADP202": ("base-layer-missing", "error"),
    "ADP203": ("base-layer-shape", "error"),
    "ADP204": ("merged-not-finite", "error"),
    "ADP205": ("update-lost-to-rounding", "warning"),
    "ADP206": ("method-cannot-merge", "error"),
    "ADP207": ("base-layer-unsupported", "error"),
    "ADP301": ("not-finite", "error"),
    "ADP302": ("pickle-weights", "warning"),
    "ADP303": ("empty-or-placeholder-weights", "error"),
    "ADP304": ("config-missing-or-invalid", "error"),
}
KINDS = {
    "not-found": 3,
    "gated": 3,
    "unauthorized": 3,
    "offline": 3,
    "network": 3,
    "corrupt": 3,
    "unsupported": 3,
    "no-space": 3,
    "permission": 3,
    "usage": 2,
}


@pytest.mark.parametrize("code", sorted(CONTRACT))
def test_codes_keep_their_name_and_severity(code: str) -> None:
    assert (CODES[code].name, CODES[code].severity) == CONTRACT[code]


def test_codes_are_grouped_by_subject() -> None:
    assert all(code == entry.code and code[:4] in ("ADP1", "ADP2", "ADP3") for code, entry in CODES.items())


def test_every_kind_of_error_has_its_exit_code() -> None:
    found = {kind.kind: kind.exit_code for kind in errors.AdapterToolError.__subclasses__()}
    assert found == KINDS
