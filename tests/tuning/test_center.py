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
    centers, spread = measure_centers(engine, tokens)
    for il, key in enumerate(keys):
        mean = key.mean((0, 2)).flatten()
        assert torch.allclose(torch.from_numpy(centers.array_k(il)), mean, rtol=2e-3, atol=2e-3)
        centered = key - mean.reshape(-1, 1, key.shape[3])
        assert spread.largest[il] == pytest.approx(key.abs().max().item())
        assert spread.largest_centered[il] == pytest.approx(centered.abs().max().item(), rel=1e-4)
        assert spread.rms_centered[il] == pytest.approx(centered.square().mean().sqrt().item(), rel=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("depth", [3, 100])
def test_the_center_of_a_depth_is_the_mean_of_keys_turned_to_all_positions(
    depth: int, architecture: str, tiny, text: str, tmp_path: Path
) -> None:
    engine = TorchEngine(tiny(tmp_path / "m.gguf", architecture), ModelShape(architecture, (2, 2), 64, 64))
    tokens = torch.tensor([engine.tokenize(text)[i : i + 20] for i in (0, 20)])
    keys = []
    engine.capture(tokens, lambda il, used: keys.append(used.key.double()))
    centers, _ = measure_centers(engine, tokens, depth)
    n_pairs = 32
    for il, key in enumerate(keys):
        found = torch.from_numpy(centers.array_k(il)).view(2, 64)
        for i in (0, 9, 31):
            first, second = (2 * i, 2 * i + 1) if architecture == "llama" else (i, i + n_pairs)
            frequency = 10000 ** (-i / n_pairs)
            wanted = torch.zeros(2, 2, dtype=torch.float64)
            for t in range(20):
                x, y = key[:, :, t, first].mean(0), key[:, :, t, second].mean(0)
                for p in range(depth):
                    cos, sin = math.cos((p - t) * frequency), math.sin((p - t) * frequency)
                    wanted += torch.stack((cos * x - sin * y, sin * x + cos * y)) / (20 * depth)
            assert torch.allclose(found[:, [first, second]].T.double(), wanted, rtol=2e-3, atol=2e-3)
