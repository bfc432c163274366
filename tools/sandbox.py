"""Run programs that a model wrote, each in a process of its own with little time, memory and reach.

A process has a new session, an empty working directory that is removed afterwards, no environment but a fixed hash
seed, no input, no site packages, no core dump, and the limits of `Limits`; it can start no other process or thread.
Where the system lets it, it has no network. Root becomes another user first, for limits on processes do not hold root.
A pass is a report with a random token, which is written only after the check has returned. `sandbox_child.py` is the
other side, and says what it holds back beyond the kernel's limits.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from kvtuner_gguf.errors import KvtunerError

PASSED, FAILED, TIMEOUT, CRASHED = STATUSES = ("passed", "failed", "timeout", "crashed")

CHILD = Path(__file__).with_name("sandbox_child.py")
NOBODY = 65534
ENVIRONMENT = {"PYTHONHASHSEED": "0"}  # sets of strings have the same order every time
PYTHON = (sys.executable, "-s", "-S", "-B", "-X", "utf8", "-c")
PROBE_SECONDS = 20
# Prints the version where its library is readable and no process can be started. A Python that cannot read its own
# library may come up with that of another.
PROBE = """
import decimal, os, resource, statistics, sys
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
try:
    if os.fork() == 0:
        os._exit(0)
except OSError:
    print(sys.version)
"""


@dataclass(frozen=True)
class Limits:
    """What a program may take. ``wall_seconds`` leaves room for a machine that is busy otherwise."""

    cpu_seconds: int = 10
    wall_seconds: float = 60.0
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 20
    files: int = 32

    def to_json(self) -> dict[str, int]:
        """The limits that the kernel keeps, as `sandbox_child.limit_resources` takes them."""
        sizes = {"CPU": self.cpu_seconds, "AS": self.memory_bytes, "FSIZE": self.file_bytes, "NOFILE": self.files}
        return {**sizes, "NPROC": 0, "CORE": 0}


@dataclass(frozen=True)
class Outcome:
    """How a program ended: one of `STATUSES`, and why it did not pass."""

    status: str
    reason: str = ""


def judge(program: str, check: str, entry_point: str, limits: Limits | None = None) -> Outcome:
    """Run ``program``, then ``check``, which defines ``check(candidate)``, on the program's ``entry_point``.

    A passed program has run to its end, and the check has returned. Raises `KvtunerError` where this machine has no
    way to hold a program.
    """
    limits = limits or Limits()
    token = secrets.token_hex(16)
    job = {"token": token, "program": program, "check": check, "entry_point": entry_point, "limits": limits.to_json()}
    command = [*_prefix(), *PYTHON, _child_source()]
    with tempfile.TemporaryDirectory(prefix="kvtuner-sandbox-", ignore_cleanup_errors=True) as folder:
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
        return _outcome(*_run(command, json.dumps(job).encode(), folder, limits.wall_seconds), token)


def ensure_held() -> None:
    """Raises `KvtunerError` where this machine has no way to hold a program: worth asking before long work."""
    _prefix()


def _run(command: Sequence[str], job: bytes, folder: str, seconds: float) -> tuple[int | None, bytes]:
    """The exit status, or None where the time was up, and what was written to stdout."""
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env=ENVIRONMENT,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(job, seconds)
        except subprocess.TimeoutExpired:
            return None, b""
        finally:
            with suppress(ProcessLookupError, PermissionError):  # nothing is left of the group
                os.killpg(process.pid, signal.SIGKILL)
        return process.returncode, output


def _outcome(status: int | None, output: bytes, token: str) -> Outcome:
    if status is None or status == -signal.SIGXCPU:
        return Outcome(TIMEOUT, "processor time" if status else "wall clock time")
    try:
        report = json.loads(output)
        if report["token"] == token and report["status"] in STATUSES:
            return Outcome(report["status"], report["reason"])
    except (ValueError, KeyError, TypeError):
        pass
    return Outcome(CRASHED, f"signal {-status}" if status < 0 else f"exit status {status} before the check's end")


@functools.cache
def _child_source() -> str:
    return CHILD.read_text(encoding="utf-8")


@functools.cache
def _prefix() -> tuple[str, ...]:
    """The strictest command in front of Python that works here."""
    if os.geteuid() == 0:
        networks, users = [("unshare", "--net", "--"), ()], [_as_nobody(), _as_nobody("dac_read_search")]
    else:
        networks, users = [("unshare", "--map-root-user", "--net", "--"), ()], [()]
    prefixes = [(*network, *user) for network, user in product(networks, users)]
    found = next((prefix for prefix in prefixes if _holds(prefix)), None)
    if found is None:
        raise KvtunerError(
            "programs cannot be held back from starting others here: run as an ordinary user, or install util-linux"
        )
    return found


def _as_nobody(*capabilities: str) -> tuple[str, ...]:
    """Become a user without rights but ``capabilities``: one to read is needed where root's Python is root's alone."""
    kept = ",".join(("-all", *(f"+{name}" for name in capabilities)))
    sets = (f"--inh-caps={kept}", f"--ambient-caps={kept}", f"--bounding-set={kept}")
    return ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *sets, "--no-new-privs", "--")


def _holds(prefix: Sequence[str]) -> bool:
    try:
        done = subprocess.run(
            [*prefix, *PYTHON, PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=ENVIRONMENT,
            cwd="/",
            timeout=PROBE_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.decode().strip() == sys.version
