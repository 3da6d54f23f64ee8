"""SARIF 2.1.0, which code scanning services read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptertool import __version__
from adaptertool.findings import CODES
from adaptertool.words import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adaptertool.findings import Code
    from adaptertool.report.pipeline import PipelineResult

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"

_LEVELS = {"error": "error", "warning": "warning", "info": "note"}


def sarif_document(results: Sequence[PipelineResult], exit_code: int) -> dict[str, Any]:
    """One run with one result a finding; what could not be found out is a notification of the run.

    Args:
        results: One for each checkpoint. They share a run, because services take one a tool.
        exit_code: What the command line ends with.
    """
    rules = list(dict.fromkeys(finding.code for result in results for finding in result.findings))
    open_questions = [
        f"{result.location}: {question}" if len(results) > 1 else question
        for result in results
        for question in result.open_questions
    ]
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "adaptertool",
                        "version": __version__,
                        "rules": [_rule(CODES[code]) for code in rules],
                    }
                },
                "artifacts": [{"location": {"uri": result.uri}} for result in results],
                "invocations": [
                    {
                        "executionSuccessful": not open_questions,
                        "exitCode": exit_code,
                        "toolExecutionNotifications": [
                            {"level": "error", "message": {"text": f"could not find out: {printable(one)}"}}
                            for one in open_questions
                        ],
                    }
                ],
                "results": [
                    {
                        "ruleId": finding.code,
                        "ruleIndex": rules.index(finding.code),
                        "level": _LEVELS[finding.severity],
                        "message": {
                            "text": printable(finding.message) + (f" {printable(finding.fix)}" if finding.fix else "")
                        },
                        "locations": [
                            {
                                "physicalLocation": {
                                    "artifactLocation": {"uri": result.uri, "index": index},
                                    "region": {"startLine": 1},
                                },
                                "logicalLocations": [
                                    {"fullyQualifiedName": printable(name), "kind": "member"}
                                    for name in finding.tensors[:20]
                                ],
                            }
                        ],
                        # Without it a service tells results apart by their text, in which counts change.
                        "partialFingerprints": {"adaptertool/v1": f"{finding.code}:{result.uri}:{number}"},
                        "properties": {"count": finding.count},
                    }
                    for index, result in enumerate(results)
                    for number, finding in enumerate(result.findings)
                ],
                "columnKind": "unicodeCodePoints",
            }
        ],
    }


def _rule(code: Code) -> dict[str, Any]:
    return {
        "id": code.code,
        "name": "".join(part.capitalize() for part in code.name.split("-")),
        "shortDescription": {"text": code.meaning},
        "fullDescription": {"text": f"{code.meaning} {code.why}"},
        "help": {"text": f"{code.remedy}\n{code.example}"},
        "defaultConfiguration": {"level": _LEVELS[code.severity]},
    }
