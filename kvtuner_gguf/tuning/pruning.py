"""Stage 2, the candidates: per layer the pairs that are worth their bits.

Source: KVTuner (arXiv 2502.04420), section 5.2, with true bits and the output error's energy.
"""

from __future__ import annotations

from collections.abc import Mapping

from kvtuner_gguf.cachetypes import Pair
from kvtuner_gguf.tuning.sensitivity import PairError, Profile

# A pair is dropped only where another one of no more bits has clearly less error: attention output of one layer is not
# yet the loss of the model.
CLEARLY = 1.25


def prune(profile: Profile) -> tuple[tuple[Pair, ...], ...]:
    """The candidates of each layer, cheapest first."""
    return tuple(_prune_layer(layer) for layer in profile.layers)


def _prune_layer(errors: Mapping[Pair, PairError]) -> tuple[Pair, ...]:
    kept = [pair for pair in errors if not any(_beats(other, pair, errors) for other in errors)]
    return tuple(sorted(kept, key=lambda pair: (pair.bits_per_value, errors[pair].error)))


def _beats(other: Pair, pair: Pair, errors: Mapping[Pair, PairError]) -> bool:
    cheaper = other.bits_per_value <= pair.bits_per_value
    return other != pair and cheaper and errors[other].error * CLEARLY < errors[pair].error
