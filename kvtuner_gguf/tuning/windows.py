"""Layers with a sliding window: what they hold stops growing with the context, so that in a long one they hardly count.

They have no exact ends, and so lose more in few bits than layers that see all positions: a search gives them most of
the bits that there are. Where f16 is nearly free it is not asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvtuner_gguf.plan.pairs import F16, Pair
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.tuning.fixed import with_fixed

if TYPE_CHECKING:
    from kvtuner_gguf.tuning.settings import Settings

WINDOWS = ("auto", "search", "f16")
# Of a budget, what all of them may take at f16 to be nearly free. In q8_0, which a search would give them, they would
# take half of it: of 4 bits the other layers lose a tenth of a bit, and less the longer the context is.
NEARLY_FREE = 0.05


@dataclass(frozen=True)
class Left:
    """The ``layers`` that are left at f16, and the ``share`` that they take ``of`` the budget or the smallest plan."""

    layers: tuple[int, ...]
    share: float
    of: str

    @property
    def fixed(self) -> dict[int, Pair]:
        return dict.fromkeys(self.layers, F16)

    def to_json(self) -> dict[str, Any]:
        return {"left_at": "f16", "layers": list(self.layers), "share": self.share, "of": self.of}


def left_at_f16(settings: Settings, shape: ModelShape) -> Left | None:
    """The layers with a window that are not searched, those that are fixed by hand left out; None where all are.

    With ``"auto"`` these are left where they take at most `NEARLY_FREE` in the context of the goal, and the others fit
    into what remains.
    """
    layers = tuple(il for il, layer in enumerate(shape.layers) if layer.keeps and layer.window)
    layers = tuple(il for il in layers if il not in settings.fixed)
    if settings.windows == "search" or not layers:
        return None
    sizes, pairs = settings.sizes(shape), settings.backend.fitting(shape).pairs()
    budget = settings.goal.budget(sizes)

    def smallest(fixed: Mapping[int, Pair]) -> int:
        return sizes.range(with_fixed([pairs] * shape.n_layer, {**fixed, **settings.fixed}))[0]

    whole, of = (smallest({}), "the smallest plan") if budget is None else (budget, "the budget")
    left = Left(layers, sum(sizes.pair(il, F16) for il in layers) / max(1, whole), of)
    fits = budget is None or smallest(left.fixed) <= budget
    return left if settings.windows == "f16" or (left.share <= NEARLY_FREE and fits) else None


def with_left(left: Left | None, fixed: Mapping[int, Pair]) -> dict[int, Pair]:
    """The pairs of layers that are not searched: ``fixed`` by hand, or ``left``."""
    return {**({} if left is None else left.fixed), **fixed}


def left_facts(left: Left | None) -> dict[str, Any]:
    """What a provenance says of them; nothing where there are none."""
    return {} if left is None else {"windows": left.to_json()}
