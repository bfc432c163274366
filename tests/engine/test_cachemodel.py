"""What a cache gives back: which of it is rotated, and where the center is taken off."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kvtuner_gguf.engine.attention import Rope  # noqa: E402
from kvtuner_gguf.engine.cachemodel import CacheModel, rotated_sides  # noqa: E402
from kvtuner_gguf.engine.fakequant import fake_quantize  # noqa: E402
from kvtuner_gguf.engine.rotation import rotate  # noqa: E402
from kvtuner_gguf.engine.torch.judge import TorchJudge  # noqa: E402
from kvtuner_gguf.engine.torch.reference import Reference  # noqa: E402
from kvtuner_gguf.errors import KvtunerError  # noqa: E402
from kvtuner_gguf.plan.centers import Centers  # noqa: E402
from kvtuner_gguf.plan.ends import Ends  # noqa: E402
from kvtuner_gguf.plan.pairs import Pair  # noqa: E402
from kvtuner_gguf.plan.scales import Scales  # noqa: E402

torch.manual_seed(11)
X = torch.randn(1, 2, 5, 128)
CENTER = np.random.default_rng(3).standard_normal(256) * 20


def pairs(*names: str) -> list[Pair]:
    return [Pair.parse(name) for name in names]


@pytest.mark.parametrize(
    ("names", "rotated"),
    [
        (("f16", "f16"), (False, False)),
        (("f16", "f16/q4_0", "bf16"), (False, True)),
        (("q8_0/f32", "f16"), (True, False)),
        (("q8_0/f16", "f16/q2_nl"), (True, True)),
    ],
)
def test_a_side_is_rotated_where_one_layer_of_it_is_quantized(names: tuple[str, ...], rotated: tuple) -> None:
    assert rotated_sides(pairs(*names)) == rotated


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_layers_that_are_not_quantized_are_rotated_with_the_others(name: str) -> None:
    cache = CacheModel(interleaved_rope=False)
    plain = fake_quantize(X, name)
    assert torch.equal(cache.keys(X, name, 0), plain)
    assert torch.equal(cache.values(X, name), plain)
    for size, found in ((128, cache.keys(X, name, 0, rotated=True)), (64, cache.values(X, name, rotated=True))):
        assert torch.equal(found, rotate(fake_quantize(rotate(X, size), name), size))
        assert not torch.equal(found, plain)
        assert torch.allclose(found, X, rtol=0, atol=0.05)
    assert torch.equal(cache.keys(X, "f32", 0, rotated=True), X)


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q3_nl"])
def test_quantized_layers_are_rotated_whatever_the_others_are(name: str) -> None:
    cache = CacheModel(interleaved_rope=False)
    assert torch.equal(cache.keys(X, name, 0), cache.keys(X, name, 0, rotated=True))
    assert torch.equal(cache.values(X, name), cache.values(X, name, rotated=True))


@pytest.mark.parametrize("name", ["q3_nl", "q2_nl"])
def test_keys_and_values_are_stored_as_such(name: str) -> None:
    cache = CacheModel(interleaved_rope=False)
    assert torch.equal(cache.keys(X, name, 0), rotate(fake_quantize(rotate(X, 128), name, True), 128))
    assert torch.equal(cache.values(X, name), rotate(fake_quantize(rotate(X, 64), name, False), 64))


def test_heads_that_allow_no_rotation_are_centered_as_they_are() -> None:
    x, center = X[..., :80], torch.from_numpy(CENTER[:160]).half().float().reshape(2, 1, 80)
    cache = CacheModel(interleaved_rope=False, centers=Centers.from_arrays([CENTER[:160]]))
    assert torch.equal(cache.keys(x, "f16", 0, rotated=True), fake_quantize(x - center, "f16") + center)


def test_the_rotated_center_is_taken_off_after_the_rotation() -> None:
    cache = CacheModel(interleaved_rope=False, centers=Centers.from_arrays([CENTER]))
    center = torch.from_numpy(CENTER).half().float().reshape(2, 1, 128)
    stored = fake_quantize(rotate(X, 128) - rotate(center, 128), "q4_0")
    found = cache.keys(X, "q4_0", 0)
    assert torch.equal(found, rotate(stored + rotate(center, 128), 128))
    assert torch.allclose(found, rotate(stored, 128) + center, rtol=0, atol=1e-4)
    largest = rotate(X - center, 128).abs().max().item()
    assert (found - X).abs().max().item() < largest / 4, "nothing but the rounding of 16 levels"


FREQUENCIES = 10000.0 ** (-torch.arange(64) / 64)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("start", [0, 10, 28000])
def test_the_center_of_a_span_turns_with_the_blocks_of_positions(start: int, interleaved: bool) -> None:
    centers = Centers.from_arrays([CENTER], span=16)
    cache = CacheModel(interleaved, centers, rope=Rope(FREQUENCIES, interleaved), start=start)
    table = torch.cat([turned_center(start + t, 16, interleaved) for t in range(20)], 1)
    x = cache.model_order(rotate(table, 128))[None]
    off = (cache.keys(x, "q4_0", 0) - x).abs().amax(-1)
    assert off.max() < 0.1, "such keys are next to zero without their center, and have levels as narrow"
    assert (off < 1e-4).float().mean() > 0.8, "but for values that are rounded to the other float16, nothing is left"
    assert torch.equal(cache.keys(x, "f32", 0), x)


def turned_center(position: int, span: int, interleaved: bool) -> torch.Tensor:
    """What the runtime's table holds for a position: [KV heads, 1, head size], rotated, float16."""
    pairs = torch.from_numpy(CENTER).half().double().view(2, 64, 2) if interleaved else None
    if pairs is None:
        pairs = torch.from_numpy(CENTER).half().double().view(2, 2, 64).transpose(1, 2)
    angles = position // span * span * FREQUENCIES.double()
    cos, sin = angles.cos(), angles.sin()
    first = cos * pairs[..., 0] - sin * pairs[..., 1]
    second = sin * pairs[..., 0] + cos * pairs[..., 1]
    both = torch.stack((first, second), -1).flatten(1) if interleaved else torch.cat((first, second), 1)
    return rotate(both.float(), 128).half().float()[:, None]


