"""A base model of 70B parameters in 30 shards that takes no room: real headers, and holes for data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

if TYPE_CHECKING:
    from pathlib import Path

LAYERS, HIDDEN, INTERMEDIATE, KEY_VALUE, SHARDS, VOCABULARY = 80, 8192, 28672, 1024, 30, 128256


@dataclass(frozen=True)
class Shard:
    """A file: its beginning, and how long it is."""

    head: bytes
    size: int


def tensors(*, biases: bool) -> dict[str, list[int]]:
    """Names and shapes of a Llama of that size."""
    found = {"model.embed_tokens.weight": [VOCABULARY, HIDDEN], "lm_head.weight": [VOCABULARY, HIDDEN]}
    for layer in range(LAYERS):
        stem = f"model.layers.{layer}"
        for name, out in (("q", HIDDEN), ("k", KEY_VALUE), ("v", KEY_VALUE), ("o", HIDDEN)):
            found[f"{stem}.self_attn.{name}_proj.weight"] = [out, HIDDEN]
            if biases:
                found[f"{stem}.self_attn.{name}_proj.bias"] = [out]
        for name in ("gate", "up"):
            found[f"{stem}.mlp.{name}_proj.weight"] = [INTERMEDIATE, HIDDEN]
        found[f"{stem}.mlp.down_proj.weight"] = [HIDDEN, INTERMEDIATE]
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{stem}.{name}.weight"] = [HIDDEN]
    return found


def small_files(*, biases: bool, shards: dict[str, list[str]]) -> dict[str, bytes]:
    """Config and index."""
    index = {"metadata": {}, "weight_map": {name: shard for shard, names in shards.items() for name in names}}
    config = {"model_type": "llama", "num_hidden_layers": LAYERS, "attention_bias": biases, "dtype": "bfloat16"}
    return {
        "config.json": json.dumps(config).encode(),
        "model.safetensors.index.json": json.dumps(index, indent=2).encode(),
    }


def base_files(*, biases: bool) -> tuple[dict[str, bytes], dict[str, Shard]]:
    """The small files, and the shards."""
    shapes = tensors(biases=biases)
    names = list(shapes)
    members: dict[str, list[str]] = {}
    shards: dict[str, Shard] = {}
    for number in range(SHARDS):
        file = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        members[file] = names[number * len(names) // SHARDS : (number + 1) * len(names) // SHARDS]
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in members[file]:
            size = 2 * prod(shapes[name])
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header, separators=(",", ":")).encode()
        shards[file] = Shard(len(text).to_bytes(8, "little") + text, 8 + len(text) + end)
    return small_files(biases=biases, shards=members), shards


def write_base(folder: Path, *, biases: bool) -> None:
    """The base as sparse files."""
    folder.mkdir()
    small, shards = base_files(biases=biases)
    for name, content in small.items():
        (folder / name).write_bytes(content)
    for name, shard in shards.items():
        with (folder / name).open("wb") as stream:
            stream.write(shard.head)
            stream.truncate(shard.size)


def write_adapter(folder: Path, base: str, projection: str = "v", out_features: int = KEY_VALUE) -> None:
    """A BEFT adapter on one projection of each layer."""
    folder.mkdir()
    values = np.full((1, out_features), 0.5, np.float32)
    stem = "base_model.model.model.layers"
    names = [f"{stem}.{layer}.self_attn.{projection}_proj.beft_bias" for layer in range(LAYERS)]
    save_file(dict.fromkeys(names, values), folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "BEFT", "base_model_name_or_path": base, "target_modules": [f"{projection}_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
