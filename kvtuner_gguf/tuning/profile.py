"""Stage 1, the profile: how much each pair of cache types disturbs the attention of each layer.

From full-precision queries, keys and values; errors do not accumulate over layers.
Source: KVTuner (arXiv 2502.04420), section 3.2 and appendix B; ``error`` is ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.plan.stagefile import layers_from_json, stage_from_json, stage_to_json

SCHEMA = "kvtuner.profile/1"


@dataclass(frozen=True)
class PairError:
    """Errors of one pair in one layer.

    ``e_k``, ``e_v``, ``e_o``: mean relative error of keys, values and attention output; ``e_a``: mean absolute error of
    the attention weights; ``error``: squared norm of the output's error over the squared norm of the output.
    """

    e_k: float
    e_v: float
    e_a: float
    e_o: float
    error: float

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, float | int) or not math.isfinite(value) or value < 0:
                raise KvtunerError(f"{name} is {value!r}, not an error: profile the model again")


# of a layer without a cache of its own
NOTHING = PairError(0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Profile:
    """``layers[il][pair]`` are the errors of that pair in layer ``il``."""

    model: ModelShape
    layers: tuple[Mapping[Pair, PairError], ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.layers) != self.model.n_layer:
            raise KvtunerError(
                f"the profile has {len(self.layers)} layers, its model {self.model.n_layer}: profile the model again"
            )

    def only(self, pairs: Iterable[Pair]) -> Profile:
        """This profile of no more than ``pairs``, all of which it has, in their order."""
        pairs = tuple(pairs)
        return replace(self, layers=tuple({pair: layer[pair] for pair in pairs} for layer in self.layers))

    def to_json(self) -> dict[str, Any]:
        layers = [{str(pair): asdict(errors) for pair, errors in layer.items()} for layer in self.layers]
        return stage_to_json(SCHEMA, self.model, self.provenance, {"layers": layers})

    @classmethod
    def from_json(cls, data: object) -> Profile:
        """Raises `KvtunerError` naming what is wrong."""
        model, provenance, body = stage_from_json(data, SCHEMA)
        return cls(model, layers_from_json(body.get("layers"), model.n_layer, _errors_from_json), provenance)


def _errors_from_json(layer: Mapping[str, Any]) -> dict[Pair, PairError]:
    return {Pair.parse(name): PairError(**errors) for name, errors in layer.items()}
