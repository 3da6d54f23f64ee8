"""Prompt learning: tokens, or keys and values, that are put before the input and trained."""

from __future__ import annotations

from adaptertool.methods.merging import no_merge
from adaptertool.methods.plain import PlainMethod

_TENSOR = "prompt_embeddings"
_NO_MERGE = no_merge("it learns tokens that are put before the input, and there is no weight to merge them into")

CPT = PlainMethod("CPT", _TENSOR, merge=_NO_MERGE)
MULTITASK_PROMPT_TUNING = PlainMethod(
    "MULTITASK_PROMPT_TUNING", (_TENSOR, "prefix_task_cols", "prefix_task_rows"), "num_ranks", merge=_NO_MERGE
)
PREFIX_TUNING = PlainMethod(
    "PREFIX_TUNING",
    _TENSOR,
    merge=no_merge("it learns keys and values that are put before the input's, and there is no weight for them"),
)
PROMPT_TUNING = PlainMethod("PROMPT_TUNING", _TENSOR, merge=_NO_MERGE)
P_TUNING = PlainMethod("P_TUNING", _TENSOR, merge=_NO_MERGE)
