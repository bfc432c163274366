"""Prices from gradients against the KLD that plans really have, on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from kvtuner_gguf.engine.gradients import Gradients  # noqa: E402
from kvtuner_gguf.engine.torch.engine import TorchEngine  # noqa: E402
from kvtuner_gguf.engine.torch.gradients import DRAWS  # noqa: E402
from kvtuner_gguf.plan.centers import Centers  # noqa: E402
from kvtuner_gguf.plan.ends import Ends  # noqa: E402
from kvtuner_gguf.plan.pairs import EXACT, UNQUANTIZED, Pair  # noqa: E402
from kvtuner_gguf.plan.plan import Plan  # noqa: E402
from kvtuner_gguf.plan.shape import ModelShape  # noqa: E402
from kvtuner_gguf.tuning.center import measure_centers  # noqa: E402
from kvtuner_gguf.tuning.fisher import fisher_prices  # noqa: E402
from kvtuner_gguf.tuning.prices import Prices  # noqa: E402
from kvtuner_gguf.tuning.prune import prune_by_prices  # noqa: E402

N_LAYER, N_CTX = 2, 96
NAMES = ("f16", "q8_0", "q4_0")
SEEDS = 8


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def engine(request: pytest.FixtureRequest, tiny, tmp_path_factory: pytest.TempPathFactory) -> TorchEngine:
    path = tiny(tmp_path_factory.mktemp("tiny") / "model.gguf", request.param)
    return TorchEngine(path, ModelShape(request.param, (2,) * N_LAYER, 64, 64))


@pytest.fixture
def tokens():
    return torch.randint(256, (2, N_CTX), generator=torch.Generator().manual_seed(7))


def mean_prices(engine: TorchEngine, tokens, ends: Ends | None, centers: Centers | None) -> list[list[float]]:
    """[K and V, layer] of q8_0, over several draws of labels."""
    found = [fisher_prices(engine, tokens, ("q8_0",), {}, centers, ends, seed) for seed in range(SEEDS)]
    return [
        [sum(getattr(prices, side)[il]["q8_0"] for prices in found) / SEEDS for il in range(N_LAYER)] for side in "kv"
    ]


@pytest.mark.parametrize("ends", [None, Ends(2, 12), Ends(0, 1)], ids=str)
@pytest.mark.parametrize("centered", [False, True], ids=["plain", "centered"])
def test_prices_are_the_kld_of_small_errors(engine: TorchEngine, tokens, ends: Ends | None, centered: bool) -> None:
    centers = measure_centers(engine, tokens)[0] if centered else None
    judge = engine.judge(tokens, centers, ends)
    keys, values = mean_prices(engine, tokens, ends, centers)

    def kld(il: int, pair: Pair) -> float:
        return judge.kld([EXACT if i != il else pair for i in range(N_LAYER)]).mean().item()

    for il in range(N_LAYER):
        assert keys[il] == pytest.approx(kld(il, Pair("q8_0", UNQUANTIZED)), rel=0.25)
        assert values[il] == pytest.approx(kld(il, Pair(UNQUANTIZED, "q8_0")), rel=0.25)


def test_what_is_read_exactly_costs_nothing(engine: TorchEngine, tokens) -> None:
    everything, some, nothing = (
        fisher_prices(engine, tokens, NAMES, {}, ends=ends) for ends in (Ends(4, N_CTX), Ends(4, 60), None)
    )
    for il in range(N_LAYER):
        for side in "kv":
            costs = [getattr(prices, side)[il]["q4_0"] for prices in (everything, some, nothing)]
            assert costs[0] == 0 < costs[1] < costs[2]


def test_every_layer_of_every_chunk_is_seen(engine: TorchEngine, tokens) -> None:
    seen: dict[int, list[Gradients]] = {}
    engine.gradients(tokens, 0, lambda il, found: seen.setdefault(il, []).append(found))
    assert sorted(seen) == list(range(N_LAYER))
    for found in seen.values():
        assert len(found) == len(tokens)
        for one in found:
            assert one.key.shape == (1, 2, N_CTX, 64)
            assert one.by_key.shape == one.by_value.shape == (DRAWS, 2, N_CTX, 64)
            assert one.by_value[:, :, -1].abs().sum() > 0
            assert not one.by_key.requires_grad


def test_the_same_seed_gives_the_same_prices_in_their_file(engine: TorchEngine, tokens) -> None:
    first, again, other = (fisher_prices(engine, tokens, NAMES, {"text": "x"}, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert first.provenance["prices"] == "fisher"
    assert Prices.from_json(json.loads(json.dumps(first.to_json()))) == first
    assert first.has(NAMES[:2])
    assert not first.has(["q5_0"])
    assert list(first.only(NAMES[1:]).k[0]) == list(NAMES[1:])


def test_candidates_are_what_is_worth_its_bits() -> None:
    cost = {"f16": 0.0, "q8_0": 0.001, "q5_1": 0.5, "q5_0": 0.2, "q4_0": 0.3}
    prices = Prices((cost,), ({name: 0.5 * price for name, price in cost.items()},))
    pairs = [Pair(name, name) for name in cost]
    assert worth(prices, pairs) == [Pair(name, name) for name in ("q4_0", "q5_0", "q8_0", "f16")]


def worth(prices: Prices, pairs: Sequence[Pair]) -> list[Pair]:
    return list(prune_by_prices(prices, pairs, ModelShape("llama", (2,), 64, 64)).layers[0])


def test_a_tuning_keeps_its_prices(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvtuner_gguf.plan.backends import chosen_backend
    from kvtuner_gguf.tuning.goal import Goal
    from kvtuner_gguf.tuning.settings import Settings
    from kvtuner_gguf.tuning.texts import Texts
    from kvtuner_gguf.tuning.tuner import Tuner

    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"word{i * i % 977}" for i in range(2000)))
    path = tiny(tmp_path / "model.gguf", "llama")
    settings = Settings(Goal(6), chosen_backend(None, NAMES), n_tokens=64, n_ctx=32, trials=2, n_points=3)

    def tuned() -> Plan:
        engine = TorchEngine(path, ModelShape("llama", (2,) * N_LAYER, 64, 64))
        return Tuner(engine, Texts((text,), (1.0,)), settings, tmp_path / "work").run().plan

    first = tuned()
    assert not (tmp_path / "work" / "profile.json").exists()
    monkeypatch.setattr(TorchEngine, "gradients", None)
    assert tuned() == first
