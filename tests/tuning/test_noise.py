"""The noise floor and standard errors: what they are, what is not preferred because of them, what is kept of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kvtuner_gguf.errors import KvtunerError  # noqa: E402
from kvtuner_gguf.evaluation.blocks import BLOCK, block_means, standard_error  # noqa: E402
from kvtuner_gguf.files import artifact  # noqa: E402
from kvtuner_gguf.plan.backends import chosen_backend  # noqa: E402
from kvtuner_gguf.plan.pairs import EXACT, Pair  # noqa: E402
from kvtuner_gguf.plan.plan import Plan  # noqa: E402
from kvtuner_gguf.plan.shape import ModelShape  # noqa: E402
from kvtuner_gguf.tuning.goal import Goal  # noqa: E402
from kvtuner_gguf.tuning.journal import Journal  # noqa: E402
from kvtuner_gguf.tuning.prices import Prices, interpolate_shares  # noqa: E402
from kvtuner_gguf.tuning.reasons import reasons  # noqa: E402
from kvtuner_gguf.tuning.settings import Settings  # noqa: E402
from kvtuner_gguf.tuning.solver import WORTH  # noqa: E402
from kvtuner_gguf.tuning.texts import Texts  # noqa: E402
from kvtuner_gguf.tuning.tuner import Tuned, Tuner  # noqa: E402
from tests.made_up_engine import N_LAYER, MadeUp  # noqa: E402

# one type is measured: prices of the others, which follow from the profile, are wrong, and trades save something
COST = {"f32": 0.0, "q8_0": 0.01, "q5_0": 0.2, "q4_0": 1.0}
N_SCORED = 2 * 96


class Jittery:
    """Judges plans by `COST`: each token has the mean, and noise of its own whose mean is 0."""

    def __init__(self, jitter: float) -> None:
        self.jitter = jitter

    def cost(self, pairs) -> float:
        return sum(COST[pair.k] + 0.9 * COST[pair.v] for pair in pairs)

    def kld(self, pairs) -> torch.Tensor:
        seed = torch.Generator().manual_seed(crc32(" ".join(map(str, pairs)).encode()))
        noise = torch.randn(N_SCORED, generator=seed, dtype=torch.float64)
        return self.cost(pairs) + self.jitter * (noise - noise.mean())

    def settle(self, pairs) -> None:
        pass


class Noisy(MadeUp):
    """The made-up engine with such a judge, and a noise floor of its own."""

    def __init__(self, jitter: float = 0.0, floor: float = 0.0) -> None:
        super().__init__()
        self.jitter, self.floor, self.n_floors = jitter, floor, 0

    def judge(self, *_: object) -> Jittery:
        return Jittery(self.jitter)

    def noise_floor(self, tokens: torch.Tensor) -> float:
        self.n_floors += 1
        return self.floor


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(" ".join(f"word{i * i % 977}" for i in range(2000)))
    return path


def tune(engine: MadeUp, text: Path, work: Path | None = None, trials: int = 12, **change: object) -> Tuned:
    given = {"goal": Goal(bits=5.4), "n_tokens": 256, "n_ctx": 128, "n_points": 3, "center": False, **change}
    settings = Settings(backend=chosen_backend(None, ("q8_0", "q5_0", "q4_0")), trials=trials, **given)
    return Tuner(engine, Texts((text,), (1.0,)), settings, work).run()


def gain(text: Path) -> float:
    """What the refinement wins where there is no noise."""
    return tune(Noisy(), text, trials=0).loss_tuning - tune(Noisy(), text).loss_tuning


def test_a_trade_within_the_standard_error_is_not_made(text: Path) -> None:
    start, refined, won = tune(Noisy(), text, trials=0), tune(Noisy(), text), gain(text)
    assert won > 10 * WORTH * start.loss_tuning, "what is always asked for is far less"
    error_of_one = won * N_SCORED**0.5 / 2**0.5  # the jitter by which the error of a difference is what it wins
    assert tune(Noisy(jitter=2 * error_of_one), text).plan.pairs == start.plan.pairs
    assert tune(Noisy(jitter=0.2 * error_of_one), text).plan.pairs == refined.plan.pairs != start.plan.pairs


def test_a_trade_within_the_noise_floor_is_not_made(text: Path) -> None:
    start, refined, won = tune(Noisy(), text, trials=0), tune(Noisy(), text), gain(text)
    assert tune(Noisy(floor=1.01 * won), text).plan.pairs == start.plan.pairs
    assert tune(Noisy(floor=0.4 * won), text).plan.pairs == refined.plan.pairs


def test_noise_that_two_plans_share_hides_no_difference(text: Path) -> None:
    class Shared(Noisy):
        def judge(self, *_: object) -> Jittery:
            judge = Jittery(0.0)
            hard = torch.linspace(0, 40, N_SCORED, dtype=torch.float64)
            judge.kld = lambda pairs: judge.cost(pairs) + hard - hard.mean()
            return judge

    found = tune(Shared(), text)
    assert found.loss_tuning_se > found.loss_tuning
    assert found.plan.pairs == tune(Noisy(), text).plan.pairs


def test_evolving_prefers_no_plan_by_chance(text: Path) -> None:
    start, won = tune(Noisy(), text, trials=0), gain(text)
    assert tune(Noisy(floor=1.01 * won), text, trials=0, evolve=60).plan.pairs == start.plan.pairs
    assert tune(Noisy(floor=0.4 * won), text, trials=0, evolve=60).loss_tuning < start.loss_tuning


def test_an_exact_engine_makes_the_trades_that_it_made(text: Path) -> None:
    engine = Noisy(jitter=1e3, floor=1e3)
    engine.is_exact = True
    found = tune(engine, text)
    assert found.plan.pairs == tune(Noisy(), text).plan.pairs
    assert found.noise_floor == engine.n_floors == 0
    assert found.loss_tuning_se > 1


def test_plan_and_prices_say_how_sure_they_are(text: Path, tmp_path: Path) -> None:
    found = tune(Noisy(jitter=0.3, floor=1e-3), text, tmp_path / "work")
    judge = Jittery(0.3)
    error = standard_error(block_means(judge.kld(found.plan.pairs).numpy(), 2))
    assert found.loss_tuning_se == pytest.approx(error)
    assert 0.5 < error / (0.3 / N_SCORED**0.5) < 2
    for name, value in (("loss_tuning_se", error), ("noise_floor", 1e-3), ("kld_se", found.row.kld_se)):
        assert found.plan.provenance[name] == pytest.approx(value), name
    assert 0 < found.row.kld_se < found.row.kld_mean
    prices = artifact.load(tmp_path / "work" / "prices.json", Prices.from_json, "prices")
    assert prices.provenance["noise_floor"] == 1e-3
    alone = [EXACT, Pair("f32", "q5_0"), EXACT]
    assert prices.v_se[1]["q5_0"] == pytest.approx(standard_error(block_means(judge.kld(alone).numpy(), 2)))
    for name in ("q8_0", "q4_0"):
        ratio = prices.v[1][name] / prices.v[1]["q5_0"]
        assert prices.v_se[1][name] == pytest.approx(ratio * prices.v_se[1]["q5_0"]), "outside, in proportion"


@pytest.mark.parametrize("objective", ["perplexity", "kld"])
def test_other_objectives_have_no_noise_floor(objective: str, text: Path) -> None:
    found = tune(MadeUp(), text, method="paper", objective=objective)
    assert (found.noise_floor is None) == (found.loss_tuning_se is None) == (objective == "perplexity")


def test_killed_anywhere_a_tuning_keeps_what_it_knew_of_noise(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    noise = {"jitter": 0.5, "floor": 0.01}
    whole, append = tune(Noisy(**noise), text, tmp_path / "whole"), Journal._append

    def die(self: Journal, line: list) -> None:
        append(self, line)
        raise Killed

    monkeypatch.setattr(Journal, "_append", die)
    killed, kills = None, 0
    while killed is None:
        engine = Noisy(**noise)
        engine.floor += 0.001 * kills  # were it measured again, it would be another
        try:
            killed = tune(engine, text, tmp_path / "killed")
        except Killed:
            kills += 1
    assert kills > 10
    assert killed.plan.to_json() == whole.plan.to_json()
    assert json.loads(json.dumps(killed.prices.to_json())) == json.loads(json.dumps(whole.prices.to_json()))


def test_a_journal_of_means_alone_is_gone_on_with(text: Path, tmp_path: Path) -> None:
    whole = tune(Noisy(jitter=0.5), text, tmp_path / "work")
    journal = tmp_path / "work" / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    means = [[key, value["kld"]] if key.startswith("tuning") else [key, value] for key, value in lines]
    assert means != lines
    journal.write_text("".join(json.dumps(line) + "\n" for line in means))
    assert tune(Noisy(jitter=0.5), text, tmp_path / "work").plan.to_json() == whole.plan.to_json()


def test_the_floor_is_the_divergence_of_a_run_at_other_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rounding(MadeUp):
        """At other positions than the first the logits of odd tokens are a little larger."""

        def logits(self, plan, tokens, rows, start=0):
            for block in super().logits(plan, tokens, rows):
                yield block + 0.1 * (start > 0) * (torch.arange(block.shape[-1]) % 2)

    tokens = torch.randint(0, 16, (2, 32), generator=torch.Generator().manual_seed(3))
    engine = Rounding()
    logits = [torch.cat([*engine.logits(Plan.uniform(EXACT, N_LAYER), c, slice(8, 32))]).double() for c in tokens]
    p = torch.cat(logits).softmax(-1)
    odd = p[:, 1::2].sum(-1)
    wanted = ((1 + odd * np.expm1(0.1)).log() - 0.1 * odd).mean().item()
    assert wanted > 1e-6
    assert engine.noise_floor(tokens) == pytest.approx(wanted, rel=1e-3)
    monkeypatch.setattr(Rounding, "can_move", False)
    assert engine.noise_floor(tokens) == 0


def test_blocks_are_of_neighbours_in_one_chunk() -> None:
    values = np.random.default_rng(1).normal(0, 1, 3 * 400)
    means = block_means(values, 3)
    assert len(means) == 3 * (400 // BLOCK)
    assert means[0] == pytest.approx(values[:34].mean()), "400 tokens are 12 blocks of 33 or 34"
    steps = np.repeat([1.0, 2.0, 5.0], 400)
    assert set(block_means(steps, 3)) == {1.0, 2.0, 5.0}
    assert len(block_means(values[:48], 2)) == 8
    assert len(block_means(values[:5])) == 5


def test_the_standard_error_is_the_spread_of_such_means() -> None:
    random = np.random.default_rng(2)
    noise = random.normal(0, 1, (300, 40)).repeat(32, 1)  # as one in each block
    means = [block_means(row).mean() for row in noise]
    errors = [standard_error(block_means(row)) for row in noise]
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)


def test_errors_between_measured_types_mix_and_outside_stay() -> None:
    errors = {"a": 1e-4, "b": 1e-3, "c": 1e-2, "d": 1e-1}
    found = interpolate_shares(errors, {"b": 0.1, "d": 0.3})
    assert found == pytest.approx({"a": 0.1, "b": 0.1, "c": 0.2, "d": 0.3})
    assert interpolate_shares(errors, {}) == dict.fromkeys(errors, 0.0)


KNOWN = Prices(
    ({"q4_0": 0.1, "q8_0": 0.0},) * 3,
    ({"q4_0": 0.2, "q8_0": 0.0},) * 3,
    ModelShape("llama", (1, 1, 1), 64, 64),
    {"text": "x"},
    ({"q4_0": 0.01, "q8_0": 0.0},) * 3,
    ({"q4_0": 0.02, "q8_0": 0.0},) * 3,
)


def test_standard_errors_survive_the_file_of_prices() -> None:
    data = json.loads(json.dumps(KNOWN.to_json()))
    assert Prices.from_json(data) == KNOWN
    assert KNOWN.only(["q4_0"]).k_se == ({"q4_0": 0.01},) * 3
    for wrong in ({"q4_0": -1, "q8_0": 0.0}, {"q4_0": 0.1}, None, {}):
        data["layers"][1]["v_se"] = wrong
        with pytest.raises(KvtunerError, match="layer 1 is damaged"):
            Prices.from_json(data)


def test_a_file_of_prices_without_them_is_read() -> None:
    unknown = replace(KNOWN, k_se=(), v_se=())
    data = json.loads(json.dumps(unknown.to_json()))
    assert set(data["layers"][0]) == {"k", "v"}
    assert Prices.from_json(data) == unknown
    assert unknown.only(["q4_0"]).k_se == ()


def test_reasons_say_how_sure_a_price_is() -> None:
    pairs = [Pair("q8_0", "q4_0"), Pair("q4_0", "q4_0"), Pair("q4_0", "q4_0")]
    assert "a KLD of 0.10 +- 0.01, 1.0 times" in reasons(pairs, KNOWN)[0]
    assert "a KLD of 0.1, 1.0 times" in reasons(pairs, replace(KNOWN, k_se=(), v_se=()))[0]
