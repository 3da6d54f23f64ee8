"""AdaLoRA: LoRA with a diagonal between its factors, of which training prunes entries.

Source: `peft/tuners/adalora/`, read at 0.21.2. Its model is LoRA's with other layers; those for quantised weights have no
merge.
"""

from __future__ import annotations

from adaptertool.methods.merging import CONV, CONV1D, LINEAR, MergeRule, low_rank, made_of, not_into_mamba
from adaptertool.methods.plain import PlainMethod
from adaptertool.methods.replication import base_module, hazard

ADALORA = PlainMethod(
    "ADALORA",
    "lora_",
    "init_r",
    merge=MergeRule(
        made=made_of("lora_A", "lora_B", "lora_E"),
        lengths=(("lora_A", 0, "init_r"), ("lora_B", 1, "init_r")),
        kinds=LINEAR | CONV1D | CONV,
        hazard=hazard,
        base_module=base_module,
        any_saved_module=True,
        fits=low_rank("lora_B", "lora_A"),
        refuses=not_into_mamba,
    ),
)
