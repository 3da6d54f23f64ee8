"""SARIF 2.1.0, which code scanning services read."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any

from adaptertool import __version__
from adaptertool.findings import CODES
from adaptertool.words import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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
                "artifacts": [_artifact(result) for result in results if result.uri is not None],
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
                "results": [one for index, result in enumerate(results) for one in _results(result, index, rules)],
                "columnKind": "unicodeCodePoints",
            }
        ],
    }


def _artifact(result: PipelineResult) -> dict[str, Any]:
    artifact: dict[str, Any] = {"location": {"uri": result.uri}}
    return artifact if result.page is None else {**artifact, "description": {"text": result.page}}


def _results(result: PipelineResult, index: int, rules: Sequence[str]) -> Iterator[dict[str, Any]]:
    numbers: dict[str, int] = {}
    for finding in result.findings:
        number = numbers[finding.code] = numbers.get(finding.code, 0) + 1
        identity = f"{finding.code}:{result.uri}:{number}"
        yield {
            "ruleId": finding.code,
            "ruleIndex": rules.index(finding.code),
            "level": _LEVELS[finding.severity],
            "message": {"text": printable(finding.message) + (f" {printable(finding.fix)}" if finding.fix else "")},
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": {"uri": result.uri, "index": index},
                        "region": {"startLine": 1},
                    },
                    "logicalLocations": [
                        {"fullyQualifiedName": printable(name), "kind": "member"} for name in finding.tensors[:20]
                    ],
                }
            ],
            # Without them a service tells results apart by their text, in which counts change. GitHub goes by the second
            # alone, and would make it of the weights' first line.
            "partialFingerprints": {
                "adaptertool/v1": identity,
                "primaryLocationLineHash": f"{sha256(identity.encode()).hexdigest()[:16]}:1",
            },
            "properties": {"count": finding.count},
        }


def _rule(code: Code) -> dict[str, Any]:
    return {
        "id": code.code,
        "name": "".join(part.capitalize() for part in code.name.split("-")),
        "shortDescription": {"text": code.meaning},
        "fullDescription": {"text": f"{code.meaning} {code.why}"},
        "help": {
            "text": f"{code.remedy}\n{code.example}",
            "markdown": f"{code.remedy}\n\n```bash\n{code.example}\n```\n",
        },
        "defaultConfiguration": {"level": _LEVELS[code.severity]},
    }
