"""How many layers of transformers' architectures are resolved, and whether any answer is wrong.

    python -m tests.tools.sweep_resolution [MODEL_TYPE …]

Every model type is built on the meta device; the names of its tensors are written as its live tree has them, as
`save_pretrained` writes them (transformers 5 turns its renaming back), and without the head's prefix. Each linear layer is
then looked up in each of them, from names alone and from names with the table of flags.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptertool.checkpoint.folder import LocalFolder
from adaptertool.merge.base.code import ModelCode
from adaptertool.merge.base.files import Base
from adaptertool.merge.base.layers import BaseLayers
from tests.tools.model_trees import (
    BUILD_ERRORS,
    build,
    classes_of,
    default_config,
    layers_of,
    model_types,
    quiet,
    shrunk,
    stored_names,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from transformers import PreTrainedModel

Layout = dict[str, list[str]]


def layouts_of(model: PreTrainedModel) -> dict[str, list[str]]:
    """The names of a model's tensors in each layout."""
    tied = set(model.all_tied_weights_keys) if hasattr(model, "all_tied_weights_keys") else set()
    native = [name for name in model.state_dict() if name not in tied]
    layouts = {"native": native}
    hub = stored_names(model)
    if set(hub) != set(native):
        layouts["hub"] = hub
    prefix = f"{model.base_model_prefix}."
    if prefix != "." and any(name.startswith(prefix) for name in native):
        layouts["headless"] = [name.removeprefix(prefix) for name in native if name.startswith(prefix)]
    return layouts


def answers(config: Mapping[str, Any], names: Iterable[str], modules: Mapping[str, bool]) -> Counter[str]:
    """How many layers are resolved rightly, wrongly, or not.

    Args:
        config: The base's config.
        names: Of the tensors in its file.
        modules: The linear layers, and whether each has a bias.
    """
    base = Base(LocalFolder(Path()), config, dict.fromkeys(names, ""))
    code = ModelCode(config)
    layers = BaseLayers(base, code)
    count: Counter[str] = Counter()
    for module, bias in modules.items():
        layer = layers.needs_bias(module, kinds=("linear",), trained=True)
        # That a bias is in the file is no answer where the code is not known; here it is whether it was found.
        found = layer.status == "ok" or (not code.known and layer.bias is not None)
        if layer.status == "unknown" and not found:
            count["unknown"] += 1
        elif found is bias:
            count["right"] += 1
        else:
            count["wrong has" if found else "wrong has not"] += 1
    return count


def asked_of(sample: Mapping[str, Any], layout: str) -> dict[str, bool]:
    """The linear layers that can be looked up in a layout: a head is not in a headless file."""
    linear: dict[str, bool] = sample["linear"]
    if layout != "headless":
        return linear
    native = {name.rpartition(".")[0] for name in sample["layouts"]["native"]}
    kept = {name.rpartition(".")[0] for name in sample["layouts"]["headless"]}
    return {path: bias for path, bias in linear.items() if path not in native or path.partition(".")[2] in kept}


def samples(names: Iterable[str], most: int = 4) -> Iterable[dict[str, Any]]:
    """For each class of each model type: config, layouts, and linear layers with whether they have a bias.

    Args:
        names: Model types.
        most: How many classes of each.
    """
    for model_type in names:
        try:
            config = default_config(model_type)
        except BUILD_ERRORS:
            continue
        for model_class in classes_of(model_type)[:most]:
            try:
                model = build(model_class, shrunk(config))
            except BUILD_ERRORS:
                try:
                    model = build(model_class, config)
                except BUILD_ERRORS:
                    continue
            linear = {path: layer.bias for path, layer in layers_of(model).items() if layer.kind == "linear"}
            if linear:
                fields = json.loads(json.dumps(model.config.to_dict(), default=str))
                yield {
                    "class": model_class.__name__,
                    "config": {**fields, "model_type": model.config.model_type},
                    "layouts": layouts_of(model),
                    "linear": linear,
                }


def main(arguments: list[str]) -> None:
    """Print the counts, and the classes with wrong answers."""
    quiet()
    total: dict[str, Counter[str]] = {}
    for sample in samples(arguments or model_types()):
        for layout, tensors in sample["layouts"].items():
            modules = asked_of(sample, layout)
            with_table = answers(sample["config"], tensors, modules)
            names_only = answers({**_plain(sample["config"]), "model_type": None}, tensors, modules)
            for kind, count in (("with the table", with_table), ("from names", names_only)):
                total.setdefault(f"{layout}, {kind}", Counter()).update(count)
                wrong = {key: number for key, number in count.items() if key.startswith("wrong")}
                if wrong or count["unknown"] > 0.5 * sum(count.values()):
                    print(f"{sample['class']}, {layout}, {kind}: {dict(count)}")
    for key, count in total.items():
        resolved = 1 - count["unknown"] / max(1, sum(count.values()))
        print(f"{key}: {resolved:.1%} of {sum(count.values())} resolved, {dict(count)}")


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if "bias" not in key and not isinstance(value, dict)}


if __name__ == "__main__":
    main(sys.argv[1:])
