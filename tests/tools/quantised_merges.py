"""What PEFT's merge does on bases that bitsandbytes, torchao and HQQ quantised: every method, and LoRA's settings.

python -m tests.tools.quantised_merges FORMAT [METHOD …]

FORMAT is bnb8, bnb4, torchao or hqq, whose library has to be installed. A line a case: where PEFT raises, or how far the
logits of the merged model are off, in parts of what the adapter changes in them. 1 and more is a loss as large as the update.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import warnings
from typing import Any

import torch
from peft import get_peft_model
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from tests.methods.written import UNTARGETED, configured, logits, peft_types, shake

TARGETS = ["q_proj", "v_proj"]
BLOCKS = BdLoraConfig(target_modules_bd_a=["q_proj"], target_modules_bd_b=["v_proj"], nblocks=2)
LORA: list[dict[str, Any]] = [
    {"use_dora": True},
    {"lora_bias": True},
    {"use_bdlora": BLOCKS},
    {"kasa_config": KasaConfig()},
    {"monteclora_config": MontecloraConfig()},
    {"velora_config": VeloraConfig()},
    *(
        {"init_lora_weights": how}
        for how in ("pissa", "pissa_niter_2", "olora", "orthogonal", "mica", "eva", "lora_ga")
    ),
]


def quantised(form: str, plain: str) -> PreTrainedModel:
    """The base in that folder, in that format."""
    transformers: Any = importlib.import_module("transformers")
    settings: dict[str, Any] = {}
    if form == "bnb8":
        settings["quantization_config"] = transformers.BitsAndBytesConfig(load_in_8bit=True)
    elif form == "bnb4":
        settings["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        )
    elif form == "torchao":
        types = importlib.import_module("torchao.quantization")
        settings["quantization_config"] = transformers.TorchAoConfig(types.Int8WeightOnlyConfig())
    model: Any = transformers.Qwen2ForCausalLM.from_pretrained(plain, device_map="cpu", dtype=torch.float32, **settings)
    if form == "hqq":
        # transformers 5.23 loads no such base yet.
        hqq = importlib.import_module("hqq.core.quantize")
        how = hqq.BaseQuantizeConfig(nbits=8, group_size=64)
        for layer in model.model.layers:
            for name in TARGETS:
                old = getattr(layer.self_attn, name)
                new = hqq.HQQLinear(old, how, compute_dtype=torch.float32, device="cpu")
                setattr(layer.self_attn, name, new)
    result: PreTrainedModel = model.eval()
    return result


def case(form: str, plain: str, peft_type: str, arguments: dict[str, Any]) -> str:
    """What happens, in words."""
    bare = quantised(form, plain)
    before = logits(bare)
    step = "attaching"
    try:
        torch.manual_seed(1)
        model = get_peft_model(bare, configured(peft_type, "qwen2", target_modules=TARGETS, **arguments))
        shake(model)
        step = "running"
        adapted = logits(model.eval())
        step = "merging"
        merged = logits(model.merge_and_unload(safe_merge=True))
    except Exception as error:  # noqa: BLE001 - whatever it raises is the answer
        return f"raises at {step}: {type(error).__name__} {str(error)[:90]}"
    effect, off = (float((one - adapted).abs().max()) for one in (before, merged))
    return f"merges, {off / effect:.2f} off" if effect else "attaches to nothing"


def main() -> None:
    """Print the table that the command line asks for."""
    form, only = sys.argv[1], sys.argv[2:]
    torch.manual_seed(0)
    small = Qwen2Config(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        vocab_size=64,
    )
    types = [one for one in peft_types() if one not in {*UNTARGETED, "LILY", "LN_TUNING", "POLY"}]
    cases: list[tuple[str, dict[str, Any]]] = [
        (one, {"feedforward_modules": []} if one == "IA3" else {}) for one in types
    ]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Qwen2ForCausalLM(small).save_pretrained(folder)
        for peft_type, arguments in [*cases, *(("LORA", one) for one in LORA)]:
            if not only or peft_type in only:
                print(peft_type, arguments or "", case(form, folder, peft_type, arguments), flush=True)


if __name__ == "__main__":
    main()
