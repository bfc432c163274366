"""Stage 1, the profile: how much each pair of cache types disturbs the attention of each layer.

From full-precision queries, keys and values; errors do not accumulate over layers.
Source: KVTuner (arXiv 2502.04420), section 3.2 and appendix B; ``error`` is ours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvtuner_gguf import atomicfile
from kvtuner_gguf.cachetypes import Pair
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan import ModelShape
from kvtuner_gguf.tuning.reference import Reference, attend

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
        return {
            "schema": SCHEMA,
            "model": self.model.to_json(),
            "layers": layers,
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, data: object) -> Profile:
        """Raises `KvtunerError` naming what is wrong."""
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA or not isinstance(data.get("layers"), list):
            raise KvtunerError(f"no profile of the schema {SCHEMA}: profile the model again")
        return cls(
            model=ModelShape.from_json(data.get("model")),
            layers=tuple(_layer_from_json(il, layer) for il, layer in enumerate(data["layers"])),
            provenance=data.get("provenance") or {},
        )

    def save(self, path: Path) -> None:
        atomicfile.write_text(path, json.dumps(self.to_json(), indent=1) + "\n")


def _layer_from_json(il: int, layer: object) -> dict[Pair, PairError]:
    try:
        return {Pair.parse(name): PairError(**errors) for name, errors in layer.items()}
    except (AttributeError, TypeError, KvtunerError) as err:
        raise KvtunerError(f"layer {il} of the profile is damaged ({err}): profile the model again") from err


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
    output = attend(query, key, value)
    e_v = {name: _relative(value, read) for name, read in values.items()}
    errors = {}
    for name, read in keys.items():
        e_k, e_a = _relative(key, read), _weights_error(query, key, read)
        for pair in (pair for pair in pairs if pair.k == name):
            changed = attend(query, read, values[pair.v])
            error = ((changed - output).square().sum() / output.square().sum()).item()
            errors[pair] = PairError(e_k, e_v[pair.v], e_a, _relative(output, changed), error)
    return errors


def _relative(exact: Tensor, changed: Tensor) -> float:
    return ((changed - exact).abs() / exact.abs().clamp_min(SMALLEST_RELATIVE)).mean().item()


def _weights_error(query: Tensor, key: Tensor, changed: Tensor) -> float:
    """Mean over the weights that causality allows, chunk by chunk to keep the squares small."""
    errors = [(_weights(q, a) - _weights(q, b)).abs().sum() for q, a, b in zip(query, key, changed, strict=True)]
    n_tokens = query.shape[2]
    n_weights = query.shape[0] * query.shape[1] * n_tokens * (n_tokens + 1) / 2
    return (torch.stack(errors).sum() / n_weights).item()


def _weights(query: Tensor, key: Tensor) -> Tensor:
    """Causal attention weights [heads, tokens, tokens] of one chunk."""
    key = key.repeat_interleave(query.shape[0] // key.shape[0], 0)
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    return scores.masked_fill(torch.ones_like(scores[0], dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
