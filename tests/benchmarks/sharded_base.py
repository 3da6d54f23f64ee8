"""How long check-merge takes on a base of 70B parameters in 30 shards, as sparse files.

python -m tests.benchmarks.sharded_base
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from adaptertool.operations.check_merge import check_merge

LAYERS, HIDDEN, INTERMEDIATE, KEY_VALUE, SHARDS, VOCABULARY = 80, 8192, 28672, 1024, 30, 128256


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


def write_base(folder: Path, *, biases: bool) -> None:
    """The base: real headers, holes for data."""
    folder.mkdir()
    shapes = tensors(biases=biases)
    names = list(shapes)
    weight_map = {}
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in names[shard * len(names) // SHARDS : (shard + 1) * len(names) // SHARDS]:
            size = 2 * int(np.prod(shapes[name]))
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [end, end + size]}
            end += size
            weight_map[name] = file
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            stream.truncate(8 + len(text) + end)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {"model_type": "llama", "attention_bias": biases, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))


def write_adapter(folder: Path, base: Path) -> None:
    """A BEFT adapter on the value projections."""
    folder.mkdir()
    values = np.full((1, KEY_VALUE), 0.5, np.float32)
    names = [f"base_model.model.model.layers.{layer}.self_attn.v_proj.beft_bias" for layer in range(LAYERS)]
    save_file(dict.fromkeys(names, values), folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "BEFT", "base_model_name_or_path": str(base), "target_modules": ["v_proj"]})
    )


def main() -> None:
    """Print what each kind of base takes."""
    with tempfile.TemporaryDirectory() as folder:
        for biases in (False, True):
            base, adapter = Path(folder) / f"base-{biases}", Path(folder) / f"adapter-{biases}"
            write_base(base, biases=biases)
            write_adapter(adapter, base)
            for attempt in ("first", "second"):
                began = time.perf_counter()
                report = check_merge(adapter)
                took = time.perf_counter() - began
                read = report.base.bytes_read if report.base else 0
                print(f"biases {biases}, {attempt}: {report.verdict}, {took * 1000:.0f} ms, {read / 1e3:.0f} kB read")


if __name__ == "__main__":
    main()
