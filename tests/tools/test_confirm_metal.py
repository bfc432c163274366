"""The page that a Mac's owner gets, from programs that are made up."""

from __future__ import annotations

import json
from pathlib import Path

import confirm_metal
import pytest
from confirm_metal import kernels, main, quality, speeds

BENCH = json.dumps(
    [
        {"n_prompt": 512, "n_gen": 0, "n_depth": 0, "avg_ts": 1000.0},
        {"n_prompt": 0, "n_gen": 64, "n_depth": 4096, "avg_ts": 50.0},
    ],
    indent=2,
)
KLD = """case "$*" in
  *"-ngl 0 --device none"*"--kl-divergence "*) echo "Mean    KLD:   0.004000 +-   0.0001" ;;
  *"--kl-divergence "*) echo "Mean    KLD:   {on_device} +-   0.0001" ;;
esac"""
PROGRAMS = {
    "bin/test-backend-ops": "echo '12/12 tests passed'",
    "kvtuner-test-writes": "echo 'MTL0: 9 writes equal in every byte'; echo '0 failures'",
    "kvtuner-test-gpu-attention": "echo '3 cases, 0 not supported, 0 failures'",
    "bin/llama-perplexity": KLD.format(on_device="0.004200"),
    "bin/llama-bench": f"echo 'a log line'\ncat <<'END'\n{BENCH}\nEND",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(confirm_metal, "fetch_text", lambda name: tmp_path / name)
    monkeypatch.setattr(confirm_metal, "fetch_model", lambda name: tmp_path / name)
    for name, body in PROGRAMS.items():
        put(tmp_path, name, body)
    return tmp_path


def put(folder: Path, name: str, body: str) -> None:
    program = folder / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)


def test_all_is_right(folder: Path) -> None:
    checks = kernels(folder)
    assert [check.what for check in checks][-2:] == ["kvtuner-test-writes", "kvtuner-test-gpu-attention"]
    assert all(check.is_right for check in checks)
    assert checks[0].says == "12 of 12 cases"
    check = quality(folder, folder / "model.gguf", folder / "plan.json")
    assert (check.is_right, check.says) == (True, "0.0042, on the CPU 0.0040")
    assert speeds(folder, folder / "model.gguf", "none") == [("pp512 @ 0", 1000.0), ("tg64 @ 4096", 50.0)]


def test_what_is_wrong_is_said(folder: Path) -> None:
    put(folder, "kvtuner-test-writes", "echo '3 failures'; exit 1")
    put(folder, "bin/test-backend-ops", "echo 'no device MTL0'")
    put(folder, "bin/llama-perplexity", KLD.format(on_device="0.4"))
    put(folder, "bin/llama-bench", "exit 1")
    wrong = {check.what: check.says for check in kernels(folder) if not check.is_right}
    assert wrong["kvtuner-test-writes"] == "3 failures"
    assert wrong["test-backend-ops SET_ROWS"] == "no device MTL0"
    assert not quality(folder, folder / "model.gguf", folder / "plan.json").is_right
    assert speeds(folder, folder / "model.gguf", "none") == []


@pytest.mark.parametrize("line", ["0 cases, 0 not supported, 0 failures", "9 cases, 12 not supported, 0 failures"])
def test_what_was_not_run_is_not_right(folder: Path, line: str) -> None:
    put(folder, "kvtuner-test-gpu-attention", f"echo '{line}'")
    put(folder, "bin/test-backend-ops", "echo '0/0 tests passed'")
    assert [check.what for check in kernels(folder) if check.is_right] == ["kvtuner-test-writes"]


def test_a_page_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confirm_metal, "ROOT", folder)
    (folder / "configs" / "metal").mkdir(parents=True)
    monkeypatch.setattr("sys.argv", ["confirm_metal.py", "--name", "m9", "--build", str(folder)])
    assert main() == 0
    text = (folder / "configs" / "metal" / "m9.md").read_text()
    assert "| kvtuner-test-writes | right | 0 failures |" in text
    assert "| tg64 @ 4096 | 50.0 | 50.0 | 1.00 |" in text
    put(folder, "kvtuner-test-gpu-attention", "exit 1")
    assert main() == 1
