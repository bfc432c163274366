"""The front: plans of rising size, each with its loss, from which the plan to use is chosen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.plan.stagefile import entries_from_json, stage_from_json, stage_to_json

SCHEMA = "kvtuner.front/1"


@dataclass(frozen=True)
class Point:
    """A plan's pairs and its loss on the tuning text; ``priced`` is what its layers' prices add up to, if known."""

    pairs: tuple[Pair, ...]
    loss: float
    priced: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("loss", self.loss), ("priced", 0.0 if self.priced is None else self.priced)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise KvtunerError(f"{name} is {value!r}, not a finite number: search again")


@dataclass(frozen=True)
class Front:
    """``points`` by rising bytes; ``measure`` says what the loss is: mean KLD in nats, perplexity, or failed tasks."""

    model: ModelShape
    measure: str
    points: tuple[Point, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for point in self.points:
            Plan(point.pairs).check(self.model)
        sizes = [self.n_bytes(point) for point in self.points]
        if sizes != sorted(sizes):
            raise KvtunerError("the points of the front are not in the order of their bytes: search again")

    def n_bytes(self, point: Point) -> int:
        """Bytes of all layers as `Plan.size` weighs them."""
        return Plan(point.pairs).size(self.model)

    def bytes_per_token(self, point: Point) -> int:
        return Plan(point.pairs).bytes_per_token(self.model)

    def bits(self, point: Point) -> float:
        """True bits per value."""
        return Plan(point.pairs).bits_per_value(self.model)

    def payload_bits(self, point: Point) -> float:
        """Bits of the codes alone per value, as the KVTuner paper counts."""
        return Plan(point.pairs).payload_bits(self.model)

    def best_within(self, budget: int) -> Point | None:
        """The point of least loss that takes at most ``budget`` bytes, as `n_bytes` counts."""
        within = [point for point in self.points if self.n_bytes(point) <= budget]
        return min(within, key=lambda point: (point.loss, self.n_bytes(point)), default=None)

    def smallest_below(self, loss: float) -> Point | None:
        """The smallest point whose loss is at most ``loss``."""
        return next((point for point in self.points if point.loss <= loss), None)

    def to_json(self) -> dict[str, Any]:
        points = [
            {
                "bits": self.bits(point),
                "payload_bits": self.payload_bits(point),
                "kv_bytes_per_token": self.bytes_per_token(point),
                "loss": point.loss,
                "priced": point.priced,
                "layers": [str(pair) for pair in point.pairs],
            }
            for point in self.points
        ]
        return stage_to_json(SCHEMA, self.model, self.provenance, {"measure": self.measure, "points": points})

    @classmethod
    def from_json(cls, data: object) -> Front:
        """Raises `KvtunerError` naming what is wrong. Bits and bytes are computed anew, not read."""
        model, provenance, body = stage_from_json(data, SCHEMA)
        points = body.get("points")
        if not isinstance(points, list):
            raise KvtunerError("'points' must be a list: search again")
        parsed = entries_from_json(points, _point, "point {} of the front", "search again")
        return cls(model, str(body.get("measure")), parsed, provenance)


def _point(data: Mapping[str, Any]) -> Point:
    return Point(tuple(map(Pair.parse, data["layers"])), data["loss"], data.get("priced"))


def pareto(points: Iterable[Point], model: ModelShape) -> tuple[Point, ...]:
    """Those of ``points`` that no other one beats in both bytes and loss, by rising bytes."""
    size = {point: Plan(point.pairs).size(model) for point in points}
    kept: list[Point] = []
    for point in sorted(size, key=lambda point: (size[point], point.loss, point.pairs)):
        if not kept or point.loss < kept[-1].loss:
            kept.append(point)
    return tuple(kept)


def index_of(front: Front, pairs: Sequence[Pair]) -> int | None:
    """Which point has these pairs."""
    return next((i for i, point in enumerate(front.points) if point.pairs == tuple(pairs)), None)
