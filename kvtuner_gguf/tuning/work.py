"""The folder of a tuning: what its stages have finished is read back from there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from kvtuner_gguf import artifact
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.tuning.journal import Journal

SCHEMA = "kvtuner.tuning/1"
RECORD = "tuning.json"


class Artifact(Protocol):
    def to_json(self) -> dict[str, Any]: ...


T = TypeVar("T", bound=Artifact)


class Work:
    """``identity`` is all that measurements depend on; a folder with another one is refused.

    Without a folder nothing is kept.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, Any], fresh: bool = False) -> None:
        self.folder = folder
        if folder is not None:
            _prepare(folder, {"schema": SCHEMA, **identity}, fresh)
        self.journal = Journal(None if folder is None else folder / "journal.jsonl")

    def stage(
        self, name: str, parse: Callable[[object], T], make: Callable[[], T], fits: Callable[[T], bool] = lambda _: True
    ) -> T:
        """What ``name`` gave before, if it ``fits``, or else what it makes now."""
        if self.folder is None:
            return make()
        path = self.folder / f"{name}.json"
        if path.exists():
            found = artifact.load(path, parse, name)
            if fits(found):
                return found
        made = make()
        artifact.save(path, made.to_json())
        return made


def _prepare(folder: Path, identity: Mapping[str, Any], fresh: bool) -> None:
    record = folder / RECORD
    if fresh and record.exists():  # nothing but a folder of ours is ever removed
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise KvtunerError(f"cannot make {folder}: {err.strerror}; choose another with --work") from err
    if not record.exists():
        if any(folder.iterdir()):
            raise KvtunerError(f"{folder} is no folder of a tuning and is not empty: choose another with --work")
        artifact.save(record, identity)
    before = artifact.load(record, _mapping, "record")
    wanted = json.loads(json.dumps(identity))
    for key in sorted({*wanted, *before}):
        if wanted.get(key) != before.get(key):
            raise KvtunerError(
                f"{folder} holds a tuning with {key} {before.get(key)!r}, not {wanted.get(key)!r}: "
                "begin anew with --fresh, or choose another folder with --work"
            )


def _mapping(data: object) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise KvtunerError("it is no record of a tuning: begin anew with --fresh")
    return data
