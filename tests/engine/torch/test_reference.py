"""The torch reference on tiny models: what it refuses, and its agreement with the built library."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kvtuner_gguf.engine.torch.reference import Reference  # noqa: E402
from kvtuner_gguf.errors import KvtunerError  # noqa: E402
from kvtuner_gguf.plan.centers import Centers  # noqa: E402
from kvtuner_gguf.plan.ends import Ends  # noqa: E402
from kvtuner_gguf.plan.pairs import Pair  # noqa: E402
from kvtuner_gguf.plan.plan import Plan  # noqa: E402
from kvtuner_gguf.plan.scales import Scales  # noqa: E402

ARCHITECTURES = ("llama", "qwen2")
# Llama 3.1 and later: a divisor per RoPE frequency
ROPE_FACTORS = {"rope_freqs.weight": np.linspace(1, 8, 32)}


def divergence(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.exp() * (a - b)).sum(-1).mean().item()


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request: pytest.FixtureRequest, tiny, text: str, tmp_path_factory: pytest.TempPathFactory):
    """One layer, so that nothing downstream magnifies a difference: path, reference and tokens."""
    change = ROPE_FACTORS if request.param == "llama" else None
    path = tiny(tmp_path_factory.mktemp("tiny") / "model.gguf", request.param, n_layer=1, change=change)
    reference = Reference(path, request.param)
    return path, reference, torch.tensor([reference.tokenize(text)[:96]])


def log_probs(reference: Reference, tokens: torch.Tensor, pair: Pair) -> torch.Tensor:
    return reference.log_probs(reference.run(reference.embed(tokens), [pair] * reference.n_layer)[0])


def native_log_probs(path: Path, tokens: torch.Tensor, pair: Pair | Plan) -> torch.Tensor:
    from kvtuner_gguf.engine.llama.native import open_model

    with open_model(path, 1) as model, model.context(pair, 128, 96) as context:
        logits = context.decode(tokens[0].numpy().astype(np.int32), 0, True)
        return torch.from_numpy(logits.copy()).log_softmax(-1)


@pytest.mark.native
@pytest.mark.parametrize(
    "name", ["f32", "f16", "f32/q8_0", "f32/q5_1", "f32/q5_0", "f32/q4_1", "f32/q4_0", "f32/iq4_nl"]
)
def test_values_are_read_as_the_library_reads_them(name: str, case) -> None:
    path, reference, tokens = case
    pair = Pair.parse(name)
    assert divergence(log_probs(reference, tokens, pair), native_log_probs(path, tokens, pair)) < 1e-6


@pytest.mark.native
@pytest.mark.parametrize("name", ["q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "q3_nl", "q2_nl"])
def test_keys_are_read_as_the_library_reads_them(name: str, case) -> None:
    """With a plan, whose attention leaves queries as they are."""
    path, reference, tokens = case
    exact = log_probs(reference, tokens, Pair("f32", "f32"))
    native = native_log_probs(path, tokens, Plan.uniform(Pair(name, name), 1))
    assert divergence(log_probs(reference, tokens, Pair(name, name)), native) < 1e-6
    assert divergence(exact, native) > 1e-5, "the quantization must be seen at all"


@pytest.mark.native
@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_centered_keys_are_read_as_the_library_reads_them(name: str, case, monkeypatch: pytest.MonkeyPatch) -> None:
    path, reference, tokens = case
    plain = native_log_probs(path, tokens, Plan.uniform(Pair(name, name), 1))
    centers = Centers.from_arrays([2 * np.random.default_rng(4).standard_normal(128)])
    native = native_log_probs(path, tokens, Plan.uniform(Pair(name, name), 1, centers))
    assert divergence(plain, native) > 1e-6, "the centers must be seen at all"
    monkeypatch.setattr(reference, "cache", replace(reference.cache, centers=centers))
    assert divergence(log_probs(reference, tokens, Pair(name, name)), native) < 1e-6


@pytest.mark.native
@pytest.mark.parametrize("ends", [None, Ends(4, 20, "f16"), Ends(4, 20, "q8_0")], ids=str)
@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_centers_of_blocks_are_read_as_the_library_reads_them(name: str, ends: Ends | None, case) -> None:
    """In the quantized cache and, with ends, in the exact rows."""
    path, reference, tokens = case
    centers = Centers.from_arrays([2 * np.random.default_rng(4).standard_normal(128)], span=16)
    plan = replace(Plan.uniform(Pair(name, name), 1, centers), ends=ends)
    native = native_log_probs(path, tokens, plan)
    for other in (plan.without_centers(), replace(plan, centers=replace(centers, span=None))):
        assert divergence(native_log_probs(path, tokens, other), native) > 1e-6, "the blocks must be seen at all"
    assert divergence(log_probs(reference.reading(centers, ends), tokens, Pair(name, name)), native) < 1e-6


@pytest.mark.native
@pytest.mark.parametrize("ends", [None, Ends(4, 20, "q8_0")], ids=str)
@pytest.mark.parametrize("span", [None, 16])
@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q3_nl"])
def test_scaled_keys_are_read_as_the_library_reads_them(name: str, span: int | None, ends: Ends | None, case) -> None:
    path, reference, tokens = case
    random = np.random.default_rng(1)  # of which no block lies where the two round its scale to another float16
    values = np.exp(random.standard_normal((2, 32)))
    interleaved = reference.cache.interleaved_rope
    both = np.repeat(values, 2, 1) if interleaved else np.concatenate((values, values), 1)
    centers = Centers.from_arrays([2 * random.standard_normal(128)], span)
    plan = replace(Plan.uniform(Pair(name, name), 1, centers), ends=ends, scales=Scales.from_arrays([both]))
    native = native_log_probs(path, tokens, plan)
    assert divergence(native_log_probs(path, tokens, plan.without_scales()), native) > 1e-6, "the scales must be seen"
    reading = reference.reading(centers, ends, scales=plan.scales)
    assert divergence(log_probs(reading, tokens, Pair(name, name)), native) < 1e-6


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layer_by_layer_is_the_whole_model(architecture: str, tiny, text: str, tmp_path: Path) -> None:
    reference = Reference(tiny(tmp_path / "m.gguf", architecture), architecture)
    tokens = torch.tensor([reference.tokenize(text)[:40]])
    inputs: list[torch.Tensor] = []
    output = reference.run(reference.embed(tokens), keep=inputs)
    assert [x.shape for x in inputs] == [(1, 40, 256)] * 2
    assert torch.equal(reference.run(inputs[1], first=1), output)
    shorter = reference.run(reference.embed(tokens[:, :30]))
    assert torch.allclose(output[:, :30], shorter, atol=1e-4), "a token sees no later one"


def test_what_is_captured_is_what_the_cache_gets(tiny, text: str, tmp_path: Path) -> None:
    reference = Reference(tiny(tmp_path / "m.gguf", "llama"), "llama")
    tokens = torch.tensor([reference.tokenize(text)[:8]] * 3)
    seen: list[tuple] = []
    reference.run(reference.embed(tokens), capture=lambda il, q, k, v: seen.append((il, q.shape, k.shape, v.shape)))
    assert seen == [(il, (3, 4, 8, 64), (3, 2, 8, 64), (3, 2, 8, 64)) for il in range(2)]


def test_a_chunk_can_start_at_any_position(tiny, text: str, tmp_path: Path) -> None:
    reference = Reference(tiny(tmp_path / "m.gguf", "llama"), "llama")
    tokens = torch.tensor([reference.tokenize(text)[:40]])
    keys: dict[int, list[torch.Tensor]] = {0: [], 9: []}
    for start, kept in keys.items():
        reading = reference.reading(start=start)
        reading.run(reading.embed(tokens[:, start:]), capture=lambda il, q, k, v, kept=kept: kept.append(k))
    assert torch.allclose(keys[9][0], keys[0][0][:, :, 9:], atol=1e-4), "layer 0 has the keys of those positions"
    assert not torch.allclose(keys[9][0], keys[0][0][:, :, :31], atol=1e-2)
    exact, deep = (r.log_probs(r.run(r.embed(tokens))[0]) for r in (reference, reference.reading(start=300)))
    assert divergence(exact, deep) < 1e-6, "attention sees distances alone"


@pytest.mark.parametrize(
    ("change", "strings", "words"),
    [
        ({"blk.1.ffn_up.weight": None}, {}, "has no model.layers.1"),
        ({"blk.0.attn_q.bias": np.ones(256)}, {}, "of the file's"),
        ({}, {"llama__rope__scaling__type": "yarn"}, "RoPE scaling 'yarn'"),
    ],
)
def test_a_model_that_torch_would_load_wrongly_is_refused(change, strings, words: str, tiny, tmp_path: Path) -> None:
    path = tiny(tmp_path / "m.gguf", "llama", change=change, **strings)
    with pytest.raises(KvtunerError, match=words):
        Reference(path, "llama")


def test_unknown_architectures_and_broken_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with pytest.raises(KvtunerError, match="not mamba"):
        Reference(path, "mamba")
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(KvtunerError, match="torch cannot load"):
        Reference(path, "llama")