def test_a_span_that_holds_all_positions_is_one_center() -> None:
    one = CacheModel(interleaved_rope=False, centers=Centers.from_arrays([CENTER]))
    spanned = replace(one, centers=replace(one.centers, span=16), rope=Rope(FREQUENCIES, interleaved=False))
    x = X + torch.from_numpy(CENTER).float().reshape(2, 1, 128)
    assert torch.allclose(one.keys(x, "q8_0", 0), spanned.keys(x, "q8_0", 0), rtol=0, atol=0.05)


def test_exact_rows_are_centered_as_the_cache_is() -> None:
    rope = Rope(FREQUENCIES, interleaved=False)
    cache = CacheModel(False, Centers.from_arrays([CENTER], span=16), Ends(4, 32, "q8_0"), rope)
    exact = cache.exact(X, X, Pair("q4_0", "q4_0"), 0, (True, True))
    assert torch.equal(exact.key, cache.keys(X, "q8_0", 0))
    assert not torch.equal(exact.key, CacheModel(interleaved_rope=False).keys(X, "q8_0", 0))


SCALE = np.repeat(np.exp(np.random.default_rng(4).standard_normal((2, 64))), 2, 1)


def scale_of(interleaved: bool) -> torch.Tensor:
    """[KV heads, 1, head size], both channels of a pair alike."""
    values = torch.from_numpy(SCALE).half().float()
    return (values if interleaved else torch.cat((values[:, ::2], values[:, 1::2]), 1))[:, None]


