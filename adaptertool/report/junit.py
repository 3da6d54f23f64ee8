"""JUnit XML, as GitLab, Jenkins and GitHub's report actions read it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET  # written, never parsed

from adaptertool.words import printable

if TYPE_CHECKING:
    from adaptertool.report.pipeline import PipelineResult


def junit_xml(result: PipelineResult) -> str:
    """One test suite with one test case a check: a failure where it failed, an error where it could not be found out."""
    failures = sum(check.outcome == "failed" for check in result.checks)
    errors = sum(check.outcome == "open" for check in result.checks)
    counts = {
        "tests": str(len(result.checks)),
        "failures": str(failures),
        "errors": str(errors),
        "skipped": "0",
        "time": "0",
    }
    name = f"adaptertool {result.command} {printable(result.location)}"
    root = ET.Element("testsuites", {"name": name, **counts})
    suite = ET.SubElement(root, "testsuite", {"name": name, **counts})
    for check in result.checks:
        attributes = {"classname": f"adaptertool.{result.command}", "name": printable(check.name), "time": "0"}
        case = ET.SubElement(suite, "testcase", attributes)
        if check.outcome != "passed":
            message = printable(check.message)
            tag = "failure" if check.outcome == "failed" else "error"
            kind = check.code or "unknown"
            ET.SubElement(case, tag, {"message": message, "type": kind}).text = f"{kind}: {message}"
    remarks = [f"{finding.severity} {finding.code} {finding.name}: {finding.message}" for finding in result.findings]
    ET.SubElement(suite, "system-out").text = "\n".join(printable(line) for line in [result.summary, *remarks])
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'
