"""Caches of others, on made-up tensors and a tiny model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import rivals as caches  # noqa: E402
import study_rivals as study  # noqa: E402
from rivals import Rotated, Statistics, balance, in_types, kvarn, kvarn_bits, oscar_bits, oscar_int2  # noqa: E402
from study_rivals import Rival, compared  # noqa: E402

from kvtuner_gguf.engine.cachemodel import CacheModel  # noqa: E402
from kvtuner_gguf.engine.ends import KeysValues  # noqa: E402
from kvtuner_gguf.engine.rotation import hadamard  # noqa: E402
from kvtuner_gguf.plan.ends import Ends  # noqa: E402
from kvtuner_gguf.plan.pairs import Pair  # noqa: E402
from kvtuner_gguf.plan.plan import Plan  # noqa: E402
from kvtuner_gguf.plan.shape import LayerShape, ModelShape  # noqa: E402

SHAPE = ModelShape.of_layers("llama", [LayerShape(2, 64, 64)] * 3)


def normal(*shape: int, seed: int = 1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(x, read) -> float:
    return ((read - x).square().sum() / x.square().sum()).item()


def layer():
    """Queries of 2 x 2 heads, keys and values of 2, whose channels have different energies."""
    energies = torch.linspace(0.1, 4, 16)
    return normal(3, 4, 40, 16) * energies, normal(3, 2, 40, 16, seed=2) + 2, normal(3, 2, 40, 16, seed=3) * energies


def test_moments_are_those_of_their_definition() -> None:
    query, key, value = layer()
    found = Statistics.of(query, key, value)
    for head in range(2):
        q = query[:, 2 * head : 2 * head + 2].flatten(0, 2).double()
        k, v = (x[:, head].flatten(0, 1).double() for x in (key, value))
        moment = q.T @ q / len(q)
        weights = (k @ moment * k).sum(-1)
        torch.testing.assert_close(found.center[head], k.mean(0))
        torch.testing.assert_close(found.queries[head], moment)
        torch.testing.assert_close(found.values[head], (v * weights[:, None]).T @ v / weights.sum())


@pytest.mark.parametrize("per_head", [False, True])
def test_a_rotation_is_orthogonal_and_spreads_the_energy_evenly(per_head: bool) -> None:
    statistics = Statistics.of(*layer())
    turns = statistics.rotations(per_head)
    for turn, moment in zip(turns, (statistics.queries, statistics.values), strict=True):
        assert turn.shape == (2 if per_head else 1, 16, 16)
        torch.testing.assert_close(turn @ turn.mT, torch.eye(16).expand_as(turn), rtol=0, atol=1e-5)
        of_turn = (moment if per_head else moment.mean(0, keepdim=True)).float()
        energies = (turn.mT @ of_turn @ turn).diagonal(dim1=-2, dim2=-1)
        torch.testing.assert_close(energies, energies.mean(-1, keepdim=True).expand_as(energies), rtol=1e-4, atol=1e-4)


def test_columns_of_a_rotation_are_in_bit_reversed_order() -> None:
    """Of a moment whose eigenvectors are the axes, from the least energy to the largest."""
    turn = caches.oscar_rotation(torch.diag(torch.arange(1.0, 5.0).double()))
    columns = hadamard(4)[:, [3, 1, 2, 0]]
    torch.testing.assert_close(turn.abs(), columns.abs())
    torch.testing.assert_close(turn.T @ turn, torch.eye(4))
    signs = turn[:, :1] / columns[:, :1]
    torch.testing.assert_close(turn, columns * signs)


def test_int2_has_four_levels_within_the_clipped_range() -> None:
    row = torch.arange(100.0)[None, None, None] - 30
    read = oscar_int2(row, True)
    assert len(read.unique()) == 4
    assert read.min() == -30
    assert read.max() == 66, "of 100 magnitudes up to 69, 96 are smaller"
    assert oscar_int2(row, False).max() == pytest.approx(62, abs=0.1)
    torch.testing.assert_close(caches.four_levels(torch.tensor([0.0, 1, 2, 3])), torch.tensor([0.0, 1, 2, 3]))
    assert oscar_bits(128) == 2.25
    assert oscar_bits(64) == 2.5


def test_a_tile_is_balanced_over_both_its_axes() -> None:
    tiles = normal(2, 32, 24) * torch.linspace(20, 180, 24) * torch.linspace(1, 5, 32)[:, None]
    columns, rows = balance(tiles)
    balanced = tiles / columns / rows
    for axis in (-2, -1):
        std = balanced.std(axis)
        assert std.max() / std.min() < 1.5 < 7 < tiles.std(axis).max() / tiles.std(axis).min()


@pytest.mark.parametrize("is_key", [False, True])
def test_kvarn_errs_less_with_more_bits_and_leaves_the_last_tokens(is_key: bool) -> None:
    x = normal(1, 2, 2 * caches.TILE + 5, 64) * torch.linspace(1, 9, 64)
    errors = [error(x, kvarn(n_bits)(x, is_key)) for n_bits in (2, 3, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.25
    assert errors[-1] < 1e-4
    assert torch.equal(kvarn(2)(x, is_key)[:, :, -5:], x[:, :, -5:])
    assert kvarn_bits(3, 128) == 3.375, "as BeeLlama counts"


def test_channels_of_keys_and_tokens_of_values_have_a_minimum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four levels each, about minima of their own, where nothing is to be balanced."""
    monkeypatch.setattr(caches, "ROUNDS", 0)
    codes = torch.arange(caches.TILE**2).view(1, 1, caches.TILE, -1) * 7 // 5 % 4
    values = codes + 10.0 * torch.arange(caches.TILE)[:, None]
    for x, is_key in ((values, False), (values.mT, True)):
        assert torch.equal(kvarn(2)(x, is_key), x)
        assert error(x, kvarn(2)(x, not is_key)) > 1e-3


