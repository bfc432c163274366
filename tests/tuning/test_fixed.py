"""Layers whose pair is given by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("torch")

from kvtuner_gguf.cli import main
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.tuning.fixed import check_fixed, parse_fixed, with_fixed

WORDS = " ".join(f"word{i * i % 977}" for i in range(4000))
MEASURE = ("--tokens", "64", "--ctx", "32", "--candidates", "q8_0,q4_0,q2_nl", "--ends", "none")


def test_entries_name_layers_and_a_pair() -> None:
    assert parse_fixed(["0,2-3=q8_0/q4_0", "7=f16"]) == {
        0: Pair("q8_0", "q4_0"),
        2: Pair("q8_0", "q4_0"),
        3: Pair("q8_0", "q4_0"),
        7: Pair("f16", "f16"),
    }


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (["3-1=q8_0"], "give layers and a pair"),
        (["=q8_0"], "give layers and a pair"),
        (["a=q8_0"], "give layers and a pair"),
        (["-1=q8_0"], "give layers and a pair"),
        (["99999999999=q8_0"], "give layers and a pair"),
        (["1"], "type"),
        (["1=q9_9"], "q9_9"),
        (["1=q8_0/q4_0/q4_0"], "no pair"),
        (["1=q8_0", "0-2=q4_0"], "layer 1 is fixed twice"),
    ],
)
def test_other_entries_are_refused(entries: list[str], words: str) -> None:
    with pytest.raises(KvtunerError, match=words):
        parse_fixed(entries)


def test_the_model_has_to_fit() -> None:
    shape = ModelShape("llama", (2, 2), 80, 80)
    check_fixed({1: Pair("f16", "f16")}, shape)
    with pytest.raises(KvtunerError, match="layer 2 is fixed to f16/f16, the model has 2 layers"):
        check_fixed({2: Pair("f16", "f16")}, shape)
    with pytest.raises(KvtunerError, match="layer 1: K type q8_0 has blocks of 32"):
        check_fixed({1: Pair("q8_0", "f16")}, shape)


def test_fixed_layers_have_one_candidate() -> None:
    q8, q4 = Pair("q8_0", "q8_0"), Pair("q4_0", "q4_0")
    assert with_fixed([(q8, q4)] * 3, {1: q4}) == ((q8, q4), (q4,), (q8, q4))


class Files:
    """A tiny model and a text in ``folder``."""

    def __init__(self, folder: Path, tiny) -> None:
        self.folder = folder
        self.model = str(tiny(folder / "m.gguf", "llama", n_layer=3))
        (folder / "text.txt").write_text(WORDS)
        self.measure = ["--text", str(folder / "text.txt"), *MEASURE]

    def run(self, *args: str) -> str:
        result = CliRunner().invoke(main, list(args))
        assert result.exit_code == 0, result.output
        return result.output

    def tune(self, *args: str) -> Plan:
        out = str(self.folder / "plan.json")
        self.run("tune", self.model, "-o", out, "--points", "4", "--no-native", *self.measure, *args)
        return Plan.load(Path(out))


@pytest.fixture
def files(tmp_path: Path, tiny) -> Files:
    return Files(tmp_path, tiny)


@pytest.mark.parametrize("method", [("exact", "--trials", "5"), ("paper", "--trials", "8")], ids=["exact", "paper"])
def test_a_fixed_layer_keeps_its_pair_and_the_others_pay_for_it(files: Files, method: tuple[str, ...]) -> None:
    plan = files.tune("--bits", "4.5", "--fix", "1=q8_0/q5_1", "--method", *method)
    assert plan.pairs[1] == Pair("q8_0", "q5_1")
    assert not any("q5_1" in (plan.pairs[il].k, plan.pairs[il].v) for il in (0, 2)), "it is no candidate elsewhere"
    assert plan.bits_per_value() <= 4.5
    assert plan.provenance["fixed"] == {"1": "q8_0/q5_1"}


def test_a_budget_that_the_fixed_layers_use_up_is_refused_at_once(files: Files) -> None:
    args = ["tune", files.model, "-o", str(files.folder / "x.json"), *files.measure, "--bits", "4"]
    refused = CliRunner().invoke(main, [*args, "--fix", "0-1=f16"])
    assert refused.exit_code == 2
    assert "the candidates and --fix" in refused.output


def test_a_search_fixes_layers_of_a_profile(files: Files) -> None:
    profile, candidates, plan = (str(files.folder / f"{name}.json") for name in ("profile", "candidates", "plan"))
    files.run("profile", files.model, "-o", profile, *files.measure)
    files.run("prune", profile, "-o", candidates)
    search = ["search", files.model, profile, candidates, "-o", plan, "--points", "4", *files.measure, "--bits", "4.5"]
    files.run(*search, "--fix", "0=q8_0")
    assert Plan.load(Path(plan)).pairs[0] == Pair("q8_0", "q8_0")
    refused = CliRunner().invoke(main, [*search, "--fix", "0=q5_0"])
    assert "layer 0 is fixed to q5_0/q5_0, and the profile has no q5_0" in refused.output


def test_a_device_that_torch_lacks_is_named(files: Files) -> None:
    args = ["tune", files.model, "-o", str(files.folder / "x.json"), *files.measure]
    for device in ("abacus", "cuda:77"):
        refused = CliRunner().invoke(main, [*args, "--fresh", "--device", device])
        assert refused.exit_code == 2
        (line,) = refused.output.strip().splitlines()
        assert line.startswith(("Error: --device names cuda:77, and ", "Error: unknown device 'abacus': give cpu"))
    assert not list(files.folder.glob("x.*"))
