"""Layers with a sliding window: searched, or left at f16 where that is nearly free."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from kvtuner_gguf.cli.tuned import print_tuned  # noqa: E402
from kvtuner_gguf.errors import KvtunerError  # noqa: E402
from kvtuner_gguf.plan.backends import of_types  # noqa: E402
from kvtuner_gguf.plan.contextsize import ContextSize  # noqa: E402
from kvtuner_gguf.plan.ends import Ends  # noqa: E402
from kvtuner_gguf.plan.pairs import F16, Pair  # noqa: E402
from kvtuner_gguf.plan.plan import Plan  # noqa: E402
from kvtuner_gguf.plan.shape import ModelShape  # noqa: E402
from kvtuner_gguf.tuning.goal import Goal  # noqa: E402
from kvtuner_gguf.tuning.prune import Candidates  # noqa: E402
from kvtuner_gguf.tuning.reasons import reasons  # noqa: E402
from kvtuner_gguf.tuning.settings import Settings, check_goal  # noqa: E402
from kvtuner_gguf.tuning.texts import Texts  # noqa: E402
from kvtuner_gguf.tuning.tuner import Tuned, Tuner  # noqa: E402
from kvtuner_gguf.tuning.windows import NEARLY_FREE, left_at_f16  # noqa: E402
from tests.made_up_engine import N_LAYER, WINDOWED, MadeUp  # noqa: E402

# three of five layers see 128 tokens: 768 cells in batches of 512
SHAPE = ModelShape("gemma3", (2, 2, 2, 2, 2), 64, 64, window=(128, 0, 128, 0, 128))
LAYERS = (0, 2, 4)
TYPES = of_types(("q8_0", "q2_nl"))
# of the engine made up, whose heads have 32 values
SMALL = of_types(("q8_0", "q4_0"))
SETTINGS = Settings(goal=Goal(bits=4.5, n_ctx=131072), backend=TYPES, center=False, ends=None)


def test_what_they_take_decides() -> None:
    left = left_at_f16(SETTINGS, SHAPE)
    assert left is not None
    assert left.layers == LAYERS
    f16, cells = 16.0, 3 * 768
    share = f16 * cells / (4.5 * (cells + 2 * 131072))
    assert left.share == pytest.approx(share, rel=1e-4)
    assert 0.03 < share < NEARLY_FREE
    for change in ({"goal": Goal(bits=4.5, n_ctx=65536)}, {"goal": Goal(bits=2.6, n_ctx=131072)}):
        assert left_at_f16(replace(SETTINGS, **change), SHAPE) is None
    assert left_at_f16(replace(SETTINGS, goal=Goal(bits=9, n_ctx=65536)), SHAPE) is not None


def test_a_budget_in_mib_and_a_loss_decide_likewise() -> None:
    by_bits = left_at_f16(SETTINGS, SHAPE)
    mib = n_bytes("q4_0", 131072) / 2**20  # 4.5 bits
    by_mib = left_at_f16(replace(SETTINGS, goal=Goal(mib=mib, n_ctx=131072)), SHAPE)
    assert by_mib.share == pytest.approx(by_bits.share, rel=1e-3)
    assert by_mib.of == "the budget"
    assert left_at_f16(replace(SETTINGS, goal=Goal(max_kld=0.1, n_ctx=131072)), SHAPE) is None
    by_loss = left_at_f16(replace(SETTINGS, goal=Goal(max_kld=0.1, n_ctx=262144)), SHAPE)
    assert by_loss.share == pytest.approx(3 * 768 * 16 / (2.25 * (3 * 768 + 2 * 262144)), rel=1e-4)
    assert by_loss.of == "the smallest plan"


def n_bytes(pair: str, n_ctx: int) -> int:
    return Plan.uniform(Pair.parse(pair), SHAPE.n_layer).n_bytes(SHAPE, ContextSize(n_ctx))


def test_they_are_left_only_where_the_others_fit() -> None:
    """With all layers in q2_nl the budget is spent."""
    settings = replace(SETTINGS, goal=Goal(mib=n_bytes("q2_nl", 1 << 20) / 2**20, n_ctx=1 << 20))
    assert left_at_f16(settings, SHAPE) is None
    check_goal(settings, SHAPE)
    forced = replace(settings, windows="f16")
    left = left_at_f16(forced, SHAPE)
    assert left.layers == LAYERS
    assert left.share < NEARLY_FREE
    with pytest.raises(KvtunerError, match="bits per value of the candidates and --windows f16: raise --mib"):
        check_goal(forced, SHAPE)


def test_the_word_of_the_user_goes_first() -> None:
    assert left_at_f16(replace(SETTINGS, windows="search"), SHAPE) is None
    short = replace(SETTINGS, goal=Goal(bits=12, n_ctx=4096))
    assert left_at_f16(short, SHAPE) is None
    assert left_at_f16(replace(short, windows="f16"), SHAPE).layers == LAYERS
    fixed = {0: Pair.parse("q4_0"), 1: Pair.parse("q2_nl")}
    assert left_at_f16(replace(SETTINGS, fixed=fixed), SHAPE).layers == (2, 4)
    with pytest.raises(KvtunerError, match="unknown windows 'f32': use one of auto, search, f16"):
        replace(SETTINGS, windows="f32")


@pytest.mark.parametrize("windows", ["auto", "f16"])
def test_without_windows_nothing_is_left(windows: str) -> None:
    plain = replace(SHAPE, window=0)
    assert left_at_f16(replace(SETTINGS, windows=windows), plain) is None
    without_cache = replace(SHAPE, cache=(None, 1, None, 3, None))
    assert left_at_f16(replace(SETTINGS, windows=windows), without_cache) is None


class Windowed(MadeUp):
    """The engine made up, which has a window in one layer, with a shape that says so."""

    def __init__(self) -> None:
        super().__init__()
        window = tuple(9 if il == WINDOWED else 0 for il in range(N_LAYER))
        self.shape = replace(self.shape, window=window)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(" ".join(f"word{i * i % 977}" for i in range(2000)))
    return path


def tuner(text: Path, work: Path | None = None, **change: object) -> Tuner:
    given = {"goal": Goal(bits=6, n_ctx=131072), "n_tokens": 64, "n_ctx": 32, "n_points": 4, "trials": 6, **change}
    return Tuner(Windowed(), Texts((text,), (1.0,)), Settings(**{"backend": SMALL, "ends": Ends(2, 3), **given}), work)


def tune(text: Path, **change: object) -> Tuned:
    return tuner(text, **change).run()


@pytest.mark.parametrize(
    "change", [{}, {"evolve": 12}, {"method": "paper", "trials": 20}], ids=["exact", "evolve", "paper"]
)
def test_a_tuning_leaves_them_counts_them_and_says_so(
    change: dict, text: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    left, searched = tune(text, **change), tune(text, windows="search", **change)
    assert left.plan.pairs[WINDOWED] == F16
    assert searched.plan.pairs[WINDOWED] != F16
    assert left.plan.provenance["windows"]["layers"] == [WINDOWED]
    assert "fixed" not in left.plan.provenance
    assert "windows" not in searched.plan.provenance
    for tuned in (left, searched):
        assert tuned.plan.bits_with_ends(tuned.plan.model, 131072) <= 6
        assert all(
            point.pairs[WINDOWED] == tuned.plan.pairs[WINDOWED] or tuned is searched for point in tuned.front.points
        )
    print_tuned(tmp_path / "cfg.json", left)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "sliding window" in line)
    assert line == (
        f"layers {WINDOWED}, which have a sliding window, are left at f16: 0.8 % of the budget for 131072 tokens; "
        "--windows search searches them, too"
    )
    print_tuned(tmp_path / "cfg.json", searched)
    assert "sliding window" not in capsys.readouterr().out
    assert json.loads(json.dumps(left.plan.to_json()))["provenance"]["windows"]["left_at"] == "f16"


def test_stages_by_hand_leave_them_where_f16_was_profiled(text: Path) -> None:
    """A profile of other types, or groups that say what layers have, are searched as they are given."""
    searched = tuner(text, windows="search")
    profile = searched.profile
    candidates = Candidates(
        profile.model, ((Pair("q8_0", "q8_0"), Pair("q4_0", "q4_0")),) * N_LAYER, profile.provenance
    )
    by_hand = tuner(text)
    by_hand.take(profile, candidates)
    assert by_hand.run().plan.pairs[WINDOWED] != F16
    with pytest.raises(KvtunerError, match=f"layer {WINDOWED} is fixed to f16/f16, and the profile has no f16"):
        tuner(text, windows="f16").take(profile, candidates)
    with_f16 = tuner(text)
    with_f16.take(with_f16.profile, candidates)
    assert with_f16.run().plan.pairs[WINDOWED] == F16


def test_layers_at_f16_have_no_price_but_that(text: Path, tmp_path: Path) -> None:
    fixed = {0: F16, 2: Pair("q8_0", "q4_0")}
    found = tuner(text, tmp_path / "work", goal=Goal(bits=14, n_ctx=131072), prices="kld", fixed=fixed).run()
    assert found.plan.pairs == (F16, F16, fixed[2])
    for sides in (found.prices.k, found.prices.v, found.prices.k_se, found.prices.v_se):
        assert [set(side) for side in sides] == [{"f16"}, {"f16"}, {"q8_0", "q4_0", "f16"}]
        assert sides[0] == sides[WINDOWED] == {"f16": 0.0}
    lines = map(json.loads, (tmp_path / "work" / "journal.jsonl").read_text().splitlines())
    plans = [key.split()[1:] for key, _ in lines if key.startswith("tuning")]
    searched = [plan for plan in plans if len(set(plan)) > 1]  # the others are uniform pairs, to compare with
    assert searched
    assert not any("q" in pair for plan in searched for pair in plan[:2])
    assert reasons(found.plan.pairs, found.prices) == []
