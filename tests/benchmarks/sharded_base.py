"""check-merge on a base of 70B parameters in 30 shards, beside building that model with transformers on the meta device.

The shards are sparse files: real headers, holes for data. A base with biases can be merged into, one without cannot.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.benchmarks.measure import Row, compared, python

WRITE = """
import sys
from pathlib import Path
from tests.large_base import write_adapter, write_base
base, adapter, biases = sys.argv[1:]
write_base(Path(base), biases=biases == "True")
write_adapter(Path(adapter), base)
"""

# What it answers is in its exit code: 1 where the merge would fail.
ANSWERED = """
import sys
from adaptertool.cli import main
sys.exit(main(["check-merge", sys.argv[1]]) != int(sys.argv[2]))
"""

BUILT = """
import sys, torch
from transformers import AutoConfig, AutoModelForCausalLM
with torch.device("meta"):
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(sys.argv[1]))
has_bias = model.get_submodule("model.layers.79.self_attn.v_proj").bias is not None
sys.exit(has_bias != (sys.argv[2] == "0"))
"""

SIZES = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
"""What building the model needs to know beside what check-merge does."""


def measured(place: Path) -> list[Row]:
    """The rows of this benchmark."""
    rows = []
    for biases in (False, True):
        base, adapter = place / f"base-{biases}", place / f"adapter-{biases}"
        subprocess.run(python("-c", WRITE, str(base), str(adapter), str(biases)), check=True)
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(SIZES | config))
        due = "0" if biases else "1"
        ours, built = python("-c", ANSWERED, str(adapter), due), python("-c", BUILT, str(base), due)
        rows += compared(
            f"check-merge, {'biases' if biases else 'no biases'}", ours, "transformers, meta", built, count=3
        )
    return rows
