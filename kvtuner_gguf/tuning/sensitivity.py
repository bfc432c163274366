"""Stage 1, the profile: how much each pair of cache types disturbs the attention of each layer.

From full-precision queries, keys and values; errors do not accumulate over layers.
Source: KVTuner (arXiv 2502.04420), section 3.2 and appendix B; ``error`` is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from kvtuner_gguf.artifact import layers_from_json, stage_from_json, stage_to_json
from kvtuner_gguf.cachetypes import Pair
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan import ModelShape
from kvtuner_gguf.tuning.reference import Reference, attend_rows, seen

SCHEMA = "kvtuner.profile/1"
# relative errors are means of |x - x'| / |x|: values next to zero would decide them alone
SMALLEST_RELATIVE = 1e-6
# attention weights of a head that are looked at: of 16k tokens those of 256 queries
WEIGHTS = 1 << 22
# query rows at a time
ROWS = 256


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
    reference: Reference,
    tokens: Tensor,
    pairs: Iterable[Pair],
    model: ModelShape,
    provenance: Mapping[str, Any],
    progress: Callable[[int, int], None] | None = None,
) -> Profile:
    """Measure every pair in every layer on ``tokens`` [chunks, context]."""
    pairs, layers = tuple(pairs), []

    def measure(il: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        layers.append(_measure_layer(reference, il, query, key, value, pairs))
        if progress:
            progress(il + 1, reference.n_layer)

    reference.run(reference.embed(tokens), capture=measure)
    return Profile(model, tuple(layers), dict(provenance))


def _measure_layer(
    reference: Reference, il: int, query: Tensor, key: Tensor, value: Tensor, pairs: Sequence[Pair]
) -> dict[Pair, PairError]:
    """Each K and each V type is quantized once, each K type makes its attention weights once."""
    keys = {name: reference.cache.keys(key, name, il) for name in {pair.k for pair in pairs}}
    values = {name: reference.cache.values(value, name, il) for name in {pair.v for pair in pairs}}
    rows = _rows(query.shape[2])
    output = attend_rows(query, key, value, rows)
    e_v = {name: _relative(value, read) for name, read in values.items()}
    errors = {}
    for name, read in keys.items():
        e_k, e_a = _relative(key, read), _weights_error(query, key, read, rows)
        for pair in (pair for pair in pairs if pair.k == name):
            changed = attend_rows(query, read, values[pair.v], rows)
            error = ((changed - output).square().sum() / output.square().sum()).item()
            errors[pair] = PairError(e_k, e_v[pair.v], e_a, _relative(output, changed), error)
    return errors


def _rows(n_tokens: int) -> Tensor:
    """Positions of the queries that are looked at: all, or in a long context some, evenly spread, the last included."""
    n_rows = min(n_tokens, max(1, WEIGHTS // n_tokens))
    return (torch.arange(1, n_rows + 1) * n_tokens).div(n_rows, rounding_mode="floor") - 1


def _relative(exact: Tensor, changed: Tensor) -> float:
    return ((changed - exact).abs() / exact.abs().clamp_min(SMALLEST_RELATIVE)).mean().item()


def _weights_error(query: Tensor, key: Tensor, changed: Tensor, rows: Tensor) -> float:
    """Mean over the weights that causality allows to the queries at ``rows``, some rows of a chunk at a time."""
    total = 0.0
    for q, a, b in zip(query, key, changed, strict=True):
        for some in rows.split(ROWS):
            total += (_weights(q, a, some) - _weights(q, b, some)).abs().sum().item()
    return total / (query.shape[0] * query.shape[1] * (rows + 1).sum().item())


def _weights(query: Tensor, key: Tensor, rows: Tensor) -> Tensor:
    """Causal attention weights [heads, rows, tokens] of one chunk."""
    key = key.repeat_interleave(query.shape[0] // key.shape[0], 0)
    scores = query[:, rows.to(query.device)] @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    return scores.masked_fill(~seen(rows, key.shape[1]).to(scores.device), -torch.inf).softmax(-1)
