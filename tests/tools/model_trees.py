"""The module trees of real transformers models, built on the meta device: no weights, no downloads."""

from __future__ import annotations

import copy
import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.auto import modeling_auto
from transformers.pytorch_utils import Conv1D

from adaptertool.merge.base.paths import pattern_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from transformers import PreTrainedConfig, PreTrainedModel

MAPPINGS = (
    "MODEL_MAPPING_NAMES",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "MODEL_FOR_PRETRAINING_MAPPING_NAMES",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "MODEL_FOR_CTC_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
)
"""The auto classes whose models people attach adapters to."""

BUILD_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
"""What a model's constructor raises for a default config that it can't be built from, or for a package that is missing."""


def _on_resnet(*stages: str) -> dict[str, Any]:
    """What builds a detector without timm, whose backbones it has by default."""
    backbone = {"model_type": "resnet", "out_features": list(stages)}
    return {
        "use_timm_backbone": False,
        "backbone": None,
        "use_pretrained_backbone": False,
        "backbone_config": backbone,
    }


_AYA_VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "num_attention_heads": 16,
    "vision_use_head": False,
}

_OPEN_FIELDS: dict[str, dict[str, Any]] = {
    "autoformer": {"prediction_length": 8},
    "aya_vision": {"vision_config": _AYA_VISION},
    "chameleon": {"vocabulary_map": {"<image>": 4}},
    "conditional_detr": _on_resnet("stage4"),
    "dab-detr": _on_resnet("stage4"),
    "dbrx": {"attn_config": {"rope_theta": 10000.0}},
    "deformable_detr": _on_resnet("stage2", "stage3", "stage4"),
    "detr": _on_resnet("stage4"),
    "table-transformer": _on_resnet("stage4"),
    "dots1": {
        "vocab_size": 1000,
        "n_routed_experts": 8,
        "num_experts_per_tok": 6,
        "n_shared_experts": 2,
        "moe_intermediate_size": 64,
        "first_k_dense_replace": 1,
    },
    "esm": {"vocab_size": 33, "pad_token_id": 1},
    "granite4_vision": {"deepstack_layer_map": [[-1, 0]], "downsample_rate": "1/2"},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "hunyuan_vl": {"text_config": {"head_dim": 128}},
    "hunyuan_vl_text": {"head_dim": 128},
    "informer": {"prediction_length": 8},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "ministral": {"head_dim": 128},
    "moonshine_streaming": {"num_key_value_heads": 8},
    "nemotron": {"num_key_value_heads": 48, "head_dim": 128},
    "time_series_transformer": {"prediction_length": 8},
}

_LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "depth")


@dataclass(frozen=True)
class Layer:
    """One layer of a model that an adapter can be attached to.

    Attributes:
        kind: `linear`, `conv1d`, `embedding`, `conv`, `experts`, or `unknown` for another module with a matrix as its weight.
        bias: Whether it has a bias.
        shape: Of its weight; None for experts.
    """

    kind: str
    bias: bool
    shape: tuple[int, ...] | None


