"""The cheapest plan for a budget on the priced model: exact, then refined by the KLD of whole plans."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.sizes import LayerPairs, Sizes
from kvtuner_gguf.progress import Progress
from kvtuner_gguf.tuning.judges import Judge, Noise, no_noise
from kvtuner_gguf.tuning.prices import Prices

# a move must win this share of the plan's KLD, else it fits the noise of the calibration text
WORTH = 0.002


# trades in a row that win nothing end a refinement
PATIENCE = 12


def solve(prices: Prices, candidates: LayerPairs, sizes: Sizes, budget: int) -> tuple[Pair, ...]:
    """The cheapest plan of at most ``budget`` bytes (`Sizes`): exact, by dynamic programming over the layers.

    Raises `KvtunerError` where even the smallest candidates do not fit.
    """
    smallest, _ = sizes.range(candidates)
    if smallest > budget:
        raise KvtunerError(
            f"no plan of these candidates fits into {sizes.bits(budget):.2f} bits per value: the smallest has "
            f"{sizes.bits(smallest):.2f}: raise the budget, or name smaller types with --candidates"
        )
    options = [_beyond_smallest(il, layer, sizes) for il, layer in enumerate(candidates)]
    unit = math.gcd(*(n_bytes for layer in options for n_bytes, _ in layer)) or 1
    best = np.full((budget - smallest) // unit + 1, np.inf)
    best[0] = 0.0
    choices = []
    for il, layer in enumerate(options):
        best, choice = _add_layer(best, [(n_bytes // unit, prices.pair(il, pair)) for n_bytes, pair in layer])
        choices.append(choice)
    at, pairs = int(best.argmin()), []
    for layer, choice in zip(reversed(options), reversed(choices), strict=True):
        n_bytes, pair = layer[choice[at]]
        pairs.append(pair)
        at -= n_bytes // unit
    return tuple(reversed(pairs))


def _beyond_smallest(il: int, layer: Sequence[Pair], sizes: Sizes) -> list[tuple[int, Pair]]:
    """The pairs of a layer with their bytes beyond those of its smallest."""
    n_bytes = [sizes.pair(il, pair) for pair in layer]
    return [(n - min(n_bytes), pair) for n, pair in zip(n_bytes, layer, strict=True)]


def _add_layer(best: np.ndarray, options: Sequence[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """For each size the least price with one more layer, and which option gives it."""
    least, choice = np.full(len(best), np.inf), np.zeros(len(best), np.uint16)
    for i, (size, price) in enumerate(options):
        if size < len(best):
            with_it = best[: len(best) - size] + price
            better = with_it < least[size:]
            least[size:][better] = with_it[better]
            choice[size:][better] = i
    return least, choice


def refine(
    judge: Judge,
    start: Sequence[Pair],
    prices: Prices,
    candidates: LayerPairs,
    sizes: Sizes,
    budget: int,
    trials: int,
    progress: Progress | None = None,
    noise: Noise = no_noise,
) -> tuple[tuple[Pair, ...], float]:
    """Trade bytes between two layers as long as the KLD of the whole plan falls; the plan and its mean KLD.

    At most ``trials`` trades are judged, the most promising by price first, and no more after `PATIENCE` in vain.
    None is made that wins less than the ``noise`` between the two plans.
    """
    pairs, kld = tuple(start), judge.kld(start)
    judge.settle(pairs)
    tried: set[tuple[Pair, ...]] = {pairs}
    won = 0
    for done in range(trials):
        if progress:
            progress(done, trials)
        trial = next((plan for plan in _trades(pairs, prices, candidates, sizes, budget) if plan not in tried), None)
        if trial is None or done - won >= PATIENCE:
            break
        tried.add(trial)
        trial_kld = judge.kld(trial)
        if trial_kld < kld * (1 - WORTH) and kld - trial_kld >= noise(trial, pairs):
            pairs, kld, won = trial, trial_kld, done + 1
            judge.settle(pairs)
    if progress:
        progress(trials, trials)
    return pairs, kld


def _trades(
    pairs: Sequence[Pair], prices: Prices, candidates: LayerPairs, sizes: Sizes, budget: int
) -> Iterator[tuple[Pair, ...]]:
    """Plans that differ in two layers and still fit the budget, least price first."""
    room = budget - sizes.plan(pairs)
    moves = [
        (prices.pair(il, pair) - prices.pair(il, pairs[il]), sizes.pair(il, pair) - sizes.pair(il, pairs[il]), il, pair)
        for il, layer in enumerate(candidates)
        for pair in layer
        if pair != pairs[il]
    ]
    ups = sorted(move for move in moves if move[0] < 0)
    downs = sorted(move for move in moves if move[1] < 0)
    trades = sorted(
        (up[0] + down[0], up[2:], down[2:])
        for up in ups
        for down in downs
        if up[2] != down[2] and up[1] + down[1] <= room
    )
    for _, up, down in trades:
        plan = list(pairs)
        for il, pair in (up, down):
            plan[il] = pair
        yield tuple(plan)