def test_scaled_keys_are_stored_and_read_unscaled() -> None:
    scale = scale_of(interleaved=False)
    center = torch.from_numpy(CENTER).half().float().reshape(2, 1, 128)
    cache = CacheModel(interleaved_rope=False, scales=Scales.from_arrays([scale.numpy()]))
    stored = fake_quantize(rotate(X * scale, 128), "q4_0", True)
    assert torch.equal(cache.keys(X, "q4_0", 0), rotate(stored, 128) / scale)
    assert torch.equal(cache.keys(X, "f32", 0), X)
    centered = replace(cache, centers=Centers.from_arrays([CENTER]))
    off = rotate(center * scale, 128)
    stored = fake_quantize(rotate(X * scale, 128) - off, "q4_0", True)
    assert torch.equal(centered.keys(X, "q4_0", 0), rotate(stored + off, 128) / scale)
    ended = replace(centered, ends=Ends(4, 32, "q8_0"))
    assert torch.equal(ended.exact(X, X, Pair("q4_0", "f32"), 0, (True, True)).key, centered.keys(X, "q8_0", 0))


@pytest.mark.parametrize("interleaved", [False, True])
def test_the_scale_commutes_with_the_turn_of_a_center(interleaved: bool) -> None:
    """Keys that are turned centers are next to zero without them, whatever the scale is."""
    scales = Scales.from_arrays([scale_of(interleaved).numpy()])
    cache = CacheModel(interleaved, Centers.from_arrays([CENTER], 16), rope=Rope(FREQUENCIES, interleaved))
    table = torch.cat([turned_center(t, 16, interleaved) for t in range(40)], 1)
    x = cache.model_order(rotate(table, 128))[None]
    off = (replace(cache, scales=scales).keys(x, "q4_0", 0) - x).abs()
    assert off.max() < 0.1
    assert torch.equal(cache.keys(x, "q4_0", 0), replace(cache, scales=Scales.from_arrays([None])).keys(x, "q4_0", 0))


def test_a_span_needs_to_know_the_rope() -> None:
    cache = CacheModel(interleaved_rope=False, centers=Centers.from_arrays([CENTER], span=16))
    with pytest.raises(KvtunerError, match="does not tell its RoPE"):
        cache.keys(X, "q4_0", 0)


@pytest.fixture(scope="module")
def reference(tiny, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(tiny(tmp_path_factory.mktemp("tiny") / "model.gguf", "llama"), "llama")


@dataclass(frozen=True)
class Recorder(CacheModel):
    """Keeps the type and the rotation that each layer's keys and values are asked with."""

    asked: list[tuple[str, bool]] = field(default_factory=list)

    def keys(self, k, type_name, il, rotated=False):
        self.asked.append((type_name, rotated))
        return super().keys(k, type_name, il, rotated)

    def values(self, v, type_name, rotated=False):
        self.asked.append((type_name, rotated))
        return super().values(v, type_name, rotated)


def test_a_run_rotates_all_layers_of_a_side(reference: Reference, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(reference.cache.interleaved_rope)
    monkeypatch.setattr(reference, "cache", recorder)
    hidden = reference.embed(torch.tensor([reference.tokenize(text)[:8]]))
    reference.run(hidden, pairs("f16", "q8_0/f16"))
    assert recorder.asked == [("f16", True), ("f16", False), ("q8_0", True), ("f16", False)]
    recorder.asked.clear()
    reference.run(hidden, pairs("q8_0/f16", "f16"), first=1)
    assert recorder.asked == [("f16", True), ("f16", False)], "layers that are not run decide, too"


def test_a_forward_restarts_where_the_rotation_changes(reference: Reference, text: str) -> None:
    """A layer that keeps its type is stored in another way once a later one is quantized."""
    tokens = torch.tensor([reference.tokenize(text)[:40]])
    before, after = pairs("f16", "f16"), pairs("f16", "q8_0")
    restarted, whole = TorchJudge(reference, tokens), TorchJudge(reference, tokens)
    whole._first_change = lambda pairs: 0
    for judged in (before, after, before):
        restarted.settle(judged)
        assert torch.equal(restarted.kld(before), whole.kld(before))
        assert torch.equal(restarted.kld(after), whole.kld(after))
    exact = TorchJudge(reference, tokens)
    assert exact._first_change(pairs("f32", "q8_0")) == 1, "exact layers are not changed by a rotation"
