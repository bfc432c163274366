"""Stage 2, the candidates: per layer the pairs that are worth their bits.

Source: KVTuner (arXiv 2502.04420), section 5.2: the Pareto front of bits and e_o. Bits are true bits here, and by
default the energy of the output's error takes the place of e_o, which divides by each output alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.pairs import UNQUANTIZED, Pair
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.plan.stagefile import layers_from_json, stage_from_json, stage_to_json
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
    layers = tuple(_prune_layer(_both_sided(layer), rule) for layer in profile.layers)
    facts = {"rule": f"front of bits and {rule.measure}, kept within {rule.clearly:g}x"}
    return Candidates(profile.model, layers, {**profile.provenance, **facts})


def _both_sided(errors: Mapping[Pair, PairError]) -> dict[Pair, PairError]:
    return {pair: error for pair, error in errors.items() if UNQUANTIZED not in (pair.k, pair.v)}


def _prune_layer(errors: Mapping[Pair, PairError], rule: Rule) -> tuple[Pair, ...]:
    cost = {pair: getattr(error, rule.measure) for pair, error in errors.items()}
    kept = [pair for pair in cost if not any(_beats(other, pair, cost, rule.clearly) for other in cost)]
    return tuple(sorted(kept, key=lambda pair: (pair.bits_per_value, cost[pair])))


def _beats(other: Pair, pair: Pair, cost: Mapping[Pair, float], clearly: float) -> bool:
    cheaper = other.bits_per_value <= pair.bits_per_value
    return other != pair and cheaper and cost[other] * clearly < cost[pair]
