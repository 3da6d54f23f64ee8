"""What a hostile file can make each command take: no more than its own size justifies, and never for ever."""

from __future__ import annotations

import json
import os
import resource
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adaptertool import check_merge, inspect, restore, slim
from adaptertool.merge.base.live import build_live_model
from tests.faults.conftest import refusal
from tests.tools.make_broken import (
    BASE_CONFIG,
    BASE_SHAPES,
    LORA,
    RANDLORA,
    RECIPE,
    base_weights,
    fingerprint,
    for_the_base,
    tensors,
    trained,
)

MEGABYTE = 1 << 20

MEASURED = """
import resource, sys
sys.path[:0] = {path!r}
import adaptertool.operations.slim, adaptertool.operations.restore, adaptertool.operations.check_merge
import adaptertool.report.text, adaptertool.report.json, adaptertool.projection.reproduce, adaptertool.merge.trial.trial
from adaptertool.cli import main
main(["inspect", "--verify", "none", "nowhere"])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
codes = [main(arguments) for arguments in {commands!r}]
print("peak", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, "codes", *codes)
"""


def peak(*commands: list[str], cwd: Path) -> tuple[int, list[int]]:
    """How much memory these commands took beyond what the program takes anyway, and their exit codes."""
    script = MEASURED.format(path=sys.path, commands=commands)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120, cwd=cwd
    )
    words = done.stdout.split()
    at = words.index("codes")
    return int(words[at - 1]), [int(word) for word in words[at + 1 :]]


