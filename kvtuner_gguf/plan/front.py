"""The front: plans of rising size, each with its loss, from which the plan to use is chosen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.centers import check_span
from kvtuner_gguf.plan.ends import ENDS_CTX, Ends
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.plan.shapefields import is_count
from kvtuner_gguf.plan.sizes import Sizes
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
    """``points`` by rising bytes; ``measure`` says what the loss is: mean KLD in nats, perplexity, or failed tasks.

    ``uniform``: plans of one pair in all layers, judged alike, to compare with.
    Plans have ``ends`` and centers with a ``span``, which are counted in a context of ``n_ctx`` tokens.
    """

    model: ModelShape
    measure: str
    points: tuple[Point, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    ends: Ends | None = None
    n_ctx: int = ENDS_CTX
    span: int | None = None
    uniform: tuple[Point, ...] = ()

    def __post_init__(self) -> None:
        for point in (*self.points, *self.uniform):
            self.plan(point).check(self.model)
        sizes = [self.n_bytes(point) for point in self.points]
        if sizes != sorted(sizes):
            raise KvtunerError("the points of the front are not in the order of their bytes: search again")

    @cached_property
    def sizes(self) -> Sizes:
        in_context = self.ends is not None or self.span is not None
        shape = replace(self.model, n_ctx=self.n_ctx) if in_context else self.model
        return Sizes(shape, self.ends, span=self.span)

    def plan(self, point: Point) -> Plan:
        return Plan(point.pairs, ends=self.ends)

    def n_bytes(self, point: Point) -> int:
        """Bytes of all layers as `sizes` counts them."""
        return self.sizes.plan(point.pairs)

    def bytes_per_token(self, point: Point) -> int:
        return Plan(point.pairs).bytes_per_token(self.model)

    def bits(self, point: Point) -> float:
        """True bits per value of the types alone."""
        return Plan(point.pairs).bits_per_value(self.model)

    def bits_with_ends(self, point: Point) -> float:
        """True bits per value in a context of ``n_ctx`` tokens, exact ends and tables of centers included."""
        return self.sizes.bits(self.n_bytes(point))

    def payload_bits(self, point: Point) -> float:
        """Bits of the codes alone per value, as the KVTuner paper counts."""
        return Plan(point.pairs).payload_bits(self.model)

    def best_within(self, budget: int, sizes: Sizes) -> Point | None:
        """The point of least loss that takes at most ``budget`` bytes, as ``sizes`` counts."""
        within = [point for point in self.points if sizes.plan(point.pairs) <= budget]
        return min(within, key=lambda point: (point.loss, sizes.plan(point.pairs)), default=None)

    def smallest_below(self, loss: float) -> Point | None:
        """The smallest point whose loss is at most ``loss``."""
        return next((point for point in self.points if point.loss <= loss), None)

    def to_json(self) -> dict[str, Any]:
        ends = None if self.ends is None else self.ends.to_json()
        body = {"measure": self.measure, "ends": ends, "center_span": self.span, "n_ctx": self.n_ctx}
        points = {"points": self._to_json(self.points), "uniform": self._to_json(self.uniform)}
        return stage_to_json(SCHEMA, self.model, self.provenance, {**body, **points})

    def _to_json(self, points: Iterable[Point]) -> list[dict[str, Any]]:
        return [
            {
                "bits": self.bits(point),
                "bits_with_ends": self.bits_with_ends(point),
                "payload_bits": self.payload_bits(point),
                "kv_bytes_per_token": self.bytes_per_token(point),
                "loss": point.loss,
                "priced": point.priced,
                "layers": [str(pair) for pair in point.pairs],
            }
            for point in points
        ]

    @classmethod
    def from_json(cls, data: object) -> Front:
        """Raises `KvtunerError` naming what is wrong. Bits and bytes are computed anew, not read."""
        model, provenance, body = stage_from_json(data, SCHEMA)
        points = _points(body.get("points"), "points", "point {} of the front")
        uniform = _points(body.get("uniform", []), "uniform", "uniform pair {} of the front")
        ends = Ends.from_json(body.get("ends"))
        span = body.get("center_span")
        if span is not None:
            check_span(span)
        n_ctx = _context(body.get("n_ctx"))
        return cls(model, str(body.get("measure")), points, provenance, ends, n_ctx, span, uniform)


def _context(n_ctx: object) -> int:
    if not is_count(n_ctx) or n_ctx == 0:
        raise KvtunerError(f"the bytes are counted in {n_ctx!r} tokens, not in 1 or more: search again")
    return n_ctx


def _points(points: object, key: str, name: str) -> tuple[Point, ...]:
    """The points under ``key``; errors call one ``name``, with its number in place of the braces."""
    if not isinstance(points, list):
        raise KvtunerError(f"'{key}' must be a list: search again")
    return entries_from_json(points, _point, name, "search again")


def _point(data: Mapping[str, Any]) -> Point:
    return Point(tuple(map(Pair.parse, data["layers"])), data["loss"], data.get("priced"))


def pareto(points: Iterable[Point], sizes: Sizes) -> tuple[Point, ...]:
    """Those of ``points`` that no other one beats in both bytes and loss, by rising bytes."""
    size = {point: sizes.plan(point.pairs) for point in points}
    kept: list[Point] = []
    for point in sorted(size, key=lambda point: (size[point], point.loss, point.pairs)):
        if not kept or point.loss < kept[-1].loss:
            kept.append(point)
    return tuple(kept)


def index_of(front: Front, pairs: Sequence[Pair]) -> int | None:
    """Which point has these pairs."""
    return next((i for i, point in enumerate(front.points) if point.pairs == tuple(pairs)), None)
