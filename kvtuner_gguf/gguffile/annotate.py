"""Write a plan into a GGUF file, or take it out: every other key and every tensor byte stay as they are.

In place, a header with room for the plan is changed where it stands (`room.py`), and nothing else of the file is even
read. Elsewhere the file is replaced whole, with room for the next plan.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files import atomicfile
from kvtuner_gguf.files.copying import BLOCK_BYTES, copy_range
from kvtuner_gguf.files.locking import lock_for_writing, locked_for_reading
from kvtuner_gguf.gguffile.fields import plan_fields
from kvtuner_gguf.gguffile.fit import fitted
from kvtuner_gguf.gguffile.keys import Keys
from kvtuner_gguf.gguffile.metadata import model_shape
from kvtuner_gguf.gguffile.reader import MAGIC, Field, GgufHeader, read_open
from kvtuner_gguf.gguffile.room import N_KEYS, room_bytes, room_fields, room_of, switch
from kvtuner_gguf.gguffile.shards import SHARD_NAME, read_model, shard_paths
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.progress import Progress

MAPPED_ALIGNMENT = 32  # TENSOR_ALIGNMENT of ggml: it ends the program where mapped data lies otherwise


@dataclass(frozen=True)
class Written:
    """``path``: the file with the new header; ``header_only``: nothing else of it was written."""

    path: Path
    header_only: bool


def annotate(model: Path | str, plan: Plan, target: Path | str, progress: Progress | None = None) -> Plan:
    """Write ``model`` with ``plan`` to ``target``, which may be ``model`` itself; the plan as written.

    Of a split model only the first shard changes; the others are linked beside ``target`` where they are not there yet.
    Raises `KvtunerError` where the plan does not fit the model; ``target`` is then untouched.
    """
    headers = read_model(model)
    plan = fitted(plan, headers)
    write_plan(headers, plan, target, progress)
    return plan


def strip(model: Path | str, target: Path | str, progress: Progress | None = None) -> bool:
    """Write ``model`` as it was before there was a plan in it to ``target``; whether there was one."""
    headers = read_model(model)
    write_no_plan(headers, target, progress)
    return has_plan(headers)


def has_plan(headers: list[GgufHeader]) -> bool:
    """Whether a model has anything of a plan, usable or not; room for one is nothing."""
    return any(Keys.is_ours(key) and key not in Keys.ROOM for key in headers[0].fields)


def write_plan(headers: list[GgufHeader], plan: Plan, target: Path | str, progress: Progress | None = None) -> Written:
    """As `annotate`, with a plan that is already `fitted`."""
    return _write(headers, plan_fields(plan, model_shape(headers)), target, progress)


def write_no_plan(
    headers: list[GgufHeader], target: Path | str, progress: Progress | None = None, keep_room: bool = False
) -> Written:
    """As `strip`; with ``keep_room`` the room for a plan stays, so that in place only the header changes."""
    return _write(headers, [] if keep_room else None, target, progress)


def _write(
    headers: list[GgufHeader], fields: list[bytes] | None, target: Path | str, progress: Progress | None
) -> Written:
    """Write a model with room that holds ``fields``, or without room."""
    target = _checked_target(headers, Path(target))
    in_place = target.exists() and target.samefile(headers[0].path)
    if fields is not None and in_place and _write_in_place(target, fields):
        return Written(target, header_only=True)
    _write_whole(headers, fields, target, progress)
    return Written(target, header_only=False)


def _write_in_place(path: Path, fields: list[bytes]) -> bool:
    """Change nothing but the header of ``path``; whether that can be done."""
    try:
        with path.open("r+b", buffering=0) as file:
            is_locked = lock_for_writing(file)
            header = read_open(file, path)
            room = room_of(header)
            if not is_locked or room is None or not room.fits(fields) or not _is_alone(file, path):
                return False
            switch(file.fileno(), room, fields, len(_kept(header)))
    except OSError as err:
        raise KvtunerError(f"cannot write {path}: {err.strerror or err}; choose another target with -o") from err
    return True


def _is_alone(file: BinaryIO, path: Path) -> bool:
    """Whether the open file has this one name: others keep what they hold, as they do where files are replaced."""
    found = os.fstat(file.fileno())
    return found.st_nlink == 1 and os.path.samestat(found, path.stat())


def _write_whole(
    headers: list[GgufHeader], fields: list[bytes] | None, target: Path, progress: Progress | None
) -> None:
    path = headers[0].path
    try:
        source = path.open("rb")
    except OSError as err:
        raise KvtunerError(f"cannot read {path}: {err.strerror}; check the path") from err
    with source, atomicfile.replacing(target) as file:
        with locked_for_reading(source):
            header = read_open(source, path)
        _check_same_model(headers[0], header)
        room = b"" if fields is None else _room(header, fields, model_shape(headers))
        n_ours = 0 if fields is None else len(fields) + N_KEYS
        _link_other_shards(headers, target)  # before: with the first shard the model is whole
        kept = _kept(header)
        file.write(MAGIC + struct.pack("<IQQ", header.version, len(header.tensors), len(kept) + n_ours) + room)
        for field in kept:
            file.write(_range(source, field.start, field.end))
        file.write(_range(source, header.fields_end, header.infos_end))
        file.write(b"\0" * (-file.tell() % header.alignment))
        copy_range(source, header.data_start, header.file_size, file, progress)


def _check_same_model(before: GgufHeader, header: GgufHeader) -> None:
    """Raise `KvtunerError` where a file has another model than when it was read: a plan may not fit that."""
    if (before.architecture, before.tensors) != (header.architecture, header.tensors):
        raise KvtunerError(f"{header.path}: another model took its place while it was read: give the command again")


def _kept(header: GgufHeader) -> list[Field]:
    """The model's own keys."""
    return [field for key, field in header.fields.items() if not Keys.is_ours(key)]


