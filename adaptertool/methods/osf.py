"""OSF: the smaller part of each weight's decomposition is trained, and the rest is kept (`peft/tuners/osf/`, PEFT 0.21.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptertool.methods.merging import MergeRule
from adaptertool.methods.plain import PlainMethod
from adaptertool.methods.shapes import RefusedError, refuse
from adaptertool.patterns import match

if TYPE_CHECKING:
    from adaptertool.methods.shapes import Place, Places, Settings, Shapes


def _tensors(settings: Settings, place: Place, _: Places) -> Shapes:
    """`effective_rank` is the part that is kept, by default half of what there is; all of the other part is trained.

    Layers of other kinds PEFT leaves as they are, without a word.
    """
    if place.kind != "linear":
        return {}
    kept = settings.get("effective_rank")
    patterns = settings.get("rank_pattern")
    if isinstance(patterns, dict):
        # `re.search`, where other methods have `re.match`.
        fitting = (
            pattern for pattern in patterns if match(rf".*?(?:{pattern})", place.module, "rank_pattern") is not None
        )
        if (pattern := next(fitting, None)) is not None:
            kept = patterns[pattern]
    rank = _resolved(kept, place.least)
    refuse(rank <= 0, f"its config says {kept!r} for effective_rank, with which PEFT raises ValueError")
    trained = place.least - rank
    return {
        "osf_svd_params.U_low": (place.out, trained),
        "osf_svd_params.S_low": (trained,),
        "osf_svd_params.V_low": (trained, place.into),
    }


def _resolved(value: Any, least: int) -> int:
    """As `_resolve_rank` in `peft/tuners/osf/model.py`."""
    if value is None:
        return least // 2
    try:
        rank = int(least * value) if isinstance(value, float) and 0 < value <= 1 else int(value)
    except (OverflowError, TypeError, ValueError):
        raise RefusedError(f"its config says {value!r} for effective_rank, with which PEFT raises") from None
    return max(min(least, rank), 0)


OSF = PlainMethod(
    "OSF",
    "osf_",
    merge=MergeRule(tensors=_tensors, kinds=None, around=frozenset(("before", "after", "own"))),
)
