"""A tuning of a model that no torch model runs: `Engine` is all that it asks for."""

from __future__ import annotations

import ast
import math
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import kvtuner_gguf  # noqa: E402
from kvtuner_gguf.engine.attention import Attention, Causal  # noqa: E402
from kvtuner_gguf.engine.logits_judge import LogitsJudge  # noqa: E402
from kvtuner_gguf.errors import KvtunerError  # noqa: E402
from kvtuner_gguf.files import artifact  # noqa: E402
from kvtuner_gguf.plan.backends import chosen_backend  # noqa: E402
from kvtuner_gguf.plan.ends import ENDS_CTX, Ends  # noqa: E402
from kvtuner_gguf.plan.pairs import Pair  # noqa: E402
from kvtuner_gguf.plan.plan import Plan  # noqa: E402
from kvtuner_gguf.plan.shape import ModelShape  # noqa: E402
from kvtuner_gguf.tuning.center import center_plan  # noqa: E402
from kvtuner_gguf.tuning.goal import Goal  # noqa: E402
from kvtuner_gguf.tuning.profile import Profile  # noqa: E402
from kvtuner_gguf.tuning.settings import Settings  # noqa: E402
from kvtuner_gguf.tuning.texts import Texts  # noqa: E402
from kvtuner_gguf.tuning.tuner import Tuned, Tuner  # noqa: E402
from tests.made_up_engine import N_LAYER, MadeUp  # noqa: E402

TYPES = ("q8_0", "q5_0", "q4_0")
PACKAGE = Path(kvtuner_gguf.__file__).parent


class Spent(MadeUp):
    """Has tokens, but runs no more."""

    def capture(self, tokens, see) -> None:
        raise AssertionError("measured a second time")

    def logits(self, plan, tokens, rows):
        raise AssertionError("judged a second time")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(" ".join(f"word{i * i % 977}" for i in range(2000)))
    return path