def _room(header: GgufHeader, fields: list[bytes], shape: ModelShape) -> bytes:
    """Room with ``fields``, so large that tensor data lies as before in a block of the disk.

    Where a small alignment had it where llama.cpp cannot map it, it moves to where that can.
    """
    others = header.infos_end - sum(
        field.end - field.start for field in header.fields.values() if Keys.is_ours(field.key)
    )
    n_bytes = room_bytes(fields, shape)
    before = -(-header.data_start // MAPPED_ALIGNMENT) * MAPPED_ALIGNMENT
    slack = (before - others - len(room_fields(fields, n_bytes))) % BLOCK_BYTES
    return room_fields(fields, n_bytes + slack)


def _range(source: BinaryIO, start: int, end: int) -> bytes:
    source.seek(start)
    return source.read(end - start)


def _first_shard(headers: list[GgufHeader], target: Path) -> Path:
    """The name of the first shard at the target; for a model in one file the target itself."""
    if len(headers) == 1:
        return target
    match = SHARD_NAME.match(target.name)
    stem = match["stem"] if match else target.name.removesuffix(".gguf")
    return target.with_name(f"{stem}-00001-of-{len(headers):05d}.gguf")


def _checked_target(headers: list[GgufHeader], target: Path) -> Path:
    """The file that will have the plan; raises `KvtunerError` where it or a shard beside it cannot be written."""
    first = _first_shard(headers, target)
    in_place = any(target.exists() and target.samefile(header.path) for header in headers)
    if not in_place and first.exists() and first.samefile(headers[0].path):
        raise KvtunerError(f"{first} is the model itself: use --in-place for that, or another target")
    atomicfile.check_target(first)
    _check_other_shards(headers, first)
    return first


def _check_other_shards(headers: list[GgufHeader], target: Path) -> None:
    for header, other in zip(headers[1:], shard_paths(target)[1:], strict=True):
        if not other.exists():
            atomicfile.check_target(other)
        elif not other.samefile(header.path) and other.stat().st_size != header.file_size:
            raise KvtunerError(f"{other} is there and is no shard of this model: choose another target with -o")


def _link_other_shards(headers: list[GgufHeader], target: Path) -> None:
    for header, other in zip(headers[1:], shard_paths(target)[1:], strict=True):
        if other.exists():
            continue
        try:
            os.link(os.path.realpath(header.path), other)  # a link to a relative link would lead nowhere
        except OSError:  # another file system, or a link that dangles
            with header.path.open("rb") as source, atomicfile.replacing(other) as file:
                copy_range(source, 0, header.file_size, file)
