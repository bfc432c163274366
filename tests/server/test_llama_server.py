"""The server process: a stand-in program for start and stop, the built one for the reports."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files.assets import fetch_model
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.server import llama_server as server
from kvtuner_gguf.server.cachereport import CacheReport

STAND_IN = """#!{python}
import http.server, json, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({{"status": "ok", "args": sys.argv[1:]}}).encode()
        self.send_response(200); self.end_headers(); self.wfile.write(body)
with http.server.HTTPServer(("127.0.0.1", 0), Handler) as httpd:
    print("0.01.000 I srv: listening on http://127.0.0.1:%d" % httpd.server_port, flush=True)
    print("pid", os.getpid(), flush=True)
    httpd.serve_forever()
"""
FAILING = """#!{python}
import sys
sys.exit("0.00.001.000 I start\\n0.00.002.000 E load: no such model\\n0.00.003.000 E exiting")
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def make(text: str) -> None:
        path = tmp_path / "llama-server"
        path.write_text(text.format(python=sys.executable))
        path.chmod(0o755)
        monkeypatch.setattr(server, "find_tool", lambda name: path)

    return make


def test_it_is_stopped_at_the_end_and_after_an_error(program, tmp_path: Path) -> None:
    program(STAND_IN)
    log_path = tmp_path / "log"
    with suppress(KeyError), server.running_server(Path("m.gguf"), log_path) as running:
        assert running.is_healthy()
        raise KeyError
    pid = int(log_path.read_text().split("pid ")[1].split()[0])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not running.is_healthy()


def test_a_proxy_of_the_environment_is_not_used(program, monkeypatch: pytest.MonkeyPatch) -> None:
    program(STAND_IN)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with server.running_server(Path("m.gguf")) as running:
        assert running.is_healthy()


def test_the_reason_of_a_failed_start_is_told(program) -> None:
    program(FAILING)
    with (
        pytest.raises(KvtunerError, match=r"^llama-server ended with status 1: load: no such model$"),
        server.running_server(Path("m.gguf")),
    ):
        pass


def test_a_server_that_never_listens(program) -> None:
    program("#!{python}\nimport time\ntime.sleep(60)\n")
    with (
        pytest.raises(KvtunerError, match=r"not ready after 0\.3 s"),
        server.running_server(Path("m.gguf"), start_seconds=0.3),
    ):
        pass


def test_tools_are_found_beside_python_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside, elsewhere = tmp_path / "venv", tmp_path / "elsewhere"
    for folder in (beside, elsewhere):
        folder.mkdir()
        (folder / "llama-x").touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(beside / "python"))
    monkeypatch.setenv("PATH", str(elsewhere))
    assert server.find_tool("llama-x") == beside / "llama-x"
    (beside / "llama-x").unlink()
    assert server.find_tool("llama-x") == elsewhere / "llama-x"
    with pytest.raises(KvtunerError, match="no llama-y beside"):
        server.find_tool("llama-y")


@pytest.mark.native
@pytest.mark.model
def test_the_built_server_reports_the_same_over_http_and_in_its_log(tmp_path: Path) -> None:
    pairs = tuple(Pair.parse(("q8_0/q4_0", "f16/f16", "q5_1/q4_1")[il % 3]) for il in range(30))
    Plan(pairs).save(tmp_path / "plan.json")
    options = ["--kv-config", str(tmp_path / "plan.json")]
    with server.running_server(fetch_model("smollm2-135m"), n_ctx=256, options=options) as running:
        report, logged = running.cache_report(), CacheReport.from_log(running.log)
        assert "Paris" in running.complete("The capital of France is", n_predict=4)
    assert report.pairs == logged.pairs == dict(enumerate(pairs))
    assert logged.mib == pytest.approx(report.mib, abs=0.01)
    assert logged.bits_per_value == pytest.approx(report.bits_per_value, abs=1e-4)
