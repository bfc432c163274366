"""Exact ends: attention over two sources, by its definition and in the engines."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from kvtuner_gguf.engine.cachemodel import CacheModel, rotated_sides  # noqa: E402
from kvtuner_gguf.engine.ends import ROWS, KeysValues, attend_with_ends, is_exact  # noqa: E402
from kvtuner_gguf.engine.fakequant import fake_quantize  # noqa: E402
from kvtuner_gguf.engine.logits_judge import LogitsJudge  # noqa: E402
from kvtuner_gguf.engine.rotation import rotate  # noqa: E402
from kvtuner_gguf.engine.torch.judge import TorchJudge  # noqa: E402
from kvtuner_gguf.engine.torch.reference import Reference  # noqa: E402
from kvtuner_gguf.plan.ends import Ends  # noqa: E402
from kvtuner_gguf.plan.pairs import Pair  # noqa: E402
from tests.made_up_engine import N_LAYER, MadeUp  # noqa: E402

ENDS = Ends(2, 5)


def pairs(*names: str) -> list[Pair]:
    return [Pair.parse(name) for name in names]


def by_definition(query, cached: KeysValues, exact: KeysValues, ends: Ends):
    """One query after the other, one position after the other."""
    out = torch.empty_like(query)
    group = query.shape[1] // cached.key.shape[1]
    for b, head, t in torch.cartesian_prod(*map(torch.arange, query.shape[:3])).tolist():
        sources = [exact if p < ends.first or t - ends.last < p <= t else cached for p in range(t + 1)]
        key, value = (
            torch.stack([source[side][b, head // group, p] for p, source in enumerate(sources)]) for side in (0, 1)
        )
        out[b, head, t] = (key @ query[b, head, t] * query.shape[-1] ** -0.5).softmax(0) @ value
    return out


@pytest.mark.parametrize("first", [0, 1, 4, 9, 100])
@pytest.mark.parametrize("last", [0, 1, 5, 8, 100])
def test_attention_with_ends_is_that_of_its_definition(first: int, last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not first + last:
        return
    monkeypatch.setattr("kvtuner_gguf.engine.ends.ROWS", 8)
    random = torch.Generator().manual_seed(4)
    query, *others = (torch.randn(2, heads, 21, 16, generator=random) * 2 for heads in (4, 2, 2, 2, 2))
    cached, exact, ends = KeysValues(*others[:2]), KeysValues(*others[2:]), Ends(first, last)
    found = attend_with_ends(query, cached, exact, ends)
    torch.testing.assert_close(found, by_definition(query, cached, exact, ends), rtol=1e-5, atol=1e-5)


def test_blocks_of_queries_do_not_show() -> None:
    """As many tokens as take several blocks of the usual size, some of them cut by the ends."""
    random = torch.Generator().manual_seed(5)
    n_tokens = 2 * ROWS + 77
    query, *others = (torch.randn(1, 2, n_tokens, 32, generator=random) for _ in range(5))
    cached, exact, ends = KeysValues(*others[:2]), KeysValues(*others[2:]), Ends(4, ROWS + 30)
    chosen = is_exact(ends, torch.arange(n_tokens), n_tokens)
    scores = torch.where(chosen, query @ exact.key.mT, query @ cached.key.mT) * 32**-0.5
    weights = scores.masked_fill(torch.ones_like(chosen).triu(1), -torch.inf).softmax(-1)
    whole = weights * chosen @ exact.value + weights * ~chosen @ cached.value
    torch.testing.assert_close(attend_with_ends(query, cached, exact, ends), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ends", [Ends(4, 2), Ends(0, 30), Ends(9, 0)])
def test_queries_of_the_last_positions_are_as_among_all(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvtuner_gguf.engine.ends.ROWS", 8)
    random = torch.Generator().manual_seed(7)
    query, *others = (torch.randn(1, heads, 30, 16, generator=random) for heads in (4, 2, 2, 2, 2))
    cached, exact = KeysValues(*others[:2]), KeysValues(*others[2:])
    whole = attend_with_ends(query, cached, exact, ends)
    for n in (1, 3, 19):
        found = attend_with_ends(query[:, :, -n:], cached, exact, ends)
        torch.testing.assert_close(found, whole[:, :, -n:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_a_quantized_layer_reads_its_ends_rotated_as_its_cache(kind: str) -> None:
    k, v = torch.randn(2, 1, 2, 5, 128, generator=torch.Generator().manual_seed(6))
    cache = CacheModel(interleaved_rope=False, ends=Ends(1, 0, kind))
    names = pairs("f16", "q4_0/f16")
    assert cache.exact(k, v, names[0], 0, rotated_sides(names)) is None
    found = cache.exact(k, v, names[1], 1, rotated_sides(names))
    assert torch.equal(found.key, rotate(fake_quantize(rotate(k, 128), kind), 128))
    size = 64 if kind == "q8_0" else None
    assert torch.equal(found.value, rotate(fake_quantize(rotate(v, size), kind), size))
    assert torch.equal(cache.exact(k, v, Pair("q4_0", "f32"), 0, (True, False)).value, v), "nothing is lost there"


@pytest.fixture(scope="module")
def reference(tiny, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(tiny(tmp_path_factory.mktemp("tiny") / "model.gguf", "llama"), "llama")


@pytest.fixture
def tokens(reference: Reference, text: str):
    return torch.tensor(reference.tokenize(text)[:96]).view(2, 48)


def test_ends_that_reach_all_positions_lose_nothing(reference: Reference, tokens) -> None:
    plan = pairs("q4_0", "q4_0")
    losses = {
        str(ends): TorchJudge(reference.reading(ends=ends), tokens).kld(plan).mean().item()
        for ends in (None, Ends(2, 5), Ends(4, 20), Ends(4, 44), Ends(48, 0))
    }
    assert list(losses.values()) == sorted(losses.values(), reverse=True)
    assert losses["None"] > 1e-4
    assert losses["4+44:f16"] < 1e-6
    assert losses["48+0:f16"] < 1e-6


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_a_forward_with_ends_restarts_at_the_first_changed_layer(kind: str, reference: Reference, tokens) -> None:
    reading = reference.reading(ends=Ends(2, 5, kind))
    restarted, whole = TorchJudge(reading, tokens), TorchJudge(reading, tokens)
    whole._first_change = lambda pairs: 0
    for names in (("f16", "q8_0"), ("q4_0/f32", "q4_0/f32"), ("q4_0/f32", "q4_0"), ("f32", "f32/q4_0")):
        assert torch.equal(restarted.kld(pairs(*names)), whole.kld(pairs(*names)))
        restarted.settle(pairs(*names))


def test_layers_that_are_not_quantized_or_have_a_window_go_without() -> None:
    engine = MadeUp()
    tokens = torch.tensor(engine.tokenize("the quick brown fox jumps over a dog"))[None]

    def kld(ends: Ends | None, *names: str) -> float:
        return LogitsJudge(engine, tokens, ends=ends).kld(pairs(*names)).mean().item()

    assert N_LAYER == 3
    assert kld(ENDS, "f16", "q4_0", "f16") == kld(None, "f16", "q4_0", "f16") > 0
    assert kld(ENDS, "f16", "f16", "f16") == kld(None, "f16", "f16", "f16")
    assert kld(ENDS, "q4_0", "f16", "f16") < kld(None, "q4_0", "f16", "f16")
    assert kld(Ends(0, 99), "q4_0", "f32", "q4_0") < 1e-6
