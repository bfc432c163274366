"""What one would use in place of a plan: uniform pairs of about its size."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from kvtuner_gguf.plan.backends import OF_BASE, fitting_names
from kvtuner_gguf.plan.pairs import F16, Pair
from kvtuner_gguf.plan.plan import Plan, of_caches
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.tuning.prices import Prices


def rivals(
    plan: Plan,
    shape: ModelShape,
    n_ctx: int,
    pairs: Iterable[Pair],
    like: Callable[[Sequence[Pair]], Plan],
    prices: Prices | None = None,
) -> dict[str, Plan]:
    """The uniform plans that ``plan`` has to win over, by their names in a table.

    ``"uniform q4_0/q3_nl"``: of ``pairs``, as ``like`` makes plans of them, the best that takes no more in a context of
    ``n_ctx`` tokens, by the sum of its ``prices`` or else by its bits, and the next larger one. ``"stock q4_0/q4_0"``:
    of the pairs of equal types in llama.cpp without patches the nearest in size; it has no centers, scales or ends.
    """
    uniform = {pair: like([pair] * shape.n_layer) for pair in pairs if pair != F16}
    uniform = {pair: made for pair, made in uniform.items() if made.pairs != plan.pairs}
    bits = {pair: made.bits_with_ends(shape, n_ctx) for pair, made in uniform.items()}
    size = plan.bits_with_ends(shape, n_ctx)
    found = {f"uniform {pair}": uniform[pair] for pair in _around(size, bits, _losses(uniform, prices))}
    return found | _stock(shape, n_ctx, size, {plan.fingerprint, *(made.fingerprint for made in found.values())})


def _around(size: float, bits: Mapping[Pair, float], losses: Mapping[Pair, float]) -> list[Pair]:
    """The best pair of at most ``size`` bits, and the next larger one, where there are such."""
    smaller = [pair for pair, n in bits.items() if n <= size]
    larger = [pair for pair, n in bits.items() if n > size]
    best = sorted(smaller, key=lambda pair: (losses.get(pair, 0.0), -bits[pair], -pair.types[0].bits_per_value))
    after = sorted(larger, key=lambda pair: (bits[pair], losses.get(pair, 0.0), -pair.types[0].bits_per_value))
    return [*best[:1], *after[:1]]


def _losses(uniform: Mapping[Pair, Plan], prices: Prices | None) -> dict[Pair, float]:
    """What the layers of each plan cost together, in nats; empty where a type has no price in some layer."""
    names = {name for pair in uniform for name in (pair.k, pair.v)}
    if prices is None or not prices.has(names):
        return {}
    return {pair: prices.plan(made.pairs) for pair, made in uniform.items()}


def _stock(shape: ModelShape, n_ctx: int, size: float, taken: Collection[str]) -> dict[str, Plan]:
    """The one that is nearest to ``size`` bits, unless it is one of those with the fingerprints ``taken``."""
    pairs = [Pair(name, name) for name in fitting_names(OF_BASE, shape) if name != F16.k]
    plans = {pair: Plan(of_caches([pair] * shape.n_layer, shape), shape) for pair in pairs}
    nearest = sorted(plans, key=lambda pair: abs(plans[pair].bits_with_ends(shape, n_ctx) - size))[:1]
    return {f"stock {pair}": plans[pair] for pair in nearest if plans[pair].fingerprint not in taken}
