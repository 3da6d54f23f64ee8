"""What the tool costs where it need not: imports, a missing torch, and memory that does not grow with the file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from adaptertool.projection.basis import RandLoraBasis
from adaptertool.projection.drawn import stored_bits
from tests.checkpoints import CONFIG, FIXTURES, WEIGHTS, Spec, snapshot, write
from tests.conftest import Make, Outcome, Run, spawn_python

SEEN = """
import sys
from adaptertool.cli import main
code = main(sys.argv[1:])
names = ("torch", "numpy", "huggingface_hub", "transformers", "peft", "safetensors", "pydantic")
heavy = [name for name in names if name in sys.modules]
print("imported:", ",".join(heavy), file=sys.stderr)
sys.exit(code)
"""

# Python runs a module of this name at start; it hides torch as if it were not installed.
HIDE_TORCH = """
import sys
from importlib.machinery import PathFinder

class WithoutTorch(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == "torch" else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [WithoutTorch if finder is PathFinder else finder for finder in sys.meta_path]
"""


@pytest.fixture
def without_torch(tmp_path: Path, spawn: Run) -> Run:
    """The program where torch is not installed."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HIDE_TORCH)
    path = str(tmp_path / "site")
    assert spawn_python("-c", "import torch", PYTHONPATH=path).code != 0

    def call(*arguments: object) -> Outcome:
        return spawn(*arguments, PYTHONPATH=path)

    return call


@pytest.mark.parametrize("form", ["text", "json"])
def test_inspect_without_projections_imports_nothing_heavy(form: str, lora: Path) -> None:
    outcome = spawn_python("-c", SEEN, "inspect", lora, "--format", form)
    assert outcome.code == 0
    assert outcome.err == "imported: \n"


def test_inspect_of_a_stripped_file_compares_nothing_if_told_so(tmp_path: Path) -> None:
    folder = write(Spec(save_projection=False), tmp_path / "adapter")
    outcome = spawn_python("-c", SEEN, "inspect", folder, "--verify", "none")
    assert "torch" not in outcome.err
    assert "huggingface_hub" not in outcome.err


@pytest.mark.parametrize("arguments", [["--help"], ["slim", "--help"], ["explain", "ADP101"], ["--version"]], ids=str)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    assert spawn_python("-c", SEEN, *arguments).err == "imported: \n"


def test_without_torch_help_and_inspect_work(stored: Make, lora: Path, without_torch: Run) -> None:
    assert without_torch("--help").code == 0
    assert without_torch("inspect", lora).code == 0
    outcome = without_torch("inspect", stored(Spec()), "--format", "json")
    assert outcome.code == 0
    found = outcome.document["projections"]
    assert (found["verdict"], found["copies"]) == ("unverified", 5)
    assert [one["code"] for one in outcome.document["findings"]] == ["ADP102"]


def test_without_torch_slim_says_what_to_install(stored: Make, tmp_path: Path, without_torch: Run) -> None:
    before = snapshot(stored(Spec()))
    outcome = without_torch("slim", stored(Spec()), "-o", tmp_path / "slim")
    assert outcome.code == 1
    assert len([line for line in outcome.out.splitlines() if "pip install 'adaptertool[torch]'" in line]) == 1
    assert not (tmp_path / "slim").exists()
    assert snapshot(stored(Spec())) == before


def test_without_torch_a_named_version_is_verified(tmp_path: Path, without_torch: Run) -> None:
    old = FIXTURES / "randlora-dense-bf16-torch2.11-peft0.18.1"
    outcome = without_torch("slim", old, "--for-torch", "2.11", "-o", tmp_path / "slim", "--format", "json")
    assert (outcome.code, outcome.document["action"]) == (0, "stripped")
    assert without_torch("restore", tmp_path / "slim", "-o", tmp_path / "back").code == 0


def test_without_torch_one_copy_can_be_kept(stored: Make, tmp_path: Path, without_torch: Run) -> None:
    outcome = without_torch("slim", stored(Spec()), "--keep-one-copy", "-o", tmp_path / "one", "--format", "json")
    assert (outcome.code, outcome.document["action"]) == (0, "kept-one-copy")


def test_without_torch_a_pickle_is_not_opened(stored: Make, without_torch: Run) -> None:
    outcome = without_torch("inspect", stored(Spec(layout="pickle")))
    assert outcome.code == 3
    assert "pip install 'adaptertool[torch]'" in outcome.err


PEAK = """
import resource, sys
from pathlib import Path
from adaptertool.cli import main
code = main(sys.argv[1:])
status = Path("/proc/self/status")
# getrusage counts the parent's peak as well where a process was forked; VmHWM is this program's own.
if status.exists():
    peak = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak * 1024, file=sys.stderr)
sys.exit(code)
"""


def write_many_copies(folder: Path, copies: int) -> int:
    """A checkpoint as PEFT writes it, with this many copies of a basis of some 20 MB; returns the size of one."""
    basis = RandLoraBasis(key=0, name="dense", rank=32, larger=2304, smaller=2304)
    generation = basis.generations[0]
    pair = {kind: stored_bits(drawn, ("bfloat16", "float32")) for kind, drawn in basis.draw(generation)}
    tensors = [(f"base_model.{kind}", basis.shapes[kind], bits) for kind, bits in pair.items()]
    trained = {
        "randlora_lambda": np.ones((32, basis.bases), dtype=np.float32),
        "randlora_gamma": np.ones((basis.bases, 2304), dtype=np.float32),
    }
    for layer in range(copies - 1):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors += [(f"{name}.{kind}", basis.shapes[kind], bits) for kind, bits in pair.items()]
        tensors += [(f"{name}.{kind}", one.shape, one) for kind, one in trained.items()]
    header, end = {}, 0
    for name, shape, bits in tensors:
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + bits.nbytes]}
        end += bits.nbytes
    text = json.dumps(header).encode()
    folder.mkdir()
    with (folder / WEIGHTS).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, _, bits in tensors:
            file.write(bits.tobytes())
    (folder / CONFIG).write_text(json.dumps({"peft_type": "RANDLORA", "r": 32, "save_projection": True}))
    return sum(bits.nbytes for bits in pair.values())


@pytest.mark.parametrize("options", [[], ["--keep-one-copy"]], ids=["strip", "one-copy"])
def test_peak_memory_of_slim_does_not_grow_with_the_copies(options: list[str], tmp_path: Path) -> None:
    peaks = []
    for copies in (4, 40):
        folder = tmp_path / "adapter"
        one_copy = write_many_copies(folder, copies)
        assert one_copy > 20_000_000
        outcome = spawn_python("-c", PEAK, "slim", folder, *options, "-o", tmp_path / f"slim-{copies}")
        assert outcome.code == 0, outcome.out
        peaks.append(int(outcome.err))
        (folder / WEIGHTS).unlink()
        (folder / CONFIG).unlink()
        folder.rmdir()
    assert abs(peaks[1] - peaks[0]) < one_copy
