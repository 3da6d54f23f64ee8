"""Make `fixtures/base-llama`, `fixtures/randlora-llama`, `fixtures/beft-llama` and
`fixtures/lora-llama` again.

    python -m tests.tools.make_fixtures [DIR]

The other fixtures were written under torch and PEFT versions that no longer install beside today's; see `fixtures/README.md`.
Weights come from numpy's frozen legacy generator, so that every machine makes the same; the projections come from PEFT.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import BeftConfig, LoraConfig, PeftConfig, PeftModel, RandLoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

FIXTURES = Path(__file__).parents[2] / "fixtures"
BASE, RANDLORA, BEFT, LORA = "base-llama", "randlora-llama", "beft-llama", "lora-llama"
WEIGHTS = "adapter_model.safetensors"

RANK, HIDDEN = 16, 64
"""Powers of four: the bounds of the uniform draws are powers of two then, so that it makes no difference to the projections
whether a processor fuses multiply-add."""


def make_base(folder: Path) -> None:
    """A Llama with two layers and random weights in float32."""
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=HIDDEN,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    _fill(model.named_parameters(), np.random.RandomState(0), 0.1)
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def make_randlora(base: Path, folder: Path) -> None:
    """RandLoRA on the linear layers that read the hidden state and on o_proj, as if it had been trained."""
    config = RandLoraConfig(
        r=RANK,
        projection_prng_key=1,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"],
        task_type="CAUSAL_LM",
    )
    _save_adapter(base, folder, config, seed=1)


def make_beft(base: Path, folder: Path) -> None:
    """BEFT on the value projections, which have no bias in a Llama, as if it had been trained."""
    _save_adapter(base, folder, BeftConfig(target_modules=["v_proj"], task_type="CAUSAL_LM"), seed=2)


def make_lora(base: Path, folder: Path) -> None:
    """LoRA on the query projections, as if it had been trained."""
    _save_adapter(base, folder, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"), seed=3)


def _save_adapter(base: Path, folder: Path, config: PeftConfig, seed: int) -> None:
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = get_peft_model(model, config)
    assert isinstance(adapted, PeftModel)
    trained = [(name, one) for name, one in adapted.named_parameters() if one.requires_grad]
    _fill(trained, np.random.RandomState(seed), 0.05)
    adapted.peft_config["default"].base_model_name_or_path = BASE
    with tempfile.TemporaryDirectory() as place:
        adapted.save_pretrained(place)
        folder.mkdir(parents=True, exist_ok=True)
        saved = json.loads((Path(place) / "adapter_config.json").read_text())
        saved["target_modules"].sort()  # a set, which PEFT writes in the order of the process's hash seed
        (folder / "adapter_config.json").write_text(json.dumps(saved, indent=2, sort_keys=True))
        (folder / WEIGHTS).write_bytes((Path(place) / WEIGHTS).read_bytes())


def _fill(parameters: Iterable[tuple[str, torch.nn.Parameter]], state: np.random.RandomState, scale: float) -> None:
    with torch.no_grad():
        for name, parameter in sorted(parameters, key=lambda one: one[0]):
            values = state.standard_normal(parameter.shape) * scale
            parameter.copy_(torch.from_numpy(values + (1.0 if "norm" in name else 0.0)))


def main(where: Path = FIXTURES) -> None:
    """Make all of them."""
    make_base(where / BASE)
    make_randlora(where / BASE, where / RANDLORA)
    make_beft(where / BASE, where / BEFT)
    make_lora(where / BASE, where / LORA)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
