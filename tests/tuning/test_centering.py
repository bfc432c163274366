"""The centers that calibration finds."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from kvtuner_gguf.tuning import centering  # noqa: E402
from kvtuner_gguf.tuning.centering import weighted_means  # noqa: E402


def by_definition(query, key, value):
    """One token at a time, one query at a time, in float64."""
    query, key, value = query.double(), key.double(), value.double()
    n_group = query.shape[1] // key.shape[1]
    sums = [torch.zeros(x.shape[1], x.shape[3], dtype=torch.float64) for x in (key, value)]
    totals = [torch.zeros(x.shape[1], 1, dtype=torch.float64) for x in (key, value)]
    for chunk, head, t in torch.cartesian_prod(*(torch.arange(n) for n in query.shape[:3])).tolist():
        kv, q = head // n_group, query[chunk, head, t]
        keys, values = key[chunk, kv, : t + 1], value[chunk, kv, : t + 1]
        a = (keys @ q / math.sqrt(len(q))).softmax(0)
        weights = (a * (values - a @ values).norm(dim=1) * q.norm()) ** 2, a**2
        for side, (w, rows) in enumerate(zip(weights, (keys, values), strict=True)):
            sums[side][kv] += w @ rows
            totals[side][kv] += w.sum()
    return tuple(s / t for s, t in zip(sums, totals, strict=True))


@pytest.mark.parametrize("rows", [3, 512])
def test_the_means_are_weighted_by_what_errors_do_to_the_output(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(centering, "ROWS", rows)
    torch.manual_seed(3)
    query, key, value = torch.randn(2, 4, 7, 8), 2 + torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 6)
    for found, wanted in zip(weighted_means(query, key, value), by_definition(query, key, value), strict=True):
        assert found.shape == wanted.shape
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_constant_is_found_whatever_the_weights() -> None:
    constant = torch.tensor([5.0, -3.0, 0.25, 100.0])
    key = constant.expand(1, 1, 9, 4)
    found, _ = weighted_means(torch.randn(1, 2, 9, 4), key, torch.randn(1, 1, 9, 4))
    assert torch.allclose(found[0], constant.double(), rtol=1e-6)


def test_a_single_token_has_a_mean() -> None:
    """No error of its key can change an attention over one token: any center will do, but no NaN."""
    key, value = torch.randn(1, 1, 1, 4), torch.randn(1, 1, 1, 4)
    found_k, found_v = weighted_means(torch.randn(1, 1, 1, 4), key, value)
    assert torch.isfinite(found_k).all()
    assert torch.allclose(found_v, value[0, :, 0].double())
