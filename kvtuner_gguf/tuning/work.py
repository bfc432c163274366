"""The folder of a tuning: what its stages have finished is read back from there."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files import artifact, atomicfile
from kvtuner_gguf.tuning.journal import Journal
from kvtuner_gguf.tuning.optionnames import option_name

SCHEMA = "kvtuner.tuning/1"
RECORD = "tuning.json"
# what tells a model from others of its shape, but says nothing to people
_WEIGHTS = "model fingerprint"
# characters of a value in a message
SHOWN = 80


class Artifact(Protocol):
    def to_json(self) -> dict[str, Any]: ...


T = TypeVar("T", bound=Artifact)


class Work:
    """``identity`` is all that measurements depend on; a folder with another one is refused.

    The folder has its record from the first finished measurement on: a tuning that fails before leaves it empty.
    Without a folder nothing is kept.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, Any], fresh: bool = False) -> None:
        self._folder = folder
        self._identity = {"schema": SCHEMA, **identity}
        if folder is not None:
            _prepare(folder, self._identity, fresh)
        self.journal = Journal(None if folder is None else folder / "journal.jsonl", self._claim)

    def stage(
        self, name: str, parse: Callable[[object], T], make: Callable[[], T], fits: Callable[[T], bool] = lambda _: True
    ) -> T:
        """What ``name`` gave before, if it ``fits``, or else what it makes now."""
        if self._folder is None:
            return make()
        path = self._folder / f"{name}.json"
        if path.exists():
            found = artifact.load(path, parse, name)
            if fits(found):
                return found
        made = make()
        self._claim()
        artifact.save(path, made.to_json())
        return made

    def file(self, name: str) -> Path | None:
        """Where something else that is finished is to be kept, or None."""
        self._claim()
        return None if self._folder is None else self._folder / name

    def _claim(self) -> None:
        """The record goes first: what the folder then holds is known to be of this tuning."""
        if self._folder is not None and not (self._folder / RECORD).exists():
            artifact.save(self._folder / RECORD, self._identity)


def facts_of(folder: Path | None, fresh: bool = False) -> Mapping[str, Any]:
    """The identity of the tuning that ``folder`` holds and that is not to begin ``fresh``; empty where there is none.

    Raises `KvtunerError` where the record of it is damaged.
    """
    if folder is None or fresh or not (folder / RECORD).exists():
        return {}
    return artifact.load(folder / RECORD, _mapping, "record")


def check_folder(folder: Path, asked: Mapping[str, Any], fresh: bool) -> None:
    """Raise `KvtunerError` where `Work` would refuse ``folder``, as far as ``asked``, a part of its identity, tells.

    Nothing is made or emptied.
    """
    with _using(folder):
        above = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        if not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if not folder.exists():
            return
        _check_ours(folder)
    if before := facts_of(folder, fresh):
        _check_record(folder, {key: before.get(key) for key in asked}, json.loads(json.dumps(asked)))


def _prepare(folder: Path, identity: Mapping[str, Any], fresh: bool) -> None:
    record = folder / RECORD
    with _using(folder):
        if fresh and record.exists():  # nothing but a folder of ours is ever emptied
            _empty(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _check_ours(folder)
    atomicfile.check_target(record)
    if record.exists():
        _check_record(folder, artifact.load(record, _mapping, "record"), json.loads(json.dumps(identity)))


@contextmanager
def _using(folder: Path) -> Generator[None]:
    try:
        yield
    except OSError as err:
        raise KvtunerError(f"cannot use {folder}: {err.strerror}; choose another with --work") from err


def _check_ours(folder: Path) -> None:
    if any(not atomicfile.is_temporary(path) for path in folder.iterdir()) and not (folder / RECORD).exists():
        raise KvtunerError(f"{folder} is no folder of a tuning and is not empty: choose another with --work")


def _empty(folder: Path) -> None:
    """The record goes last: killed in between, the folder is still known to be one of ours."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == RECORD):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _check_record(folder: Path, before: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if found := difference(before, wanted):
        raise KvtunerError(
            f"{folder} holds a tuning with {found}: begin anew with --fresh, or choose another folder with --work"
        )


def difference(before: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """The first thing in which two records differ, in words."""
    before, wanted = _flat(before), _flat(wanted)
    for key in sorted({*wanted, *before}):
        if wanted.get(key) != before.get(key):
            if key == _WEIGHTS:
                return "another model"
            return f"{option_name(key)} {_words(before.get(key))}, not {_words(wanted.get(key))}"
    return None


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested objects by names such as ``model head_dim_k``."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        flat |= _flat(value, f"{prefix}{key} ") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _words(value: object) -> str:
    """A value of JSON as one reads it."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "on", False: "off"}[value]
    text = ",".join(map(_words, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _mapping(data: object) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise KvtunerError("it is no record of a tuning: begin anew with --fresh")
    return data