def tune(engine: MadeUp, text: Path, work: Path | None = None, **change) -> Tuned:
    given = {"goal": Goal(bits=6), "n_tokens": 64, "n_ctx": 32, "n_points": 4, "trials": 6, **change}
    settings = Settings(backend=chosen_backend(None, TYPES), **given)
    return Tuner(engine, Texts((text,), (1.0,)), settings, work).run()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"center": False},
        {"ends": Ends(2, 3)},
        {"goal": Goal(max_kld=0.05)},
        {"evolve": 12},
        {"method": "paper", "trials": 20},
        {"method": "paper", "trials": 20, "objective": "perplexity"},
    ],
    ids=["exact", "plain", "ends", "max-kld", "evolve", "paper", "perplexity"],
)
def test_the_whole_tuner_runs_on_an_engine(
    change: dict, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("transformers", "kvtuner_gguf.engine.torch.reference", "kvtuner_gguf.engine.torch.engine"):
        monkeypatch.setitem(sys.modules, name, None)  # whoever imports it now fails
    found = tune(MadeUp(), text, tmp_path / "work", **change)
    goal = change.get("goal", Goal(bits=6))
    assert found.plan.n_layer == N_LAYER
    if goal.max_kld is None:
        assert found.plan.bits_per_value() <= 6
    else:
        assert found.loss_tuning <= goal.max_kld
    assert (found.plan.centers is not None) == change.get("center", True)
    assert found.plan.provenance["made up"] == "1"
    assert found.row.name == "plan, made up"
    assert found.row.kld_mean > 0
    (layer, *_) = artifact.load(tmp_path / "work" / "profile.json", Profile.from_json, "profile").layers
    assert layer[Pair("q4_0", "q4_0")].error > layer[Pair("q8_0", "q8_0")].error
    assert found.plan.ends == change.get("ends")
    if found.plan.ends is not None:
        assert found.plan.bits_with_ends(found.plan.model, ENDS_CTX) <= 6
    again = tune(Spent(), text, tmp_path / "work", **change)
    assert again.plan == found.plan


def test_more_bits_lose_less(text: Path) -> None:
    losses = [tune(MadeUp(), text, goal=Goal(bits=bits)).loss_tuning for bits in (4.5, 6, 8.5)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] > 0


def test_a_plan_is_centered_by_an_engine(text: Path) -> None:
    engine = MadeUp()
    plan = Plan((Pair("q4_0", "q4_0"),) * N_LAYER, engine.shape)
    centered, spread = center_plan(engine, plan, text, 64, 32)
    assert all(centered.centers.k)
    assert centered.centers.span is None, "this engine does not tell its RoPE"
    assert all(after < before for before, after in zip(spread.rms, spread.rms_centered, strict=True))


def test_an_engine_without_gradients_is_not_priced_by_them(text: Path) -> None:
    with pytest.raises(KvtunerError, match="the engine made up has no gradients: price the layers with --prices kld"):
        tune(MadeUp(), text, prices="fisher")


@pytest.mark.parametrize("ends", [None, Ends(2, 3)], ids=str)
def test_judging_by_logits_is_the_judging_of_the_torch_engine(
    ends: Ends | None, tiny, text: Path, tmp_path: Path
) -> None:
    from kvtuner_gguf.engine.torch.engine import TorchEngine

    engine = TorchEngine(tiny(tmp_path / "m.gguf", "llama"), ModelShape("llama", (2, 2), 64, 64))
    tokens = torch.tensor(engine.tokenize(text.read_text())[:48]).view(2, 24)
    own, by_logits = engine.judge(tokens, ends=ends), LogitsJudge(engine, tokens, ends=ends)
    plan = [Pair("q4_0", "q4_0"), Pair("q8_0", "q4_0")]
    assert own.kld(plan).mean() > 1e-4
    assert torch.allclose(own.kld(plan), by_logits.kld(plan), rtol=1e-3, atol=1e-6)
    assert torch.allclose(own.nll(plan).double(), by_logits.nll(plan), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("window", "soft_cap", "sinks"),
    [(None, None, None), (3, None, None), (None, 2.0, None), (None, None, [0.3, -1.0, 2.0, 0.0]), (2, 1.5, [1.0] * 4)],
)
def test_weights_are_those_of_their_definition(window, soft_cap, sinks) -> None:
    random = torch.Generator().manual_seed(2)
    products = 4 * torch.randn(2, 2, 3, 6, generator=random)  # 2 KV heads, 2 query heads of each
    rows = torch.tensor([1, 4, 5])
    nothing = torch.zeros(1, 4, 6, 8)
    tensor = None if sinks is None else torch.tensor(sinks)
    used = Attention(nothing, nothing[:, :2], nothing[:, :2], 0.25, Causal(window), soft_cap, tensor)
    found = used.weights(products, rows, 0)
    for kv, group, i, row in ((kv, g, i, row) for kv in range(2) for g in range(2) for i, row in enumerate(rows)):
        scores = [0.25 * x for x in products[kv, group, i].tolist()]
        scores = [x if soft_cap is None else soft_cap * math.tanh(x / soft_cap) for x in scores]
        seen = [t <= row and (window is None or row - t < window) for t in range(6)]
        powers = [math.exp(x) if visible else 0.0 for x, visible in zip(scores, seen, strict=True)]
        total = sum(powers) + (0.0 if sinks is None else math.exp(sinks[2 * kv + group]))
        assert found[kv, group, i].tolist() == pytest.approx([power / total for power in powers], rel=1e-5)


@pytest.mark.parametrize("folder", ["tuning", "evaluation"])
def test_tuning_and_evaluation_know_no_model_of_torch(folder: str) -> None:
    for path in (PACKAGE / folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            wrong = [name for name in names if name.startswith(("kvtuner_gguf.engine.torch", "transformers"))]
            assert not wrong, f"{path.name} imports {wrong}"