def quiet() -> None:
    """Keep transformers' remarks about default configs off the screen."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity(logging.ERROR)


def model_types() -> list[str]:
    """Every model type of the installed transformers."""
    return sorted(CONFIG_MAPPING.keys())


def classes_of(model_type: str) -> list[type[PreTrainedModel]]:
    """The model classes of a type that people attach adapters to, each once."""
    return _classes_in(MAPPINGS, model_type)


def every_class_of(model_type: str) -> list[type[PreTrainedModel]]:
    """The model classes of a type for whatever task, the usual ones first."""
    rest = (name for name in dir(modeling_auto) if name.endswith("_MAPPING_NAMES") and not name.startswith("CONFIG"))
    return _classes_in((*MAPPINGS, *rest), model_type)


def _classes_in(mappings: Iterable[str], model_type: str) -> list[type[PreTrainedModel]]:
    names: list[str] = []
    for mapping in mappings:
        value = getattr(modeling_auto, mapping).get(model_type)
        names.extend([value] if isinstance(value, str) else value or ())
    return [found for name in dict.fromkeys(names) if (found := getattr(transformers, name, None)) is not None]


def build(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """The model on the meta device. As in the auto classes, a text model takes the text part of a multimodal config."""
    text = config.sub_configs.get("text_config")
    if text is not None and model_class.config_class is text:
        config = config.get_text_config()
    with torch.device("meta"):
        return model_class(copy.deepcopy(config))


def layers_of(model: torch.nn.Module) -> dict[str, Layer]:
    """The layers of a model by module path."""
    layers: dict[str, Layer] = {}
    for path, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, Conv1D, torch.nn.Embedding)):
            kind = {torch.nn.Linear: "linear", Conv1D: "conv1d"}.get(type(module))
            if kind is None:
                kind = "embedding" if isinstance(module, torch.nn.Embedding) else "linear"
            layers[path] = Layer(kind, getattr(module, "bias", None) is not None, tuple(module.weight.shape))
        elif isinstance(module, (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)):
            layers[path] = Layer("conv", module.bias is not None, tuple(module.weight.shape))
        elif path.endswith("experts") and any(
            parameter.ndim == 3 for _, parameter in module.named_parameters(recurse=False)
        ):
            layers[path] = Layer("experts", bias=False, shape=None)
        elif isinstance(weight := getattr(module, "weight", None), torch.nn.Parameter) and weight.ndim == 2:
            # A router that is no nn.Linear, for one: PEFT attaches to none of these.
            layers[path] = Layer("unknown", getattr(module, "bias", None) is not None, tuple(weight.shape))
    return layers


def patterns_of(layers: dict[str, Layer]) -> dict[str, tuple[str, bool | None]]:
    """Kind and bias of each pattern; the bias is None where layers of one pattern differ."""
    patterns: dict[str, tuple[str, bool | None]] = {}
    for path, layer in layers.items():
        pattern = pattern_of(path)
        known = patterns.get(pattern)
        agree = known is None or known[1] == layer.bias
        patterns[pattern] = (layer.kind, layer.bias if agree else None)
    return patterns


def sub_configs(config: PreTrainedConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The config and the configs in it, each with its dotted path (with a dot at the end, or empty)."""
    yield prefix, config
    for name in config.sub_configs:
        inner = getattr(config, name, None)
        if inner is not None and hasattr(inner, "sub_configs"):
            yield from sub_configs(inner, f"{prefix}{name}.")


def stored_names(model: PreTrainedModel) -> list[str]:
    """The names under which `save_pretrained` stores a model's tensors: transformers 5 turns its renaming back."""
    state = model.state_dict()
    tied = set(model.all_tied_weights_keys) if hasattr(model, "all_tied_weights_keys") else set()
    native = {name: tensor for name, tensor in state.items() if name not in tied}
    try:
        return list(revert_weight_conversion(model, native))
    except BUILD_ERRORS:
        return list(native)


def parts_of(model: PreTrainedModel) -> dict[str, tuple[str, set[str]]]:
    """The model types of the sub-configs, by dotted path, and the module paths at which models of them stand."""
    owners = {id(part): path.rstrip(".") for path, part in sub_configs(model.config) if path}
    types = {path.rstrip("."): part.model_type for path, part in sub_configs(model.config) if path}
    parts: dict[str, tuple[str, set[str]]] = {}
    for path, module in model.named_modules():
        owner = owners.get(id(getattr(module, "config", None)))
        if path and owner is not None and isinstance(module, transformers.PreTrainedModel):
            parts.setdefault(owner, (types[owner], set()))[1].add(path)
    return parts


def default_config(model_type: str) -> PreTrainedConfig:
    """The config that a model type has by default, with what the default leaves open."""
    return CONFIG_MAPPING[model_type](**_OPEN_FIELDS.get(model_type, {}))


def shrunk(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config with at most four layers of each stack, where that is written in the usual fields."""
    small = copy.deepcopy(config)
    for _, part in sub_configs(small):
        for name in _LAYER_COUNTS:
            count = part.to_dict().get(name)
            if type(count) is int and count > 4:
                setattr(part, name, 4)
                if isinstance(getattr(part, "layer_types", None), list):
                    part.layer_types = part.layer_types[:4]
    return small
