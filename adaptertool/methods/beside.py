"""What PEFT saves beside any method's own tensors: biases, whole modules, embeddings, single tokens that were trained."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from adaptertool.methods.base import EMBEDDINGS, HEADS, Role

if TYPE_CHECKING:
    from collections.abc import Iterable

    from adaptertool.checkpoint.config import AdapterConfig
    from adaptertool.checkpoint.header import TensorInfo

_TRAINED_TOKENS = re.compile(r"(.*\.)?trainable_tokens_delta")
_EMBEDDING = re.compile(rf"(^|\.)({'|'.join(EMBEDDINGS + HEADS)})\.(weight|bias)$")
_FROZEN_BASE = re.compile(r".*\.base_layer\.weight")


def general_role(name: str, config: AdapterConfig) -> Role:
    """What a tensor is that belongs to no method in particular: PEFT saves biases, whole modules and embeddings beside."""
    # Every method can train single tokens beside (`trainable_token_indices`).
    if _TRAINED_TOKENS.fullmatch(name):
        return "trainable"
    if is_saved_module(name, config):
        return "saved-module"
    if name.endswith(".bias") and config.fields.get("bias") not in (None, "none"):
        return "bias"
    # PEFT saves embeddings whole where they were resized (`save_embedding_layers`).
    if _EMBEDDING.search(name) and not _FROZEN_BASE.fullmatch(name):
        return "saved-module"
    return "other"


def is_saved_module(name: str, config: AdapterConfig) -> bool:
    """Whether a tensor belongs to one of the config's `modules_to_save`, which are trained and saved whole.

    Source: `peft/utils/other.py`, `_set_trainable`, read at 0.21.2: a module is one of them if its name ends with an entry.
    """
    modules = config.fields.get("modules_to_save")
    if not isinstance(modules, list):
        return False
    parts = name.split(".")
    paths = [".".join(parts[:end]) for end in range(1, len(parts))]
    return any(isinstance(module, str) and module and path.endswith(module) for module in modules for path in paths)


def general_trained(tensor: TensorInfo, role: Role, config: AdapterConfig) -> int:
    """How many numbers of a tensor were trained; see `Method.trained`.

    An embedding that PEFT saves because it was resized is not in `modules_to_save`, and PEFT did not train it.
    """
    if _is_view_of_tokens(tensor.name, config):
        return 0
    # Of a saved module PEFT can save its own view as well, with the module that it stands for (`save_embedding_layers`).
    again = any(part in ("original_module", "modules_to_save") for part in tensor.name.split("."))
    return tensor.numel if role != "saved-module" or (is_saved_module(tensor.name, config) and not again) else 0


def _is_view_of_tokens(name: str, config: AdapterConfig) -> bool:
    """Whether a `trainable_tokens_delta` is another layer's, which the base ties to this one.

    Source: `peft/utils/other.py`, `set_additional_trainable_modules`, read at 0.21.2: `trainable_token_indices` names layers,
    or by a list the input embedding, and an output layer that is tied to that gets a view.
    """
    module, adapter, _ = name.rpartition(".token_adapter.trainable_tokens_delta")
    indices = config.fields.get("trainable_token_indices")
    if not adapter:
        return False
    if isinstance(indices, dict):
        return not any(module == layer or module.endswith(f".{layer}") for layer in indices)
    return module.rpartition(".")[2] in HEADS


def copies_of_the_base(names: Iterable[str], config: AdapterConfig) -> tuple[str, ...]:
    """The tensors of a file that hold what the base model holds, and that nothing trained: embeddings, and their heads.

    Source: `peft/utils/save_and_load.py`, `get_peft_model_state_dict`, read at 0.21.2: where an embedding layer is among the
    targets, where the vocabulary was resized, and where it is asked to, PEFT saves the base's own weight with the adapter.
    """
    # With its weights tied to a module that is saved whole, a head is trained although the config does not name it.
    tied = bool(config.fields.get("modules_to_save")) and config.fields.get("ensure_weight_tying") is True
    return tuple(
        name
        for name in names
        if _FROZEN_BASE.fullmatch(name)
        or (
            (_EMBEDDING.search(name) and not tied and not is_saved_module(name, config))
            and not name.endswith(".trainable_tokens_delta")
        )
    )
