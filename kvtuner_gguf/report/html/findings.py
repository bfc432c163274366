"""What a page shows: plans, fronts, prices, rows of `eval` and speeds, by the names of their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvtuner_gguf.evaluation.rows import Row
from kvtuner_gguf.plan.front import Front
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.report.html.speeds import Speed

if TYPE_CHECKING:
    from kvtuner_gguf.tuning.prices import Prices


@dataclass(frozen=True)
class Findings:
    """Any of them may be empty. ``model``: the name of the model's file, where it is known."""

    plans: Mapping[str, Plan] = field(default_factory=dict)
    fronts: Mapping[str, Front] = field(default_factory=dict)
    prices: Sequence[Prices] = ()
    rows: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    speeds: Sequence[Speed] = ()
    model: str | None = None

    def prices_of(self, plan: Plan) -> Prices | None:
        """Those of the model of ``plan``; None where there are none, or where its shape is not known."""
        return next((one for one in self.prices if plan.model is not None and one.model == plan.model), None)
