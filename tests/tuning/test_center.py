"""The centers that calibration finds."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from kvtuner_gguf.engine.torch.reference import Reference  # noqa: E402
from kvtuner_gguf.tuning import center  # noqa: E402
from kvtuner_gguf.tuning.center import measure_centers, weighted_mean  # noqa: E402


def by_definition(query, key, value):
    """One token at a time, one query at a time, in float64."""
    query, key, value = query.double(), key.double(), value.double()
    n_group = query.shape[1] // key.shape[1]
    total, weight = torch.zeros(value.shape[1], value.shape[3]).double(), torch.zeros(value.shape[1], 1).double()
    for chunk, head, t in torch.cartesian_prod(*(torch.arange(n) for n in query.shape[:3])).tolist():
        kv, q = head // n_group, query[chunk, head, t]
        squares = (key[chunk, kv, : t + 1] @ q / math.sqrt(len(q))).softmax(0) ** 2
        total[kv] += squares @ value[chunk, kv, : t + 1]
        weight[kv] += squares.sum()
    return total / weight


@pytest.mark.parametrize("rows", [3, 512])
def test_values_are_weighted_by_squared_attention(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(center, "ROWS", rows)
    torch.manual_seed(3)
    query, key, value = torch.randn(2, 4, 7, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 6)
    found = weighted_mean(query, key, value)
    assert found.shape == (2, 6)
    assert torch.allclose(found, by_definition(query, key, value), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_keys_are_centered_by_their_mean(architecture: str, tiny, text: str, tmp_path: Path) -> None:
    reference = Reference(tiny(tmp_path / "m.gguf", architecture), architecture)
    tokens = torch.tensor([reference.tokenize(text)[i : i + 20] for i in (0, 20)])
    keys = []
    reference.run(reference.embed(tokens), capture=lambda il, q, k, v: keys.append(reference.cache.runtime_order(k)))
    centers, spread = measure_centers(reference, tokens)
    assert centers.v == (b"",) * reference.n_layer
    for il, key in enumerate(keys):
        mean = key.mean((0, 2)).flatten()
        assert torch.allclose(torch.from_numpy(centers.array_k(il)), mean, rtol=2e-3, atol=2e-3)
        centered = key - mean.reshape(-1, 1, key.shape[3])
        assert spread.largest[il] == pytest.approx(key.abs().max().item())
        assert spread.largest_centered[il] == pytest.approx(centered.abs().max().item(), rel=1e-4)
        assert spread.rms_centered[il] == pytest.approx(centered.square().mean().sqrt().item(), rel=1e-4)
    assert all(measure_centers(reference, tokens, with_values=True)[0].v)
