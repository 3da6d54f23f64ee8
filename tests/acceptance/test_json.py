"""With `--format json` stdout holds one document that keeps the contract, whatever happens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import contract
from tests.checkpoints import CANONICAL_B, FIXTURES, WEIGHTS, Spec, flip_bit, load, projections
from tests.conftest import Make, Outcome, Run

SPECS = [
    Spec(),
    Spec(kind="very-sparse", dtype="bfloat16", autocast=False),
    Spec(layout="layer"),
    Spec(layout="pickle"),
    Spec(family="gpt2", rank=9),
]
OLD = FIXTURES / "randlora-dense-bf16-torch2.11-peft0.18.1"


def document(outcome: Outcome, pattern: Any) -> dict[str, Any]:
    """The document, after holding it against the contract; nothing else may be on stdout, and no error on stderr."""
    assert outcome.err == ""
    assert contract.violations(outcome.document, pattern) == []
    return outcome.document


@pytest.mark.parametrize("level", ["none", "sample", "full"])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_inspect(spec: Spec, level: str, stored: Make, run: Run) -> None:
    folder = stored(spec)
    found = document(run("inspect", folder, "--verify", level, "--format", "json"), contract.INSPECT)
    assert found["target"]["location"] == str(folder)
    assert (found["target"]["kind"], found["target"]["revision"], found["target"]["requests"]) == ("local", None, None)
    weights = folder / found["target"]["weights"]
    assert found["size"]["file_bytes"] == weights.stat().st_size
    assert found["projections"]["verification"] == level
    assert found["projections"]["verdict"] == ("unverified" if level == "none" else "regenerable")
    assert found["adapter"]["peft_version"] == "0.21.2"
    assert found["adapter"]["rank"] == spec.rank
    assert sum(role["tensors"] for role in found["size"]["roles"]) == found["size"]["tensors"]


def test_sizes_are_those_of_the_tensors(stored: Make, run: Run) -> None:
    folder = stored(Spec())
    tensors = load(folder)
    found = document(run("inspect", folder, "--verify", "full", "--format", "json"), contract.INSPECT)
    pair = tensors["base_model.randlora_A"].nbytes + tensors[CANONICAL_B].nbytes
    names = projections(tensors)
    trained = [tensor for name, tensor in tensors.items() if name not in names]
    assert found["size"]["roles"] == [
        {"role": "trainable", "tensors": len(trained), "bytes": sum(one.nbytes for one in trained)},
        {"role": "projection", "tensors": 2, "bytes": pair},
        {"role": "projection-copy", "tensors": 8, "bytes": 4 * pair},
    ]
    assert found["adapter"]["parameters"] == sum(one.numel() for one in trained)
    assert found["projections"]["copies"] == 5
    assert found["projections"]["one_copy_bytes"] == pair
    assert found["projections"]["bytes"] == found["projections"]["removable_bytes"] == 5 * pair
    assert [(one["code"], one["count"], one["bytes"]) for one in found["findings"]] == [
        ("ADP101", 10, 5 * pair),
        ("ADP102", 8, 4 * pair),
    ]


def test_inspect_without_projections(lora: Path, run: Run) -> None:
    found = document(run("inspect", lora, "--format", "json"), contract.INSPECT)
    assert (found["adapter"]["peft_type"], found["adapter"]["rank"]) == ("LORA", 4)
    assert found["projections"] is None
    assert found["findings"] == []


@pytest.mark.parametrize("place", ["-o", "--in-place", "--dry-run", "--check"])
@pytest.mark.parametrize("options", [[], ["--keep-one-copy"]], ids=["strip", "one-copy"])
def test_slim(place: str, options: list[str], made: Make, tmp_path: Path, run: Run) -> None:
    folder = made(Spec())
    size = (folder / WEIGHTS).stat().st_size
    where = [place, tmp_path / "out"] if place == "-o" else [place]
    outcome = run("slim", folder, *where, *options, "--format", "json")
    found = document(outcome, contract.SLIM)
    dry = place in ("--dry-run", "--check")
    assert outcome.code == (1 if place == "--check" else 0)
    assert found["dry_run"] is dry
    assert found["action"] == ("kept-one-copy" if options else "stripped")
    assert found["output"] == {"-o": str(tmp_path / "out"), "--in-place": str(folder)}.get(place)
    assert found["bytes_before"] == size
    assert found["removed"]["tensors"] == (8 if options else 10)
    if not dry:
        written = (Path(found["output"]) / WEIGHTS).stat().st_size
        assert found["bytes_after"] == written < size


def test_the_plan_of_a_dry_run_is_what_is_carried_out(made: Make, tmp_path: Path, run: Run) -> None:
    folder = made(Spec())
    planned = run("slim", folder, "-o", tmp_path / "out", "--dry-run", "--format", "json").document
    done = run("slim", folder, "-o", tmp_path / "out", "--format", "json").document
    for document_ in (planned, done):
        document_.pop("dry_run")
        document_["target"].pop("bytes_read")
    assert planned == done


def test_slim_refusing(made: Make, run: Run) -> None:
    folder = made(Spec())
    flip_bit(folder, CANONICAL_B)
    outcome = run("slim", folder, "--in-place", "--format", "json")
    assert outcome.code == 1
    assert document(outcome, contract.SLIM)["output"] is None
    assert document(run("slim", OLD, "--check", "--format", "json"), contract.SLIM)["action"] == "refused"


def test_nothing_to_do(lora: Path, run: Run) -> None:
    for command, pattern in (("slim", contract.SLIM), ("restore", contract.RESTORE)):
        outcome = run(command, lora, "--in-place", "--format", "json")
        found = document(outcome, pattern)
        assert (outcome.code, found["action"], found["projections"]) == (0, "nothing-to-do", None)
        assert found["bytes_before"] == found["bytes_after"]


def test_restore(made: Make, tmp_path: Path, run: Run) -> None:
    folder = made(Spec())
    pair = sum(load(folder)[f"base_model.randlora_{kind}"].nbytes for kind in "AB")
    run("slim", folder, "--in-place")
    planned = document(run("restore", folder, "--dry-run", "--format", "json"), contract.RESTORE)
    assert (planned["action"], planned["dry_run"], planned["output"]) == ("restored", True, None)
    found = document(run("restore", folder, "-o", tmp_path / "back", "--format", "json"), contract.RESTORE)
    assert found["restored"] == {"tensors": 2, "bytes": pair}
    assert found["bytes_after"] == (tmp_path / "back" / WEIGHTS).stat().st_size
    again = document(run("restore", tmp_path / "back", "--in-place", "--format", "json"), contract.RESTORE)
    assert again["action"] == "nothing-to-do"


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (["inspect", "missing"], 3, "not-found"),
        (["slim", "missing", "--in-place"], 3, "not-found"),
        (["restore", "missing", "--in-place"], 3, "not-found"),
        (["inspect"], 2, "usage"),
        (["inspect", ".", "--no-such-option"], 2, "usage"),
        (["inspect", ".", "--verify", "some"], 2, "usage"),
        (["inspect", ".", "--for-torch", "new"], 2, "usage"),
        (["no-such-command"], 2, "usage"),
        (["explain", "ADP999"], 2, "usage"),
    ],
    ids=str,
)
@pytest.mark.parametrize("spelling", [["--format", "json"], ["--format=json"]], ids=["apart", "joined"])
def test_failures(
    arguments: list[str],
    code: int,
    kind: str,
    spelling: list[str],
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run(*arguments, *spelling)
    assert outcome.code == code
    found = document(outcome, contract.ERROR)["error"]
    assert found["kind"] == kind
    assert "\n" not in found["message"]


def test_names_that_are_no_ascii_stay_one_document(stored: Make, tmp_path: Path, run: Run) -> None:
    outcome = run("inspect", tmp_path / "kein-Ädäpter-\u202e\n", "--format", "json")
    assert outcome.code == 3
    assert "Ädäpter" in document(outcome, contract.ERROR)["error"]["message"]
    assert json.loads(outcome.out)
