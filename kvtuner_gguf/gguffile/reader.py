"""Read the header of a GGUF file: metadata and tensor infos, never tensor data.

Our own reader, since annotating needs the exact byte ranges of the header, and since a damaged file must give one line
to the user: every length is checked against the file before it is used.
Source of the format: ``ggml/src/gguf.cpp`` and ``gguf-py`` at the pinned base.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.gguffile.keys import Keys

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
MAX_ARRAY_DEPTH = 4
# lists of at most this many values are kept; longer ones, such as vocabularies, are only skipped
MAX_KEPT_VALUES = 65536

SCALARS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}


@dataclass(frozen=True)
class Field:
    """One key with its byte range in the file. ``value`` is None for lists that were too long to keep."""

    key: str
    start: int
    end: int
    value: object


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: ``shape`` in GGUF order, ``offset`` from the start of the data, ``n_bytes`` if the type is known."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    offset: int
    n_bytes: int | None


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
        found = self.fields.get(key.format(arch=self.architecture))
        return None if found is None else found.value

    @property
    def architecture(self) -> str:
        found = self.fields.get(Keys.ARCHITECTURE)
        if found is None or not isinstance(found.value, str):
            raise KvtunerError(f"{self.path}: no {Keys.ARCHITECTURE}: this is no language model, choose another file")
        return found.value


def read_gguf(path: Path) -> GgufHeader:
    """Read the header of ``path``; raises `KvtunerError` with one line for any file that is not whole."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(8)
            if start[:4] != MAGIC:
                raise KvtunerError(f"{path}: not a GGUF file (it starts with {start[:4]!r}): check the path")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Parser(path, data).header()
    except OSError as err:
        raise KvtunerError(f"cannot read {path}: {err.strerror or err}; check the path") from err


class _Parser:
    """Walks through the header; ``position`` never passes the end of the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.position = len(MAGIC)

    def header(self) -> GgufHeader:
        version = self.version()
        n_tensors, n_fields = self.scalar("<Q"), self.scalar("<Q")
        fields = self.named(n_fields, self.field)
        fields_end = self.position
        tensors = self.named(n_tensors, self.tensor)
        infos_end = self.position
        alignment = self.alignment(fields)
        data_start = -(-infos_end // alignment) * alignment
        self.check_data(tensors.values(), data_start)
        return GgufHeader(
            path=self.path,
            version=version,
            fields=fields,
            tensors=tuple(tensors.values()),
            fields_end=fields_end,
            infos_end=infos_end,
            data_start=data_start,
            file_size=self.size,
            alignment=alignment,
        )

    def fail(self, reason: str) -> KvtunerError:
        return KvtunerError(f"{self.path}: {reason}: fetch the file again")

    def take(self, n_bytes: int) -> int:
        """The position before a step of ``n_bytes``."""
        start = self.position
        if n_bytes > self.size - start:
            raise self.fail(f"truncated GGUF, {n_bytes} bytes are missing at byte {start} of {self.size}")
        self.position = start + n_bytes
        return start

    def scalar(self, code: str) -> int | float | bool:
        return struct.unpack_from(code, self.data, self.take(struct.calcsize(code)))[0]

    def string(self) -> str:
        n_bytes = self.scalar("<Q")
        start = self.take(n_bytes)
        return self.data[start : start + n_bytes].decode("utf-8", errors="replace")

    def version(self) -> int:
        version = self.scalar("<I")
        if version in VERSIONS:
            return version
        if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
            raise KvtunerError(f"{self.path}: a big-endian GGUF, which is not supported: convert it for this machine")
        raise KvtunerError(f"{self.path}: GGUF version {version}, not {VERSIONS}: convert it with a current tool")

    def named(self, count: int, read: Callable[[], Field | TensorInfo]) -> dict:
        found = {}
        for _ in range(count):
            item = read()
            name = item.key if isinstance(item, Field) else item.name
            if name in found:
                raise self.fail(f"damaged GGUF, {name[:80]!r} is there twice")
            found[name] = item
        return found

    def field(self) -> Field:
        start = self.position
        key = self.string()
        value = self.value(self.scalar("<I"), key)
        return Field(key, start, self.position, value)

    def value(self, code: int, key: str, depth: int = 0) -> object:
        if code == GGUFValueType.STRING:
            return self.string()
        if code == GGUFValueType.ARRAY:
            return self.array(key, depth + 1)
        if code not in SCALARS:
            raise self.fail(f"damaged GGUF, {key[:80]!r} has the unknown type {code}")
        return self.scalar(SCALARS[code])

    def array(self, key: str, depth: int) -> list | None:
        if depth > MAX_ARRAY_DEPTH:
            raise self.fail(f"damaged GGUF, {key[:80]!r} is nested more than {MAX_ARRAY_DEPTH} deep")
        code, count = self.scalar("<I"), self.scalar("<Q")
        if code in SCALARS:
            n_bytes = struct.calcsize(SCALARS[code])
            start = self.take(n_bytes * count)
            if count > MAX_KEPT_VALUES:
                return None
            return list(struct.unpack_from(f"<{count}{SCALARS[code][1]}", self.data, start))
        kept: list | None = [] if count <= MAX_KEPT_VALUES else None
        for _ in range(count):
            value = self.value(code, key, depth)
            if kept is not None:
                kept.append(value)
        return kept

    def tensor(self) -> TensorInfo:
        name = self.string()
        n_dimensions = self.scalar("<I")
        if n_dimensions > MAX_DIMENSIONS:
            raise self.fail(f"damaged GGUF, tensor {name[:80]!r} has {n_dimensions} dimensions")
        shape = tuple(self.scalar("<Q") for _ in range(n_dimensions))
        ggml_type, offset = self.scalar("<I"), self.scalar("<Q")
        return TensorInfo(name, shape, ggml_type, offset, _n_bytes(shape, ggml_type))

    def alignment(self, fields: dict[str, Field]) -> int:
        found = fields.get(Keys.ALIGNMENT)
        value = DEFAULT_ALIGNMENT if found is None else found.value
        if not isinstance(value, int) or value <= 0 or value & (value - 1) or value > 1 << 30:
            raise self.fail(f"damaged GGUF, the alignment is {value!r}")
        return value

    def check_data(self, tensors: object, data_start: int) -> None:
        for tensor in tensors:
            end = data_start + tensor.offset + (tensor.n_bytes or 0)
            if end > self.size:
                raise self.fail(
                    f"truncated GGUF, tensor {tensor.name[:80]!r} ends at byte {end}, the file at {self.size}"
                )


def _n_bytes(shape: tuple[int, ...], ggml_type: int) -> int | None:
    try:
        block, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(ggml_type)]
    except (KeyError, ValueError):
        return None  # a type of a later version
    count = 1
    for size in shape:
        count *= size
    return count // block * n_bytes
