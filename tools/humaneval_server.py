"""``llama-server`` with one cache in all slots, and greedy answers from it."""

from __future__ import annotations

import functools
import hashlib
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from humaneval_tasks import Answer, Mode, Task

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.gguffile.shards import shard_paths
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.server.llama_server import Server, running_server

PROMPT_TOKENS = 1024  # more than the longest problem takes with a chat template
# Slots share the processor: an answer of the limit's length takes long on a small machine.
REQUEST_SECONDS = 3600
START_SECONDS = 600
BASELINE = "f16/f16"
GREEDY = {"temperature": 0.0, "seed": 0, "cache_prompt": False}


@dataclass(frozen=True)
class Cache:
    """A cache by its name in the table; without a plan it is the base's f16."""

    name: str
    plan: Plan | None

    @property
    def fingerprint(self) -> str | None:
        return self.plan and self.plan.fingerprint

    def bits_per_value(self, shape: ModelShape) -> float:
        return 16.0 if self.plan is None else self.plan.bits_per_value(shape)


@dataclass(frozen=True)
class Setup:
    """How servers are run and asked. ``options`` are more of the command line, ``n_predict`` is in tokens."""

    program: Path
    model: Path
    mode: Mode
    n_parallel: int
    n_predict: int
    n_threads: int
    options: tuple[str, ...] = ()

    def settings(self, cache: Cache) -> dict[str, Any]:
        """All that decides the answers, as JSON has it; the number of threads does not."""
        return {
            "model": self.model.name,
            "model sha256": _sha256(tuple(shard_paths(self.model))),
            "plan": cache.fingerprint,
            "mode": self.mode.name,
            **self.mode.facts,
            "n_predict": self.n_predict,
            "parallel": self.n_parallel,
            "server": _version(self.program),
            "server options": list(self.options),
        }

    @contextmanager
    def serving(self, cache: Cache) -> Iterator[Server]:
        """A server of this machine, ready, that has ``cache``. Raises `KvtunerError` where it does not start."""
        with tempfile.TemporaryDirectory(prefix="kvtuner-humaneval-") as folder:
            options = self._options(cache, Path(folder))
            n_ctx = self.n_parallel * (PROMPT_TOKENS + self.n_predict)
            limits = {"start_seconds": START_SECONDS, "request_seconds": REQUEST_SECONDS, "program": self.program}
            with running_server(self.model, None, n_ctx, self.n_threads, options, **limits) as server:
                _check_cache(server, cache)
                yield server

    def _options(self, cache: Cache, folder: Path) -> list[str]:
        options = ["--parallel", str(self.n_parallel), "--flash-attn", "on", "--cache-ram", "0", *self.options]
        if cache.plan is None:
            return [*options, "-ctk", "f16", "-ctv", "f16"]
        cache.plan.save(folder / "plan.json")
        return [*options, "--kv-config", str(folder / "plan.json")]

    def ask(self, server: Server, task: Task) -> Answer:
        """The greedy answer; raises `KvtunerError` with the server's reason where it refuses."""
        try:
            return self.mode.answer(server.call(self.mode.path, self.mode.request(task, self.n_predict) | GREEDY))
        except (KvtunerError, KeyError, IndexError, TypeError) as err:
            raise KvtunerError(f"{task.id}: {err}") from err


def _check_cache(server: Server, cache: Cache) -> None:
    """Raise `KvtunerError` unless the server reports what was asked for."""
    found = server.call("/props").get("kv_cache") or {}
    types = {layer[side] for layer in found.get("layers", []) for side in "kv"}
    if found.get("fingerprint") != cache.fingerprint or (cache.plan is None and types != {"f16"}):
        raise KvtunerError(
            f"{cache.name}: the server runs the plan {found.get('fingerprint')} of {', '.join(sorted(types))}, not "
            f"{cache.fingerprint or 'f16 without one'}: use the patched build, and clear LLAMA_ARG_* variables"
        )


@functools.cache
def _sha256(paths: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


@functools.cache
def _version(program: Path) -> str:
    """The first line with a version that ``program`` tells about itself."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as err:
        raise KvtunerError(f"cannot run {program}: {err.strerror}; give another --server") from err
    lines = (done.stdout + done.stderr).splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("version:")), "unknown")
