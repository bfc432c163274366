"""Measure a profile: an engine shows queries, keys and values, and each pair reads them in each layer alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from kvtuner_gguf.engine.attention import Attention
from kvtuner_gguf.engine.base import Engine
from kvtuner_gguf.engine.cachemodel import CacheModel
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.scales import Scales
from kvtuner_gguf.progress import Progress
from kvtuner_gguf.tuning.disturbance import attention_errors
from kvtuner_gguf.tuning.profile import NOTHING, PairError, Profile

# relative errors are means of |x - x'| / |x|: values next to zero would decide them alone
SMALLEST_RELATIVE = 1e-6


def profile(
    engine: Engine,
    tokens: Tensor,
    pairs: Iterable[Pair],
    provenance: Mapping[str, Any],
    centers: Centers | None = None,
    progress: Progress | None = None,
    scales: Scales | None = None,
    only: Collection[int] | None = None,
) -> Profile:
    """Measure every pair in every layer on ``tokens`` [chunks, context], with ``centers`` taken off and ``scales``.

    The layers ``only`` are measured where these are given; the others then have no errors.
    """
    pairs = tuple(pairs)
    layers = [dict.fromkeys(pairs, NOTHING)] * engine.shape.n_layer

    def measure(il: int, used: Attention) -> None:
        if only is not None and il not in only:
            return
        cache = CacheModel(interleaved_rope=False, centers=centers, rope=used.rope, scales=scales)
        layers[il] = _measure_layer(cache, il, used, pairs)
        if progress:
            progress(il + 1, engine.shape.n_layer)

    engine.capture(tokens, measure)
    return Profile(engine.shape, tuple(layers), dict(provenance))


def _measure_layer(cache: CacheModel, il: int, used: Attention, pairs: Sequence[Pair]) -> dict[Pair, PairError]:
    """Each K and each V type is quantized once, each K type makes its attention weights once."""
    key, value = used.summed(used.key), used.value
    names = dict.fromkeys(pair.k for pair in pairs), dict.fromkeys(pair.v for pair in pairs)
    keys = {name: used.summed(cache.keys(used.key, name, il)) for name in names[0]}
    if used.latent:
        values = {name: read[..., : value.shape[-1]] for name, read in keys.items()}
    else:
        values = {name: cache.values(value, name) for name in names[1]}
    e_k = {name: _relative(key, read) for name, read in keys.items()}
    e_v = {name: _relative(value, read) for name, read in values.items()}
    e_a, e_o, error = attention_errors(used, list(keys.values()), list(values.values()))
    k_at, v_at = ({name: i for i, name in enumerate(names)} for names in (keys, values))
    return {
        pair: PairError(
            e_k[pair.k],
            e_v[pair.v],
            e_a[k_at[pair.k]],
            e_o[k_at[pair.k]][v_at[pair.v]],
            error[k_at[pair.k]][v_at[pair.v]],
        )
        for pair in pairs
    }


def _relative(exact: Tensor, changed: Tensor) -> float:
    return ((changed - exact).abs() / exact.abs().clamp_min(SMALLEST_RELATIVE)).mean().item()
