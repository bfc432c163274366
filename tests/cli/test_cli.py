from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvtuner_gguf.cli import COMMANDS, main
from kvtuner_gguf.gguffile.annotate import annotate
from kvtuner_gguf.gguffile.stored_plan import given_plan
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.report.shell import annotating
from tests.conftest import N_LAYER, write_model

PAIRS = tuple(Pair.parse(name) for name in ("q8_0/q4_0", "f16/q5_1", "iq4_nl", "f16"))
HEAVY = ("torch", "transformers", "matplotlib", "llama_cpp", "sklearn")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0
    text = result.output.split("Options:")[0]
    assert len(text.split()) > 12, "say what the command does"
    for option in main.get_command(None, name).params:
        assert option.param_type_name == "argument" or option.help, option.name


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
@pytest.mark.parametrize("name", ["", *(name for name in COMMANDS if name != "completion")])
def test_help_fits_the_terminal(name: str, columns: int) -> None:
    words = [name, "--help"] if name else ["--help"]
    text = CliRunner(env={"COLUMNS": str(columns)}).invoke(main, words).output
    assert max(map(len, text.splitlines())) <= columns
    assert "Options:" in text


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "completion"])
def test_every_command_has_json(name: str) -> None:
    assert "--json" in [word for option in main.get_command(None, name).params for word in option.opts]


OF_MODELS = {
    "annotate": ("{model}", "{plan}", "--in-place"),
    "center": ("{model}", "{plan}", "-o", "{out}"),
    "eval": ("{model}", "--uniform", "q8_0"),
    "inspect": ("{model}",),
    "plan": ("{model}", "--uniform", "q8_0", "-o", "{out}"),
    "profile": ("{model}", "-o", "{out}", "--text", "{plan}"),
    "strip": ("{model}", "--in-place"),
    "tune": ("{model}", "-o", "{out}", "--text", "{plan}"),
    "verify": ("{plan}", "--model", "{model}"),
}


@pytest.mark.parametrize("command", OF_MODELS)
@pytest.mark.parametrize(
    ("metadata", "what"),
    [
        ({"general__type": "adapter", "adapter__type": "lora"}, "a LoRA adapter"),
        ({"general__type": "adapter"}, "a LoRA adapter"),
        ({"adapter__type": "soft\n"}, r"an adapter of type 'soft\x0a'"),
    ],
    ids=["lora", "no type", "other"],
)
def test_an_adapter_is_refused_at_once(command: str, metadata: dict, what: str, tmp_path: Path) -> None:
    if command in ("profile", "tune"):
        pytest.importorskip("torch")
    names = {name: tmp_path / name for name in ("model", "plan", "out")}
    write_model(names["model"], **metadata)
    Plan(PAIRS).save(names["plan"])
    before = names["model"].read_bytes()
    result = CliRunner().invoke(main, [command, *(arg.format(**names) for arg in OF_MODELS[command])])
    assert result.exit_code == 1
    assert result.output == (
        f"Error: {names['model']}: it is {what}, no model, and a plan is for a whole one: merge it into its model, "
        "with llama-export-lora or before it is converted, and give the merged file\n"
    )
    assert names["model"].read_bytes() == before
    assert not names["out"].exists()


