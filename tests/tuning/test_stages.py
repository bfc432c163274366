"""The stages on small made-up numbers."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from kvtuner_gguf.engine.cachemodel import CacheModel  # noqa: E402
from kvtuner_gguf.engine.rotation import hadamard, rotate, rotation_size  # noqa: E402
from kvtuner_gguf.errors import KvtunerError  # noqa: E402
from kvtuner_gguf.files import artifact  # noqa: E402
from kvtuner_gguf.plan.ends import Ends  # noqa: E402
from kvtuner_gguf.plan.pairs import Pair  # noqa: E402
from kvtuner_gguf.plan.shape import ModelShape  # noqa: E402
from kvtuner_gguf.plan.sizes import Sizes  # noqa: E402
from kvtuner_gguf.tuning.calibration import calibrate, calibrate_texts  # noqa: E402
from kvtuner_gguf.tuning.prices import Prices  # noqa: E402
from kvtuner_gguf.tuning.profile import PairError, Profile  # noqa: E402
from kvtuner_gguf.tuning.prune import prune  # noqa: E402
from kvtuner_gguf.tuning.settings import Settings  # noqa: E402
from kvtuner_gguf.tuning.solver import solve  # noqa: E402
from kvtuner_gguf.tuning.texts import Texts  # noqa: E402

SHAPE = ModelShape("llama", (2, 2, 1), 64, 64)
NAMES = ("q8_0", "q5_0", "q4_0")
ENDS = Ends(4, 128, "q8_0")
PAIRS = [Pair(k, v) for k in NAMES for v in NAMES]


def error(value: float) -> PairError:
    return PairError(0.0, 0.0, 0.0, 0.0, value)


def test_the_rotation_is_its_own_inverse_and_keeps_products() -> None:
    x, y = torch.randn(2, 5, 192), torch.randn(2, 5, 192)
    assert torch.allclose(rotate(rotate(x, 64), 64), x, atol=1e-5)
    assert torch.allclose((rotate(x, 64) * rotate(y, 64)).sum(-1), (x * y).sum(-1), atol=1e-3)
    assert torch.allclose(hadamard(2) * 2**0.5, torch.tensor([[1.0, 1.0], [1.0, -1.0]]))


@pytest.mark.parametrize(("head_dim", "key", "value"), [(64, 64, 64), (128, 128, 64), (192, 64, 64), (80, None, None)])
def test_rotation_sizes_are_those_of_the_runtime(head_dim: int, key: int | None, value: int | None) -> None:
    assert rotation_size(head_dim, is_key=True) == key
    assert rotation_size(head_dim, is_key=False) == value


def test_unquantized_caches_give_back_what_was_written() -> None:
    k = torch.randn(1, 2, 3, 64)
    for interleaved in (True, False):
        assert torch.equal(CacheModel(interleaved).keys(k, "f32", 0), k)
        assert torch.equal(CacheModel(interleaved).keys(k, "f16", 0), k.half().float())


def test_keys_are_quantized_in_the_order_of_the_runtime() -> None:
    k = torch.zeros(1, 1, 1, 64)
    k[..., :32] = 1000.0  # one half of the pairs: in the runtime's order every block of 32 sees both halves
    k[..., 32:] = torch.linspace(-1, 1, 32)
    plain, ordered = (CacheModel(interleaved).keys(k, "q4_1", 0) for interleaved in (False, True))
    assert not torch.allclose(plain, ordered)


def test_pruning_keeps_the_front() -> None:
    layer = {
        Pair("q8_0", "q8_0"): error(0.001),
        Pair("q8_0", "q4_0"): error(0.01),
        Pair("q4_0", "q8_0"): error(0.1),
        Pair("q4_0", "q4_0"): error(0.11),
    }
    (kept,) = prune(Profile(ModelShape("llama", (1,), 64, 64), (layer,))).layers
    assert kept == (Pair("q4_0", "q4_0"), Pair("q8_0", "q4_0"), Pair("q8_0", "q8_0"))


def random_prices(seed: int) -> Prices:
    generator = torch.Generator().manual_seed(seed)
    names = (*NAMES, "f16")
    make = lambda: tuple({n: torch.rand((), generator=generator).item() for n in names} for _ in range(3))  # noqa: E731
    return Prices(make(), make())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("bits", "ends"),
    [(4.5, None), (5.1, None), (6.0, None), (8.5, None), (4.7, ENDS), (5.1, ENDS), (6.0, ENDS), (8.5, ENDS)],
    ids=str,
)
def test_the_solver_is_exact(seed: int, bits: float, ends: Ends | None) -> None:
    prices, sizes = random_prices(seed), Sizes(replace(SHAPE, n_ctx=8192), ends)
    budget = sizes.budget(bits)
    pairs = [*PAIRS, Pair("f16", "f16")]  # which goes without ends
    plans = [plan for plan in itertools.product(pairs, repeat=3) if sizes.plan(plan) <= budget]
    found = solve(prices, [pairs] * 3, sizes, budget)
    assert sizes.plan(found) <= budget
    assert prices.plan(found) == pytest.approx(min(map(prices.plan, plans)))


def test_a_budget_that_no_plan_meets_is_an_error() -> None:
    sizes = Sizes(SHAPE)
    with pytest.raises(KvtunerError, match=r"smallest has 4\.50"):
        solve(random_prices(0), [PAIRS] * 3, sizes, sizes.budget(4.4))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_tokens": 8}, "at least one context"),
        ({"method": "guess"}, "exact, paper"),
        ({"n_rungs": 0}, "--rungs must be 1 or more"),
        ({"n_points": 1}, "--points 2 or more"),
        ({"prices": "guess"}, "unknown prices 'guess': use one of fisher, kld"),
    ],
)
def test_bad_settings_say_what_to_change(change: dict, words: str) -> None:
    with pytest.raises(KvtunerError, match=words):
        Settings(**change)


def test_chunks_come_from_all_over_the_text(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{i}" for i in range(20000)))
    first, again, other = (calibrate(text, split, 256, 32, seed) for seed in (1, 1, 2))
    assert first.tuning.shape == first.held_out.shape == (8, 32)
    assert torch.equal(first.tuning, again.tuning)
    assert not torch.equal(first.tuning, other.tuning)
    seen = torch.cat([first.tuning, first.held_out]).flatten()
    assert len(seen.unique()) == len(seen), "chunks overlap"
    assert seen.max() - seen.min() > 10000
    with pytest.raises(KvtunerError, match="too short"):
        calibrate(text, split, 1 << 20, 1 << 16)


def split(text: str) -> list[int]:
    """Words as numbers; the pieces at the ends, where a chunk may cut a word, are left out."""
    return [int(word[1:]) for word in text.split()[1:-1]]


def test_a_profile_survives_its_file_and_refuses_damage(tmp_path: Path) -> None:
    profiled = Profile(SHAPE, ({PAIRS[0]: error(0.5)},) * 3, {"text": "x"})
    artifact.save(tmp_path / "p.json", profiled.to_json())
    data = json.loads((tmp_path / "p.json").read_text())
    assert Profile.from_json(data) == profiled
    data["layers"][1]["q8_0/q8_0"]["error"] = -1
    with pytest.raises(KvtunerError, match="layer 1"):
        Profile.from_json(data)
    with pytest.raises(KvtunerError, match="2 entries, the model 3"):
        Profile.from_json({**data, "layers": data["layers"][::2]})


@pytest.mark.parametrize(
    ("weights", "n", "counts"),
    [((1.0,), 3, [3]), ((1.0, 1.0), 3, [2, 1]), ((3.0, 1.0), 8, [6, 2]), ((100.0, 1.0, 1.0), 4, [2, 1, 1])],
)
def test_chunks_are_parted_by_weight(weights: tuple[float, ...], n: int, counts: list[int]) -> None:
    assert Texts(tuple(Path(f"{i}.txt") for i in range(len(weights))), weights).shares(n) == counts


def test_several_texts_are_calibrated_on_together(tmp_path: Path) -> None:
    paths = (tmp_path / "a.txt", tmp_path / "b.txt")
    for i, path in enumerate(paths):
        path.write_text(" ".join(f"w{100000 * i + j}" for j in range(20000)))
    texts = Texts(paths, (3.0, 1.0))
    found = calibrate_texts(texts, split, 256, 32)
    assert found.name == texts.name == "3 a.txt + 1 b.txt"
    assert (found.tuning >= 100000).all(1).tolist() == [False] * 6 + [True] * 2
    assert found.held_out.shape == (8, 32)
    assert texts.sha256 != Texts(paths[::-1], (3.0, 1.0)).sha256
    with pytest.raises(KvtunerError, match="2 texts for 1 chunks"):
        calibrate_texts(texts, split, 32, 32)
    with pytest.raises(KvtunerError, match="weight nan"):
        Texts(paths, (1.0, float("nan")))
