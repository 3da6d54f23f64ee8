"""What a model's code does with its embeddings beside looking them up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_SCALED = ("gemma", "t5gemma", "vaultgemma", "diffusion_gemma", "embedding_gemma", "minicpm3")


def scales_embeddings(config: Mapping[str, Any]) -> bool:
    """Whether the model's embedding module multiplies what it looks up by a factor.

    Source: the classes named `*ScaledWordEmbedding` in transformers 5.23. Gemma's always do, those of BART's family where
    `scale_embedding` is set.
    """
    text = config.get("text_config")
    parts = [config, text] if isinstance(text, dict) else [config]
    return any(part.get("scale_embedding") is True or str(part.get("model_type")).startswith(_SCALED) for part in parts)


_RUN_BY_TIES = ("switch_transformers", "udop", "umt5")


def runs_by_ties(model_type: str | None) -> bool:
    """Whether models of this type compute something else where their config ties embeddings.

    Source: the `forward` methods in transformers 5.23 that ask for `config.tie_word_embeddings`. T5 and LongT5 remember what
    the config said when it was loaded.
    """
    return model_type in _RUN_BY_TIES
