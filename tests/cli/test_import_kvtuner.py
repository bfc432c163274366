"""`kvtuner-gguf import-kvtuner`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kvtuner_gguf.cli import main
from kvtuner_gguf.gguffile.metadata import model_shape
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan

TABLES = Path(__file__).parents[2] / "configs" / "kvtuner" / "tables.json"
NAME = "Meta-Llama-3.1-8B-Instruct_kivi_KVTuner4_1"
PRESET = "".join(
    f"{il}: {{nbits_key: {k}, nbits_value: {v}}}\n" for il, (k, v) in enumerate([(8, 8), (8, 4), (4, 4), (4, 4)])
)


def run(*args: object) -> Result:
    result = CliRunner().invoke(main, ["import-kvtuner", *map(str, args)])
    assert result.exit_code in (0, 1, 2), result.exception
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    path = tmp_path / "preset.yaml"
    path.write_text(PRESET)
    return path


def test_it_writes_the_plan_and_prints_both_measures(tmp_path: Path) -> None:
    out = tmp_path / "cfg.json"
    result = run(TABLES, "--name", NAME, "-o", out)
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"{out}\nq2_nl/q2_nl    layers 0,4,25,27\n")
    assert "3.2500 payload bits per value" in result.output
    assert "3.6406 true bits per value" in result.output
    plan = Plan.load(out)
    assert plan.n_layer == 32
    assert plan.pairs[13] == Pair("q8_0", "q4_0")


def test_json_is_for_programs(tmp_path: Path) -> None:
    out = tmp_path / "cfg.json"
    data = json.loads(run(TABLES, "--name", NAME, "-o", out, "--json").output)
    assert (data["file"], data["payload_bits"], data["bits_per_value"]) == (str(out), 3.25, 3.640625)
    assert data["provenance"]["label"] == "C3.25"
    assert data["fingerprint"] == Plan.load(out).fingerprint


def test_the_default_target_is_that_of_tune(preset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(preset.parent)
    assert run(preset).exit_code == 0
    assert (preset.parent / "cfg.json").exists()


def test_types(preset: Path, tmp_path: Path) -> None:
    out = tmp_path / "cfg.json"
    assert run(preset, "-o", out, "--types", "4=iq4_nl").exit_code == 0
    assert Plan.load(out).pairs[1] == Pair("q8_0", "iq4_nl")


def test_a_model_gives_the_shape(preset: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "cfg.json"
    result = run(preset, "-o", out, "--model", model)
    assert result.exit_code == 0, result.output
    assert Plan.load(out).model == model_shape(read_model(model))
    assert "bytes per token" in result.output


def test_a_model_that_does_not_fit_is_refused(preset: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "cfg.json"
    for args, words in (
        ((TABLES, "--name", NAME), ("another model", "32")),
        ((preset, "--types", "4=q2_nl"), ("layer 1: V type q2_nl", "64 values", "head size 32")),
    ):
        result = run(*args, "-o", out, "--model", model)
        assert result.exit_code == 1
        assert all(word in result.output for word in words), result.output
        assert not out.exists()
    preset.write_text("".join(PRESET.splitlines(keepends=True)[:3]))
    assert "3 layers, the model 4" in run(preset, "-o", out, "--model", model).output


def test_a_plan_passes_through(model: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "plan.json", tmp_path / "cfg.json"
    plan = Plan((Pair("q8_0", "q4_0"),) * 4, provenance={"by": "hand"})
    plan.save(source)
    assert json.loads(run(source, "-o", out, "--json").output)["payload_bits"] is None
    assert Plan.load(out) == plan
    assert "payload" not in run(source, "-o", out, "--model", model).output
    assert Plan.load(out).model == model_shape(read_model(model))
    assert "leave out --types" in run(source, "-o", out, "--types", "4=q4_1").output


def test_it_does_not_overwrite_what_it_reads(preset: Path, model: Path) -> None:
    for args in ((preset, "-o", preset), (preset, "--model", model, "-o", model)):
        result = run(*args)
        assert result.exit_code == 2
        assert "another target" in result.output
    assert preset.read_text() == PRESET
    assert model.read_bytes()[:4] == b"GGUF"


def test_errors_are_one_line(preset: Path, tmp_path: Path) -> None:
    out = tmp_path / "cfg.json"
    preset.write_text("0: [[[{a: *b}]]]")
    absent = ((tmp_path / "none.yaml",), ("x" * 5000,))
    for args in ((preset,), *absent, (TABLES,), (TABLES, "--name", "\x1b[2J")):
        result = run(*args, "-o", out)
        assert result.exit_code == (2 if args in absent else 1)
        assert result.output.startswith("Error: ")
        assert result.output.count("\n") == 1
        assert "\x1b" not in result.output
        assert not out.exists()


def test_it_imports_nothing_heavy(preset: Path, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom kvtuner_gguf.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'matplotlib', 'llama_cpp') if name in sys.modules])"
    )
    args = ["import-kvtuner", str(preset), "-o", str(tmp_path / "cfg.json")]
    done = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
