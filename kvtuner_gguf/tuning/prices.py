"""Stage 3, the prices: what each type costs each layer in KLD of the whole model, K and V apart.

One type or a few, the rungs, are measured in every layer and side by a forward each, which restarts at that layer.
The prices of the others follow from the profile: the logarithm of the KLD over that of the attention error's energy is
close to a line. Below and above the rungs the KLD is taken to grow with the energy, as it does for small disturbances:
between 2 and 5 bits the slopes of SmolLM2-135M's layers are 0.86 to 1.19, the median 1.04.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.cachetypes import cache_type
from kvtuner_gguf.plan.pairs import EXACT, UNQUANTIZED, Pair
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.plan.stagefile import layers_from_json, stage_from_json, stage_to_json
from kvtuner_gguf.progress import Progress

if TYPE_CHECKING:  # a profile imports torch, which those who only read prices need not have
    from kvtuner_gguf.tuning.judges import ErrorJudge
    from kvtuner_gguf.tuning.profile import Profile

SCHEMA = "kvtuner.prices/1"
# where nothing is lost the logarithm needs something
TINY = 1e-30
# of a layer in the file
SIDES = ("k", "v", "k_se", "v_se")


@dataclass(frozen=True)
class Prices:
    """``k[il][type]`` and ``v[il][type]``: mean KLD in nats per token when only that side of that layer has it.

    ``k_se`` and ``v_se`` are the standard errors of these, empty where they are not known.
    """

    k: tuple[Mapping[str, float], ...]
    v: tuple[Mapping[str, float], ...]
    model: ModelShape | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    k_se: tuple[Mapping[str, float], ...] = ()
    v_se: tuple[Mapping[str, float], ...] = ()

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
        sides = (self.k, self.v, self.k_se, self.v_se)
        k, v, k_se, v_se = (tuple({name: layer[name] for name in names} for layer in side) for side in sides)
        return replace(self, k=k, v=v, k_se=k_se, v_se=v_se)

    def to_json(self) -> dict[str, Any]:
        if self.model is None:
            raise KvtunerError("these prices are of no model: price the layers of one")
        sides = {name: side for name in SIDES if (side := getattr(self, name))}
        layers = [{name: dict(side[il]) for name, side in sides.items()} for il in range(len(self.k))]
        return stage_to_json(SCHEMA, self.model, self.provenance, {"layers": layers})

    @classmethod
    def from_json(cls, data: object) -> Prices:
        """Raises `KvtunerError` naming what is wrong."""
        model, provenance, body = stage_from_json(data, SCHEMA)
        layers = layers_from_json(body.get("layers"), model.n_layer, _sides_from_json)
        known = all(len(layer) == len(SIDES) for layer in layers)
        sides = {name: tuple(layer[name] for layer in layers) for name in (SIDES if known else SIDES[:2])}
        return cls(model=model, provenance=provenance, **sides)


def _sides_from_json(layer: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """Those of `SIDES` that there are: standard errors on both sides, of each type that has a price, or on none."""
    found = {"k": layer["k"], "v": layer["v"]}
    if "k_se" in layer:
        found |= {"k_se": layer["k_se"], "v_se": layer["v_se"]}
    for side in found.values():
        for name, price in side.items():
            cache_type(name)
            if isinstance(price, bool) or not isinstance(price, int | float) or not math.isfinite(price) or price < 0:
                raise KvtunerError(f"the price of {name} is {price!r}")
    if any(side.keys() != found[name[0]].keys() for name, side in found.items()):
        raise KvtunerError("prices and standard errors are of different types")
    return found


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
    judge: ErrorJudge,
    profile: Profile,
    names: Sequence[str],
    n_rungs: int = 1,
    at_f16: Collection[int] = (),
    progress: Progress | None = None,
) -> Prices:
    """Prices of the types ``names`` in every layer; twice ``n_rungs`` forwards per layer.

    None in the layers ``at_f16``, which have no other pair: it costs nothing there.
    """
    n_layer = profile.model.n_layer
    judge.settle([EXACT] * n_layer)
    sides: dict[str, list[Mapping[str, float]]] = {name: [] for name in SIDES}
    measured = rungs(names, n_rungs)
    for il, layer in enumerate(profile.model.layers):
        for side in ("k", "v"):
            prices = spreads = dict.fromkeys(("f16",) if il in at_f16 else names, 0.0)
            if il not in at_f16 and layer.keeps and not (layer.latent and side == "v"):
                pairs = {name: _priced(side, name, layer.latent) for name in names}
                prices, spreads = _price_side(judge, profile, il, pairs, measured)
            sides[side].append(prices)
            sides[f"{side}_se"].append(spreads)
        if progress:
            progress(il + 1, n_layer)
    facts = {**profile.provenance, "prices": "kld", "rungs": list(measured)}
    return Prices(model=profile.model, provenance=facts, **{name: tuple(side) for name, side in sides.items()})


def _price_side(
    judge: ErrorJudge, profile: Profile, il: int, pairs: Mapping[str, Pair], measured: Iterable[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Prices in layer ``il`` of the types that give it the ``pairs``, and their standard errors."""
    exact = [EXACT] * profile.model.n_layer
    errors = {name: profile.layers[il][pair].error for name, pair in pairs.items()}
    plans = {name: [*exact[:il], pairs[name], *exact[il + 1 :]] for name in measured}
    klds = {name: judge.kld(plan) for name, plan in plans.items()}
    shares = {name: judge.standard_error(plan) / (klds[name] + TINY) for name, plan in plans.items()}
    prices = interpolate(errors, klds)
    return prices, {name: prices[name] * share for name, share in interpolate_shares(errors, shares).items()}


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


def interpolate_shares(errors: Mapping[str, float], measured: Mapping[str, float]) -> dict[str, float]:
    """The standard error of each price that `interpolate` gives, as a share of it, from those of a few.

    Between two the shares mix as the logarithms of the prices do, as if both erred together; outside a price is in
    proportion to the nearest one.
    """
    points = sorted((math.log(errors[name] + TINY), share) for name, share in measured.items())
    if not points:
        return dict.fromkeys(errors, 0.0)
    x, y = (np.array(values) for values in zip(*points, strict=True))
    return {name: measured.get(name, float(np.interp(math.log(e + TINY), x, y))) for name, e in errors.items()}
