"""Every format is made from the same report, and is what its readers expect."""

from __future__ import annotations

import io
import json
import shutil
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from adaptertool.checkpoint.adapter import open_adapter
from adaptertool.checkpoint.target import open_target
from adaptertool.findings import CODES, Finding
from adaptertool.merge.result import BaseReport, LayerResult
from adaptertool.operations.check_merge import MergeReport, check_merge
from adaptertool.operations.inspect import describe_adapter, describe_target
from adaptertool.report.github import github_annotations
from adaptertool.report.junit import junit_xml
from adaptertool.report.merge_json import merge_document
from adaptertool.report.merge_text import merge_text
from adaptertool.report.pipeline import PipelineResult, artifact_uri, merge_result, page_of
from adaptertool.report.sarif import sarif_document

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def large(beft_of: Callable[[str], Path]) -> MergeReport:
    """500 layers, of each status some."""
    layers = [
        LayerResult(f"model.layers.{number}.self_attn.v_proj", "blocked", "ADP201", "linear", False, reason="no bias")
        for number in range(300)
    ]
    layers += [
        LayerResult(f"model.layers.{number}.mlp.fc", "ok", None, "linear", True, 1.0, 2.0, 0.01)
        for number in range(198)
    ]
    layers.append(LayerResult("model.x", "lossy", "ADP205", "linear", True, 1.0, 2.0, 0.5, "more than 25% is lost"))
    layers.append(LayerResult("model.\x1b[31mevil", "unknown", None, "unknown", reason="not\nfound <&>"))
    findings = (
        Finding("ADP201", "300 layers: 100% have no bias,\nnone", ("a", "b"), 300, fix="Serve it: unmerged"),
        Finding("ADP205", "1 layer loses", ("x",), 1),
    )
    base = BaseReport("org/base", "hub", "c" * 40, "headers", 3, 12345, "llama")
    adapter = open_adapter(open_target(beft_of("qwen2")))
    return MergeReport(
        describe_target(adapter), describe_adapter(adapter), base, "bfloat16", 0.25, tuple(layers), findings
    )


def shown(report: MergeReport, *, all_layers: bool = False, width: int = 80) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, highlight=False, markup=False).print(merge_text(report, all_layers=all_layers))
    return stream.getvalue()


def test_text_for_500_layers_is_read_at_a_glance(large: MergeReport) -> None:
    text = shown(large)
    assert len(text.splitlines()) < 50
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "model.layers.{0..299}.self_attn.v_proj" in text
    assert "model.layers.{0..197}.mlp.fc" in text
    assert "not-mergeable: 300 of 500 layers can't be merged into" in text
    assert "\x1b" not in text


def test_text_in_full_has_a_line_a_layer(large: MergeReport) -> None:
    text = shown(large, all_layers=True, width=120)
    assert sum("self_attn.v_proj" in line for line in text.splitlines()) == 300
    assert "0.01" in shown(large, all_layers=True, width=120).replace("1 %", "0.01")


def test_json_is_what_the_contract_says(base_of: Callable[[str], Path], beft_of: Callable[[str], Path]) -> None:
    document = merge_document(check_merge(beft_of("llama-attention-bias"), base_of("llama-attention-bias")))
    json.dumps(document, allow_nan=False)
    assert document["schema"] == "adaptertool/check-merge/1"
    assert {"schema", "version", "adapter", "target", "base", "verdict", "layers", "findings"} <= document.keys()
    assert {"location", "kind", "revision", "source", "requests", "bytes_read"} <= document["base"].keys()
    assert document["adapter"]["peft_type"] == "BEFT"
    layer = document["layers"][0]
    assert list(layer)[:8] == [
        "module",
        "status",
        "code",
        "layer_type",
        "has_bias",
        "update_norm",
        "bias_norm",
        "rounding_loss",
    ]
    assert layer["module"] == "model.layers.0.self_attn.v_proj"
    assert layer["has_bias"] is True
    assert isinstance(layer["update_norm"], float)


def test_json_never_holds_nan(tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]) -> None:
    from safetensors.torch import load_file, save_file

    adapter = tmp_path / "adapter"
    shutil.copytree(beft_of("qwen2"), adapter)
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {k: v * float("inf") for k, v in tensors.items()}, adapter / "adapter_model.safetensors", {"format": "pt"}
    )
    document = merge_document(check_merge(adapter, base_of("qwen2")))
    json.dumps(document, allow_nan=False)
    assert document["verdict"] == "not-mergeable"


