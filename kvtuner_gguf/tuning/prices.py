"""Stage 3, the prices: what each type costs each layer in KLD of the whole model, K and V apart.

One type or a few, the rungs, are measured in every layer and side by a forward each, which restarts at that layer.
The prices of the others follow from the profile: the logarithm of the KLD over that of the attention error's energy is
close to a line. Below and above the rungs the KLD is taken to grow with the energy, as it does for small disturbances:
between 2 and 5 bits the slopes of SmolLM2-135M's layers are 0.86 to 1.19, the median 1.04.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.cachetypes import cache_type
from kvtuner_gguf.plan.pairs import EXACT, UNQUANTIZED, Pair
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.plan.stagefile import layers_from_json, stage_from_json, stage_to_json
from kvtuner_gguf.progress import Progress
from kvtuner_gguf.tuning.judges import Judge
from kvtuner_gguf.tuning.profile import Profile

SCHEMA = "kvtuner.prices/1"
# where nothing is lost the logarithm needs something
TINY = 1e-30


@dataclass(frozen=True)
class Prices:
    """``k[il][type]`` and ``v[il][type]``: mean KLD in nats per token when only that side of that layer has it."""

    k: tuple[Mapping[str, float], ...]
    v: tuple[Mapping[str, float], ...]
    model: ModelShape | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def pair(self, il: int, pair: Pair) -> float:
        return self.k[il][pair.k] + self.v[il][pair.v]

    def plan(self, pairs: Sequence[Pair]) -> float:
        return sum(self.pair(il, pair) for il, pair in enumerate(pairs))

    def has(self, names: Iterable[str]) -> bool:
        """Whether each of the types ``names`` has a price everywhere."""
        names = set(names)
        return all(names <= side.keys() for side in (*self.k, *self.v))

    def only(self, names: Iterable[str]) -> Prices:
        """The prices of the types ``names`` alone."""
        names = tuple(names)
        k, v = (tuple({name: layer[name] for name in names} for layer in side) for side in (self.k, self.v))
        return replace(self, k=k, v=v)

    def to_json(self) -> dict[str, Any]:
        if self.model is None:
            raise KvtunerError("these prices are of no model: price the layers of one")
        layers = [{"k": dict(k), "v": dict(v)} for k, v in zip(self.k, self.v, strict=True)]
        return stage_to_json(SCHEMA, self.model, self.provenance, {"layers": layers})

    @classmethod
    def from_json(cls, data: object) -> Prices:
        """Raises `KvtunerError` naming what is wrong."""
        model, provenance, body = stage_from_json(data, SCHEMA)
        layers = layers_from_json(body.get("layers"), model.n_layer, _sides_from_json)
        return cls(tuple(k for k, _ in layers), tuple(v for _, v in layers), model, provenance)


def _sides_from_json(layer: Mapping[str, Any]) -> tuple[Mapping[str, float], Mapping[str, float]]:
    for side in (layer["k"], layer["v"]):
        for name, price in side.items():
            cache_type(name)
            if isinstance(price, bool) or not isinstance(price, int | float) or not math.isfinite(price) or price < 0:
                raise KvtunerError(f"the price of {name} is {price!r}")
    return layer["k"], layer["v"]


def priced_pairs(names: Iterable[str], model: ModelShape) -> list[Pair]:
    """The pairs that a profile of ``model`` needs for pricing: each type on one side alone, if it may be."""
    sides = ("k",) if model.latent else ("k", "v")
    return [_priced(side, name, model.latent) for name in names for side in sides]


def rungs(names: Iterable[str], n: int) -> tuple[str, ...]:
    """``n`` quantized types out of ``names`` to measure, the middle ones of ``n`` even parts."""
    rising = sorted((name for name in names if cache_type(name).is_quantized), key=_bits)
    step = len(rising) / max(n, 1)
    return tuple(dict.fromkeys(rising[int((i + 0.5) * step - 0.5)] for i in range(n))) if rising else ()


def _bits(name: str) -> tuple[float, str]:
    return cache_type(name).bits_per_value, name


def price(
    judge: Judge,
    profile: Profile,
    names: Sequence[str],
    n_rungs: int = 1,
    progress: Progress | None = None,
) -> Prices:
    """Prices of the types ``names`` in every layer; twice ``n_rungs`` forwards per layer."""
    n_layer = profile.model.n_layer
    exact = [EXACT] * n_layer
    judge.settle(exact)
    sides: dict[str, list[Mapping[str, float]]] = {"k": [], "v": []}
    measured = rungs(names, n_rungs)
    for il, layer in enumerate(profile.model.layers):
        for side in ("k", "v"):
            if not layer.keeps or (layer.latent and side == "v"):
                sides[side].append(dict.fromkeys(names, 0.0))
                continue
            pairs = {name: _priced(side, name, layer.latent) for name in names}
            errors = {name: profile.layers[il][pair].error for name, pair in pairs.items()}
            klds = {name: judge.kld([*exact[:il], pairs[name], *exact[il + 1 :]]) for name in measured}
            sides[side].append(interpolate(errors, klds))
        if progress:
            progress(il + 1, n_layer)
    facts = {**profile.provenance, "prices": "kld", "rungs": list(measured)}
    return Prices(tuple(sides["k"]), tuple(sides["v"]), profile.model, facts)


def _priced(side: str, name: str, latent: bool) -> Pair:
    """The type ``name`` on one side alone, or on both where these are one tensor, whose price is that of K."""
    if latent:
        return Pair(name, name)
    return Pair(name, UNQUANTIZED) if side == "k" else Pair(UNQUANTIZED, name)


def interpolate(errors: Mapping[str, float], measured: Mapping[str, float]) -> dict[str, float]:
    """The KLD of each type of ``errors`` from those of a few: a broken line through the logarithms, slope 1 outside."""
    points = sorted((math.log(errors[name] + TINY), math.log(kld + TINY)) for name, kld in measured.items())
    if not points:
        return dict.fromkeys(errors, 0.0)
    x, y = (np.array(values) for values in zip(*points, strict=True))
    y = np.maximum.accumulate(y)  # noise does not make a larger error cheaper

    def at(error: float) -> float:
        log = math.log(error + TINY)
        inside = float(np.interp(log, x, y))
        return math.exp(inside + min(0.0, log - x[0]) + max(0.0, log - x[-1]))

    return {name: measured.get(name, at(error)) for name, error in errors.items()}
