"""A built ``llama-server`` on a free port of this machine, for as long as a block runs."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvtuner_gguf.childprocess import how_it_ended
from kvtuner_gguf.engine.llama.native import default_threads
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.server.cachereport import CacheReport

_ERROR_PREFIX = re.compile(r"^([\d.]+ E |error: |error while handling [^:]*: )")
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
    process: subprocess.Popen[bytes]
    request_seconds: float = _REQUEST_SECONDS

    @property
    def log(self) -> str:
        """What the server has logged so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    @property
    def errors(self) -> list[str]:
        """The errors that the server has logged so far."""
        return _errors(self.log.splitlines())

    def complete(self, prompt: str, n_predict: int, **options: object) -> str:
        """The greedy completion of ``prompt``, at most ``n_predict`` tokens; ``options`` go into the request."""
        request = {"prompt": prompt, "n_predict": n_predict, "temperature": 0.0, **options}
        return self.call("/completion", request)["content"]

    def cache_report(self) -> CacheReport:
        """The caches that the server reports over HTTP."""
        return CacheReport.from_props(self.call("/props"))

    def metrics(self) -> dict[str, float]:
        """The values of ``/metrics`` by name; the server needs ``--metrics``."""
        lines = self._get("/metrics", None).decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}

    def is_healthy(self) -> bool:
        """True once the model is loaded."""
        try:
            return self.call("/health").get("status") == "ok"
        except KvtunerError:
            return False

    def interrupt(self) -> int:
        """End the server as Ctrl-C does; its exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(_STOP_SECONDS)

    def call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON that ``path`` answers to ``body``, or to GET. Raises `KvtunerError` with the server's own reason."""
        try:
            return json.loads(self._get(path, body))
        except json.JSONDecodeError as err:
            raise KvtunerError(f"llama-server answers {path} with no JSON: see its log, {self.log_path}") from err

    def _get(self, path: str, body: dict[str, Any] | None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with _OPENER.open(request, timeout=self.request_seconds) as answer:
                return answer.read()
        except urllib.error.HTTPError as err:
            raise KvtunerError(f"llama-server refuses {path} ({err.code}): {_refusal(err)}") from err
        except OSError as err:
            raise KvtunerError(f"llama-server does not answer {path} ({err}): see its log, {self.log_path}") from err


def _refusal(err: urllib.error.HTTPError) -> str:
    """The message in the JSON of the answer."""
    try:
        return json.load(err)["error"]["message"]
    except (OSError, ValueError, KeyError, TypeError):
        return str(err.reason)


def find_tool(name: str) -> Path:
    """The program ``name`` beside the Python in use, else on the PATH; raises `KvtunerError` if there is none."""
    beside = shutil.which(name, path=str(Path(sys.executable).parent))
    found = beside or shutil.which(name)
    if found is None:
        raise KvtunerError(f"no {name} beside {sys.executable} nor on the PATH: run 'make build' in the sources")
    return Path(found)


@contextmanager
def running_server(
    model: Path | None,
    log_path: Path | None = None,
    n_ctx: int = 2048,
    n_threads: int | None = None,
    options: Sequence[str] = (),
    start_seconds: float = 120,
    request_seconds: float = _REQUEST_SECONDS,
    program: Path | None = None,
) -> Iterator[Server]:
    """Start ``llama-server`` on ``model``, wait until it is ready, stop it when the block ends.

    Without a model it is a router of the models that ``options`` name. ``options`` are more of its command line. The
    log goes to ``log_path``, else to a file that is removed. ``program`` is the ``llama-server`` to run, by default the
    one of this environment; a request may take ``request_seconds``.
    Raises `KvtunerError` with the server's own reason where it does not start.
    """
    program = program or find_tool("llama-server")
    with tempfile.TemporaryDirectory(prefix="kvtuner-server-") as folder:
        log_path = log_path or Path(folder) / "server.log"
        command = [str(program), *(("--model", str(model)) if model else ()), "--host", "127.0.0.1", "--port", "0"]
        command += ["--ctx-size", str(n_ctx), "--parallel", "1", "--threads", str(n_threads or default_threads())]
        with log_path.open("wb") as log:
            process = subprocess.Popen([*command, *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield replace(_wait_until_ready(process, log_path, start_seconds), request_seconds=request_seconds)
        finally:
            _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], log_path: Path, seconds: float) -> Server:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise KvtunerError(f"llama-server {how_it_ended(process.returncode)}: {_reason(log_path)}")
        listening = _LISTENING.search(log_path.read_text(encoding="utf-8", errors="replace"))
        if listening and (server := Server(listening[1], log_path, process)).is_healthy():
            return server
        time.sleep(_POLL_SECONDS)
    raise KvtunerError(f"llama-server is not ready after {seconds:g} s: {_reason(log_path)}")


def _reason(log_path: Path) -> str:
    """The first error in the log, else its last line."""
    lines = [line for line in log_path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return (_errors(lines) or lines[-1:] or ["its log is empty"])[0].strip()


def _errors(lines: Sequence[str]) -> list[str]:
    return [_ERROR_PREFIX.sub("", line) for line in lines if _ERROR_PREFIX.match(line)]


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
