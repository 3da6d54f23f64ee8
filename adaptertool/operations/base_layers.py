"""The shapes of the base model's layers that an adapter targets, from headers alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from adaptertool.checkpoint.folder import LocalFolder
from adaptertool.checkpoint.hub.cached import CachedFolder
from adaptertool.checkpoint.hub.session import cached_snapshot
from adaptertool.checkpoint.target import Target, open_target
from adaptertool.errors import AdapterToolError, NotFoundError
from adaptertool.merge.adapter.adapted import PEFT_PREFIX
from adaptertool.merge.adapter.settings import settings_of
from adaptertool.merge.base.code import ModelCode
from adaptertool.merge.base.files import open_base
from adaptertool.merge.base.layers import BaseLayers
from adaptertool.merge.base.shared_tensors import SharedTensors
from adaptertool.methods import method_of
from adaptertool.methods.base import CannotDrawError
from adaptertool.methods.shapes import Place, Places, RefusedError, is_of
from adaptertool.projection.fingerprint import Fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.merge.base.files import Base
    from adaptertool.methods.base import Projections


def base_of(adapter: Adapter, base: str | None, token: str | None) -> Base:
    """The base model of an adapter.

    Args:
        adapter: The adapter.
        base: The base model; by default the one that the adapter's config names.
        token: Access token for the Hub.

    Raises:
        CannotDrawError: no base is named, or the one that the config names can't be found.
        AdapterToolError: the base can't be read.
    """
    named = base or adapter.config.text_or_none("base_model_name_or_path")
    if not named:
        raise CannotDrawError("the base model is needed, and none is named", "Add --base BASE.")
    revision = None if base else adapter.config.text_or_none("revision")
    try:
        return open_base(open_target(named, revision=revision, token=token, single_names="/" in named or bool(base)))
    except NotFoundError as error:
        if base:
            raise
        reason = f"the base model that the config names can't be found: {error.message}"
        raise CannotDrawError(reason, "Add --base BASE.") from error


def layer_shapes(adapter: Adapter, rule: Projections, model: Base) -> list[tuple[int, int]]:
    """The (out_features, in_features) of every layer that the adapter trains, in its order.

    Args:
        adapter: The adapter.
        rule: Its method's rule about projections.
        model: The base model.

    Raises:
        CannotDrawError: a layer can't be told apart in it, or has no plain weight there.
        AdapterToolError: the base can't be read.
    """
    stored = BaseLayers(model, ModelCode(model.config))
    targets = [module.removeprefix(PEFT_PREFIX) for module in rule.target_modules(adapter.weights.tensors)]
    tensors = []
    for module in targets:
        found = stored.stored(module) or _tied_to(module, stored, adapter)
        if found is None:
            raise CannotDrawError(f"{model.folder.location} has no layer that is certain to be {module}")
        if stored.is_quantized(found) or f"{found}.weight" not in model.files:
            raise CannotDrawError(
                f"{found} of {model.folder.location} is quantised, and its shape can't be told from its header",
                "Name the unquantised base with --base.",
            )
        tensors.append(f"{found}.weight")
    if not tensors:
        raise CannotDrawError("the file holds trained tensors of no layer")
    model.load_headers(tensors)
    shapes = [model.tensor(name).shape for name in tensors]
    for name, shape in zip(tensors, shapes, strict=True):
        if len(shape) != 2:
            raise CannotDrawError(f"{name} of {model.folder.location} is no matrix")
    turned = adapter.config.flag("fan_in_fan_out", False)
    layers = []
    for module, shape in zip(targets, shapes, strict=True):
        layer = stored.code.layer(module)
        # Conv1D keeps (in, out). In the config that PEFT saves, fan_in_fan_out is that of the last layer it attached to.
        is_conv1d = layer.kind == "conv1d" if layer is not None and layer.kind in ("linear", "conv1d") else turned
        layers.append((shape[1], shape[0]) if is_conv1d else (shape[0], shape[1]))
    _check_fit(adapter, dict(zip(rule.target_modules(adapter.weights.tensors), layers, strict=True)), model)
    return layers


def _tied_to(module: str, layers: BaseLayers, adapter: Adapter) -> str | None:
    """The layer in the base's file whose weight a layer has that is not in it, as a head that is tied to the embedding."""
    ties = SharedTensors(layers, adapter.config.fields).of(module) or ()
    there = (layers.stored(other) for tie in ties for other in tie.layers if other != module)
    return next((found for found in there if found is not None), None)


