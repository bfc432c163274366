"""What runs inside a sandbox: one job from stdin, under limits, with one report to stdout at the end.

`sandbox.py` passes this file's text to a Python of its own; it is never imported there.

The kernel's limits bound time, memory, processes and files' sizes. What they cannot express, Python's audit events do:
files are changed within the working directory alone, nothing else is started, signalled or connected to. That holds
programs which do harm by accident; one that was written to break out of Python would.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from types import ModuleType
from typing import Any, NoReturn

MODULE = "candidate"
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = frozenset(
    (
        *("os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.removexattr", "os.rename", "os.rmdir"),
        *("os.setxattr", "os.symlink", "os.truncate", "os.utime"),
    )
)
FORBIDDEN = (
    *("ctypes.", "os.exec", "os.fork", "os.kill", "os.posix_spawn", "os.spawn", "os.system", "pty."),
    *("signal.pthread_kill", "socket.", "subprocess."),
)
REASON_CHARACTERS = 200


class Reporter:
    """Writes one report with the job's token to what was stdout, and ends the process."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._fd = os.dup(1)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)

    def end(self, status: str, reason: str = "") -> NoReturn:
        report = {"token": self._token, "status": status, "reason": reason[:REASON_CHARACTERS]}
        os.write(self._fd, json.dumps(report).encode())
        os._exit(0)


def limit_resources(limits: dict[str, int]) -> None:
    """``limits`` are the kernel's, by the names of `resource` without RLIMIT_."""
    for name, value in limits.items():
        # time may run out softly first, so that its own signal tells it from other ends
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value + (name == "CPU")))


def guard(reporter: Reporter, folder: str) -> None:
    """End the process at the first event that is not allowed in ``folder``."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if is_forbidden(event, args, folder):
            reporter.end("failed", f"forbidden: {event} {args[:1]}")

    sys.addaudithook(hook)


def is_forbidden(event: str, args: tuple[Any, ...], folder: str) -> bool:
    if event == "open":
        return bool((args[2] or 0) & WRITES) and is_outside(args[0], folder)
    if event in CHANGES:
        return any(is_outside(arg, folder) for arg in args)
    return event.startswith(FORBIDDEN)


def is_outside(path: object, folder: str) -> bool:
    """Whether ``path``, where it is one, leads out of ``folder``; links are followed."""
    if not isinstance(path, (str, bytes, os.PathLike)):
        return False
    real = os.path.realpath(os.fsdecode(path))
    return real != os.devnull and not real.startswith(folder + os.sep)


def run(program: str, check: str, entry_point: str) -> None:
    """Raises whatever ``program``, or ``check`` of its function ``entry_point``, raises."""
    module = ModuleType(MODULE)
    sys.modules[MODULE] = module
    exec(compile(program, MODULE, "exec"), module.__dict__)
    exec(compile(check, "check", "exec"), module.__dict__)
    module.__dict__["check"](module.__dict__[entry_point])


def main() -> None:
    job = json.load(sys.stdin.buffer)
    reporter = Reporter(job["token"])
    sys.path[:] = [path for path in sys.path if path]
    limit_resources(job["limits"])
    guard(reporter, os.path.realpath(os.getcwd()))
    try:
        run(job["program"], job["check"], job["entry_point"])
    except BaseException as err:  # sys.exit and a full memory are no passes either
        reporter.end("failed", f"{type(err).__name__}: {err}")
    reporter.end("passed")


if __name__ == "__main__":
    main()
