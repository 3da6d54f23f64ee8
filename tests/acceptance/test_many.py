"""Many checkpoints at once: every one gets its own answer, in every format, and the exit code is the worst."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

import adaptertool
from adaptertool.checkpoint.discover import Found
from adaptertool.operations.many import MOST_JOBS, Workers
from tests import contract
from tests.checkpoints import CANONICAL_B, CONFIG, FIXTURES, WEIGHTS, Spec, copy_of, flip_bit, load, logits, snapshot
from tests.conftest import Make, Run

TREE = {"checkpoint-500", "checkpoint-1000", "checkpoint-1000/second", "lora", "broken"}


@pytest.fixture
def runs(stored: Make, lora: Path, tmp_path: Path) -> Path:
    """A training run: two checkpoints, one with a second adapter below it, a LoRA, a broken one, a base, a symlink."""
    root = tmp_path / "runs"
    copy_of(stored(Spec()), root / "checkpoint-500")
    copy_of(stored(Spec()), root / "checkpoint-1000")
    copy_of(stored(Spec(kind="sparse", key=3)), root / "checkpoint-1000" / "second")
    copy_of(lora, root / "lora")
    copy_of(lora, root / "broken")
    (root / "broken" / CONFIG).write_text("{")
    copy_of(FIXTURES / "base-llama", root / "base")
    for folder in (root / "checkpoint-500", root / "checkpoint-1000"):
        (folder / "optimizer.pt").write_bytes(b"state")
    (root / "latest").symlink_to("checkpoint-1000")
    return root


def places(root: Path, documents: list[dict[str, Any]]) -> set[str]:
    return {Path(one["target"]["location"]).relative_to(root).as_posix() for one in documents}


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    "command", [["inspect"], ["slim", "--check"], ["restore", "--dry-run"], ["check-merge"]], ids=str
)
def test_each_line_is_the_document_of_that_target_alone(command: list[str], runs: Path, run: Run) -> None:
    base: list[object] = ["--base", runs / "base"] if command == ["check-merge"] else []
    outcome = run(*command, "-r", runs, *base, "--format", "jsonl")
    assert outcome.err == ""
    documents = lines(outcome.out)
    assert places(runs, documents) == TREE
    codes = []
    for document in documents:
        alone = run(*command, document["target"]["location"], *base, "--format", "json")
        assert alone.document == document
        codes.append(alone.code)
    assert outcome.code == max(codes) == 3


@pytest.mark.parametrize("command", ["inspect", "check-merge", "slim"])
def test_one_document_of_all(command: str, runs: Path, run: Run) -> None:
    every: dict[str, list[object]] = {"check-merge": ["--base", runs / "base"], "slim": ["--dry-run"]}
    options = every.get(command, [])
    outcome = run(command, "-r", runs, *options, "--format", "json")
    assert outcome.err == ""
    document = outcome.document
    assert document["schema"] == f"adaptertool/{command}-many/1"
    assert document["exit_code"] == outcome.code == 3
    assert document["totals"]["targets"] == len(document["results"]) == len(TREE)
    assert document["totals"]["failed"] == 1
    (failed,) = (one for one in document["results"] if one["schema"] == "adaptertool/error/1")
    assert contract.violations(failed, contract.ERROR) == []
    assert failed["target"] == {"location": str(runs / "broken")}
    assert failed["error"]["code"] == "ADP304"
    again = run(command, "-r", runs, *options, "--format", "json", "--jobs", 1).document
    assert [one["target"] for one in again["results"]] == [one["target"] for one in document["results"]]


def test_totals_are_the_sums(runs: Path, run: Run) -> None:
    shutil.rmtree(runs / "broken")
    document = run("inspect", "-r", runs, "--format", "json").document
    totals, results = document["totals"], document["results"]
    assert totals["file_bytes"] == sum(one["size"]["file_bytes"] for one in results)
    removable = [one["projections"]["removable_bytes"] for one in results if one["projections"]]
    assert totals["removable_bytes"] == sum(removable) > 0
    assert totals["verdicts"] == {"regenerable": 3}
    planned = run("slim", "-r", runs, "--dry-run", "--format", "json").document["totals"]
    assert planned["actions"] == {"stripped": 3, "nothing-to-do": 1}
    assert planned["bytes_before"] == totals["file_bytes"] > planned["bytes_after"]


def test_the_table_has_the_largest_savings_first(runs: Path, run: Run) -> None:
    outcome = run("inspect", "-r", runs)
    assert outcome.code == 3
    rows = outcome.out.splitlines()
    names = [row.rpartition("/")[2] for row in rows]
    assert names.index("checkpoint-500") < names.index("second") < names.index("lora")
    assert sum(row.endswith("checkpoint-1000") for row in rows) == 1
    assert f"failed {runs / 'broken'}" in rows
    assert rows[-1].startswith("5 checkpoints, ")
    assert rows[-1].endswith("1 failed")


def test_slim_a_tree_in_place_and_again(runs: Path, run: Run) -> None:
    spec = Spec()
    expected = logits(runs / "checkpoint-500", spec)
    untouched = {name: one for name, one in snapshot(runs).items() if not name.endswith((WEIGHTS, CONFIG))}
    outcome = run("slim", "-r", runs, "--in-place", "--format", "json")
    assert outcome.code == 3
    assert outcome.document["totals"]["actions"] == {"stripped": 3, "nothing-to-do": 1}
    assert logits(runs / "checkpoint-500", spec) == expected
    after = snapshot(runs)
    assert {name: after[name] for name in untouched} == untouched
    again = run("slim", "-r", runs, "--in-place", "--format", "json")
    assert again.document["totals"]["actions"] == {"nothing-to-do": 4}
    assert snapshot(runs) == after
    assert run("restore", "-r", runs, "--in-place", "--format", "json").document["totals"]["actions"] == {
        "restored": 3,
        "nothing-to-do": 1,
    }
    assert logits(runs / "checkpoint-500", spec) == expected


@pytest.mark.parametrize("options", [[], ["--keep-one-copy"]], ids=["strip", "one-copy"])
def test_slim_a_tree_to_another_and_again(options: list[str], runs: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    before = snapshot(runs)
    first = run("slim", "-r", runs, "-o", out, *options, "--format", "json")
    assert first.code == 3
    assert snapshot(runs) == before
    written = snapshot(out)
    assert {Path(name).parent.as_posix() for name in written} == {
        "checkpoint-500",
        "checkpoint-1000",
        "checkpoint-1000/second",
    }
    assert (out / "checkpoint-500" / "optimizer.pt").read_bytes() == b"state"
    again = run("slim", "-r", runs, "-o", out, *options, "--format", "json")
    assert again.code == 3
    assert snapshot(out) == written
    done = [one for one in again.document["results"] if one.get("output")]
    assert [one["action"] for one in done] == ["nothing-to-do"] * 3
    assert {Path(one["output"]).relative_to(out).as_posix() for one in done} == {
        "checkpoint-500",
        "checkpoint-1000",
        "checkpoint-1000/second",
    }
    # What is there is no result of other options, and is not overwritten unasked.
    others = [] if options else ["--keep-one-copy"]
    other = run("slim", "-r", runs, "-o", out, *others, "--format", "json")
    assert sorted({one["error"]["kind"] for one in other.document["results"] if "error" in one}) == ["corrupt", "usage"]
    assert snapshot(out) == written


def test_an_output_that_is_not_the_result_of_its_source_is_no_earlier_run(runs: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    run("slim", "-r", runs, "-o", out)
    trained = next(name for name in load(out / "checkpoint-500") if "lambda" in name)
    flip_bit(out / "checkpoint-500", trained)
    flip_bit(runs / "checkpoint-1000" / "second", CANONICAL_B)
    (out / "checkpoint-1000" / "optimizer.pt").unlink()
    written = snapshot(out)
    again = run("slim", "-r", runs, "-o", out, "--format", "json").document
    kinds = {Path(one["target"]["location"]).name: one.get("error", {}).get("kind") for one in again["results"]}
    changed = dict.fromkeys(("checkpoint-500", "checkpoint-1000", "second"), "usage")
    assert kinds == {**changed, "lora": None, "broken": "corrupt"}
    assert snapshot(out) == written


def test_what_changed_beside_the_weights_is_no_earlier_run(runs: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    run("slim", "-r", runs, "-o", out)
    (runs / "checkpoint-500" / "optimizer.pt").write_bytes(b"later")
    again = run("slim", "-r", runs, "-o", out, "--format", "json").document
    kinds = {Path(one["target"]["location"]).name: one.get("error", {}).get("kind") for one in again["results"]}
    assert kinds == {
        "checkpoint-500": "usage",
        "checkpoint-1000": None,
        "second": None,
        "lora": None,
        "broken": "corrupt",
    }
    assert (out / "checkpoint-500" / "optimizer.pt").read_bytes() == b"state"


def test_a_checkpoint_at_the_root_keeps_those_below_it_apart(
    runs: Path, stored: Make, tmp_path: Path, run: Run
) -> None:
    shutil.rmtree(runs / "broken")
    for path in stored(Spec(key=7)).iterdir():
        shutil.copy(path, runs)
    (runs / "logs").mkdir()
    (runs / "logs" / "events").write_text("1")
    out = runs / "slim"
    assert run("slim", "-r", runs, "-o", out).code == 0
    names = {
        path.relative_to(out).as_posix() for path in out.rglob("*") if path.name in (WEIGHTS, "events", "config.json")
    }
    assert names == {
        WEIGHTS,
        f"checkpoint-500/{WEIGHTS}",
        f"checkpoint-1000/{WEIGHTS}",
        f"checkpoint-1000/second/{WEIGHTS}",
        "logs/events",
        "base/config.json",
    }
    assert logits(out, Spec(key=7)) == logits(runs, Spec(key=7))
    written = snapshot(out)
    assert run("slim", "-r", runs, "-o", out).code == 0
    assert snapshot(out) == written


def test_several_targets_need_no_tree(runs: Path, run: Run) -> None:
    outcome = run("inspect", runs / "checkpoint-500", runs / "lora", runs / "missing", "--format", "json")
    assert outcome.code == 3
    assert [one["schema"].split("/")[1] for one in outcome.document["results"]] == ["inspect", "inspect", "error"]
    assert run("inspect", runs / "checkpoint-500", runs / "lora").code == 0
    assert run("inspect", runs / "checkpoint-500", runs / "lora", "--fail-on", "warning").code == 1


def test_what_is_wrong_with_all_is_said_once(runs: Path, run: Run) -> None:
    for arguments in (
        ["slim", "-r", runs],
        ["slim", "-r", runs, "-o", "out", "--in-place"],
        ["slim", "-r", runs, "-o", f"{runs}/../runs"],
        ["inspect", "-r", runs, "--for-torch", "new"],
        ["check-merge", "-r", runs, "--dtype", "int3"],
        ["inspect", runs / "lora", runs / "checkpoint-500", "--subfolder", "second"],
        ["inspect", "hf://org/", "--revision", "main"],
        ["inspect", "-r", runs, "--jobs", "0"],
    ):
        outcome = run(*arguments, "--format", "json")
        assert outcome.code == 2, arguments
        assert outcome.document["schema"] == "adaptertool/error/1"
        assert "target" not in outcome.document


def test_a_tree_may_begin_below_the_target(runs: Path, run: Run) -> None:
    outcome = run("inspect", "-r", runs, "--subfolder", "checkpoint-1000", "--format", "jsonl")
    assert places(runs, lines(outcome.out)) == {"checkpoint-1000", "checkpoint-1000/second"}


def test_a_folder_of_checkpoints_asks_for_the_option(runs: Path, run: Run) -> None:
    outcome = run("inspect", runs)
    assert outcome.code == 3
    assert "5 checkpoints in folders below" in outcome.err
    assert "add -r" in outcome.err


def test_nothing_found_is_no_success(tmp_path: Path, run: Run) -> None:
    (tmp_path / "empty").mkdir()
    for form in ("text", "json", "jsonl", "junit"):
        assert run("inspect", "-r", tmp_path / "empty", "--format", form).code == 3


def test_linked_checkpoints_are_looked_at_and_not_changed_in_place(stored: Make, tmp_path: Path, run: Run) -> None:
    elsewhere = copy_of(stored(Spec()), tmp_path / "elsewhere")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "linked").symlink_to(elsewhere)
    before = snapshot(elsewhere)
    assert run("slim", "-r", tmp_path / "runs", "--check").code == 1
    outcome = run("slim", "-r", tmp_path / "runs", "--in-place", "--format", "json")
    assert outcome.code == 2
    assert "symlink" in outcome.document["results"][0]["error"]["message"]
    assert snapshot(elsewhere) == before
    assert run("slim", "-r", tmp_path / "runs", "-o", tmp_path / "out").code == 0
    assert snapshot(elsewhere) == before


def test_formats_of_pipelines_are_one_document(runs: Path, run: Run) -> None:
    sarif = run("inspect", "-r", runs, "--format", "sarif").document
    (only,) = sarif["runs"]
    assert len(only["artifacts"]) == len(TREE)
    assert only["invocations"][0]["exitCode"] == 3
    assert not only["invocations"][0]["executionSuccessful"]
    for result in only["results"]:
        place = result["locations"][0]["physicalLocation"]["artifactLocation"]
        assert only["artifacts"][place["index"]]["location"]["uri"] == place["uri"]
    fingerprints = [result["partialFingerprints"]["adaptertool/v1"] for result in only["results"]]
    assert len(fingerprints) == len(set(fingerprints)) == 6
    junit = run("check-merge", "-r", runs, "--base", runs / "base", "--format", "junit")
    root = ET.fromstring(junit.out)
    assert len(root.findall("testsuite")) == len(TREE)
    assert root.get("errors") == str(len(root.findall(".//error")))
    assert root.get("tests") == str(len(root.findall(".//testcase")))
    github = run("inspect", "-r", runs, "--format", "github").out.splitlines()
    assert sum(line.startswith("::notice title=adaptertool inspect") for line in github) == len(TREE)
    assert all(line.startswith("::") for line in github)


def test_a_single_failure_is_a_document_for_pipelines_too(runs: Path, run: Run) -> None:
    outcome = run("inspect", runs / "broken", "--format", "sarif")
    assert outcome.code == 3
    assert outcome.document["runs"][0]["invocations"][0]["toolExecutionNotifications"]
    assert "error: " in outcome.err
    junit = run("inspect", runs / "broken", "--format", "junit")
    assert ET.fromstring(junit.out).get("errors") == "1"


def test_lines_come_as_checkpoints_are_done(runs: Path) -> None:
    """The second checkpoint is a pipe that nobody writes to yet, and the first line is there all the same."""
    shutil.rmtree(runs / "broken")
    command = [sys.executable, "-m", "adaptertool", "inspect", "-r", str(runs), "--format", "jsonl", "--jobs", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert first["schema"] == "adaptertool/inspect/1"
        assert len(process.stdout.readlines()) == 3
    assert process.returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("form", ["json", "jsonl", "text"])
def test_interrupted_it_says_what_was_done(form: str, stored: Make, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    for number in range(300):
        copy_of(stored(Spec()), root / f"checkpoint-{number}")
    before = {path.parent.name: path.read_bytes() for path in root.glob(f"*/{WEIGHTS}")}
    command = [sys.executable, "-m", "adaptertool", "slim", "-r", str(root), "--in-place", "--format", form, "-j", "1"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    while all(path.stat().st_size == len(before[path.parent.name]) for path in root.glob(f"*/{WEIGHTS}")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    changed = {path.parent.name for path in root.glob(f"*/{WEIGHTS}") if path.read_bytes() != before[path.parent.name]}
    assert 0 < len(changed) < 300
    assert "interrupted" in (err if form != "jsonl" else out)
    assert not list(root.rglob("*.tmp"))
    if form == "text":
        assert " checkpoint" in out.splitlines()[-1]
        return
    documents = json.loads(out)["results"] if form == "json" else lines(out)
    done = {Path(one["output"]).name for one in documents if one.get("action") == "stripped"}
    assert done == changed


def test_memory_holds_no_results(runs: Path) -> None:
    """However many are found, no more are worked on or wait than workers and their allowance."""
    waiting, most = 0, 0
    lock = threading.Lock()

    def work(found: Found, progress: object) -> str:
        nonlocal waiting, most
        with lock:
            waiting += 1
            most = max(most, waiting)
        return found.target

    workers = Workers(work, jobs=2)
    for _ in workers.outcomes(Found(str(number)) for number in range(200)):
        time.sleep(0.001)
        with lock:
            waiting -= 1
    assert workers.stop() == []
    assert most <= 12


def test_stopping_returns_what_nobody_was_through_with() -> None:
    """Checkpoints that are done when the work is ended are told of, those that never began are not worked on."""
    worked: list[str] = []

    def work(found: Found, progress: object) -> str:
        worked.append(found.target)
        return found.target

    workers = Workers(work, jobs=2)
    outcomes = workers.outcomes(Found(str(number)) for number in range(200))
    taken = [next(outcomes).target for _ in range(3)]
    left = [outcome.target for outcome in workers.stop()]
    assert taken[-1] == left[0]
    assert sorted(taken[:-1] + left) == sorted(worked)
    assert len(worked) < 200


def test_no_more_at_once_than_a_machine_bears(monkeypatch: pytest.MonkeyPatch) -> None:
    """One a processor would be the memory of as many bases."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    together = threading.Barrier(MOST_JOBS)
    lock = threading.Lock()
    running = most = 0

    def work(target: str) -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(timeout=60)
        with lock:
            running -= 1
        return target

    targets = [str(number) for number in range(4 * MOST_JOBS)]
    assert sorted(one.target for one in adaptertool.each(work, targets)) == sorted(targets)
    assert most == MOST_JOBS


def test_from_python(runs: Path) -> None:
    outcomes = {
        Path(one.target).name: one for one in adaptertool.each(adaptertool.inspect, adaptertool.find(runs), jobs=2)
    }
    assert set(outcomes) == {Path(place).name for place in TREE}
    broken = outcomes.pop("broken")
    assert broken.result is None
    assert isinstance(broken.error, adaptertool.AdapterToolError)
    for one in outcomes.values():
        assert one.result == adaptertool.inspect(one.target)


def test_a_fault_of_the_program_is_not_swallowed(runs: Path) -> None:
    def work(target: str) -> str:
        raise ZeroDivisionError(target)

    with pytest.raises(ZeroDivisionError):
        list(adaptertool.each(work, adaptertool.find(runs)))
