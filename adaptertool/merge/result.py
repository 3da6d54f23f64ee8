"""What a dry run of a merge finds out about layers and their base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "blocked", "lossy", "unknown"]
Verdict = Literal["mergeable", "not-mergeable", "lossy", "unknown"]
LayerType = Literal["linear", "conv1d", "embedding", "experts", "quantized", "unknown"]

EXIT_CODES: dict[Verdict, int] = {"mergeable": 0, "not-mergeable": 1, "lossy": 1, "unknown": 3}
"""The exit code that each verdict ends with."""


@dataclass(frozen=True)
class LayerResult:
    """One layer that the adapter changes.

    Attributes:
        module: Its path in the live model.
        status: `ok`, `blocked` (PEFT raises, or what comes out is broken), `lossy`, or `unknown`.
        code: The finding that it belongs to, if any.
        layer_type: What the base layer is.
        has_bias: Whether the live base layer has a bias; None where that is not known.
        update_norm: Euclidean length of what the merge adds to the bias; None where it adds nothing or was not read.
        bias_norm: Euclidean length of the base bias, in the dtype of the merge.
        rounding_loss: Length of the part of the update that rounding takes away, over the length of the update: 0 where
            all of it arrives, 1 where nothing does. None where there is no update.
        reason: Why it is not `ok`, as a sentence without the module's name; the same for layers with the same reason.
        base_tensor: The base tensor that the answer rests on, if any.
    """

    module: str
    status: Status
    code: str | None = None
    layer_type: LayerType = "unknown"
    has_bias: bool | None = None
    update_norm: float | None = None
    bias_norm: float | None = None
    rounding_loss: float | None = None
    reason: str | None = None
    base_tensor: str | None = None


@dataclass(frozen=True)
class BaseReport:
    """Where the base model was read from.

    Attributes:
        location: A path, or `org/name`.
        kind: On disk or on the Hub.
        revision: The commit that was read, on the Hub.
        source: Whether headers and config answered, or the model was built.
        requests: HTTP requests made; None on disk.
        bytes_read: Bytes read.
        model_type: As its config says.
        biases_read: Of how many biases the values were read.
        weights_read: The same of weights.
    """

    location: str
    kind: Literal["local", "hub"]
    revision: str | None
    source: Literal["headers", "model"]
    requests: int | None
    bytes_read: int
    model_type: str | None
    biases_read: int = 0
    weights_read: int = 0


@dataclass(frozen=True)
class WayOut:
    """What can be done about layers without a bias.

    Attributes:
        settings: Fields of the base's config, by dotted path, and what they must be: all of them together create all of the
            missing biases. Empty where no fields do.
        other_biases: The other biases that these create, which would be zero, as patterns with `#` for layer numbers; of an
            adapted layer where some of its number are not adapted.
        biased_layers: Linear layers of this base that have a bias, as patterns; what could be trained instead.
        target_modules: What PEFT finds such layers by, those of the stacks where there are any: endings, or a regular
            expression.
        text: The same in sentences.
    """

    settings: tuple[tuple[str, bool], ...]
    other_biases: tuple[str, ...]
    biased_layers: tuple[str, ...]
    target_modules: tuple[str, ...] | str | None
    text: str


CONTRADICTION = "ADP208"
"""The finding for a file that contradicts its config, where PEFT merges nevertheless."""

HAZARD = "ADP209"
"""The finding for a merge that raises nothing and gives something else than the adapter."""
