"""The scales that calibration finds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kvtuner_gguf.engine.attention import Attention  # noqa: E402
from kvtuner_gguf.engine.torch.engine import TorchEngine  # noqa: E402
from kvtuner_gguf.plan.centers import Centers  # noqa: E402
from kvtuner_gguf.plan.ends import Ends  # noqa: E402
from kvtuner_gguf.plan.shape import ModelShape  # noqa: E402
from kvtuner_gguf.tuning import scale  # noqa: E402
from kvtuner_gguf.tuning.center import measure_centers  # noqa: E402
from kvtuner_gguf.tuning.scale import measure_scales  # noqa: E402

N_PAIRS, N_TOKENS = 32, 20
ENDS = Ends(1, 3)


@pytest.fixture(params=["llama", "qwen2"])
def engine(request: pytest.FixtureRequest, tiny, tmp_path: Path) -> TorchEngine:
    return TorchEngine(tiny(tmp_path / "m.gguf", request.param), ModelShape(request.param, (2, 2), 64, 64))


def tokens_of(engine: TorchEngine, text: str) -> torch.Tensor:
    return torch.tensor([engine.tokenize(text)[i : i + N_TOKENS] for i in (0, N_TOKENS)])


def seen(engine: TorchEngine, tokens: torch.Tensor) -> list[Attention]:
    layers: list[Attention] = []
    engine.capture(tokens, lambda il, used: layers.append(used))
    return layers


def channels_of(i: int, interleaved: bool) -> list[int]:
    return [2 * i, 2 * i + 1] if interleaved else [i, i + N_PAIRS]


def slow_scale(used: Attention, center: np.ndarray | None, span: int | None, ends: Ends | None) -> np.ndarray:
    """[KV heads, pairs]: query by query and key by key."""
    chunks, n_head, _, size = used.query.shape
    n_kv = used.key.shape[1]
    query, key, value = (x.double().numpy() for x in (used.query, used.key, used.value))
    centered = key.copy()
    if center is not None:
        for t in range(N_TOKENS):
            turned = used.rope.turned(torch.from_numpy(center).view(n_kv, 1, size), torch.tensor([t // span * span]))
            centered[:, :, t] -= turned[:, 0].numpy()
    sums = np.zeros((2, n_kv, size))
    for c, h, t in np.ndindex(chunks, n_head, N_TOKENS):
        kv = h // (n_head // n_kv)
        products = np.exp(key[c, kv, : t + 1] @ query[c, h, t] * used.scale)
        weights = products / products.sum()
        output = weights @ value[c, kv, : t + 1]
        for p in range(t + 1):
            if ends is not None and (p < ends.first or p > t - ends.last):
                continue
            moved = weights[p] * np.linalg.norm(value[c, kv, p] - output) / np.linalg.norm(output)
            sums[0, kv] += moved**2 * query[c, h, t] ** 2
            sums[1, kv] += moved**2 * centered[c, kv, p] ** 2
    pairs = [channels_of(i, used.rope.interleaved) for i in range(N_PAIRS)]
    queries, keys = (np.stack([side[:, both].sum(1) for both in pairs], 1) for side in sums)
    found = (queries / keys) ** 0.25
    return found / np.exp(np.log(found).mean(1, keepdims=True))


@pytest.mark.parametrize("ends", [None, ENDS])
@pytest.mark.parametrize("is_centered", [False, True])
def test_scales_are_those_of_each_query_and_key(
    is_centered: bool, ends: Ends | None, engine: TorchEngine, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "ROWS", 7)
    tokens = tokens_of(engine, text)
    centers = measure_centers(engine, tokens, 16)[0] if is_centered else None
    found = measure_scales(engine, tokens, centers, ends)
    for il, used in enumerate(seen(engine, tokens)):
        wanted = slow_scale(used, centers and centers.array_k(il), 16, ends)
        values = found.array_k(il).reshape(2, 2 * N_PAIRS)
        for i in range(N_PAIRS):
            for channel in channels_of(i, used.rope.interleaved):
                assert values[:, channel] == pytest.approx(wanted[:, i], rel=2e-3)
        assert wanted.max() > 1.1 * wanted.min()


def test_the_size_of_blocks_does_not_matter(engine: TorchEngine, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, found = tokens_of(engine, text), []
    for rows in (1, 6, N_TOKENS, 64):
        monkeypatch.setattr(scale, "ROWS", rows)
        found.append(measure_scales(engine, tokens, None, ENDS).array_k(1))
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-3)


def test_the_centers_matter(engine: TorchEngine, text: str) -> None:
    tokens = tokens_of(engine, text)
    centers = Centers.from_arrays([np.full(128, 5.0), None], 16)
    plain, centered = (measure_scales(engine, tokens, given) for given in (None, centers))
    assert plain.k[0] != centered.k[0]
    assert plain.k[1] == centered.k[1]


def test_nothing_is_scaled_where_all_is_read_exactly(engine: TorchEngine, text: str) -> None:
    assert measure_scales(engine, tokens_of(engine, text), None, Ends(0, N_TOKENS)) is None


def test_a_layer_with_a_window_reads_nothing_exactly(engine: TorchEngine, text: str) -> None:
    tokens = tokens_of(engine, text)
    plain, ended = (measure_scales(engine, tokens, None, ends) for ends in (None, ENDS))
    engine.shape = replace(engine.shape, window=(0, N_TOKENS))
    found = measure_scales(engine, tokens, None, ENDS)
    assert found.k == (ended.k[0], plain.k[1])
    assert plain.k[1] != ended.k[1]


def test_an_engine_that_does_not_tell_its_rope_has_no_scales(engine: TorchEngine, text: str) -> None:
    capture = engine.capture
    engine.capture = lambda tokens, see: capture(tokens, lambda il, used: see(il, replace(used, rope=None)))
    assert measure_scales(engine, tokens_of(engine, text)) is None


def test_a_pair_without_keys_and_an_output_of_zero_scale_nothing_out_of_range(engine: TorchEngine, text: str) -> None:
    """Keys of next to nothing in one pair, and values of zero that all queries of a head read."""
    (used, *_) = seen(engine, tokens_of(engine, text))
    key, value = used.key.clone(), used.value.clone()
    pair = channels_of(3, used.rope.interleaved)
    key[..., pair] *= 1e-12
    value[:, 0, :5] = 0
    found = scale._scale(replace(used, key=key, value=value), 0, None, None).reshape(2, -1)
    assert np.isfinite(found).all()
    assert found.max() == scale.LARGEST
    assert np.all(found[:, pair] == scale.LARGEST)
    others = np.delete(found[0], pair)
    assert others.std() > 0, "what reads no zeros still counts"
