"""Stage 1, the profile: how much each pair of cache types disturbs the attention of each layer.

From full-precision queries, keys and values; errors do not accumulate over layers.
Source: KVTuner (arXiv 2502.04420), section 3.2 and appendix B; ``error`` is ours.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from kvtuner_gguf.engine.attention import Attention
from kvtuner_gguf.engine.base import Engine
from kvtuner_gguf.engine.cachemodel import CacheModel
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.scales import Scales
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.plan.stagefile import layers_from_json, stage_from_json, stage_to_json
from kvtuner_gguf.progress import Progress
from kvtuner_gguf.tuning.disturbance import attention_errors

SCHEMA = "kvtuner.profile/1"
# relative errors are means of |x - x'| / |x|: values next to zero would decide them alone
SMALLEST_RELATIVE = 1e-6


@dataclass(frozen=True)
class PairError:
    """Errors of one pair in one layer.

    ``e_k``, ``e_v``, ``e_o``: mean relative error of keys, values and attention output; ``e_a``: mean absolute error of
    the attention weights; ``error``: squared norm of the output's error over the squared norm of the output.
    """

    e_k: float
    e_v: float
    e_a: float
    e_o: float
    error: float

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, float | int) or not math.isfinite(value) or value < 0:
                raise KvtunerError(f"{name} is {value!r}, not an error: profile the model again")


# of a layer without a cache of its own
NOTHING = PairError(0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Profile:
    """``layers[il][pair]`` are the errors of that pair in layer ``il``."""

    model: ModelShape
    layers: tuple[Mapping[Pair, PairError], ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.layers) != self.model.n_layer:
            raise KvtunerError(
                f"the profile has {len(self.layers)} layers, its model {self.model.n_layer}: profile the model again"
            )

    def only(self, pairs: Iterable[Pair]) -> Profile:
        """This profile of no more than ``pairs``, all of which it has, in their order."""
        pairs = tuple(pairs)
        return replace(self, layers=tuple({pair: layer[pair] for pair in pairs} for layer in self.layers))

    def to_json(self) -> dict[str, Any]:
        layers = [{str(pair): asdict(errors) for pair, errors in layer.items()} for layer in self.layers]
        return stage_to_json(SCHEMA, self.model, self.provenance, {"layers": layers})

    @classmethod
    def from_json(cls, data: object) -> Profile:
        """Raises `KvtunerError` naming what is wrong."""
        model, provenance, body = stage_from_json(data, SCHEMA)
        return cls(model, layers_from_json(body.get("layers"), model.n_layer, _errors_from_json), provenance)


def _errors_from_json(layer: Mapping[str, Any]) -> dict[Pair, PairError]:
    return {Pair.parse(name): PairError(**errors) for name, errors in layer.items()}


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
