"""What llama.cpp logs while a model is open: its errors are kept for messages, all goes to a `logging.Logger`."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Generator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_ERROR_LEVEL = 4
# gets what llama.cpp writes, at the level of debugging, piece by piece: it ends its lines itself
LOGGER = logging.getLogger("kvtuner_gguf.llama_cpp")


class NativeLog:
    """Keeps the errors."""

    def __init__(self) -> None:
        self._errors: list[str] = []

    def __call__(self, level: int, text: bytes | None, _user_data: object) -> None:
        line = (text or b"").decode(errors="replace")
        if level == _ERROR_LEVEL:
            self._errors.append(line.strip())
        LOGGER.debug("%s", line)

    def reason(self) -> str:
        """The first error since the last call: later ones only say that the caller failed, too."""
        errors, self._errors = self._errors, []
        return errors[0] if errors else "llama.cpp gives no reason"


class _Active:
    """The logs that are open, in any order of closing: the newest gets the lines."""

    def __init__(self) -> None:
        self._logs: list[NativeLog] = []
        self._kept: tuple[Any, ...] = ()  # what native code points to

    def add(self, llama_cpp: ModuleType, log: NativeLog) -> None:
        if not self._logs:
            before, user_data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
            llama_cpp.llama_log_get(ctypes.byref(before), ctypes.byref(user_data))
            self._kept = llama_cpp.llama_log_callback(self._line), before, user_data
            llama_cpp.llama_log_set(self._kept[0], ctypes.c_void_p())
        self._logs.append(log)

    def remove(self, llama_cpp: ModuleType, log: NativeLog) -> None:
        self._logs.remove(log)
        if not self._logs:
            llama_cpp.llama_log_set(*self._kept[1:])

    def _line(self, level: int, text: bytes | None, user_data: object) -> None:
        if self._logs:
            self._logs[-1](level, text, user_data)


_ACTIVE = _Active()


@contextmanager
def captured_log(llama_cpp: ModuleType) -> Generator[NativeLog]:
    """All log lines of llama.cpp go to the `NativeLog` until the block ends, or to that of a later block."""
    log = NativeLog()
    _ACTIVE.add(llama_cpp, log)
    try:
        yield log
    finally:
        _ACTIVE.remove(llama_cpp, log)
