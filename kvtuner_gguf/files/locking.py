"""Locks of open files: a file that is changed where it stands is read before a change or after it, never during one."""

from __future__ import annotations

import fcntl
from collections.abc import Generator
from contextlib import contextmanager
from typing import BinaryIO


@contextmanager
def locked_for_reading(file: BinaryIO) -> Generator[None]:
    """Wait for commands that are changing this file, and keep others from it; nothing where there are no locks."""
    _flock(file, fcntl.LOCK_SH)
    try:
        yield
    finally:
        _flock(file, fcntl.LOCK_UN)


def lock_for_writing(file: BinaryIO) -> bool:
    """Keep all others from this file until it is closed, once they are done; whether its file system has locks."""
    return _flock(file, fcntl.LOCK_EX)


def _flock(file: BinaryIO, operation: int) -> bool:
    try:
        fcntl.flock(file, operation)
    except OSError:
        return False
    return True
