"""Why some layers have more bits than most, in plain words."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from statistics import median

from kvtuner_gguf.plan.cachetypes import cache_type
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.report.numbers import with_error
from kvtuner_gguf.tuning.prices import Prices


def reasons(pairs: Sequence[Pair], prices: Prices, given: Collection[int] = ()) -> list[str]:
    """A sentence for each layer and side whose type has more bits than that of the median layer, the dearest first.

    The layers ``given`` had no choice, and those in which that type has no price: these are left out.
    """
    chosen = [il for il in range(len(pairs)) if il not in given]
    keys = _side("keys", {il: pairs[il].k for il in chosen}, prices.k, prices.k_se)
    found = [*keys, *_side("values", {il: pairs[il].v for il in chosen}, prices.v, prices.v_se)]
    return [text for _, text in sorted(found, key=lambda entry: (-entry[0], entry[1]))]


def _side(
    what: str, names: Mapping[int, str], prices: Sequence[Mapping[str, float]], errors: Sequence[Mapping[str, float]]
) -> list[tuple[float, str]]:
    """``names``: the type of each layer that had a choice."""
    if not names:
        return []
    bits = {il: cache_type(name).bits_per_value for il, name in names.items()}
    usual = sorted(names.values(), key=lambda name: (cache_type(name).bits_per_value, name))[len(names) // 2]
    typical = median([prices[il][usual] for il in names if usual in prices[il]] or [0.0])
    found = []
    for il, name in names.items():
        if bits[il] > cache_type(usual).bits_per_value and usual in prices[il]:
            cost = prices[il][usual]
            shown = with_error(cost, errors[il][usual]) if errors else f"{cost:.2g}"
            found.append((cost, _sentence(f"layer {il}: {what} have {name}: in {usual}", shown, cost, typical)))
    return found


def _sentence(where: str, shown: str, cost: float, typical: float) -> str:
    times = cost / typical if typical > 0 else float("inf")
    ratio = f"{times:.1f} times what the median layer loses" if times < 1e6 else "where the median layer loses nothing"
    return f"{where} they alone would cost a KLD of {shown}, {ratio}"