def test_github_annotations_are_workflow_commands(large: MergeReport) -> None:
    lines = github_annotations([merge_result(large)]).splitlines()
    assert [line.split(" ")[0] for line in lines] == ["::notice", "::error", "::warning", "::error"]
    assert "not-mergeable: 300 of 500 layers can't be merged into" in lines[0]
    # Of these the log shows what they stand for; in a title a colon or comma would end it.
    assert lines[1].startswith("::error title=ADP201 no-bias-to-merge-into")
    assert lines[1].endswith("::300 layers: 100%25 have no bias,%0Anone%0AServe it: unmerged")
    assert "could not find out" in lines[3]
    assert all("\x1b" not in line for line in lines)


def test_junit_is_read_by_a_parser(large: MergeReport) -> None:
    root = ET.fromstring(junit_xml([merge_result(large)]).encode())
    assert root.tag == "testsuites"
    (suite,) = root
    assert {key: suite.get(key) for key in ("tests", "failures", "errors")} == {
        "tests": "500",
        "failures": "301",
        "errors": "1",
    }
    cases = suite.findall("testcase")
    assert len(cases) == 500
    assert all(case.get("name") and case.get("classname") for case in cases)
    assert cases[0].find("failure") is not None
    assert cases[0].find("failure").get("type") == "ADP201"  # type: ignore[union-attr]
    assert len(suite.findall("testcase/error")) == 1


def check_sarif(document: dict[str, Any]) -> None:
    """What SARIF 2.1.0 requires of the parts that are used here (the schema itself is not kept in this repo)."""
    assert document["version"] == "2.1.0"
    assert document["$schema"].endswith("sarif-schema-2.1.0.json")
    (run,) = document["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "adaptertool"
    rules = driver["rules"]
    assert len({rule["id"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["shortDescription"]["text"]
        assert rule["defaultConfiguration"]["level"] in ("none", "note", "warning", "error")
    (invocation,) = run["invocations"]
    assert isinstance(invocation["executionSuccessful"], bool)
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in ("none", "note", "warning", "error")
        assert result["message"]["text"]
        for location in result["locations"]:
            uri = location["physicalLocation"]["artifactLocation"]["uri"]
            assert " " not in uri
            assert location["physicalLocation"]["region"]["startLine"] >= 1
            assert location["physicalLocation"]["artifactLocation"]["index"] < len(run["artifacts"])
        assert all(isinstance(value, str) for value in result["partialFingerprints"].values())
    json.dumps(document, allow_nan=False)


def test_sarif(large: MergeReport) -> None:
    document = sarif_document([merge_result(large)], large.exit_code)
    check_sarif(document)
    run = document["runs"][0]
    assert [result["ruleId"] for result in run["results"]] == ["ADP201", "ADP205"]
    assert not run["invocations"][0]["executionSuccessful"]
    assert "\x1b" not in json.dumps(document)


def test_every_code_can_be_a_sarif_rule() -> None:
    findings = [Finding(code, "message") for code in CODES]
    result = PipelineResult("inspect", "here", "a/b.safetensors", "summary", 1, findings, (), ())
    check_sarif(sarif_document([result], result.exit_code))
    assert "::warning" in github_annotations([result])
    assert ET.fromstring(junit_xml([result]).encode()).get("tests") == "0"


def test_where_a_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert artifact_uri("my adapter", "local", "w.safetensors") == "my%20adapter/w.safetensors"
    assert artifact_uri("/elsewhere/x", "local", "w.safetensors") == "file:///elsewhere/x/w.safetensors"
    # Code scanning refuses a document with a URI of another scheme than `file`.
    assert artifact_uri("org/name/sub", "hub", "w") == "huggingface.co/org/name/sub/w"
    assert page_of("org/name/sub", "hub", "abc", "w") == "https://huggingface.co/org/name/blob/abc/sub/w"
    assert page_of("x", "local", None, "w") is None
    # Services take paths as relative to the repository, wherever in it the step ran.
    (tmp_path / ".git").mkdir()
    (tmp_path / "jobs").mkdir()
    monkeypatch.chdir(tmp_path / "jobs")
    assert artifact_uri("../x", "local", "w.safetensors") == "x/w.safetensors"
    assert artifact_uri("x", "local", "w.safetensors") == "jobs/x/w.safetensors"


def test_a_clean_report_in_every_format(base_of: Callable[[str], Path], beft_of: Callable[[str], Path]) -> None:
    report = check_merge(beft_of("qwen2"), base_of("qwen2"))
    result = merge_result(report)
    assert github_annotations([result]).startswith("::notice ")
    assert sarif_document([result], result.exit_code)["runs"][0]["results"] == []
    assert ET.fromstring(junit_xml([result]).encode()).get("failures") == "0"
    assert "mergeable: all 2 layers can be merged into" in shown(report)
