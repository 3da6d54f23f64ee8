"""Every tensor of an adapter is held against the names that the model has: what PEFT would leave out is never passed over."""

from __future__ import annotations

import json
import shutil
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from adaptertool.errors import CorruptError
from adaptertool.operations.check_merge import check_merge
from tests.merge.models import RECIPES, SMALL, load_base, save_adapter, save_base

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from peft import PeftConfig

CONFIGS: dict[str, PeftConfig] = {
    "lora": LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj", "up_proj"], r=2, init_lora_weights=False),
    "ia3": IA3Config(task_type="SEQ_CLS", target_modules=["q_proj", "up_proj"], feedforward_modules=["up_proj"]),
}
PREFIX = "base_model.model."
FIELDS: dict[str, Any] = SMALL


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    model: Any = transformers.LlamaForSequenceClassification
    model(transformers.LlamaConfig(**FIELDS)).save_pretrained(folder)
    return folder


def trained(base: Path, folder: Path, config: PeftConfig) -> Path:
    model = get_peft_model(transformers.LlamaForSequenceClassification.from_pretrained(base), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    model.save_pretrained(str(folder))
    return folder


def renamed(folder: Path, rename: Callable[[str], str], **fields: Any) -> Path:
    """The same adapter with other names for its tensors, and other fields in its config."""
    path = folder / "adapter_model.safetensors"
    save_file({rename(name): tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return folder


def is_loaded(base: Path, adapter: Path) -> bool:
    """Whether PEFT loads all that the file holds into the model, and raises nothing."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            loaded = PeftModel.from_pretrained(model, adapter).state_dict().values()
        except (AttributeError, KeyError, RuntimeError):
            return False
    held = load_file(adapter / "adapter_model.safetensors").values()
    return all(any(one.shape == tensor.shape and torch.equal(one, tensor) for one in loaded) for tensor in held)


RENAMES: dict[str, Callable[[str], str]] = {
    "a saved module within another": lambda name: name.replace(f"{PREFIX}score", f"{PREFIX}model.score"),
    "a saved module of another class": lambda name: name.replace(f"{PREFIX}score", f"{PREFIX}classifier"),
    "a doubled prefix": lambda name: name.replace(".model.layers.1.", ".model.model.layers.1."),
    "a lacking prefix": lambda name: name.replace("model.layers.1.", "layers.1."),
    "no prefix": lambda name: name.replace(f"{PREFIX}model.", PREFIX),
    "another prefix": lambda name: name.replace(f"{PREFIX}model.", f"{PREFIX}transformer."),
    "capitals": lambda name: name.replace(".q_proj.", ".Q_proj."),
    "a layer number with a zero": lambda name: name.replace(".layers.1.", ".layers.01."),
    "a layer that is not there": lambda name: name.replace(".layers.1.", ".layers.7."),
}


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("case", RENAMES)
def test_names_that_the_model_lacks(case: str, method: str, classifier: Path, tmp_path: Path) -> None:
    adapter = trained(classifier, tmp_path / "adapter", CONFIGS[method])
    assert is_loaded(classifier, adapter)
    renamed(adapter, RENAMES[case])
    assert not is_loaded(classifier, adapter)
    assert check_merge(adapter, classifier).verdict in ("unknown", "not-mergeable")
    assert check_merge(adapter, classifier, ask_model=False).verdict in ("unknown", "not-mergeable")


@pytest.mark.parametrize("method", CONFIGS)
def test_what_peft_writes_is_settled_by_headers(method: str, classifier: Path, tmp_path: Path) -> None:
    adapter = trained(classifier, tmp_path / "adapter", CONFIGS[method])
    report = check_merge(adapter, classifier)
    assert (report.verdict, report.findings) == ("mergeable", ())
    assert report.base is not None
    assert report.base.source == "headers"


def test_tensors_that_belong_to_nothing_are_told(classifier: Path, tmp_path: Path) -> None:
    adapter = trained(classifier, tmp_path / "adapter", CONFIGS["lora"])
    path = adapter / "adapter_model.safetensors"
    save_file({**load_file(path), "nothing": torch.ones(1)}, path, {"format": "pt"})
    (finding,) = check_merge(adapter, classifier).findings
    assert (finding.code, finding.tensors) == ("ADP210", ("nothing",))


def test_a_saved_bias_of_another_shape_than_its_weight(tmp_path: Path) -> None:
    config = transformers.Qwen2Config(**FIELDS)
    transformers.Qwen2Model(config).save_pretrained(tmp_path / "base")
    base = transformers.Qwen2ForTokenClassification.from_pretrained(tmp_path / "base")
    get_peft_model(base, LoraConfig(task_type="TOKEN_CLS", target_modules=["q_proj"])).save_pretrained(
        str(tmp_path / "a")
    )
    assert check_merge(tmp_path / "a", tmp_path / "base").verdict == "mergeable"
    path = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[f"{PREFIX}score.bias"] = tensors[f"{PREFIX}score.bias"].reshape(1, -1)
    save_file(tensors, path, {"format": "pt"})
    base = transformers.Qwen2ForTokenClassification.from_pretrained(tmp_path / "base")
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(base, tmp_path / "a")
    report = check_merge(tmp_path / "a", tmp_path / "base")
    assert [finding.code for finding in report.findings] == ["ADP203"]


def test_a_task_that_the_class_is_not_for(classifier: Path, tmp_path: Path) -> None:
    adapter = trained(classifier, tmp_path / "adapter", CONFIGS["lora"])
    renamed(adapter, lambda name: name, task_type="CAUSAL_LM", modules_to_save=["score"])
    model = transformers.AutoModelForSequenceClassification.from_pretrained(classifier)
    with pytest.raises(AttributeError, match="prepare_inputs_for_generation"):
        PeftModel.from_pretrained(model, adapter)
    assert check_merge(adapter, classifier).verdict == "unknown"


def test_heads_that_a_task_adds(classifier: Path, tmp_path: Path) -> None:
    """PEFT adds them to `modules_to_save`, whatever that says."""
    config = LoraConfig(target_modules=["q_proj"], r=2)
    adapter = trained(classifier, tmp_path / "adapter", config)
    assert check_merge(adapter, classifier).verdict == "mergeable"
    renamed(adapter, lambda name: name, task_type="SEQ_CLS")
    with pytest.raises(KeyError, match=r"score\.weight"):
        PeftModel.from_pretrained(transformers.LlamaForSequenceClassification.from_pretrained(classifier), adapter)
    assert check_merge(adapter, classifier).verdict == "not-mergeable"


@pytest.mark.parametrize(("task", "error"), [("SEQ_CLS", KeyError), ("TOKEN_CLS", TypeError)])
def test_heads_that_a_task_adds_and_the_method_adapts(
    task: str, error: type[Exception], classifier: Path, tmp_path: Path
) -> None:
    config = LoraConfig(target_modules=["q_proj", "score"], r=2)
    adapter = trained(classifier, tmp_path / "adapter", config)
    assert check_merge(adapter, classifier).verdict == "mergeable"
    renamed(adapter, lambda name: name, task_type=task)
    with pytest.raises(error, match=r"score|modules_to_save"):
        PeftModel.from_pretrained(transformers.LlamaForSequenceClassification.from_pretrained(classifier), adapter)
    assert check_merge(adapter, classifier).verdict == "not-mergeable"


def test_more_labels_in_the_config_than_in_the_file(classifier: Path, tmp_path: Path) -> None:
    adapter = trained(classifier, tmp_path / "adapter", CONFIGS["lora"])
    base = with_config(classifier, tmp_path / "base", num_labels=3)
    with pytest.raises(RuntimeError, match="mismatched"):
        transformers.AutoModelForSequenceClassification.from_pretrained(base)
    assert check_merge(adapter, base).verdict == "not-mergeable"


def with_config(base: Path, folder: Path, **fields: Any) -> Path:
    shutil.copytree(base, folder)
    config = {**json.loads((folder / "config.json").read_text()), **fields}
    (folder / "config.json").write_text(json.dumps({name: one for name, one in config.items() if one is not None}))
    return folder


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("dtype", ["torch.float16", "auto", "int8", "bogus", "float8_e4m3fn", 16, True])
def test_dtypes_that_transformers_loads_no_model_in(dtype: Any, name: str, tmp_path: Path) -> None:
    recipe = RECIPES["qwen2"]
    save_base(recipe, tmp_path / "base")
    adapter = save_adapter(recipe, tmp_path / "base", tmp_path / "adapter")
    odd = with_config(tmp_path / "base", tmp_path / "odd", **{"dtype": None, name: dtype})
    with pytest.raises((AttributeError, TypeError, ValueError)):
        load_base(recipe, odd)
    with pytest.raises(CorruptError, match="dtype"):
        check_merge(adapter, odd)
    assert check_merge(adapter, odd, dtype="float32").verdict == "mergeable"


@pytest.mark.parametrize("dtype", ["half", "float", "double", "bfloat16", {"": "float16"}, None])
@pytest.mark.parametrize("first", [torch.bfloat16, torch.float32], ids=str)
def test_the_dtype_in_which_transformers_loads_a_base(first: torch.dtype, dtype: Any, tmp_path: Path) -> None:
    """Without one in the config it is that of the first tensor by name, and not that of the biases themselves."""
    recipe = RECIPES["qwen2"]
    save_base(recipe, tmp_path / "base")
    adapter = save_adapter(recipe, tmp_path / "base", tmp_path / "adapter")
    base = with_config(tmp_path / "base", tmp_path / "other", dtype=dtype)
    path = base / "model.safetensors"
    tensors = load_file(path)
    other = torch.float32 if first is torch.bfloat16 else torch.bfloat16
    save_file({k: v.to(first if k == min(tensors) else other) for k, v in tensors.items()}, path, {"format": "pt"})
    loaded = load_base(recipe, base)
    assert {parameter.dtype for parameter in loaded.parameters()} == {
        getattr(torch, check_merge(adapter, base).dtype or "")
    }
