"""Hand-edited values, dtypes and config fields: where PEFT raises or breaks the model, nothing is called mergeable."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import adaptertool
from tests.methods.written import Written, logits, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.merge.conftest import Bases

RAISED = (IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError)


def works(written: Written) -> bool:
    """Whether PEFT loads and merges the adapter, and the merged model computes something."""
    try:
        merged = written.loaded(written.folder).merge_and_unload(safe_merge=True)
    except RAISED:
        return False
    finite = all(bool(torch.isfinite(tensor).all()) for tensor in merged.state_dict().values())
    return finite and bool(torch.isfinite(logits(merged)).all())


def reconfigure(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit(folder: Path, part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change the tensors of the first layer, or of all, whose names have that part."""
    path = folder / "adapter_model.safetensors"
    held = load_file(path)
    found = [name for name in held if part in name and ("layers." not in name or "layers.0." in name)]
    assert found
    save_file(held | {name: change(held[name]).contiguous() for name in found}, path, {"format": "pt"})


@pytest.mark.parametrize("alpha", [4, 0, -4, 0.0, float("inf"), float("nan")])
@pytest.mark.parametrize(
    ("peft_type", "fields"),
    [
        ("LORA", {"init_lora_weights": "pissa"}),
        ("LORA", {"init_lora_weights": "olora"}),
        ("LORA", {"init_lora_weights": True}),
        ("PSOFT", {"ab_svd_init": "psoft_init"}),
        ("PSOFT", {"ab_svd_init": "pissa_init"}),
    ],
    ids=str,
)
def test_what_is_divided_by_alpha(
    peft_type: str, fields: dict[str, Any], alpha: float, bases: Bases, tmp_path: Path
) -> None:
    """PiSSA divides singular values by the scale and takes their roots, in the base's own weight."""
    written = write(tmp_path, peft_type, **fields)
    reconfigure(tmp_path, **{"psoft_alpha" if peft_type == "PSOFT" else "lora_alpha": alpha})
    verdict = adaptertool.check_merge(tmp_path, bases("llama")).verdict
    assert verdict == "mergeable" if works(written) else verdict == "not-mergeable"


@pytest.mark.parametrize("dtype", ["int8", "int64", "bool", "uint16", "float8_e4m3fn", "float8_e5m2", "complex64"])
@pytest.mark.parametrize("factor", [1, 100])
@pytest.mark.parametrize(
    ("peft_type", "part"), [("HRA", "hra_u"), ("LORA", "lora_B"), ("VERA", "vera_A"), ("MISS", "miss_block")]
)
def test_dtypes_of_other_kinds(
    peft_type: str, part: str, factor: int, dtype: str, bases: Bases, tmp_path: Path
) -> None:
    """PEFT makes floats of all of them; what that rounds to zero it divides by."""
    written = write(tmp_path, peft_type)
    edit(tmp_path, part, lambda tensor: (tensor * factor).abs().to(getattr(torch, dtype)))
    verdict = adaptertool.check_merge(tmp_path, bases("llama")).verdict
    if dtype == "complex64":
        assert verdict == "unknown"
    else:
        assert verdict == ("mergeable" if works(written) else "not-mergeable")


@pytest.mark.parametrize(
    ("peft_type", "part", "fields"),
    [
        ("SHIRA", "shira_indices", {}),
        ("SUPERTUNING", "supertuning_indices", {}),
        ("UNILORA", "unilora_indices_A", {}),
        ("VBLORA", "topk_indices", {"save_only_topk_weights": True}),
        ("FROD", "frod_s_indices", {}),
        ("FROD", "frod_s_size", {}),
    ],
)
@pytest.mark.parametrize("place", [10000, -1])
def test_places_that_there_are_not(
    peft_type: str, part: str, fields: dict[str, Any], place: int, bases: Bases, tmp_path: Path
) -> None:
    """SHiRA's end the process at some of them, so that PEFT is not asked here."""
    write(tmp_path, peft_type, **fields)
    assert adaptertool.check_merge(tmp_path, bases("llama")).verdict == "mergeable"

    def changed(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.to(torch.int64)
        tensor.view(-1)[0] = place
        return tensor

    edit(tmp_path, part, changed)
    assert adaptertool.check_merge(tmp_path, bases("llama")).verdict == "unknown"


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32, torch.int16])
def test_places_of_any_width(dtype: torch.dtype, bases: Bases, tmp_path: Path) -> None:
    """On Windows PEFT writes SHiRA's as float32."""
    written = write(tmp_path, "SHIRA")
    edit(tmp_path, "shira_indices", lambda tensor: tensor.to(dtype))
    assert works(written)
    assert adaptertool.check_merge(tmp_path, bases("llama")).verdict == "mergeable"


