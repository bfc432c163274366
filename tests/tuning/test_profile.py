"""The profile's errors against their definitions, written out one value at a time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from kvtuner_gguf.engine.attention import Attention  # noqa: E402
from kvtuner_gguf.engine.cachemodel import CacheModel  # noqa: E402
from kvtuner_gguf.engine.torch.engine import TorchEngine  # noqa: E402
from kvtuner_gguf.engine.torch.judge import TorchJudge  # noqa: E402
from kvtuner_gguf.engine.torch.reference import Reference  # noqa: E402
from kvtuner_gguf.plan.pairs import Pair  # noqa: E402
from kvtuner_gguf.plan.shape import ModelShape  # noqa: E402
from kvtuner_gguf.tuning import disturbance  # noqa: E402
from kvtuner_gguf.tuning.journal import Journal  # noqa: E402
from kvtuner_gguf.tuning.judges import Ledger  # noqa: E402
from kvtuner_gguf.tuning.prices import price, priced_pairs  # noqa: E402
from kvtuner_gguf.tuning.profiling import profile  # noqa: E402

SHAPE = ModelShape("llama", (2, 2), 64, 64)
NAMES = ("q8_0", "q5_0", "q4_0")
CACHE = CacheModel(interleaved_rope=False)


@pytest.fixture(scope="module")
def engine(tiny, tmp_path_factory: pytest.TempPathFactory) -> TorchEngine:
    return TorchEngine(tiny(tmp_path_factory.mktemp("tiny") / "m.gguf", "llama"), SHAPE)


@pytest.fixture(scope="module")
def reference(engine: TorchEngine) -> Reference:
    return engine.reference


@pytest.fixture(scope="module")
def tokens(reference: Reference, text: str):
    return torch.tensor(reference.tokenize(text)[:48]).view(2, 24)


@pytest.fixture(scope="module")
def profiled(engine: TorchEngine, tokens):
    pairs = [Pair(k, v) for k in NAMES for v in NAMES]
    return profile(engine, tokens, [*pairs, *priced_pairs(NAMES, engine.shape), Pair("f32", "f32")], {})


class AwayFromZero:
    """The model with values of 0.5 or more: so are the outputs, which are means of them.

    An error relative to an output next to zero would follow the last bits of a sum.
    """

    def __init__(self, engine: TorchEngine) -> None:
        self._engine = engine

    def __getattr__(self, name: str):
        return getattr(self._engine, name)

    def capture(self, tokens: torch.Tensor, see) -> None:
        def shifted(il: int, used: Attention) -> None:
            see(il, replace(used, value=used.value.abs() + 0.5))

        self._engine.capture(tokens, shifted)


def captured(engine: TorchEngine | AwayFromZero, tokens) -> list[tuple]:
    seen: list[tuple] = []
    engine.capture(tokens, lambda il, used: seen.append((used.query, used.key, used.value)))
    return seen


def relative(exact: torch.Tensor, changed: torch.Tensor) -> float:
    return (torch.sub(exact, changed).abs() / exact.abs()).mean().item()


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights over the visible tokens, and outputs, query by query; q heads 2g and 2g+1 share KV head g."""
    weights, outputs = [], []
    for chunk in range(q.shape[0]):
        for head in range(q.shape[1]):
            for i in range(q.shape[2]):
                keys, values = k[chunk, head // 2, : i + 1], v[chunk, head // 2, : i + 1]
                weights.append((keys @ q[chunk, head, i] / math.sqrt(q.shape[-1])).softmax(0))
                outputs.append(weights[-1] @ values)
    return torch.cat(weights), torch.stack(outputs)


@pytest.mark.parametrize("pair", [Pair("q4_0", "q8_0"), Pair("q8_0", "q4_0"), Pair("f32", "q5_0")])
def test_errors_are_those_of_their_definitions(pair: Pair, engine: TorchEngine, tokens) -> None:
    positive = AwayFromZero(engine)
    seen = captured(positive, tokens)
    for (q, k, v), errors in zip(seen, profile(positive, tokens, [pair], {}).layers, strict=True):
        read_k, read_v = CACHE.keys(k, pair.k, 0), CACHE.values(v, pair.v)
        weights, output = attention(q, k, v)
        read_weights, read_output = attention(q, read_k, read_v)
        found = errors[pair]
        assert found.e_k == pytest.approx(relative(k, read_k), rel=1e-3)
        assert found.e_v == pytest.approx(relative(v, read_v), rel=1e-3)
        assert found.e_a == pytest.approx((weights - read_weights).abs().mean().item(), rel=1e-3, abs=1e-7)
        assert found.e_o == pytest.approx(relative(output, read_output), rel=1e-3)
        assert found.error == pytest.approx(((output - read_output).norm() / output.norm()).item() ** 2, rel=1e-3)


def test_an_exact_cache_has_no_error_and_coarser_types_have_more(profiled) -> None:
    for errors in profiled.layers:
        assert errors[Pair("f32", "f32")].error == 0
        ladder = [errors[Pair(name, name)].error for name in NAMES]
        assert ladder == sorted(ladder)
        assert ladder[0] > 0


def test_prices_of_the_measured_type_are_the_judged_loss(reference: Reference, tokens, profiled) -> None:
    judge = TorchJudge(reference, tokens)
    prices = price(Ledger(lambda: judge, Journal()), profiled, NAMES, n_rungs=1)
    plan = [Pair("f32", "f32"), Pair("f32", "q5_0")]
    assert prices.v[1]["q5_0"] == pytest.approx(judge.kld(plan).mean().item())
    for name in ("q8_0", "q4_0"):
        ratio = profiled.layers[0][Pair(name, "f32")].error / profiled.layers[0][Pair("q5_0", "f32")].error
        assert prices.k[0][name] == pytest.approx(prices.k[0]["q5_0"] * ratio)


def test_a_long_context_is_measured_by_some_of_its_queries(
    engine: TorchEngine, tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disturbance, "WEIGHTS", 24 * 6)
    monkeypatch.setattr(disturbance, "ROWS", 4)
    pair = Pair("q4_0", "q5_0")
    found = profile(engine, tokens, [pair], {}).layers[1][pair]
    q, k, v = captured(engine, tokens)[1]
    read_k, read_v = CACHE.keys(k, pair.k, 1), CACHE.values(v, pair.v)
    rows = [3, 7, 11, 15, 19, 23]
    n_head = q.shape[1]
    before, after = (attention(q, *kv)[1].view(2, n_head, 24, -1)[:, :, rows] for kv in ((k, v), (read_k, read_v)))
    assert found.error == pytest.approx(((before - after).norm() / before.norm()).item() ** 2, rel=1e-3)
    weights, read = (attention(q, *kv)[0] for kv in ((k, v), (read_k, read_v)))
    starts = [i for i, n in enumerate(torch.arange(1, 25).repeat(2 * n_head).tolist()) for _ in range(n)]
    wanted = torch.tensor([start % 24 in rows for start in starts])
    assert found.e_a == pytest.approx((weights - read).abs()[wanted].mean().item(), rel=1e-3, abs=1e-7)


def test_the_divergence_is_that_of_its_definition(reference: Reference, tokens) -> None:
    plan = [Pair("q4_0", "q4_0"), Pair("q8_0", "q4_0")]
    found = TorchJudge(reference, tokens).kld(plan)
    exact, read = (
        (reference.final(reference.run(reference.embed(tokens), pairs)[:, 6:].flatten(0, 1)).double())
        for pairs in (None, plan)
    )
    p, q = ((x @ reference.head.double().T).log_softmax(-1) for x in (exact, read))
    wanted = (p.exp() * (p - q)).sum(-1)
    assert wanted.mean() > 1e-4
    assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-6)


def test_perplexity_is_that_of_the_tokens_that_follow(reference: Reference, tokens) -> None:
    plan = [Pair("q4_0", "q4_0"), Pair("q8_0", "q4_0")]
    log_probs = reference.log_probs(reference.run(reference.embed(tokens), plan)).double()
    following = log_probs[:, 6:-1].gather(-1, tokens[:, 7:, None])
    ledger = Ledger(lambda: TorchJudge(reference, tokens), Journal())
    assert ledger.perplexity(plan) == pytest.approx(following.mean().neg().exp().item(), rel=1e-5)
