"""JUnit XML, as GitLab, Jenkins and GitHub's report actions read it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET  # written, never parsed

from adaptertool.words import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adaptertool.report.pipeline import Check, PipelineResult


def junit_xml(results: Sequence[PipelineResult]) -> str:
    """One test suite a checkpoint, with one test case a check: a failure where it failed, an error where it stayed open."""
    command = results[0].command if results else "inspect"
    name = printable(results[0].title) if len(results) == 1 else f"adaptertool {command}"
    counts = _counts([check for result in results for check in result.checks])
    # A suite counts what was skipped, and the schema that Jenkins publishes has no such attribute for the whole.
    root = ET.Element("testsuites", {"name": name, **{key: counts[key] for key in counts if key != "skipped"}})
    for result in results:
        _add_suite(root, result)
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _counts(checks: Sequence[Check]) -> dict[str, str]:
    return {
        "tests": str(len(checks)),
        "failures": str(sum(check.outcome == "failed" for check in checks)),
        "errors": str(sum(check.outcome == "open" for check in checks)),
        "skipped": "0",
        "time": "0",
    }


def _add_suite(root: ET.Element, result: PipelineResult) -> None:
    suite = ET.SubElement(root, "testsuite", {"name": printable(result.title), **_counts(result.checks)})
    for check in result.checks:
        attributes = {"classname": f"adaptertool.{result.command}", "name": printable(check.name), "time": "0"}
        case = ET.SubElement(suite, "testcase", attributes)
        if check.outcome != "passed":
            message = printable(check.message)
            # GitLab shows what stands in a test case, and no system-out of the suite.
            remedy = f"\n{printable(check.remedy)}" if check.remedy else ""
            tag = "failure" if check.outcome == "failed" else "error"
            kind = check.code or "unknown"
            ET.SubElement(case, tag, {"message": message, "type": kind}).text = f"{kind}: {message}{remedy}"
    remarks = [f"{finding.severity} {finding.code} {finding.name}: {finding.message}" for finding in result.findings]
    ET.SubElement(suite, "system-out").text = "\n".join(printable(line) for line in [result.summary, *remarks])
