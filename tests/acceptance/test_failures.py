"""What can't be read gives one clear line with a hint on stderr, exit code 3, and no traceback; nothing is changed."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftConfig

from tests import contract
from tests.checkpoints import CONFIG, FIXTURES, PICKLE, WEIGHTS, Spec, change_config, copy_of, load, snapshot
from tests.conftest import Make, Run

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
Break = Callable[[Path], object]

BROKEN: dict[str, tuple[Break, str, str | None]] = {
    "no config": (lambda folder: (folder / CONFIG).unlink(), "not-found", "ADP304"),
    "config no JSON": (lambda folder: (folder / CONFIG).write_text("{"), "corrupt", "ADP304"),
    "config empty": (lambda folder: (folder / CONFIG).write_text(""), "corrupt", "ADP304"),
    "config a list": (lambda folder: (folder / CONFIG).write_text("[1]"), "corrupt", "ADP304"),
    "config not UTF-8": (lambda folder: (folder / CONFIG).write_bytes(b'{"peft_type": "\xff"}'), "corrupt", "ADP304"),
    "config too deep": (lambda folder: (folder / CONFIG).write_text("[" * 200_000), "corrupt", "ADP304"),
    "config an LFS pointer": (lambda folder: (folder / CONFIG).write_bytes(LFS_POINTER), "corrupt", "ADP304"),
    "config without a type": (lambda folder: (folder / CONFIG).write_text("{}"), "corrupt", "ADP304"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "not-found", None),
    "weights empty": (lambda folder: (folder / WEIGHTS).write_bytes(b""), "corrupt", "ADP303"),
    "weights an LFS pointer": (lambda folder: (folder / WEIGHTS).write_bytes(LFS_POINTER), "corrupt", "ADP303"),
    "weights without tensors": (
        lambda folder: (folder / WEIGHTS).write_bytes(b"\2\0\0\0\0\0\0\0{}"),
        "corrupt",
        "ADP303",
    ),
    "weights cut": (lambda folder: cut(folder, -1), "corrupt", None),
    "weights cut in the header": (lambda folder: cut(folder, 100), "corrupt", None),
    "weights cut in the length": (lambda folder: cut(folder, 5), "corrupt", None),
    "weights with a tail": (lambda folder: append(folder, b"\0"), "corrupt", None),
    "weights of another format": (lambda folder: (folder / WEIGHTS).write_bytes(b"GGUF" * 100), "corrupt", None),
    "rank no number": (lambda folder: change_config(folder, r="8"), "corrupt", "ADP304"),
    "rank zero": (lambda folder: change_config(folder, r=0), "corrupt", "ADP304"),
    "rank null": (lambda folder: change_config(folder, r=None), "corrupt", "ADP304"),
    "seed a float": (lambda folder: change_config(folder, projection_prng_key=1.5), "corrupt", "ADP304"),
    "seed too large": (lambda folder: change_config(folder, projection_prng_key=2**64), "corrupt", "ADP304"),
    "flag a string": (lambda folder: change_config(folder, save_projection="yes"), "corrupt", "ADP304"),
    "sparse a number": (lambda folder: change_config(folder, sparse=1), "corrupt", "ADP304"),
    "targets a number": (lambda folder: change_config(folder, target_modules=5), "corrupt", "ADP304"),
    "targets an object": (lambda folder: change_config(folder, target_modules={"q_proj": 1}), "corrupt", "ADP304"),
    "targets of numbers": (lambda folder: change_config(folder, target_modules=["q_proj", 5]), "corrupt", "ADP304"),
    "base a list": (lambda folder: change_config(folder, base_model_name_or_path=[]), "corrupt", "ADP304"),
    "revision a number": (lambda folder: change_config(folder, revision=5), "corrupt", "ADP304"),
    "PEFT's version an object": (lambda folder: change_config(folder, peft_version={"a": 1}), "corrupt", "ADP304"),
}


def cut(folder: Path, length: int) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:length])


def append(folder: Path, tail: bytes) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes() + tail)


@pytest.mark.parametrize("command", [["inspect"], ["slim", "--in-place"], ["slim", "--check"]], ids=" ".join)
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_checkpoint(name: str, command: list[str], adapter: Path, run: Run) -> None:
    change, kind, code = BROKEN[name]
    change(adapter)
    before = snapshot(adapter)
    outcome = run(command[0], adapter, *command[1:])
    assert outcome.code == 3
    assert outcome.out == ""
    first, *rest = outcome.err.splitlines()
    assert first.startswith("error: ")
    assert len(rest) == 1
    assert rest[0].startswith("hint: ")
    document = run(command[0], adapter, *command[1:], "--format", "json").document
    assert contract.violations(document, contract.ERROR) == []
    assert (document["error"]["kind"], document["error"]["code"]) == (kind, code)
    assert snapshot(adapter) == before


@pytest.mark.parametrize("command", ["slim --check", "slim --keep-one-copy --check", "restore --in-place"])
@pytest.mark.parametrize(("peft_type", "meant"), [("RANDLORA2", None), ("randlora", "RANDLORA"), ("Lora", "LORA")])
def test_nothing_is_done_about_a_method_that_is_not_known(
    peft_type: str, meant: str | None, command: str, adapter: Path, run: Run
) -> None:
    """PEFT 0.21.2 knows none of these names, in lower case either: KeyError."""
    change_config(adapter, peft_type=peft_type)
    with pytest.raises(KeyError):
        PeftConfig.from_pretrained(str(adapter))
    before = snapshot(adapter)
    verb, *options = command.split()
    outcome = run(verb, adapter, *options, "--base", FIXTURES / "base-llama")
    assert (outcome.code, outcome.out) == (3, "")
    assert f"{peft_type} is no method of PEFT" in outcome.err
    assert f'"peft_type": "{meant}"' in outcome.err if meant else "newer adaptertool" in outcome.err
    assert snapshot(adapter) == before
    listed = run("inspect", adapter)
    assert listed.code == 0
    assert f"{peft_type} is no method of PEFT" in listed.out
    assert "trained parameters" not in listed.out


@pytest.mark.parametrize("command", ["inspect", "slim", "restore"])
def test_a_missing_folder(command: str, tmp_path: Path, run: Run) -> None:
    outcome = run(command, tmp_path / "missing", *([] if command == "inspect" else ["--in-place"]))
    assert (outcome.code, outcome.out) == (3, "")
    assert len(outcome.err.splitlines()) == 2
    assert str(tmp_path / "missing") in outcome.err


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_an_unreadable_file(
    name: str, adapter: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The operating system refuses; root is refused nothing, so the refusal is staged."""
    plain = Path.open

    def refusing(self: Path, *arguments: object, **options: object) -> object:
        if self.name == name:
            raise PermissionError(13, "Permission denied", str(self))
        return plain(self, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refusing)
    for command in (["inspect", adapter], ["slim", adapter, "-o", tmp_path / "out"]):
        outcome = run(*command, "--format", "json")
        assert outcome.code == 3
        assert outcome.document["error"]["kind"] == "permission"
    assert not (tmp_path / "out").exists()


