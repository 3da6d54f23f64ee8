"""A RandLoRA adapter of any size on the loopback Hub: what real PEFT writes for one layer of each kind, for many layers.

The basis is real and in memory once; the file that repeats it for every layer exists nowhere.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from tests.hub.server import Repeated

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def large_adapter(layers: int, hidden: int, intermediate: int, rank: int) -> tuple[dict[str, bytes | Repeated], int]:
    """The files of an adapter whose weights hold one copy of the basis for each of `2 * layers` layers, in bfloat16.

    Args:
        layers: Pairs of an up and a down projection.
        hidden: The smaller dimension of both.
        intermediate: The larger one.
        rank: Of RandLoRA.

    Returns:
        The files, and how many bytes of tensors are trained.
    """
    config, tensors = _one_pair(hidden, intermediate, rank)
    prefix = "base_model.model.0."
    names: dict[str, bytes] = {}
    for number in range(layers):
        for name, data in tensors.items():
            if name.startswith(prefix):
                names[f"base_model.model.model.layers.{number}.mlp.{name.removeprefix(prefix)}"] = data[2]
            elif not number:
                names[name] = data[2]
    kinds = {data[2]: data for data in tensors.values()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end, trained = 0, 0
    for name, content in sorted(names.items()):
        dtype, shape, _ = kinds[content]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(content)]}
        end += len(content)
        trained += 0 if name.endswith(("randlora_A", "randlora_B")) else len(content)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    parts = (len(text).to_bytes(8, "little") + text, *(content for _, content in sorted(names.items())))
    return {CONFIG: config, "README.md": b"# An adapter", WEIGHTS: Repeated(parts)}, trained


def _one_pair(hidden: int, intermediate: int, rank: int) -> tuple[bytes, dict[str, tuple[str, list[int], bytes]]]:
    """Config, and dtype, shape and bytes of each tensor, of an adapter on one up and one down projection."""
    import torch
    from peft import RandLoraConfig, get_peft_model
    from safetensors import safe_open

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up_proj = torch.nn.Linear(hidden, intermediate, bias=False, dtype=torch.bfloat16)
            self.down_proj = torch.nn.Linear(intermediate, hidden, bias=False, dtype=torch.bfloat16)

    torch.manual_seed(0)
    lora = RandLoraConfig(r=rank, target_modules=["up_proj", "down_proj"], projection_prng_key=3)
    model = get_peft_model(torch.nn.ModuleList([Layer()]), lora, autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        if "gamma" in name:  # PEFT fills them with one value, which would make all layers' the same bytes
            torch.nn.init.normal_(parameter)
    with tempfile.TemporaryDirectory() as place:
        model.save_pretrained(place)
        config = (Path(place) / CONFIG).read_bytes()
        tensors = {}
        one: dict[str, bytes] = {}
        with safe_open(str(Path(place) / WEIGHTS), "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                tensor = file.get_tensor(name)
                data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
                if name.endswith(("randlora_A", "randlora_B")):
                    data = one.setdefault(name.rpartition(".")[2], data)
                tensors[name] = ({torch.bfloat16: "BF16", torch.float32: "F32"}[tensor.dtype], list(tensor.shape), data)
    return config, tensors
