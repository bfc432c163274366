"""Write a plan into a GGUF file, or take it out: every other key and every tensor byte stay as they are."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf import GGUFValueType

import kvtuner_gguf
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files import atomicfile
from kvtuner_gguf.gguffile.keys import SCHEMA_VERSION, Keys
from kvtuner_gguf.gguffile.reader import MAGIC, GgufHeader
from kvtuner_gguf.gguffile.shape import SHARD_NAME, centering_obstacle, is_mla, model_shape, read_model, shard_paths
from kvtuner_gguf.plan.centers import flat_float32
from kvtuner_gguf.plan.keyspread import KeySpread
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape

CHUNK_BYTES = 8 << 20
HEADER_BYTES = 24  # magic, version and two counts
COUNT_BYTES = 8
MAPPED_ALIGNMENT = 32  # TENSOR_ALIGNMENT of ggml: it ends the program where mapped data lies otherwise

Progress = Callable[[int, int], None]
"""Called with the bytes written and the bytes in all."""


def annotate(model: Path, plan: Plan, target: Path, progress: Progress | None = None) -> Plan:
    """Write ``model`` with ``plan`` to ``target``, which may be ``model`` itself; the plan as written.

    Of a split model only the first shard changes; the others are linked beside ``target`` where they are not there yet.
    Raises `KvtunerError` where the plan does not fit the model; ``target`` is then untouched.
    """
    headers = read_model(model)
    plan = fitted(plan, headers)
    _write(headers, _plan_fields(plan), target, progress)
    return plan


def strip(model: Path, target: Path, progress: Progress | None = None) -> bool:
    """Write ``model`` without a plan to ``target``; whether there was one."""
    headers = read_model(model)
    _write(headers, b"", target, progress)
    return any(Keys.is_ours(key) for key in headers[0].fields)


def fitted(plan: Plan, headers: list[GgufHeader]) -> Plan:
    """The plan for this very model: layers without a cache carry f16. Raises `KvtunerError` where it does not fit."""
    shape = model_shape(headers)
    if plan.model is not None:
        _check_same_model(plan.model, shape)
    plan.check(shape)
    if is_mla(headers[0]):
        _check_shared_tensor(plan)
    if plan.centers is not None and (obstacle := centering_obstacle(headers)):
        raise KvtunerError(f"keys and values cannot be centered, since this model {obstacle}: tune with --no-center")
    pairs = (pair if heads else Pair("f16", "f16") for pair, heads in zip(plan.pairs, shape.n_head_kv, strict=True))
    return replace(plan, pairs=tuple(pairs), model=shape)


def _check_same_model(tuned: ModelShape, found: ModelShape) -> None:
    differences = (
        ("architecture", tuned.architecture, found.architecture),
        ("layers", tuned.n_layer, found.n_layer),
        ("K head size", tuned.head_dim_k, found.head_dim_k),
        ("V head size", tuned.head_dim_v, found.head_dim_v),
        ("KV heads", tuned.n_head_kv, found.n_head_kv),
        ("tensor fingerprint", tuned.fingerprint or found.fingerprint, found.fingerprint),
    )
    for what, planned, real in differences:
        if planned != real:
            raise KvtunerError(
                f"the plan is for another model: its {what} is {planned}, this model's {real}: tune this model"
            )


def _check_shared_tensor(plan: Plan) -> None:
    for il, pair in enumerate(plan.pairs):
        if pair.k != pair.v:
            raise KvtunerError(
                f"layer {il}: K type {pair.k} and V type {pair.v} differ, but this model keeps K and V in one tensor: "
                "give both the same type"
            )


def _write(headers: list[GgufHeader], fields: bytes, target: Path, progress: Progress | None) -> None:
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
    n_fields = len(kept) + _count_fields(added)
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
    n_fields = struct.pack("<Q", _count_fields(added) + 1)
    padding = _string_field(Keys.PADDING, "")
    missing = -(end + len(padding)) % MAPPED_ALIGNMENT
    return n_fields + added[COUNT_BYTES:] + _string_field(Keys.PADDING, " " * missing)


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


def _plan_fields(plan: Plan) -> bytes:
    """The encoded fields, after their number in 8 bytes."""
    arch = plan.model.architecture
    fields = [
        _string_list(Keys.TYPE_K.format(arch=arch), [pair.k for pair in plan.pairs]),
        _string_list(Keys.TYPE_V.format(arch=arch), [pair.v for pair in plan.pairs]),
        _scalar(Keys.SCHEMA, GGUFValueType.UINT32, "<I", SCHEMA_VERSION),
        _string_field(Keys.VERSION, str(plan.provenance.get("version", kvtuner_gguf.__version__))),
        _string_field(Keys.PLAN_FINGERPRINT, plan.fingerprint),
        _scalar(Keys.BITS_PER_VALUE, GGUFValueType.FLOAT32, "<f", plan.bits_per_value()),
        *_center_fields(plan),
        *_known_provenance(plan),
    ]
    return struct.pack("<Q", len(fields)) + b"".join(fields)


def _center_fields(plan: Plan) -> Iterable[bytes]:
    if plan.centers is None:
        return
    sides = (
        (Keys.CENTER_K, plan.centers.k, plan.model.sizes_k),
        (Keys.CENTER_V, plan.centers.v, plan.model.sizes_v),
    )
    for key, vectors, sizes in sides:
        if any(vectors):
            yield _float_list(key.format(arch=plan.model.architecture), flat_float32(vectors, sizes))


def _known_provenance(plan: Plan) -> Iterable[bytes]:
    text, tokens, kld = (plan.provenance.get(name) for name in ("text_sha256", "text_tokens", "kld_mean"))
    if isinstance(text, str):
        yield _string_field(Keys.TEXT_SHA256, text)
    if type(tokens) is int and 0 <= tokens < 1 << 32:
        yield _scalar(Keys.TEXT_TOKENS, GGUFValueType.UINT32, "<I", tokens)
    if isinstance(kld, float):
        yield _scalar(Keys.KLD_MEAN, GGUFValueType.FLOAT32, "<f", kld)
    if "keys" in plan.provenance:
        for name, values in KeySpread.from_json(plan.provenance["keys"]).to_json().items():
            yield _float_list(Keys.KEY_SPREAD.format(field=name), np.array(values, np.float32))


def _count_fields(added: bytes) -> int:
    return struct.unpack("<Q", added[:8])[0] if added else 0


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _scalar(key: str, kind: GGUFValueType, code: str, value: float) -> bytes:
    return _string(key) + struct.pack("<I", kind) + struct.pack(code, value)


def _string_field(key: str, value: str) -> bytes:
    return _string(key) + struct.pack("<I", GGUFValueType.STRING) + _string(value)


def _string_list(key: str, values: list[str]) -> bytes:
    kind = struct.pack("<IIQ", GGUFValueType.ARRAY, GGUFValueType.STRING, len(values))
    return _string(key) + kind + b"".join(map(_string, values))


def _float_list(key: str, values: np.ndarray) -> bytes:
    kind = struct.pack("<IIQ", GGUFValueType.ARRAY, GGUFValueType.FLOAT32, len(values))
    return _string(key) + kind + values.astype("<f4").tobytes()


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
