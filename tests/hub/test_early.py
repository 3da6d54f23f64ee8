"""What a few ranges of a large file disprove is refused without reading the rest, unless one fault could have led to it."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from adaptertool.checkpoint import weights
from adaptertool.checkpoint.adapter import open_adapter
from adaptertool.checkpoint.header import TensorInfo, parse_header
from adaptertool.checkpoint.hub import file
from adaptertool.checkpoint.target import open_target
from adaptertool.cli import main
from adaptertool.operations import projections
from adaptertool.projection import settled
from tests.hub.large import CONFIG, WEIGHTS, large_adapter
from tests.hub.server import Repeated

if TYPE_CHECKING:
    from pathlib import Path

    from tests.hub.server import HubServer

OF_TWO = "base_model.model.model.layers.0.mlp.down_proj.randlora_B"
"""The first copy in the file, which a sample looks at."""


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of megabytes are treated as those of gigabytes are."""
    monkeypatch.setattr(projections, "WORTH_A_RANGE", 64 << 10)
    monkeypatch.setattr(settled, "SEGMENT", 8 << 10)
    monkeypatch.setattr(file, "PREFETCH", 32 << 10)


@pytest.fixture(scope="module")
def adapter() -> dict[str, bytes]:
    """Five megabytes of real RandLoRA: a basis of 131 kB for each layer."""
    files, _ = large_adapter(20, 128, 256, 8)
    return {name: b"".join(file.parts) if isinstance(file, Repeated) else file for name, file in files.items()}


def tensors_of(weights: bytes) -> tuple[int, dict[str, TensorInfo]]:
    """Where the data begins, and what is in it."""
    length = int.from_bytes(weights[:8], "little")
    header = parse_header(weights[8 : 8 + length], len(weights) - 8 - length, WEIGHTS)
    return header.data_start, dict(header.tensors)


def changed(adapter: dict[str, bytes], name: str, places: list[int]) -> dict[str, bytes]:
    """The adapter with other bits at these places of a tensor."""
    data_start, tensors = tensors_of(adapter[WEIGHTS])
    weights = bytearray(adapter[WEIGHTS])
    for place in places:
        weights[data_start + tensors[name].start + place] ^= 1
    return {**adapter, WEIGHTS: bytes(weights)}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main([*arguments, "--format", "json"])
    return code, json.loads(capsys.readouterr().out)


def received(hub: HubServer) -> float:
    """The part of the weights that was sent."""
    (files,) = hub.repos["org/name"].commits.values()
    return sum(entry.body_bytes for entry in hub.requests("storage")) / files[WEIGHTS].size


@pytest.mark.parametrize("option", ["--dry-run", "--check", "-o"])
def test_what_another_torch_draws(
    hub: HubServer, adapter: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    hub.add("org/name", adapter)
    where = [option, str(tmp_path / "out")] if option == "-o" else [option]
    code, document = run(capsys, "slim", "org/name", *where, "--for-torch", "2.11")
    assert (code, document["action"]) == (1, "refused")
    found = document["projections"]
    assert (found["verdict"], found["verification"]) == ("regenerable-elsewhere", "sample")
    assert "ADP103" in [finding["code"] for finding in document["findings"]]
    assert document["removed"] == {"tensors": 0, "bytes": 0}
    assert received(hub) < 0.15
    assert document["target"]["bytes_read"] < 0.15 * document["bytes_before"]


def test_what_no_torch_draws(hub: HubServer, adapter: dict[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads(adapter[CONFIG])
    hub.add("org/name", {**adapter, CONFIG: json.dumps({**config, "projection_prng_key": 8}).encode()})
    code, document = run(capsys, "slim", "org/name", "--check")
    assert (code, document["projections"]["verdict"]) == (1, "not-regenerable")
    assert document["projections"]["verification"] == "sample"
    assert received(hub) < 0.15


@pytest.mark.parametrize("options", [[], ["--keep-one-copy"]], ids=["strip", "one copy"])
def test_copies_that_differ_in_two_places(
    hub: HubServer, adapter: dict[str, bytes], capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    hub.add("org/name", changed(adapter, OF_TWO, [8, 60_000]))
    code, document = run(capsys, "slim", "org/name", "--dry-run", *options)
    assert (code, document["projections"]["verdict"]) == (1, "copies-differ")
    assert OF_TWO in document["findings"][0]["message"]
    assert received(hub) < 0.15


@pytest.mark.parametrize("options", [[], ["--keep-one-copy"]], ids=["strip", "one copy"])
@pytest.mark.parametrize("tensor", [OF_TWO, "base_model.randlora_B"], ids=["a copy", "the pair"])
def test_one_place_is_held_against_the_digest(
    hub: HubServer,
    adapter: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    tensor: str,
) -> None:
    """The same bytes are a "no" where they are in the file, and none where they were damaged on their way."""
    hub.add("org/name", changed(adapter, tensor, [8]))
    code, document = run(capsys, "slim", "org/name", "--dry-run", *options)
    assert (code, document["action"]) == (1, "refused")
    assert document["projections"]["verdict"] == "copies-differ"
    assert document["projections"]["verification"] == "full"
    assert received(hub) > 1
    hub.add("org/name", adapter)
    data_start, tensors = tensors_of(adapter[WEIGHTS])
    hub.fail("storage", damage=(data_start + tensors[tensor].start + 8, 1))
    code, document = run(capsys, "slim", "org/name", "--dry-run", *options)
    assert (code, document["error"]["kind"]) == (3, "corrupt"), document


def test_one_reading_of_the_whole_is_enough(
    hub: HubServer, adapter: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside the sample, what goes is read once, and what stays once more."""
    hub.add("org/name", adapter)
    for options in ([], ["--keep-one-copy"]):
        hub.log.clear()
        output = tmp_path / f"out{len(options)}"
        code, document = run(capsys, "slim", "org/name", "-o", str(output), *options)
        assert (code, document["action"]) == (0, "kept-one-copy" if options else "stripped")
        stays = (output / WEIGHTS).stat().st_size
        assert received(hub) * len(adapter[WEIGHTS]) < len(adapter[WEIGHTS]) * 1.15 + stays


@pytest.mark.parametrize("held", [0, 100_000, 1 << 30], ids=["none held", "one held", "all held"])
def test_digests_are_those_of_each_tensor(
    hub: HubServer, adapter: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    """Also where tensors that may be alike are not, from their first, a middle or their last byte on."""
    monkeypatch.setattr(weights, "HELD_BYTES", held)
    data_start, tensors = tensors_of(adapter[WEIGHTS])
    names = [name for name in tensors if name.endswith("randlora_B")]
    files = adapter
    for name, place in zip(names, (0, 30_000, 65_535, 5, 65_535), strict=False):
        files = changed(files, name, [place])
    hub.add("org/name", files)
    adapter_there = open_adapter(open_target("org/name"))
    found = adapter_there.weights.digests(alike=[names, [name for name in tensors if name.endswith("randlora_A")]])
    due = {
        name: hashlib.sha256(files[WEIGHTS][data_start + one.start :][: one.nbytes]).hexdigest()
        for name, one in tensors.items()
    }
    assert found == due
    assert len({due[name] for name in names}) == 5  # two of them have the same change