def test_a_folder_in_place_of_the_weights(adapter: Path, run: Run) -> None:
    (adapter / WEIGHTS).unlink()
    (adapter / WEIGHTS).mkdir()
    outcome = run("inspect", adapter)
    assert outcome.code == 3
    assert "Traceback" not in outcome.err


class Payload:
    """What a pickle must not be able to do."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_with_code_is_not_run(writer: str, adapter: Path, tmp_path: Path, run: Run) -> None:
    (adapter / WEIGHTS).unlink()
    state = {"base_model.model.a.randlora_lambda": Payload(tmp_path / "pwned")}
    if writer == "torch":
        torch.save(state, adapter / PICKLE)
    else:
        (adapter / PICKLE).write_bytes(pickle.dumps(state))
    for command in ("inspect", "slim"):
        outcome = run(command, adapter, *(["--in-place"] if command == "slim" else []), "--format", "json")
        assert outcome.code == 3
        assert outcome.document["error"]["kind"] in ("unsupported", "corrupt")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("content", [b"", b"PK\3\4 no archive", b"\x80\2}", LFS_POINTER, b"\0" * 64], ids=range(5))
def test_a_broken_pickle(content: bytes, adapter: Path, run: Run) -> None:
    (adapter / WEIGHTS).unlink()
    (adapter / PICKLE).write_bytes(content)
    outcome = run("inspect", adapter, "--format", "json")
    assert outcome.code == 3
    assert contract.violations(outcome.document, contract.ERROR) == []


def test_names_that_steer_a_terminal_are_escaped(adapter: Path, run: Run) -> None:
    content = (adapter / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    evil = "\x1b[31mred\x1b]8;;http://evil\x07\r\u202e.randlora_A"
    header[evil] = header.pop("base_model.randlora_A")
    new = json.dumps(header).encode()
    (adapter / WEIGHTS).write_bytes(len(new).to_bytes(8, "little") + new + content[8 + length :])
    change_config(adapter, base_model_name_or_path="\x1b[2Jwiped", peft_version="\x1b]0;title\x07")
    outcome = run("inspect", adapter)
    assert outcome.code == 0
    for text in (outcome.out, run("slim", adapter, "--dry-run").out):
        assert not set(text) & set("\x1b\x07\r\u202e")
    assert "\\x1b[2Jwiped" in outcome.out


def test_json_is_one_document_though_the_reader_goes_away(stored: Make, spawn: Run) -> None:
    """`adaptertool inspect … | head -1` ends without a traceback."""
    process = subprocess.Popen(
        [sys.executable, "-m", "adaptertool", "inspect", str(stored(Spec())), "--verify", "none", "--format", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait() == 0


@pytest.mark.parametrize(
    ("closed", "target", "code"), [(">&-", "lora-llama", 0), ("2>&-", "absent", 3), (">&- 2>&-", "absent", 3)]
)
def test_a_stream_that_is_closed(closed: str, target: str, code: int) -> None:
    command = f'exec "$0" -m adaptertool inspect "$1" {closed}'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, str(FIXTURES / target)], check=False, capture_output=True
    )
    assert done.returncode == code
    assert b"Traceback" not in done.stderr


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="file systems whose names are all text")
@pytest.mark.parametrize("form", ["text", "json", "jsonl", "github", "sarif", "junit"])
def test_a_path_that_is_no_text(form: str, stored: Make, tmp_path: Path, spawn: Run) -> None:
    """POSIX paths are bytes; whatever a report makes of them is text that its readers can decode."""
    named = os.fsdecode(b"ad\xffapter")
    copy_of(stored(Spec()), tmp_path / named)
    found = spawn("inspect", tmp_path / named, "--verify", "none", "--format", form)
    assert found.code == 0, found.err
    assert "ad" in found.out
    found.out.encode()  # half a surrogate pair would raise
    if form in ("text", "json", "jsonl"):
        assert spawn("slim", tmp_path / named, "-o", tmp_path / f"{named}-out", "--format", form).code == 0
        assert load(copy_of(tmp_path / f"{named}-out", tmp_path / "text"))
