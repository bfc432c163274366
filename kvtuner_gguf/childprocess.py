"""How a process of ours ended, in words."""

from __future__ import annotations

import signal

_CRASH = "a crash of compiled code: rebuild with 'make build'; if it stays, report it with the lines above"
_REMEDIES = {
    "SIGILL": "an instruction that this processor does not have: rebuild on this machine with 'make build'",
    "SIGSEGV": _CRASH,
    "SIGABRT": _CRASH,
    "SIGBUS": _CRASH,
    "SIGFPE": _CRASH,
    "SIGKILL": "most often for want of memory: close other programs, or take a smaller model or context",
}


def how_it_ended(returncode: int) -> str:
    """For a ``returncode`` as `subprocess` gives it: below 0 for a signal, which is named, with what to do.

    Continues a sentence whose subject is the process.
    """
    if returncode >= 0:
        return f"ended with status {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = "of this system alone"
    remedy = _REMEDIES.get(name, "it was stopped from outside: start it again")
    return f"was ended by signal {-returncode} ({name}), {remedy}"