def imports_of(*args: str) -> set[str]:
    script = (
        "import sys\nfrom kvtuner_gguf.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, check=True)
    return set(eval(done.stdout.split("HEAVY ")[1]))


def test_light_commands_import_nothing_heavy(model: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    Plan(PAIRS).save(plan)
    assert imports_of("--help") == set()
    assert imports_of("annotate", str(model), str(plan), "--in-place") == set()
    assert imports_of("inspect", str(model)) == set()


def test_inspect_says_of_a_model_without_a_cache_that_and_nothing_else(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.gguf", arch="mamba")
    result = CliRunner().invoke(main, ["inspect", str(model)])
    assert result.exit_code == 1
    assert result.output == f"Error: {model}: the model has no layer with a KV cache: a plan has no use there\n"


def test_inspect_prints_the_plan_of_a_model_and_of_a_file(model: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    Plan(PAIRS).save(plan)
    annotate(model, Plan(PAIRS), tmp_path / "a.gguf")
    for path, source in ((plan, "config"), (tmp_path / "a.gguf", "gguf"), (model, "default")):
        data = json.loads(CliRunner().invoke(main, ["inspect", str(path), "--json"]).output)
        pairs = PAIRS if source != "default" else (Pair.parse("f16"),) * N_LAYER
        assert data["source"] == source
        assert data["n_layer"] == N_LAYER
        assert data["bits_per_value"] == pytest.approx(Plan(pairs).bits_per_value())
        assert [(e["layer"], e["k"], e["v"]) for e in data["layers"]] == [
            (il, pair.k, pair.v) for il, pair in enumerate(pairs)
        ]


def test_verify_says_ok_or_why_not(model: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    Plan(PAIRS).save(plan)
    good = CliRunner().invoke(main, ["verify", str(plan), "--model", str(model)])
    assert good.exit_code == 0
    assert good.output.startswith("OK: 4 layers")
    none = CliRunner().invoke(main, ["verify", str(model)])
    assert none.exit_code == 1
    assert "no plan" in none.output
    Plan(PAIRS[:3]).save(plan)
    bad = CliRunner().invoke(main, ["verify", str(plan), "--model", str(model), "--json"])
    assert bad.exit_code == 1
    assert json.loads(bad.output)["ok"] is False


@pytest.mark.parametrize("types", ["f16", "f16/q4_0"])
def test_center_wants_quantized_keys(model: Path, tmp_path: Path, types: str) -> None:
    given, out = tmp_path / "given.json", tmp_path / "plan.json"
    Plan.uniform(Pair.parse(types), N_LAYER).save(given)
    result = CliRunner().invoke(main, ["center", str(model), str(given), "-o", str(out)])
    assert result.exit_code == 1
    assert "no layer of the plan has a quantized K: nothing to center" in result.output
    assert not out.exists()


def test_a_plan_is_made_without_a_search(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    args = ["plan", str(model), "--uniform", "q4_0", "--fix", "1=q8_0/q4_0", "--no-center", "-o", str(out), "--json"]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 0, result.output
    plan = Plan.load(out)
    assert plan.pairs == tuple(Pair.parse("q8_0/q4_0" if il == 1 else "q4_0/q4_0") for il in range(N_LAYER))
    assert plan.ends is not None
    assert plan.centers is None
    assert plan.model is not None
    assert json.loads(result.output)["file"] == str(out)


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["--uniform", "q9_0"], "unknown cache type"),
        (["--uniform", "q4_0", "--fix", "99=q8_0"], "layer 99 is fixed to q8_0/q8_0, the model has"),
        (["--uniform", "q4_0", "--fix", "eight=q8_0"], "give layers and a pair"),
        (["--uniform", "q4_0", "--ends", "many"], "many"),
    ],
)
def test_a_plan_of_wrong_types_is_refused(args: list[str], reason: str, model: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["plan", str(model), *args, "--no-center", "-o", str(tmp_path / "plan.json")])
    assert result.exit_code == 2
    assert reason in result.output
    assert not (tmp_path / "plan.json").exists()


def test_the_schema_knows_every_type() -> None:
    from kvtuner_gguf.plan.cachetypes import CACHE_TYPES
    from kvtuner_gguf.plan.centers import MAX_SPAN, MIN_SPAN
    from kvtuner_gguf.plan.ends import MAX_END, TYPES

    schema = json.loads((Path(__file__).parents[2] / "configs" / "plan.schema.json").read_text())
    assert schema["$defs"]["type"]["enum"] == list(CACHE_TYPES)
    assert schema["properties"]["ends"]["properties"]["type"]["enum"] == list(TYPES)
    assert schema["$defs"]["end"]["maximum"] == MAX_END
    _, *spans = schema["properties"]["center_span"]["enum"]
    assert spans == [MIN_SPAN << i for i in range(len(spans))]
    assert spans[-1] == MAX_SPAN


def test_types_are_taken_as_they_are_written(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    options = ["--uniform", "Q4_0 / q8_0", "--fix", "1=IQ4_NL", "--ends", "2+3:Q8_0", "--no-center"]
    assert CliRunner().invoke(main, ["plan", str(model), "-o", str(out), *options]).exit_code == 0
    plan = Plan.load(out)
    assert plan.pairs[:2] == (Pair("q4_0", "q8_0"), Pair("iq4_nl", "iq4_nl"))
    assert str(plan.ends) == "2+3:q8_0"


@pytest.mark.parametrize("arch", ["grok", "minimax-m3"])
def test_a_model_that_is_not_tuned_has_a_plan_all_the_same(arch: str, tmp_path: Path) -> None:
    model, out = write_model(tmp_path / "m.gguf", arch=arch), tmp_path / "plan.json"
    shown = CliRunner().invoke(main, ["inspect", str(model), "--json"])
    command, annotate_it = json.loads(shown.stdout)["next"]
    assert command == f"kvtuner-gguf plan {model} --uniform q8_0 -o cfg.json"
    made = CliRunner().invoke(main, ["plan", str(model), "--uniform", "q8_0", "-o", str(out)])
    assert made.exit_code == 0, made.output
    assert "keys are not centered, since this model" in made.stderr
    assert Plan.load(out).pairs == (Pair("q8_0", "q8_0"),) * N_LAYER
    assert annotate_it == f"kvtuner-gguf annotate {model} cfg.json -o m-kv.gguf"


def test_a_model_without_a_plan_is_told_the_way_to_one(model: Path) -> None:
    said = CliRunner().invoke(main, ["inspect", str(model)]).output
    tune_it, annotate_it = said.splitlines()[-2:]
    assert tune_it == f"next: kvtuner-gguf tune {model} -o cfg.json"
    assert annotate_it == f"next: {annotating(model, Path('cfg.json'))}"


def test_the_plan_of_an_annotated_model_goes_into_another_file(model: Path, tmp_path: Path) -> None:
    plan, first, out = tmp_path / "plan.json", tmp_path / "first.gguf", tmp_path / "out.gguf"
    Plan(PAIRS).save(plan)
    annotate(model, Plan.load(plan), first)
    result = CliRunner().invoke(main, ["annotate", str(model), str(first), "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert given_plan(out) == given_plan(first)
    assert given_plan(out).pairs == PAIRS


def test_the_short_name_of_help_is_known() -> None:
    assert CliRunner().invoke(main, ["tune", "-h"]).output == CliRunner().invoke(main, ["tune", "--help"]).output


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is full")
@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_a_result_that_cannot_be_printed_is_told_in_one_line(extra: list[str], model: Path) -> None:
    program = [sys.executable, "-c", "from kvtuner_gguf.cli import main; main()"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*program, "inspect", str(model), *extra], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the result cannot be printed: No space left on device; send it elsewhere")
    assert done.stderr.count("\n") == 1


def test_texts_of_a_file_do_not_reach_the_terminal_as_commands(tmp_path: Path) -> None:
    text = {"text": "a\x1b[2J\x9b1m\u202eb", "\x1b]0;c\x07": "d"}
    Plan((Pair.parse("q8_0"),) * 2, provenance=text).save(tmp_path / "plan.json")
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "plan.json")])
    assert result.exit_code == 0
    assert "text: a\\x1b[2J\\x9b1m\\u202eb\n\\x1b]0;c\\x07: d\n" in result.output
    assert all(char.isprintable() or char == "\n" for char in result.output)


@pytest.mark.parametrize("words", [["--bits"], ["--json", "--bits"]])
def test_an_option_without_its_value_is_told_where_to_look(words: list[str], model: Path) -> None:
    result = CliRunner().invoke(main, ["tune", str(model), *words])
    assert result.exit_code == 2
    assert "Option '--bits' requires an argument" in result.output
    assert "see 'main --help'" in result.output