def shapes_by_the_base(
    adapter: Adapter, rule: Projections, base: str | None = None, token: str | None = None, *, ask_hub: bool = True
) -> tuple[bool, str | None]:
    """Whether the base model makes PEFT draw the shapes that are stored, or that were stripped; and why not.

    It is asked where layers share projections: a second adapter on a model is given those of the first, which its own config
    may not draw. Without a named base, it is the one in the adapter's config, where that is at hand. Then only an answer
    counts.

    Args:
        adapter: The adapter.
        rule: Its method's rule about projections.
        base: The base model, as the user names it.
        token: Access token for the Hub.
        ask_hub: Whether the base in the config of an adapter on the Hub is looked up there.

    Raises:
        CorruptError: the config names no base, and something else in its place (ADP304).
        AdapterToolError: the base that the user names can't be read.
    """
    shapes = _shapes(adapter, rule)
    if not shapes:
        return False, None
    # A config that makes no sense is told before anything is looked up.
    named = base or adapter.config.text_or_none("base_model_name_or_path")
    revision = adapter.config.text_or_none("revision")
    try:
        if base is not None:
            model: Base | None = base_of(adapter, base, token)
        else:
            model = _at_hand(adapter, rule, named, revision, token, ask_hub=ask_hub)
        if model is None:
            return False, None
        due = rule.shapes_for(adapter.config, layer_shapes(adapter, rule, model))
    except CannotDrawError as error:
        return False, str(error) if base is not None else None
    except AdapterToolError:
        if base is not None:
            raise
        return False, None
    # PEFT 0.21.2 raises RuntimeError (size mismatch) where it takes them from the file.
    loaded = bool(rule.stored(adapter.weights.tensors, adapter.config))
    loaded = loaded and (rule.flag is None or adapter.config.flag(rule.flag, rule.flag_default))
    refused = ", and refuses to load it alone" if loaded else ""
    for kind, (name, shape) in shapes.items():
        if shape != due.get(kind):
            return False, (
                f"{name} has shape {shape}, and PEFT draws {due.get(kind)} for this adapter on {named}{refused}: it is shared "
                "with another adapter, or the base is not the one that it was trained on"
            )
    return True, None


def _shapes(adapter: Adapter, rule: Projections) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The name and the shape of each kind that is stored; of a file that holds none, of those that it was stripped of."""
    tensors = adapter.weights.tensors
    stored = rule.stored(tensors, adapter.config)
    if stored:
        return {one.kind: (one.canonical, tensors[one.canonical].shape) for one in stored}
    try:
        fingerprint = Fingerprint.from_metadata(adapter.weights.metadata)
    except ValueError:
        return {}
    shapes = fingerprint.shapes if fingerprint is not None else {}
    return {kind: (f"{rule.canonical_name(kind)}, which was stripped,", shape) for kind, shape in shapes.items()}


def _at_hand(
    adapter: Adapter, rule: Projections, named: str | None, revision: str | None, token: str | None, *, ask_hub: bool
) -> Base | None:
    """The base that the adapter's config names, where looking at it surprises nobody; None elsewhere.

    For an adapter on disk that is a folder, or what huggingface_hub's cache holds: no network is used that was not asked for.
    For one on the Hub it is the Hub, and no path on this machine: anyone may have written that config.
    """
    if not named:
        return None
    is_folder = os.path.isdir(named)  # noqa: PTH112 - Path.is_dir raises for names that no file can have
    if adapter.folder.kind == "local":
        if is_folder:
            return open_base(Target(LocalFolder(Path(named))))
        snapshot = cached_snapshot(named, revision)
        return open_base(Target(CachedFolder(snapshot))) if snapshot is not None else None
    proven_in_part = any(one.copies for one in rule.stored(adapter.weights.tensors, adapter.config))
    if is_folder or not ask_hub or proven_in_part:
        return None
    return base_of(adapter, None, token)


def _check_fit(adapter: Adapter, layers: Mapping[str, tuple[int, int]], base: Base) -> None:
    """Refuse a base whose layers have other shapes than the ones that the adapter's own tensors were trained for."""
    method = method_of(adapter.config)
    rule = method.merge
    if rule is None or rule.tensors is None:
        return
    settings, held = settings_of(adapter.config, None), adapter.weights.tensors
    places = Places(Place(module, "linear", shape) for module, shape in layers.items())
    for place in places:
        module, out, into = place.module, place.out, place.into
        try:
            due = {f"{module}.{name}": shape for name, shape in rule.tensors(settings, place, places).items()}
        except RefusedError as error:
            raise CannotDrawError(f"for {module}, {error}") from error
        trained = [name for name in due if name in held and method.role(name, adapter.config) == "trainable"]
        if not all(is_of(held[name].shape, due[name]) for name in trained):
            raise CannotDrawError(
                f"{module} was trained for a layer of another shape than {base.folder.location} has there, which takes {into} "
                f"inputs to {out} outputs",
                "Name the base that the adapter was trained on with --base.",
            )
