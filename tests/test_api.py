"""What a program imports, and that it does what the commands of the same names do."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner

import kvtuner_gguf
from kvtuner_gguf.cli import main
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.gguffile.stored_plan import plan_of
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from tests.conftest import N_LAYER

SLOW = ("numpy", "gguf", "click", "rich", "torch", "transformers", "matplotlib", "llama_cpp")


def imports_of(script: str) -> set[str]:
    program = f"import sys\n{script}\nprint([name for name in {SLOW!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(eval(done.stdout))


def test_importing_the_package_imports_nothing_slow() -> None:
    assert imports_of("import kvtuner_gguf") == set()
    assert imports_of("import kvtuner_gguf; kvtuner_gguf.Plan, kvtuner_gguf.Pair, kvtuner_gguf.CONFIGS") == {"numpy"}
    assert imports_of("from kvtuner_gguf import annotate, evaluate, tune") == {"numpy", "gguf"}


def test_every_public_name_is_there_and_no_other() -> None:
    assert set(kvtuner_gguf.__all__) == set(kvtuner_gguf._HOMES)
    assert {"tune", "annotate", "evaluate", "Plan"} <= set(kvtuner_gguf.__all__) <= set(dir(kvtuner_gguf))
    for name in kvtuner_gguf.__all__:
        assert getattr(kvtuner_gguf, name) is not None
    assert kvtuner_gguf.Plan is Plan
    assert kvtuner_gguf.KvtunerError is KvtunerError
    with pytest.raises(AttributeError, match="module 'kvtuner_gguf' has no attribute 'tunes'"):
        _ = kvtuner_gguf.tunes


def test_annotate_writes_the_plan(model: Path, tmp_path: Path) -> None:
    plan = Plan.uniform(Pair("q8_0", "q4_0"), N_LAYER)
    written = kvtuner_gguf.annotate(str(model), plan, str(tmp_path / "out.gguf"))
    assert written.pairs == plan.pairs
    assert plan_of(read_model(tmp_path / "out.gguf")).fingerprint == plan.fingerprint


class TestTune:
    @pytest.fixture
    def words(self, tmp_path: Path) -> Path:
        path = tmp_path / "text.txt"
        path.write_text(" ".join(f"{i} times {i + 1} is {i * (i + 1)};" for i in range(2000)))
        return path

    def test_it_gives_the_plan_of_the_command(self, words: Path, tiny, tmp_path: Path) -> None:
        pytest.importorskip("torch")
        model, out = tiny(tmp_path / "m.gguf", "llama"), tmp_path / "plan.json"
        options = ["--bits", "5", "--text", str(words), "--tokens", "64", "--ctx", "32", "--candidates", "q8_0,q4_0"]
        options += ["--ends", "2+4", "--for-ctx", "512"]
        done = CliRunner().invoke(main, ["tune", str(model), "-o", str(out), "--no-native", *options])
        assert done.exit_code == 0, done.output
        names = ("q8_0", "q4_0")
        ends = {"ends": "2+4", "for_ctx": 512}
        plan = kvtuner_gguf.tune(model, bits=5, candidates=names, text=words, tokens=64, ctx=32, **ends)
        assert plan.to_json() == Plan.load(out).to_json()
        assert plan.bits_per_value() < plan.bits_with_ends(plan.model, 512) <= 5
        assert plan.centers is not None
        assert plan.centers.span == 256

    def test_it_keeps_what_is_finished_where_it_is_told_to(self, words: Path, tiny, tmp_path: Path) -> None:
        pytest.importorskip("torch")
        model, work = str(tiny(tmp_path / "m.gguf", "llama")), tmp_path / "work"
        asked = {"candidates": ("q8_0", "q4_0"), "text": str(words), "tokens": 64, "ctx": 32, "center": False}
        asked["ends"] = "none"
        plan = kvtuner_gguf.tune(model, 5, **asked, work=str(work))
        assert plan.centers is None
        before = (work / "journal.jsonl").read_bytes()
        assert kvtuner_gguf.tune(model, 5, **asked, work=work) == plan
        assert (work / "journal.jsonl").read_bytes() == before

    def test_what_cannot_be_is_refused_at_once(self, words: Path, tiny, tmp_path: Path) -> None:
        pytest.importorskip("torch")
        model = tiny(tmp_path / "m.gguf", "llama")
        for asked, words_of in (
            ({"bits": 1}, "is less than"),
            ({"bits": 0}, "give a positive number"),
            ({"ends": "all"}, "the ends are 'all': give FIRST"),
            ({"backend": "abacus"}, "unknown back end 'abacus'"),
            ({"backend": "cpu", "candidates": ("q8_0",)}, "give one of them"),
        ):
            with pytest.raises(KvtunerError, match=words_of):
                kvtuner_gguf.tune(model, **asked, text=words)

    def test_it_is_refused_before_torch_is_loaded(self, words: Path, tiny, tmp_path: Path) -> None:
        model = tiny(tmp_path / "m.gguf", "llama")
        script = (
            "import sys, kvtuner_gguf\n"
            "for asked in ({'bits': 99}, {'device': 'abacus'}, {'ends': 'all'}, {'ctx': 8}, {'text': 'none.txt'}):\n"
            f"    try: kvtuner_gguf.tune({str(model)!r}, **asked)\n"
            "    except kvtuner_gguf.KvtunerError: continue\n"
            "    raise SystemExit(f'{asked} is not refused')\n"
            "raise SystemExit('torch is loaded' if 'torch' in sys.modules else 0)"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


class TestEvaluate:
    @pytest.mark.native
    @pytest.mark.parametrize(("evaluator", "start_pos"), [("native", 0), ("torch", 0), ("torch", 300)])
    def test_it_gives_the_rows_of_the_command(
        self, evaluator: str, start_pos: int, tiny, text: str, tmp_path: Path
    ) -> None:
        if evaluator == "torch":
            pytest.importorskip("torch")
        model, words, plan = tiny(tmp_path / "m.gguf", "llama"), tmp_path / "text.txt", tmp_path / "mix.json"
        words.write_text(text)
        Plan((Pair("q8_0", "q4_0"), Pair("f16", "q5_1"))).save(plan)
        options = ["--text", str(words), "--ctx", "32", "--chunks", "2", "--evaluator", evaluator]
        options += ["--start-pos", str(start_pos)] if start_pos else []
        done = CliRunner().invoke(
            main, ["eval", str(model), "--config", str(plan), "--uniform", "q4_0", *options, "--json"]
        )
        assert done.exit_code == 0, done.output
        caches = {"mix": Plan.load(plan), "q4_0/q4_0": Pair.parse("q4_0")}
        asked = {"text": words, "ctx": 32, "chunks": 2, "evaluator": evaluator}
        rows = kvtuner_gguf.evaluate(model, caches, **asked, start_pos=start_pos)
        assert [row.name for row in rows] == ["f16/f16", "mix", "q4_0/q4_0"]
        assert [asdict(row) for row in rows] == json.loads(done.stdout)
        assert rows[2].kld_mean > rows[0].kld_mean == 0
        if start_pos:
            at_start = kvtuner_gguf.evaluate(model, caches, **asked)
            assert at_start[2].kld_mean != rows[2].kld_mean
            assert at_start[0].ppl == pytest.approx(rows[0].ppl, rel=1e-3)

    def test_a_plan_of_another_model_is_refused_by_its_name(self, model: Path, tmp_path: Path) -> None:
        with pytest.raises(KvtunerError, match=r"^short: the plan has 3 layers, the model 4"):
            kvtuner_gguf.evaluate(model, {"short": Plan.uniform(Pair("q8_0", "q8_0"), 3)})

    @pytest.mark.native
    @pytest.mark.parametrize("evaluator", ["native", "torch"])
    def test_no_cache_takes_the_place_of_the_f16_one(self, evaluator: str, tiny, text: str, tmp_path: Path) -> None:
        if evaluator == "torch":
            pytest.importorskip("torch")
        model, words = tiny(tmp_path / "m.gguf", "llama"), tmp_path / "text.txt"
        words.write_text(text)
        asked = {"text": words, "ctx": 32, "chunks": 1, "evaluator": evaluator}
        with pytest.raises(KvtunerError, match=r"^f16/f16: so is called the f16 cache"):
            kvtuner_gguf.evaluate(model, {"f16/f16": Pair("q4_0", "q4_0")}, **asked)
        (row,) = kvtuner_gguf.evaluate(model, {"f16/f16": Pair("f16", "f16")}, **asked)
        assert (row.bits_per_value, row.kld_mean) == (16, 0)

    @pytest.mark.native
    def test_a_pair_that_does_not_fit_is_named(self, model: Path, tmp_path: Path) -> None:
        (tmp_path / "text").write_text("words")
        with pytest.raises(KvtunerError, match=r"^low: layer 0: K type q2_nl has blocks of 64 values"):
            kvtuner_gguf.evaluate(model, {"low": Pair("q2_nl", "f16")}, text=tmp_path / "text")

    def test_an_unknown_evaluator_is_refused(self, model: Path, tmp_path: Path) -> None:
        (tmp_path / "text").write_text("words")
        with pytest.raises(KvtunerError, match="unknown evaluator 'abacus': use one of native, torch"):
            kvtuner_gguf.evaluate(model, {}, text=tmp_path / "text", evaluator="abacus")

    def test_only_the_torch_evaluator_starts_at_a_position(self, model: Path, tmp_path: Path) -> None:
        (tmp_path / "text").write_text("some words")
        with pytest.raises(KvtunerError, match="judges from position 0, not --start-pos 28000: add --evaluator torch"):
            kvtuner_gguf.evaluate(model, {}, text=tmp_path / "text", start_pos=28000)
        with pytest.raises(KvtunerError, match="start at position -1: give 0 or more"):
            kvtuner_gguf.evaluate(model, {}, text=tmp_path / "text", start_pos=-1)
