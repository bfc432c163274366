"""Stage 3, the prices: what each type costs each layer in KLD of the whole model, K and V apart.

One forward per layer and side, at the lowest candidate, says how much the loss follows that layer's attention error;
the other types follow from the profile, since for small disturbances KLD grows with the error's energy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from kvtuner_gguf.cachetypes import Pair, cache_type
from kvtuner_gguf.tuning.divergence import Judge
from kvtuner_gguf.tuning.sensitivity import Profile

UNQUANTIZED = "f32"
# where the profile sees no error the price is 0; this keeps the ratio finite
TINY = 1e-30


@dataclass(frozen=True)
class Prices:
    """``k[il][type]`` and ``v[il][type]``: mean KLD in nats per token when only that side of that layer has it."""

    k: tuple[Mapping[str, float], ...]
    v: tuple[Mapping[str, float], ...]

    def pair(self, il: int, pair: Pair) -> float:
        return self.k[il][pair.k] + self.v[il][pair.v]

    def plan(self, pairs: Sequence[Pair]) -> float:
        return sum(self.pair(il, pair) for il, pair in enumerate(pairs))


def one_sided(names: Iterable[str]) -> list[Pair]:
    """The pairs that a profile needs for pricing: each type on one side alone."""
    return [pair for name in names for pair in (Pair(name, UNQUANTIZED), Pair(UNQUANTIZED, name))]


def price(
    judge: Judge, profile: Profile, names: Sequence[str], progress: Callable[[int, int], None] | None = None
) -> Prices:
    """Prices of the types ``names`` in every layer; two forwards per layer."""
    n_layer = profile.model.n_layer
    lowest = min(names, key=lambda name: cache_type(name).bits_per_value)
    sides: dict[str, list[Mapping[str, float]]] = {"k": [], "v": []}
    for il in range(n_layer):
        for side, make in (("k", lambda name: Pair(name, UNQUANTIZED)), ("v", lambda name: Pair(UNQUANTIZED, name))):
            pairs = [Pair(UNQUANTIZED, UNQUANTIZED)] * n_layer
            pairs[il] = make(lowest)
            measured = judge.kld(pairs).mean().item()
            errors = profile.layers[il]
            per_error = measured / max(errors[pairs[il]].error, TINY)
            sides[side].append({name: per_error * errors[make(name)].error for name in names})
        if progress:
            progress(il + 1, n_layer)
    return Prices(tuple(sides["k"]), tuple(sides["v"]))