def test_a_rotated_cache_is_stored_in_its_basis() -> None:
    k, v = normal(2, 1, 2, 5, 64)
    turn = hadamard(64)[None]
    cache = Rotated(False, rotations=(KeysValues(turn, turn),), store=in_types(Pair("q4_0", "q8_0")))
    pair, rotated = Pair("q4_0", "q8_0"), (True, True)
    found, usual = cache.cached(k, v, pair, 0, rotated), CacheModel(False).cached(k, v, pair, 0, rotated)
    torch.testing.assert_close(found.key, usual.key, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.value, usual.value, rtol=1e-4, atol=1e-4)
    assert cache.exact(k, v, pair, 0, rotated) is None
    exact = Rotated(False, ends=Ends(1, 1), rotations=cache.rotations).exact(k, v, pair, 0, rotated)
    assert torch.equal(exact.key, k.half().float())


def test_bits_count_the_ends_at_the_context() -> None:
    plan = Plan((Pair("q2_nl", "q2_nl"),) * 3, ends=Ends(64, 256))
    own = Rival("", plan, (), oscar_int2, 2.25)
    assert own.true_bits(SHAPE, 2048) == 2.25 + 16 * 320 / 2048
    assert Rival("", plan).true_bits(SHAPE, 8192) == own.true_bits(SHAPE, 8192) == 2.25 + 16 * 320 / 8192
    assert Rival("", plan.without_ends()).true_bits(SHAPE, 2048) == 2.25


def test_losses_of_logits() -> None:
    exact, other = torch.log(torch.tensor([[0.5, 0.25, 0.25]] * 2)), torch.log(torch.tensor([[0.25, 0.25, 0.5]] * 2))
    kld, same, lost = compared(exact, other, torch.tensor([0, -1])).T
    torch.testing.assert_close(kld, torch.full((2,), 0.25 * torch.log(torch.tensor(2.0)), dtype=torch.float64))
    assert same.tolist() == [0, 0]
    assert lost[0].exp().item() == pytest.approx(2)
    assert lost[1].isnan()
    assert compared(exact, exact, torch.tensor([0, 1]))[:, 1].tolist() == [1, 1]


def test_the_study_of_a_tiny_model(
    tiny, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "text"
    texts.write_text(text * 40)
    monkeypatch.setattr(study, "fetch_text", lambda name: texts)
    for name, ends in (
        ("OSCAR_ENDS", Ends(2, 4)),
        ("TAIL", Ends(0, 16)),
        ("KVARN_ENDS", Ends(2, 16)),
        ("OUR_ENDS", Ends(1, 8)),
    ):
        monkeypatch.setattr(study, name, ends)
    monkeypatch.setattr(caches, "TILE", 16)
    plan, out = tmp_path / "plan.json", tmp_path / "out.json"
    Plan((Pair("f32", "f32"),) * 2).save(plan)
    model = tiny(tmp_path / "model.gguf", "llama")
    options = ["--plan", str(plan), "--tokens", "128", "--chunks", "2", "--ctx", "64", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["study_rivals.py", str(model), *options])
    study.main()
    rows = {row["name"]: row for row in json.loads(out.read_text())}
    assert len(rows) == 20
    assert len(capsys.readouterr().out.splitlines()) == 21
    exact = rows.pop(str(plan))
    assert exact["kld"] < 1e-6
    assert exact["same top"] == 1
    assert exact["ppl"] == pytest.approx(1, abs=1e-4)
    assert not [row for row in rows.values() if not row["kld"] > 1e-6]
    for better, worse in (
        ("KVarN, 4 bits, tail", "KVarN, 2 bits, tail"),
        ("q3_nl/q3_nl, Hadamard", "q2_nl/q2_nl, Hadamard"),
        ("q3_nl/q3_nl, OSCAR of the heads", "q2_nl/q2_nl, OSCAR of the heads"),
        ("q4_0/q4_0, tail", "q4_0/q4_0, centers"),
    ):
        assert rows[better]["kld"] < rows[worse]["kld"], better
