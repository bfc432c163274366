"""How the JSON files of plans and of all stages are read and written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from kvtuner_gguf.errors import KvtunerError, about
from kvtuner_gguf.files import atomicfile, strictjson
from kvtuner_gguf.files.inputs import unreadable

MAX_JSON_BYTES = 16 << 20

T = TypeVar("T")


def load(path: Path, parse: Callable[[object], T], what: str) -> T:
    """``parse`` of the JSON at ``path``, which is a ``what``.

    Raises `KvtunerError`, which names the file, where it cannot be read, is too large or not JSON, or ``parse`` fails.
    """
    raw = read(path, MAX_JSON_BYTES, what)
    with about(path):
        return parse(strictjson.parse(raw))


def read(path: Path, limit: int, what: str) -> bytes:
    """The bytes of the file at ``path``, which is a ``what``.

    Raises `KvtunerError`, which names the file, where it cannot be read or has more than ``limit`` bytes.
    """
    try:
        with Path(path).open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as err:
        why = unreadable(Path(path)) or f"{err.strerror}; check the path"
        raise KvtunerError(f"cannot read {path}: {why}") from err
    if len(raw) > limit:
        raise KvtunerError(f"{path}: more than {limit >> 20} MiB is no {what}: check the path")
    return raw


def save(path: Path, data: Mapping[str, Any]) -> None:
    """Replace the file at ``path`` by ``data`` as JSON."""
    atomicfile.write_text(path, json.dumps(data, indent=1) + "\n")
