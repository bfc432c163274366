"""Read the header of a GGUF file: metadata and tensor infos, never tensor data.

Our own reader, since annotating needs the exact byte ranges of the header, and since a damaged file must give one line
to the user.
Source of the format: ``ggml/src/gguf.cpp`` and ``gguf-py`` at the pinned base.
"""

from __future__ import annotations

import math
import mmap
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any, BinaryIO

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files.locking import locked_for_reading
from kvtuner_gguf.gguffile.cursor import Cursor
from kvtuner_gguf.gguffile.keys import Keys
from kvtuner_gguf.gguffile.nomodel import cannot_read, other_weights

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 30
MAX_DIMENSIONS = 4
MAX_TENSOR_NAME_BYTES = 63  # as in llama.cpp
NAME_LENGTH_BYTES = 8
# far above any model: a file with more is damaged or made to exhaust the reader
MAX_FIELDS = 1 << 16
MAX_TENSORS = 1 << 20

ARCHITECTURE = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class Field:
    """One key with its byte range in the file.

    ``kind`` is the type of the value, ``element`` that of a list's values; ``value`` is `Skipped` where it was too long
    to keep.
    """

    key: str
    start: int
    end: int
    kind: int
    element: int | None
    value: Any


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: ``shape`` in GGUF order, ``offset`` from the start of the data."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """What stands before the tensor data, with the byte ranges that a rewrite needs."""

    path: Path
    version: int
    fields: dict[str, Field]
    tensors: tuple[TensorInfo, ...] = field(repr=False)
    fields_end: int
    infos_end: int
    data_start: int
    file_size: int
    alignment: int

    def get(self, key: str) -> object:
        """The value of ``key`` (``{arch}`` filled in), or None."""
        found = self.find(key)
        return None if found is None else found.value

    def find(self, key: str) -> Field | None:
        """The field of ``key`` (``{arch}`` filled in)."""
        return _find(self.fields, self.name(key))

    def name(self, key: str) -> str:
        """``key`` with ``{arch}`` filled in."""
        return key.format(arch=self.architecture) if "{arch}" in key else key

    @property
    def architecture(self) -> str:
        found = _find(self.fields, Keys.ARCHITECTURE)
        if found is None:
            raise KvtunerError(f"{self.path}: no {Keys.ARCHITECTURE}: this is no language model, choose another file")
        if not isinstance(found.value, str) or not ARCHITECTURE.fullmatch(found.value):
            raise KvtunerError(
                f"{self.path}: {Keys.ARCHITECTURE} is {found.value!r:.80}, which is no name: fetch the file again"
            )
        return found.value


def _find(fields: dict[str, Field], key: str) -> Field | None:
    """The first field called so, as llama.cpp finds it: up to a NUL."""
    return next((field for name, field in fields.items() if name.partition("\0")[0] == key), None)


def read_gguf(path: Path | str) -> GgufHeader:
    """Read the header of ``path``; raises `KvtunerError` with one line for any file that is not whole."""
    path = Path(path)
    try:
        with path.open("rb") as file, locked_for_reading(file):
            return read_open(file, path)
    except OSError as err:
        raise cannot_read(path, err) from err


def read_open(file: BinaryIO, path: Path) -> GgufHeader:
    """As `read_gguf`, of a file that is open, and locked where others may change it; raises `OSError`, too."""
    file.seek(0)
    magic = file.read(len(MAGIC))
    if magic != MAGIC:
        remedy = other_weights(path) or "check the path"
        found = f"starts with {magic!r}" if magic else "is empty"
        raise KvtunerError(f"{path}: not a GGUF file (it {found}): {remedy}")
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _header(path, data)


def _header(path: Path, data: mmap.mmap) -> GgufHeader:
    cursor = Cursor(path, data)
    cursor.take(len(MAGIC))
    version = _version(path, cursor)
    n_tensors, n_fields = cursor.u64(), cursor.u64()
    fields = _named(cursor, n_fields, MAX_FIELDS, "keys", _field)
    fields_end = cursor.position
    tensors = _named(cursor, n_tensors, MAX_TENSORS, "tensors", _tensor)
    infos_end = cursor.position
    alignment = _alignment(cursor, fields)
    data_start = -(-infos_end // alignment) * alignment
    _check_data(cursor, tensors.values(), alignment, data_start, len(data))
    return GgufHeader(
        path=path,
        version=version,
        fields=fields,
        tensors=tuple(tensors.values()),
        fields_end=fields_end,
        infos_end=infos_end,
        data_start=data_start,
        file_size=len(data),
        alignment=alignment,
    )


def _version(path: Path, cursor: Cursor) -> int:
    version = cursor.u32()
    if version in VERSIONS:
        return version
    if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
        raise KvtunerError(f"{path}: a big-endian GGUF, which is not supported: convert it for this machine")
    raise KvtunerError(f"{path}: GGUF version {version}, not {VERSIONS}: convert it with a current tool")


def _named(
    cursor: Cursor, count: int, limit: int, what: str, read: Callable[[Cursor, str, int], Field | TensorInfo]
) -> dict:
    found = {}
    for _ in range(count):
        start, name = cursor.position, cursor.name()
        if name in found:
            raise cursor.fail(f"damaged GGUF, {name[:80]!r} is there twice")
        if len(found) == limit:
            raise cursor.fail(f"damaged GGUF, it has {count} {what}, more than {limit}")
        found[name] = read(cursor, name, start)
    return found


def _field(cursor: Cursor, key: str, start: int) -> Field:
    if not key:
        raise cursor.fail(f"damaged GGUF, the key at byte {start} has no name")
    kind = cursor.u32()
    element = cursor.u32_ahead() if kind == GGUFValueType.ARRAY else None
    value = cursor.value(kind, key)
    return Field(key, start, cursor.position, kind, element, value)


def _tensor(cursor: Cursor, name: str, start: int) -> TensorInfo:
    if cursor.position - start - NAME_LENGTH_BYTES > MAX_TENSOR_NAME_BYTES:
        raise cursor.fail(f"damaged GGUF, the tensor name {name[:80]!r} has more than {MAX_TENSOR_NAME_BYTES} bytes")
    n_dimensions = cursor.u32()
    if n_dimensions > MAX_DIMENSIONS:
        raise cursor.fail(f"damaged GGUF, tensor {name[:80]!r} has {n_dimensions} dimensions")
    shape = tuple(cursor.u64() for _ in range(n_dimensions))
    ggml_type, offset = cursor.u32(), cursor.u64()
    return TensorInfo(name, shape, ggml_type, offset, _n_bytes(cursor, name, shape, ggml_type))


def _alignment(cursor: Cursor, fields: dict[str, Field]) -> int:
    found = _find(fields, Keys.ALIGNMENT)
    if found is None:
        return DEFAULT_ALIGNMENT
    value = found.value
    if found.kind != GGUFValueType.UINT32 or not 0 < value <= MAX_ALIGNMENT or value & (value - 1):
        raise cursor.fail(f"damaged GGUF, the alignment is {value!r:.80}, no power of 2 as an uint32")
    return value


def _check_data(cursor: Cursor, tensors: Iterable[TensorInfo], alignment: int, data_start: int, size: int) -> None:
    """The data must lie as llama.cpp expects it: tensor after tensor, each padded to the alignment."""
    expected = 0
    for tensor in tensors:
        end = data_start + tensor.offset + tensor.n_bytes
        if end > size:
            raise cursor.fail(f"truncated GGUF, tensor {tensor.name[:80]!r} ends at byte {end}, the file at {size}")
        if tensor.offset != expected:
            raise cursor.fail(
                f"damaged GGUF, tensor {tensor.name[:80]!r} is at byte {tensor.offset} of the data, not at {expected}"
            )
        expected += -(-tensor.n_bytes // alignment) * alignment


def _n_bytes(cursor: Cursor, name: str, shape: tuple[int, ...], ggml_type: int) -> int:
    try:
        block, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(ggml_type)]
    except (KeyError, ValueError):
        raise cursor.fail(f"tensor {name[:80]!r} has type {ggml_type}, which llama.cpp does not know here") from None
    if any(n >= 1 << 63 for n in (*shape, *accumulate(shape, mul))):  # in llama.cpp's order: a later 0 mends nothing
        raise cursor.fail(f"damaged GGUF, tensor {name[:80]!r} has the shape {shape}")
    if math.prod(shape[:1]) % block:
        raise cursor.fail(f"damaged GGUF, the rows of tensor {name[:80]!r} are no blocks of {block} values")
    return math.prod(shape) // block * n_bytes