def lay(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def hostile_header(kind: str) -> bytes:
    text = {
        "empty-lists": b'{"a":[' + b"[]," * MEGABYTE + b"[]]}",
        "many-entries": b"{" + b",".join(b'"%x":7' % number for number in range(MEGABYTE // 2)) + b"}",
        "many-tensors": b"{"
        + b",".join(
            b'"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % number for number in range(MEGABYTE // 16)
        )
        + b"}",
    }[kind]
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize("kind", ["empty-lists", "many-entries", "many-tensors"])
def test_a_hostile_header_in_every_command(kind: str, tmp_path: Path) -> None:
    """As an adapter's and as a base's: the same bound."""
    content = hostile_header(kind)
    adapter = lay(
        tmp_path / "adapter",
        {"adapter_config.json": json.dumps(RANDLORA).encode(), "adapter_model.safetensors": content},
    )
    base = lay(tmp_path / "base", {"config.json": json.dumps(BASE_CONFIG).encode(), "model.safetensors": content})
    good = lay(tmp_path / "good", for_the_base()["biased"])
    for command in (
        ["inspect", str(adapter), "--verify", "full", "--format", "json", "--for-torch", "2.13"],
        ["slim", str(adapter), "--dry-run", "--for-torch", "2.13"],
        ["restore", str(adapter), "--dry-run"],
        ["check-merge", str(adapter), "--base", str(base)],
        ["check-merge", str(good), "--base", str(base)],
    ):
        taken, codes = peak(command, cwd=tmp_path)
        assert set(codes) <= {0, 1, 3}
        assert taken < 60 * len(content), command


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "adapter_config.json"])
@pytest.mark.parametrize("kind", ["lists", "objects", "numbers", "string"])
def test_hostile_json_beside_the_weights(name: str, kind: str, tmp_path: Path) -> None:
    inside = {
        "lists": b"[" + b"[]," * MEGABYTE + b"[]]",
        "objects": b"[" + b"{}," * MEGABYTE + b"{}]",
        "numbers": b"[" + b"1," * MEGABYTE + b"1]",
        "string": b'"' + b"\\u0100" * (MEGABYTE // 2) + b'"',
    }[kind]
    key = {"config.json": b'"architectures"', "model.safetensors.index.json": b'"weight_map"'}.get(name, b'"r"')
    hostile = b'{"peft_type": "RANDLORA", ' + key + b": " + inside + b"}"
    adapter = lay(tmp_path / "adapter", for_the_base()["stripped"])
    base = lay(tmp_path / "base", {"config.json": json.dumps(BASE_CONFIG).encode()})
    if "index" not in name:
        (base / "model.safetensors").write_bytes(base_weights())
    ((adapter if name.startswith("adapter") else base) / name).write_bytes(hostile)
    commands = [
        ["check-merge", str(adapter), "--base", str(base)],
        ["restore", str(adapter), "--base", str(base), "--for-torch", "2.13", "--dry-run"],
        ["inspect", str(adapter), "--verify", "none"],
    ]
    taken, codes = peak(*commands, cwd=tmp_path)
    assert set(codes) <= {0, 1, 3}
    assert taken < 120 * len(hostile) + 20 * MEGABYTE


def test_a_huge_file_of_nothing(tmp_path: Path) -> None:
    """A sparse file of a terabyte is neither a config nor an index, and costs nothing."""
    adapter = lay(tmp_path / "adapter", for_the_base()["biased"])
    base = lay(
        tmp_path / "base", {"config.json": json.dumps(BASE_CONFIG).encode(), "model.safetensors": base_weights()}
    )
    huge = []
    for folder, name in ((adapter, "adapter_config.json"), (base, "config.json"), (base, "model.safetensors")):
        before = (folder / name).read_bytes()
        os.truncate(folder / name, 1 << 40)
        huge.append(peak(["check-merge", str(adapter), "--base", str(base)], ["inspect", str(adapter)], cwd=tmp_path))
        (folder / name).write_bytes(before)
    for taken, codes in huge:
        assert codes[0] == 3
        assert taken < 20 * MEGABYTE


def fingerprints() -> Iterator[tuple[str, dict[str, object]]]:
    sparse = {
        "basis": "sparse",
        "sampler": "any",
        "generated_dtype": "float32",
        "casts": ["float32"],
        "fused_multiply_add": None,
    }
    # Each agrees with the config's rank, so that nothing but their size speaks against drawing them.
    for name, larger, smaller in (
        ("wide", 1 << 39, 2),
        ("square", 1 << 20, 1 << 20),
        ("narrow", 2, 1 << 39),
        ("just-too-large", 1 << 18, 1 << 17),
    ):
        shapes = {"randlora_A": [2, 1, smaller], "randlora_B": [larger, -(-smaller // 2), 2]}
        yield name, fingerprint(shapes, RECIPE)
        yield f"{name}-sparse", fingerprint(shapes, RECIPE | sparse)


@pytest.mark.parametrize(("name", "document"), fingerprints())
def test_a_fingerprint_that_asks_for_too_much(name: str, document: dict[str, object], tmp_path: Path) -> None:
    """Its shapes are checked before anything is drawn: a file of a kilobyte does not fill the memory."""
    config = {**RANDLORA, "save_projection": False, "sparse": name.endswith("sparse")}
    adapter = lay(
        tmp_path / "adapter",
        {
            "adapter_config.json": json.dumps(config).encode(),
            "adapter_model.safetensors": tensors(trained(), {"adaptertool": json.dumps(document)}),
        },
    )
    commands = [
        ["restore", str(adapter), "-o", "out"],
        ["restore", str(adapter), "--dry-run"],
        ["inspect", str(adapter), "--verify", "full", "--for-torch", "2.13"],
        ["slim", str(adapter), "--dry-run", "--for-torch", "2.13"],
    ]
    taken, codes = peak(*commands, cwd=tmp_path)
    assert codes[0] in (1, 3)
    assert codes[2:] == [0, 0]
    assert taken < 64 * MEGABYTE
    assert not (tmp_path / "out").exists()


def test_projections_whose_shapes_ask_for_too_much(tmp_path: Path) -> None:
    """Shapes without elements cost the file nothing, and what a config would draw for them is not drawn."""
    pair = {
        "base_model.randlora_A": ("F32", [2, 1, 1 << 60, 0], b""),
        "base_model.randlora_B": ("F32", [0, 1 << 60, 2], b""),
    }
    adapter = lay(
        tmp_path / "adapter",
        {"adapter_config.json": json.dumps(RANDLORA).encode(), "adapter_model.safetensors": tensors(pair | trained())},
    )
    commands = [
        ["inspect", str(adapter), "--verify", level, "--for-torch", "2.13"] for level in ("none", "sample", "full")
    ]
    taken, codes = peak(*commands, ["slim", str(adapter), "--dry-run", "--for-torch", "2.13"], cwd=tmp_path)
    assert codes == [0, 0, 0, 1]
    assert taken < 64 * MEGABYTE


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "encoder_layers", "num_local_experts", "depths"])
def test_a_config_is_not_built_for_ever(key: str) -> None:
    value: object = [10**9] * 4 if key == "depths" else 10**9
    config = {**BASE_CONFIG, "text_config": {key: value}, key: value}
    assert build_live_model(config, {}, ["model.layers.0.self_attn.v_proj"], BASE_SHAPES) is None


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """Two gigabytes of zeros in two megabytes; and as a deeper one, the same entry under many names."""
    adapter = lay(tmp_path / "adapter", {"adapter_config.json": json.dumps(LORA).encode()})
    weights = adapter / "adapter_model.bin"
    with (
        zipfile.ZipFile(weights, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("adapter_model/data.pkl", "w", force_zip64=True) as entry,
    ):
        block = bytes(16 * MEGABYTE)
        for _ in range(16):
            entry.write(block)
    commands = [["inspect", str(adapter)], ["slim", str(adapter), "--dry-run"], ["restore", str(adapter), "--in-place"]]
    taken, codes = peak(["inspect", str(adapter)], cwd=tmp_path)
    limit = 400 * MEGABYTE  # torch, which is imported to open it
    assert codes == [3]
    assert taken < limit
    taken, codes = peak(*commands, ["check-merge", str(adapter), "--base", "nowhere"], cwd=tmp_path)
    assert codes == [3, 3, 3, 3]
    assert taken < limit


def test_little_memory_is_an_error_like_others(tmp_path: Path) -> None:
    """Wherever it runs out: one line, and nothing left over."""
    adapter = lay(tmp_path / "adapter", for_the_base()["with-projections"])
    script = "import sys; from adaptertool.cli import main; sys.exit(main())"
    seen = set()
    for megabytes in (60, 90, 120, 160, 200, 300, 500):

        def starve(limit: int = megabytes * MEGABYTE) -> None:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

        done = subprocess.run(
            [sys.executable, "-c", script, "slim", str(adapter), "-o", str(tmp_path / "out"), "--for-torch", "2.13"],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
            preexec_fn=starve,
            check=False,
            timeout=60,
        )
        seen.add(done.returncode)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]
        if done.returncode == 3:
            assert done.stderr.startswith("error: ")
            assert "Traceback" not in done.stderr
    assert 1 in seen  # with enough memory it is refused, as nothing draws these


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("fuzzed")
    return {name: lay(place / name, files) for name, files in {**for_the_base(), "base": {}}.items()}


def ends_well(folders: dict[str, Path]) -> None:
    base = str(folders["base"])
    for question in (
        lambda: check_merge(folders["biased"], base, ask_model=False),
        lambda: slim(folders["with-projections"], base=base, dry_run=True, for_torch="2.13"),
        lambda: restore(folders["stripped"], base=base, dry_run=True, for_torch="2.13"),
    ):
        error = refusal(question)
        assert error is None or "\n" not in error.message
        assert error is None or len(error.message) < 1000


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_any_index(folders: dict[str, Path], data: st.DataObject) -> None:
    base = folders["base"]
    shard = "model-00001-of-00001.safetensors"
    (base / "model.safetensors").unlink(missing_ok=True)
    (base / "config.json").write_text(json.dumps(BASE_CONFIG))
    (base / shard).write_bytes(base_weights())
    names = st.one_of(st.sampled_from(sorted(BASE_SHAPES)), st.text(max_size=6))
    files = st.one_of(st.just(shard), st.text(max_size=6).map(lambda text: text + ".safetensors"), JSON_VALUES)
    index: object = {"weight_map": data.draw(st.one_of(st.dictionaries(names, files, max_size=6), JSON_VALUES))}
    if data.draw(st.integers(0, 9)) == 0:
        index = data.draw(JSON_VALUES)
    text = json.dumps(index).encode("utf-8", "surrogatepass")
    if data.draw(st.integers(0, 4)) == 0:
        at = data.draw(st.integers(0, len(text) - 1))
        text = text[:at] + bytes([data.draw(st.integers(0, 255))]) + text[at + 1 :]
    (base / "model.safetensors.index.json").write_bytes(text)
    ends_well(folders)


KNOWN = st.sampled_from(
    [*BASE_CONFIG, "quantization_config", "text_config", "dtype", "torch_dtype", "tie_word_embeddings", "auto_map"]
)
QUANTIZATIONS = st.dictionaries(
    st.sampled_from(["quant_method", "modules_to_not_convert", "ignore", "exclude", "bits", "load_in_4bit"]),
    st.one_of(JSON_VALUES, st.sampled_from(["bitsandbytes", "gptq", "fp8", "mxfp4"])),
    max_size=3,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.dictionaries(st.one_of(KNOWN, st.text(max_size=6)), st.one_of(JSON_VALUES, QUANTIZATIONS), max_size=4),
    st.booleans(),
    QUANTIZATIONS,
)
def test_any_base_config(
    folders: dict[str, Path], fields: dict[str, object], quantized: bool, settings: dict[str, object]
) -> None:
    base = folders["base"]
    if quantized:
        fields["quantization_config"] = settings
    (base / "model.safetensors.index.json").unlink(missing_ok=True)
    (base / "model.safetensors").write_bytes(base_weights())
    (base / "config.json").write_text(json.dumps({**BASE_CONFIG, **fields}))
    ends_well(folders)


def as_text(question: Callable[[], dict[str, object]]) -> str:
    return json.dumps(question())


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.sampled_from(["RANDLORA", "LORA", "BEFT", "VERA", "SHIRA", "TINYLORA", "FROD", "UNILORA", "OFT", "LOHA"]),
    st.data(),
)
def test_any_adapter_config(tmp_path: Path, peft_type: str, data: st.DataObject) -> None:
    """Of every method whose config says more than its file."""
    keys = st.sampled_from([
        "r", "projection_prng_key", "save_projection", "sparse", "very_sparse", "target_modules", "bias", "use_dora",
        "fan_in_fan_out", "modules_to_save", "layers_to_transform", "rank_pattern", "random_seed", "proj_seed", "u",
        "save_indices", "layer_replication", "base_model_name_or_path", "revision", "task_type", "auto_mapping",
    ])  # fmt: skip
    config = {"peft_type": peft_type, **data.draw(st.dictionaries(keys, JSON_VALUES, max_size=4))}
    layer = "base_model.model.model.layers.0.self_attn.v_proj"
    stored = {
        f"{layer}.{name}": ("F32", [2, 2], bytes(16))
        for name in data.draw(st.sets(st.sampled_from([
            "lora_A.weight", "lora_B.weight", "randlora_A", "randlora_B", "randlora_gamma", "vera_A", "vera_lambda_b",
            "shira_indices", "shira_weight", "tinylora_P", "tinylora_v", "frod_V", "s_indices", "beft_bias",
            "unilora_indices", "unilora_scales", "oft_R.weight", "hada_w1_a",
        ]), min_size=1, max_size=5))
    }  # fmt: skip
    base = lay(
        tmp_path / "base", {"config.json": json.dumps(BASE_CONFIG).encode(), "model.safetensors": base_weights()}
    )
    adapter = lay(
        tmp_path / "adapter",
        {"adapter_config.json": json.dumps(config).encode(), "adapter_model.safetensors": tensors(stored)},
    )
    for question in (
        lambda: inspect(adapter, verify="full", for_torch="2.13").to_dict(),
        lambda: slim(adapter, dry_run=True, for_torch="2.13").to_dict(),
        lambda: restore(adapter, dry_run=True, base=str(base), for_torch="2.13").to_dict(),
        lambda: check_merge(adapter, base, ask_model=False).to_dict(),
    ):
        error = refusal(partial(as_text, question))
        assert error is None or "\n" not in error.message
