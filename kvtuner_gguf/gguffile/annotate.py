"""Write a plan into a GGUF file, or take it out: every other key and every tensor byte stay as they are."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path
from typing import BinaryIO

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files import atomicfile
from kvtuner_gguf.gguffile.fields import count_fields, plan_fields, string_field
from kvtuner_gguf.gguffile.fit import fitted
from kvtuner_gguf.gguffile.keys import Keys
from kvtuner_gguf.gguffile.reader import MAGIC, GgufHeader
from kvtuner_gguf.gguffile.shards import SHARD_NAME, read_model, shard_paths
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.progress import Progress

CHUNK_BYTES = 8 << 20
HEADER_BYTES = 24  # magic, version and two counts
COUNT_BYTES = 8
MAPPED_ALIGNMENT = 32  # TENSOR_ALIGNMENT of ggml: it ends the program where mapped data lies otherwise


def annotate(model: Path | str, plan: Plan, target: Path | str, progress: Progress | None = None) -> Plan:
    """Write ``model`` with ``plan`` to ``target``, which may be ``model`` itself; the plan as written.

    Of a split model only the first shard changes; the others are linked beside ``target`` where they are not there yet.
    Raises `KvtunerError` where the plan does not fit the model; ``target`` is then untouched.
    """
    headers = read_model(model)
    plan = fitted(plan, headers)
    _write(headers, plan_fields(plan), target, progress)
    return plan


def strip(model: Path | str, target: Path | str, progress: Progress | None = None) -> bool:
    """Write ``model`` without a plan to ``target``; whether there was one."""
    headers = read_model(model)
    _write(headers, b"", target, progress)
    return any(Keys.is_ours(key) for key in headers[0].fields)


def _write(headers: list[GgufHeader], fields: bytes, target: Path | str, progress: Progress | None) -> None:
    target = _checked_target(headers, Path(target))
    header = headers[0]
    try:
        source = header.path.open("rb")
    except OSError as err:
        raise KvtunerError(f"cannot read {header.path}: {err.strerror}; check the path") from err
    with source, atomicfile.replacing(target) as file:
        _link_other_shards(headers, target)  # before: with the first shard the model is whole
        _write_header(header, source, fields, file)
        _copy(source, file, header.data_start, header.file_size, progress)


def _write_header(header: GgufHeader, source: BinaryIO, added: bytes, file: BinaryIO) -> None:
    kept = [field for key, field in header.fields.items() if not Keys.is_ours(key)]
    if added:
        added = _padded(header, sum(field.end - field.start for field in kept), added)
    n_fields = len(kept) + count_fields(added)
    file.write(MAGIC + struct.pack("<IQQ", header.version, len(header.tensors), n_fields))
    for field in kept:
        file.write(_range(source, field.start, field.end))
    file.write(added[8:])
    file.write(_range(source, header.fields_end, header.infos_end))
    file.write(b"\0" * (-file.tell() % header.alignment))


def _padded(header: GgufHeader, n_kept: int, added: bytes) -> bytes:
    """With one more field where a small alignment would put the tensor data where llama.cpp cannot map it."""
    end = HEADER_BYTES + n_kept + len(added) - COUNT_BYTES + header.infos_end - header.fields_end
    if _aligned(end, header.alignment) % MAPPED_ALIGNMENT == 0:
        return added
    n_fields = struct.pack("<Q", count_fields(added) + 1)
    padding = string_field(Keys.PADDING, "")
    missing = -(end + len(padding)) % MAPPED_ALIGNMENT
    return n_fields + added[COUNT_BYTES:] + string_field(Keys.PADDING, " " * missing)


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _range(source: BinaryIO, start: int, end: int) -> bytes:
    source.seek(start)
    return source.read(end - start)


def _copy(source: BinaryIO, file: BinaryIO, start: int, end: int, progress: Progress | None) -> None:
    source.seek(start)
    for done in range(start, max(end, start + 1), CHUNK_BYTES):
        file.write(source.read(min(CHUNK_BYTES, end - done)))
        if progress:
            progress(min(done + CHUNK_BYTES, end) - start, end - start)


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
                shutil.copyfileobj(source, file, CHUNK_BYTES)
