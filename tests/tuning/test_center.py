"""The centers that calibration finds."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from kvtuner_gguf.engine.torch.engine import TorchEngine  # noqa: E402
from kvtuner_gguf.plan.shape import ModelShape  # noqa: E402
from kvtuner_gguf.tuning.center import measure_centers  # noqa: E402


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_keys_are_centered_by_their_mean(architecture: str, tiny, text: str, tmp_path: Path) -> None:
    engine = TorchEngine(tiny(tmp_path / "m.gguf", architecture), ModelShape(architecture, (2, 2), 64, 64))
    reference = engine.reference
    tokens = torch.tensor([reference.tokenize(text)[i : i + 20] for i in (0, 20)])
    keys = []
    reference.run(reference.embed(tokens), capture=lambda il, q, k, v: keys.append(reference.cache.runtime_order(k)))
    centers, spread = measure_centers(engine, tokens, span=None)
    assert centers.span is None
    for il, key in enumerate(keys):
        mean = key.mean((0, 2)).flatten()
        assert torch.allclose(torch.from_numpy(centers.array_k(il)), mean, rtol=2e-3, atol=2e-3)
        centered = key - mean.reshape(-1, 1, key.shape[3])
        assert spread.largest[il] == pytest.approx(key.abs().max().item())
        assert spread.largest_centered[il] == pytest.approx(centered.abs().max().item(), rel=1e-4)
        assert spread.rms_centered[il] == pytest.approx(centered.square().mean().sqrt().item(), rel=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("span", [16, 128])
def test_the_center_of_a_span_is_the_mean_of_keys_turned_to_its_positions(
    span: int, architecture: str, tiny, text: str, tmp_path: Path
) -> None:
    engine = TorchEngine(tiny(tmp_path / "m.gguf", architecture), ModelShape(architecture, (2, 2), 64, 64))
    tokens = torch.tensor([engine.tokenize(text)[i : i + 20] for i in (0, 20)])
    keys = []
    engine.capture(tokens, lambda il, used: keys.append(used.key.double()))
    centers, spread = measure_centers(engine, tokens, span)
    assert centers.span == span
    n_pairs = 32
    for il, key in enumerate(keys):
        found = torch.from_numpy(centers.array_k(il)).view(2, 64)
        squares = key.square().mean((0, 2))
        for i in range(n_pairs):
            first, second = (2 * i, 2 * i + 1) if architecture == "llama" else (i, i + n_pairs)
            frequency = 10000 ** (-i / n_pairs)
            wanted = torch.zeros(2, 2, dtype=torch.float64)
            for t in range(20):
                x, y = key[:, :, t, first].mean(0), key[:, :, t, second].mean(0)
                for p in range(span):
                    wanted += turned(x, y, (p - t) * frequency) / (20 * span)
            assert torch.allclose(found[:, [first, second]].T.double(), wanted, rtol=2e-3, atol=2e-3)
            lost = [turned(*wanted, t // span * span * frequency) for t in range(20)]
            left = key[..., [first, second]] - torch.stack(lost, -1).permute(1, 2, 0)
            squares[:, [first, second]] = left.square().mean((0, 2))
        assert spread.rms_centered[il] == pytest.approx(squares.mean().sqrt().item(), rel=1e-3)


def turned(x: torch.Tensor, y: torch.Tensor, angle: float) -> torch.Tensor:
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.stack((cos * x - sin * y, sin * x + cos * y))
