"""What commands that work long say of it, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from kvtuner_gguf.cli import COMMANDS, main
from kvtuner_gguf.cli.talk import LONG, goes_on_from, interrupted
from kvtuner_gguf.plan.plan import Plan
from tests.conftest import write_model

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-c", "from kvtuner_gguf.cli import main; main(prog_name='kvtuner-gguf')"]


def command(folder: Path, tiny, *extra: str) -> list[str]:
    text = folder / "text.txt"
    text.write_text(" ".join(f"word{i * i % 977}" for i in range(4000)))
    model = tiny(folder / "m.gguf", "llama", n_layer=3)
    options = ["--text", str(text), "--tokens", "64", "--ctx", "32", "--candidates", "q8_0,q4_0,q2_nl", "--points", "5"]
    return ["tune", str(model), *options, "--ends", "none", "--bits", "4", "--no-native", *extra]


def start(args: list[str]) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what a background process ignores, its do, too
    try:
        return subprocess.Popen([*PROGRAM, *args], text=True, env=env, **pipes)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("name", COMMANDS)
def test_what_shows_progress_can_be_told_how_much(name: str) -> None:
    source = (ROOT / "kvtuner_gguf" / "cli" / f"{name.replace('-', '_')}.py").read_text()
    works_long = any(
        word in source for word in ("_progress", "import_torch", "check_installed", "with_centers", "running(", "Demo(")
    )
    assert works_long == (name in LONG)
    found = main.get_command(click.Context(main), name)
    assert found is not None
    given = {word for option in found.params for word in option.opts}
    assert ({"-q", "--quiet", "-v", "--verbose"} <= given) == works_long


def test_a_tuning_tells_its_stages_on_stderr(tmp_path: Path, tiny) -> None:
    pytest.importorskip("torch")
    result = CliRunner().invoke(main, command(tmp_path, tiny, "-o", str(tmp_path / "a.json"), "--json"))
    assert result.exit_code == 0, result.output
    said = [line for line in result.stderr.splitlines() if not line.endswith(" so far")]
    stages = [line.rpartition(": ")[0] for line in said[:-1]]
    assert stages[:2] == ["load torch", "load the reference model"]
    assert {"center keys", "price layers", "search 4 bits per value", "verify on held-out text"} <= set(stages)
    assert " s in all" in said[-1]
    again = CliRunner().invoke(main, command(tmp_path, tiny, "-o", str(tmp_path / "b.json"), "--json", "-q"))
    assert again.stderr == ""
    assert again.stdout.replace("b.json", "a.json") == result.stdout


def test_a_tuning_says_what_its_plan_is_worth(tmp_path: Path, tiny) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "a.json"
    args = command(tmp_path, tiny, "-o", str(out), "-q")
    said = CliRunner().invoke(main, args).stdout
    assert all(word in said for word in ("uniform q", "stock q4_0/q4_0", "128k tokens", "runs fast on cpu"))
    assert said.splitlines()[-1] == f"next: kvtuner-gguf annotate {tmp_path / 'm.gguf'} {out} -o m-kv.gguf"
    data = json.loads(CliRunner().invoke(main, [*args, "--json"]).stdout)
    plan, *_ = data["held_out"]
    assert len(data["rivals"]) == 3
    assert all(0 < row["kld_se"] < row["kld_mean"] for row in (plan, *data["rivals"]))
    smaller, larger, _ = (row["bits_with_ends"] for row in data["rivals"])
    assert smaller <= plan["bits_with_ends"] < larger
    assert all(point["loss_se"] > 0 for point in data["front"] if point["loss"] > 0)
    assert [size["name"] for size in data["memory"]] == ["f16", "q8_0", "plan"]


def test_quiet_and_verbose_are_not_both(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.gguf")
    assert CliRunner().invoke(main, ["strip", str(model), "--in-place", "-q", "-v"]).exit_code == 2


def test_after_ctrl_c_the_same_command_goes_on(tmp_path: Path, tiny) -> None:
    pytest.importorskip("torch")
    args = command(tmp_path, tiny)
    out, whole = tmp_path / "cfg.json", tmp_path / "whole.json"
    process = start([*args, "-o", str(out)])
    for line in process.stderr:
        if line.startswith("price layers: "):
            process.send_signal(signal.SIGINT)
            break
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert (
        said.splitlines()[-1] == f"Error: interrupted: the same command goes on from what is in {tmp_path / 'cfg.tune'}"
    )
    assert "Traceback" not in said
    assert not out.exists()
    again = start([*args, "-o", str(out)])
    _, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert "center keys" not in said
    assert start([*args, "-o", str(whole)]).communicate(timeout=120)
    assert Plan.load(out) == Plan.load(whole)


@pytest.mark.parametrize(("fresh", "command"), [(None, "the same command"), ("-f", "the same command without -f")])
def test_ctrl_c_leaves_out_what_would_begin_anew(fresh: str | None, command: str) -> None:
    with click.Context(main):
        goes_on_from(Path("folder"), fresh)
        assert interrupted(as_json=False).format_message() == f"interrupted: {command} goes on from what is in folder"


def test_ctrl_c_says_where_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kvtuner_gguf.gguffile.annotate.write_no_plan", interrupt)
    model = write_model(tmp_path / "m.gguf")
    result = CliRunner().invoke(main, ["strip", str(model), "--in-place"])
    assert result.exit_code == 130
    assert result.stderr == "Error: interrupted: no file is left half written; the same command begins anew\n"


@pytest.mark.native
def test_verbose_shows_what_llama_cpp_logs(tmp_path: Path, tiny) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    model = tiny(tmp_path / "m.gguf", "llama")
    args = ["eval", str(model), "--text", str(text), "--ctx", "32", "--chunks", "1", "--uniform", "q8_0"]
    for flag, shown in (("-v", True), ("-q", False)):
        process = start([*args, flag])
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        assert ("kvtuner: q8_0/q8_0" in said) is shown
        assert (said == "") is not shown