@pytest.mark.parametrize("value", [-1e38, 1e30, 1e3])
@pytest.mark.parametrize(
    ("peft_type", "part", "fields"),
    [
        ("LORA", "lora_B", {}),
        ("LORA", "lora_magnitude_vector", {"use_dora": True}),
        ("LORA", "lm_head", {"modules_to_save": ["lm_head"]}),
        ("LN_TUNING", "ln_tuning", {}),
        ("BEFT", "beft_bias", {}),
        ("TRAINABLE_TOKENS", "trainable_tokens_delta", {"token_indices": [1, 2]}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_that_no_training_makes(
    peft_type: str, part: str, fields: dict[str, Any], value: float, dtype: torch.dtype, bases: Bases, tmp_path: Path
) -> None:
    """The merged weights are finite, and what the model computes with them is not."""
    written = write(tmp_path, peft_type, "opt", dtype=dtype, **fields)
    edit(tmp_path, part, lambda tensor: torch.full_like(tensor, value, dtype=torch.float32))
    verdict = adaptertool.check_merge(tmp_path, bases("opt", dtype)).verdict
    assert works(written) or verdict != "mergeable"
    assert verdict in (("mergeable", "lossy") if value == 1e3 else ("unknown", "not-mergeable"))


@pytest.mark.parametrize(
    ("peft_type", "fields"),
    [
        ("PVERA", {"projection_prng_key": 0.5}),
        ("FROD", {"projection_prng_key": 1e30}),
        ("VERA", {"d_initial": -(2**64)}),
        ("RANDLORA", {"projection_prng_key": "0"}),
        ("WAVEFT", {"random_loc_seed": 2.0}),
        ("ROAD", {"variant": {"q_proj": "x"}}),
        ("IA3", {"feedforward_modules": 3}),
        ("LORA", {"kasa_config": {}, "use_dora": True}),
        ("LORA", {"monteclora_config": {"q_proj": "x"}}),
        ("LORA", {"monteclora_config": {"buffer_size": 0}}),
        ("LORA", {"velora_config": {"scale": -1}}),
        ("LORA", {"velora_config": {"init_type": "x"}}),
        ("ADALORA", {"rank_pattern": {"q_proj": "x"}}),
        ("LOHA", {"alpha_pattern": {"q_proj": "x"}}),
        ("TRAINABLE_TOKENS", {"task_type": "TOKEN_CLS"}),
        ("TRAINABLE_TOKENS", {"task_type": "QUESTION_ANS"}),
        ("ADALORA", {"monteclora_config": {"q_proj": "x"}}),
    ],
)
def test_fields_for_which_peft_raises(peft_type: str, fields: dict[str, Any], bases: Bases, tmp_path: Path) -> None:
    written = write(tmp_path, peft_type)
    reconfigure(tmp_path, **fields)
    assert not works(written)
    try:
        verdict = adaptertool.check_merge(tmp_path, bases("llama")).verdict
    except adaptertool.AdapterToolError:
        verdict = "unknown"
    assert verdict in ("unknown", "not-mergeable")


@pytest.mark.parametrize("value", [100.0, 0.0])
def test_columns_that_are_made_orthogonal(value: float, bases: Bases, tmp_path: Path) -> None:
    """Of columns that are alike nothing is left to divide by its length."""
    written = write(tmp_path, "HRA", apply_GS=True)
    assert works(written)
    assert adaptertool.check_merge(tmp_path, bases("llama")).verdict == "mergeable"
    edit(tmp_path, "hra_u", lambda tensor: torch.full_like(tensor, value))
    assert not works(written)
    assert adaptertool.check_merge(tmp_path, bases("llama")).verdict in ("unknown", "not-mergeable")


def test_a_seed_of_64_bits(bases: Bases, tmp_path: Path) -> None:
    written = write(tmp_path, "RANDLORA", projection_prng_key=-(2**63))
    assert works(written)
    assert adaptertool.check_merge(tmp_path, bases("llama")).verdict == "mergeable"


def test_rows_of_tokens_that_are_loaded_before_others(bases: Bases, tmp_path: Path) -> None:
    """PEFT writes those of a tied embedding twice, and loads both."""
    written = write(tmp_path, "TRAINABLE_TOKENS", "opt")
    edit(tmp_path, "embed_tokens.trainable_tokens_delta", lambda tensor: tensor[:1])
    assert not works(written)
    assert adaptertool.check_merge(tmp_path, bases("opt")).verdict == "not-mergeable"
