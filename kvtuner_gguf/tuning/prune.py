"""Stage 2, the candidates: per layer the pairs that are worth their bits.

Source: KVTuner (arXiv 2502.04420), section 5.2: the Pareto front of bits and e_o. Bits are true bits here, and by
default the energy of the output's error takes the place of e_o, which divides by each output alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.pairs import UNQUANTIZED, Pair
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.plan.stagefile import layers_from_json, stage_from_json, stage_to_json
from kvtuner_gguf.tuning.prices import Prices
from kvtuner_gguf.tuning.profile import PairError, Profile

SCHEMA = "kvtuner.candidates/1"


@dataclass(frozen=True)
class Rule:
    """A pair is dropped where one of no more bits has an error ``clearly`` times smaller by this ``measure``."""

    measure: str
    clearly: float


PAPER = Rule("e_o", 1.0)
# attention output of one layer is not yet the loss of the model, so little is dropped by it
CAUTIOUS = Rule("error", 1.25)
# prices are the model's loss to a few percent
CLEARLY_DEARER = 1.1


@dataclass(frozen=True)
class Candidates:
    """``layers[il]`` are the pairs that layer ``il`` may have, cheapest first."""

    model: ModelShape
    layers: tuple[tuple[Pair, ...], ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        empty = next((il for il, pairs in enumerate(self.layers) if not pairs), None)
        if empty is not None:
            raise KvtunerError(f"layer {empty} has no candidates: profile the model again")

    def to_json(self) -> dict[str, Any]:
        layers = [[str(pair) for pair in pairs] for pairs in self.layers]
        return stage_to_json(SCHEMA, self.model, self.provenance, {"layers": layers})

    @classmethod
    def from_json(cls, data: object) -> Candidates:
        """Raises `KvtunerError` naming what is wrong."""
        model, provenance, body = stage_from_json(data, SCHEMA)
        layers = layers_from_json(body.get("layers"), model.n_layer, lambda pairs: tuple(map(Pair.parse, pairs)))
        return cls(model, layers, provenance)


def prune(profile: Profile, rule: Rule = CAUTIOUS) -> Candidates:
    """The candidates of each layer by ``rule``. One-sided pairs, which only serve the prices, are none."""
    layers = tuple(_worth(_measured(layer, rule), rule.clearly) for layer in profile.layers)
    facts = {"rule": f"front of bits and {rule.measure}, kept within {rule.clearly:g}x"}
    return Candidates(profile.model, layers, {**profile.provenance, **facts})


def _measured(errors: Mapping[Pair, PairError], rule: Rule) -> dict[Pair, float]:
    return {pair: getattr(error, rule.measure) for pair, error in errors.items() if UNQUANTIZED not in (pair.k, pair.v)}


def prune_by_prices(prices: Prices, pairs: Sequence[Pair], model: ModelShape) -> Candidates:
    """Of ``pairs`` those that are worth their bits in each layer, by what they cost there."""
    layers = tuple(
        _worth({pair: prices.pair(il, pair) for pair in pairs}, CLEARLY_DEARER) for il in range(model.n_layer)
    )
    facts = {"rule": f"front of bits and price, kept within {CLEARLY_DEARER:g}x"}
    return Candidates(model, layers, {**prices.provenance, **facts})


def _worth(cost: Mapping[Pair, float], clearly: float) -> tuple[Pair, ...]:
    kept = [pair for pair in cost if not any(_beats(other, pair, cost, clearly) for other in cost)]
    return tuple(sorted(kept, key=lambda pair: (pair.bits_per_value, cost[pair])))


def _beats(other: Pair, pair: Pair, cost: Mapping[Pair, float], clearly: float) -> bool:
    cheaper = other.bits_per_value <= pair.bits_per_value
    return other != pair and cheaper and cost[other] * clearly < cost[pair]
