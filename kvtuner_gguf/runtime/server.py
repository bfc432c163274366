"""A built ``llama-server`` on a free port of this machine, for as long as a block runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.runtime.cachereport import CacheReport
from kvtuner_gguf.runtime.native import default_threads

_ERROR_PREFIX = re.compile(r"^([\d.]+ E |error: )")
_LISTENING = re.compile(r"listening on (http://\S+)")
_POLL_SECONDS = 0.1
_STOP_SECONDS = 10
_REQUEST_SECONDS = 300

# A proxy that the environment names is of no use for this machine itself.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Server:
    """A running server. Made by `running_server`."""

    url: str
    log_path: Path

    @property
    def log(self) -> str:
        """What the server has logged so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def complete(self, prompt: str, n_predict: int) -> str:
        """The greedy completion of ``prompt``, at most ``n_predict`` tokens."""
        request = {"prompt": prompt, "n_predict": n_predict, "temperature": 0.0}
        return self._call("/completion", request)["content"]

    def cache_report(self) -> CacheReport:
        """The caches that the server reports over HTTP."""
        return CacheReport.from_props(self._call("/props"))

    def is_healthy(self) -> bool:
        """True once the model is loaded."""
        try:
            return self._call("/health").get("status") == "ok"
        except KvtunerError:
            return False

    def _call(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with _OPENER.open(request, timeout=_REQUEST_SECONDS) as answer:
                return json.load(answer)
        except (OSError, json.JSONDecodeError) as err:
            raise KvtunerError(f"llama-server does not answer {path} ({err}): see its log, {self.log_path}") from err


def find_tool(name: str) -> Path:
    """The program ``name`` beside the Python in use, else on the PATH; raises `KvtunerError` if there is none."""
    beside = shutil.which(name, path=str(Path(sys.executable).parent))
    found = beside or shutil.which(name)
    if found is None:
        raise KvtunerError(f"no {name} beside {sys.executable} nor on the PATH: run 'make build' in the sources")
    return Path(found)


@contextmanager
def running_server(
    model: Path,
    log_path: Path | None = None,
    n_ctx: int = 2048,
    n_threads: int | None = None,
    options: Sequence[str] = (),
    start_seconds: float = 120,
) -> Iterator[Server]:
    """Start ``llama-server`` on ``model``, wait until it is ready, stop it when the block ends.

    ``options`` are more of its command line. The log goes to ``log_path``, else to a file that is removed.
    Raises `KvtunerError` with the server's own reason where it does not start.
    """
    program = find_tool("llama-server")
    with tempfile.TemporaryDirectory(prefix="kvtuner-server-") as folder:
        log_path = log_path or Path(folder) / "server.log"
        command = [str(program), "--model", str(model), "--host", "127.0.0.1", "--port", "0"]
        command += ["--ctx-size", str(n_ctx), "--parallel", "1", "--threads", str(n_threads or default_threads())]
        with log_path.open("wb") as log:
            process = subprocess.Popen([*command, *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield _wait_until_ready(process, log_path, start_seconds)
        finally:
            _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], log_path: Path, seconds: float) -> Server:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise KvtunerError(f"llama-server ended with status {process.returncode}: {_reason(log_path)}")
        listening = _LISTENING.search(log_path.read_text(encoding="utf-8", errors="replace"))
        if listening and (server := Server(listening[1], log_path)).is_healthy():
            return server
        time.sleep(_POLL_SECONDS)
    raise KvtunerError(f"llama-server is not ready after {seconds:g} s: {_reason(log_path)}")


def _reason(log_path: Path) -> str:
    """The first error in the log, else its last line."""
    lines = [line for line in log_path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR_PREFIX.match(line)]
    return _ERROR_PREFIX.sub("", (errors or lines[-1:] or ["its log is empty"])[0]).strip()


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
