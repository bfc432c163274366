"""Stage 3 without measuring plans: the prices of all types in all layers from backward passes of the exact model.

Small errors e of what attention reads from a cache have the KLD e F e / 2, where F is the Fisher information of the
model's predictions, the mean of g g over gradients g of log-probabilities of labels that the model itself draws. Errors
of different tokens and KV heads are next to independent of each other; those of the same token at several places are
not (in layer 0 its values are the same). So the KLD of a layer's keys or values is half of the sum of (g e) squared
over KV heads and distinct tokens. The errors are those that a type really makes in this text, with centers and scales
of channels; what all tokens share, as errors of scales that shrink all values would be, is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from kvtuner_gguf.engine.base import Engine
from kvtuner_gguf.engine.cachemodel import CacheModel
from kvtuner_gguf.engine.gradients import Gradients
from kvtuner_gguf.engine.logits_judge import SKIPPED
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.scales import Scales
from kvtuner_gguf.progress import Progress
from kvtuner_gguf.tuning.prices import Prices


def fisher_prices(
    engine: Engine,
    tokens: Tensor,
    names: Sequence[str],
    provenance: Mapping[str, Any],
    centers: Centers | None = None,
    ends: Ends | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    scales: Scales | None = None,
    only: Collection[int] | None = None,
) -> Prices:
    """Prices of the types ``names`` on ``tokens`` [chunks, context], of which as many are scored as a judge does.

    The layers ``only`` are priced where these are given; in the others all types then cost nothing.
    Raises `KvtunerError` where the engine has no gradients.
    """
    n_layer, first = engine.shape.n_layer, int(tokens.shape[1] * SKIPPED)
    k, v = ([dict.fromkeys(names, 0.0) for _ in range(n_layer)] for _ in range(2))
    n_scored, n_seen = len(tokens) * (tokens.shape[1] - first), 0

    def add(il: int, found: Gradients) -> None:
        nonlocal n_seen
        if only is None or il in only:
            price(il, found)
        n_seen += 1
        if progress:
            progress(n_seen, n_layer * len(tokens))

    def price(il: int, found: Gradients) -> None:
        cache = CacheModel(interleaved_rope=False, centers=centers, rope=found.rope, scales=scales)
        kinds = found.tokens.unique(return_inverse=True)[1].to(found.key.device)
        for name in names:
            keys, values = cache.keys(found.key, name, il), cache.values(found.value, name)
            k[il][name] += _kld((keys - found.key) * found.by_key, kinds) / n_scored
            v[il][name] += _kld((values - found.value) * found.by_value, kinds) / n_scored

    engine.gradients(tokens, first, add, ends, seed)
    return Prices(tuple(k), tuple(v), engine.shape, {**provenance, "prices": "fisher"})


def _kld(products: Tensor, kinds: Tensor) -> float:
    """Of all tokens, from ``products`` [draws, KV heads, tokens, head size]; errors of tokens of a kind correlate."""
    rows = products.sum(-1).double()
    sums = rows.new_zeros(*rows.shape[:2], int(kinds.max()) + 1).index_add_(2, kinds, rows)
    return 0.5 * sums.square().sum().item() / len(rows)
