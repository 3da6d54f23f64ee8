"""See for yourself what torch 2.12 changed for RandLoRA adapters.

    python -m tests.tools.torch_change

Needs torch, peft and transformers, and this clone. An adapter that PEFT saved under torch 2.11, together with the logits that
it gave there, is loaded by PEFT under the torch that is installed: as it was saved; without its projections, as PEFT saves it
with `save_projection=False`; and as `adaptertool restore` brings them back. Run it under torch 2.11 and under 2.12 or newer.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}

import peft
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import adaptertool

FIXTURES = Path(__file__).parents[2] / "fixtures"
ADAPTER = FIXTURES / "randlora-dense-fp32-torch2.11-peft0.18.1"
BASE = FIXTURES / "base-a"
WEIGHTS = "adapter_model.safetensors"

TOLERANCE = 1e-5
"""What processors differ by in multiplying matrices in float32, and a little more."""


def strip(adapter: Path, folder: Path) -> Path:
    """What PEFT writes with `save_projection=False`, made without this project's help: no projections, and the flag."""
    shutil.copytree(adapter, folder)
    with safe_open(adapter / WEIGHTS, "pt") as file:
        metadata = file.metadata()
        kept = {name: file.get_tensor(name) for name in file.keys() if not name.endswith(("randlora_A", "randlora_B"))}  # noqa: SIM118
    (folder / WEIGHTS).unlink()
    save_file(kept, folder / WEIGHTS, metadata=metadata)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"save_projection": False}))
    return folder


def logits(adapter: Path, input_ids: torch.Tensor) -> torch.Tensor:
    """What PEFT computes with an adapter here."""
    base = transformers.AutoModelForCausalLM.from_pretrained(BASE, torch_dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, str(adapter), autocast_adapter_dtype=False).eval()
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=input_ids).logits
    return result


def main() -> None:
    """Print how far the logits are from those of torch 2.11, three times."""
    warnings.simplefilter("ignore")
    there = load_file(ADAPTER / "expected.safetensors")
    print(f"torch {torch.__version__.partition('+')[0]}, PEFT {peft.__version__}")
    low, high = there["logits"].min(), there["logits"].max()
    print(f"Under torch 2.11, where it was saved, the adapter gave logits from {low:.2f} to {high:.2f}. Here it gives")
    with tempfile.TemporaryDirectory() as place:
        stripped = strip(ADAPTER, Path(place) / "stripped")
        restored = Path(place) / "restored"
        adaptertool.restore(stripped, for_torch="2.11", base=str(BASE), output=restored)
        for what, adapter in (
            ("as it was saved", ADAPTER),
            ("without projections, which PEFT draws again", stripped),
            ("restored by adaptertool", restored),
        ):
            apart = float((logits(adapter, there["input_ids"]) - there["logits"]).abs().max())
            print(f"  {what:<43}  the same" if apart < TOLERANCE else f"  {what:<43}  others, by up to {apart:.2f}")


if __name__ == "__main__":
    main()
