"""What a tuning has measured, line by line in a file: killed anywhere, it loses the step that was running."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kvtuner_gguf.errors import KvtunerError

SCHEMA = "kvtuner.journal/1"


class Journal:
    """Values by key, kept in the file at ``path``, or in memory alone where there is none.

    Each line of the file is a JSON list of a key and its value. A line that a kill cut short is forgotten.
    ``prepare`` is called before a line is written.
    Raises `KvtunerError` where the file is something else or cannot be written.
    """

    def __init__(self, path: Path | None = None, prepare: Callable[[], None] = lambda: None) -> None:
        self._path, self._prepare = path, prepare
        self._values: dict[str, Any] = {}
        if path is not None and path.exists():
            self._read(path)

    def remember(self, key: str, measure: Callable[[], Any], fits: Callable[[Any], bool] = lambda _: True) -> Any:
        """The value of ``key``: from before, if it ``fits``, or else of ``measure``."""
        if not self.has(key, fits):
            value = measure()
            self._append([key, value])
            self._values[key] = value
        return self._values[key]

    def has(self, key: str, fits: Callable[[Any], bool] = lambda _: True) -> bool:
        """Whether there is a value of ``key`` that ``fits``."""
        return key in self._values and fits(self._values[key])

    def _append(self, line: list[Any]) -> None:
        if self._path is None:
            return
        self._prepare()
        try:
            with self._path.open("ab") as file:
                file.write(json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as err:
            raise KvtunerError(f"cannot write {self._path}: {err.strerror}; free some room, then go on") from err

    def _read(self, path: Path) -> None:
        try:
            raw = path.read_bytes()
        except OSError as err:
            raise KvtunerError(f"cannot read {path}: {err.strerror}; check its permissions") from err
        whole = raw.rfind(b"\n") + 1
        for number, line in enumerate(raw[:whole].splitlines(), start=1):
            key, value = _parse(path, number, line)
            self._values[key] = value
        if whole < len(raw):
            os.truncate(path, whole)


def _parse(path: Path, number: int, line: bytes) -> tuple[str, Any]:
    try:
        key, value = json.loads(line)
    except (ValueError, TypeError, RecursionError) as err:
        raise KvtunerError(f"{path}, line {number}: no entry of a journal: begin anew with --fresh") from err
    if not isinstance(key, str) or not isinstance(value, float | int | Mapping) or isinstance(value, bool):
        raise KvtunerError(f"{path}, line {number}: no entry of a journal: begin anew with --fresh")
    return key, value
