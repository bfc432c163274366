"""What llama.cpp logs while a model is open: kept for error messages, shown only where it is asked for."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_ERROR_LEVEL = 4


class NativeLog:
    """Keeps the errors."""

    def __init__(self, verbose: bool) -> None:
        self._verbose = verbose
        self._errors: list[str] = []

    def __call__(self, level: int, text: bytes | None, _user_data: object) -> None:
        line = (text or b"").decode(errors="replace")
        if level == _ERROR_LEVEL:
            self._errors.append(line.strip())
        if self._verbose:
            print(line, end="", file=sys.stderr, flush=True)

    def reason(self) -> str:
        """The first error since the last call: later ones only say that the caller failed, too."""
        errors, self._errors = self._errors, []
        return errors[0] if errors else "llama.cpp gives no reason"


@contextmanager
def captured_log(llama_cpp: ModuleType, verbose: bool) -> Iterator[NativeLog]:
    """All log lines of llama.cpp go to the `NativeLog` until the block ends."""
    log = NativeLog(verbose)
    callback = llama_cpp.llama_log_callback(log)
    before, user_data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(before), ctypes.byref(user_data))
    llama_cpp.llama_log_set(callback, ctypes.c_void_p())
    try:
        yield log
    finally:
        llama_cpp.llama_log_set(before, user_data)
