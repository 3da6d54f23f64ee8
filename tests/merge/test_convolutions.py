"""Methods that attach to a convolution: the verdict is what PEFT's merge does there."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

import adaptertool
from tests.merge.models import RECIPES, load_base
from tests.methods.written import ARGUMENTS, shake

if TYPE_CHECKING:
    from collections.abc import Callable

CASES: list[tuple[str, dict[str, Any], str]] = [
    ("LORA", {"r": 2}, "mergeable"),
    ("LORA", {"r": 2, "use_dora": True}, "mergeable"),
    ("LOHA", {"r": 4}, "mergeable"),
    ("LOKR", {"r": 4, "use_effective_conv2d": True}, "mergeable"),
    ("HRA", {"r": 2}, "mergeable"),
    ("BOFT", {}, "mergeable"),
    ("IA3", {"feedforward_modules": []}, "mergeable"),
    ("OFT", {}, "lossy"),
    ("OFT", {"block_share": True}, "lossy"),
]


def outputs(model: torch.nn.Module) -> torch.Tensor:
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        result: torch.Tensor = model.eval()(pixel_values=pixels).logits
    return result


@pytest.mark.parametrize(("peft_type", "arguments", "verdict"), CASES, ids=str)
def test_convolutions(
    peft_type: str, arguments: dict[str, Any], verdict: str, tmp_path: Path, base_of: Callable[[str], Path]
) -> None:
    recipe, folder = RECIPES["vit"], base_of("vit")
    config: Any = PEFT_TYPE_TO_CONFIG_MAPPING[peft_type]  # type: ignore[index]
    chosen = config(target_modules=["projection", "v_proj"], **{**ARGUMENTS.get(peft_type, {}), **arguments})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(load_base(recipe, folder), chosen)
        shake(model)
        model.save_pretrained(str(tmp_path))
        trained, plain = outputs(model), outputs(load_base(recipe, folder))
        loaded = PeftModel.from_pretrained(load_base(recipe, folder), str(tmp_path))
        merged = outputs(loaded.merge_and_unload(safe_merge=True))
    off, effect = float((merged - trained).abs().max()), float((trained - plain).abs().max())
    assert effect > 1e-5, "an adapter that changes nothing proves nothing"
    assert ("mergeable" if off <= 1e-2 * effect else "lossy") == verdict
    report = adaptertool.check_merge(tmp_path, folder)
    assert report.verdict == verdict
    assert [one.code for one in report.findings] == (["ADP209"] if verdict == "lossy" else [])
