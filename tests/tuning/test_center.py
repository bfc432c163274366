"""The centers that calibration finds."""

from __future__ import annotations

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
