"""What is said of a process that did not end well."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvtuner_gguf.childprocess import how_it_ended
from kvtuner_gguf.demo import Demo, DemoSettings
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files.wheels import Wheel, _client_error
from kvtuner_gguf.server.llama_server import running_server


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("SIGSEGV", "make build"), ("SIGILL", "make build"), ("SIGKILL", "memory"), ("SIGTERM", "start it again")],
)
def test_a_signal_is_named_with_what_to_do(name: str, remedy: str) -> None:
    kill = f"import os, signal; os.kill(os.getpid(), signal.{name})"
    said = how_it_ended(subprocess.run([sys.executable, "-c", kill], check=False).returncode)
    assert f"signal {signal.Signals[name].value} ({name})" in said
    assert remedy in said


def test_signals_without_a_name_and_plain_ends_are_told() -> None:
    assert "signal 63" in how_it_ended(-63)
    assert how_it_ended(3) == "ended with status 3"


def test_the_demo_names_the_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = tmp_path / "crash"
    crash.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crash))
    with pytest.raises(KvtunerError, match=r"'tune' was ended by signal 11 \(SIGSEGV\), a crash of compiled code"):
        Demo(tmp_path, DemoSettings(bits=6.5, chunks=1), lambda line: None)._command("tune")


def test_a_server_that_crashes_names_the_signal(tmp_path: Path) -> None:
    crash = tmp_path / "llama-server"
    crash.write_text("#!/bin/sh\nkill -ILL $$\n")
    crash.chmod(0o755)
    with (
        pytest.raises(KvtunerError, match=r"llama-server was ended by signal 4 \(SIGILL\), an instruction"),
        running_server(tmp_path / "model.gguf", program=crash),
    ):
        pass


def test_a_client_that_is_killed_names_the_signal() -> None:
    said = _client_error(Wheel("some-model", "1", 0, ""), -9, "")
    assert "cannot fetch some-model==1: pip was ended by signal 9 (SIGKILL)" in said
