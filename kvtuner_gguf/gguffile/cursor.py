"""Walk through the bytes of a GGUF header. Every length is checked against the file before it is used."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGUFValueType

from kvtuner_gguf.errors import KvtunerError

# far above any model: a file with more is damaged or made to exhaust the reader
MAX_NAME_BYTES = 4096
SHOWN_BYTES = 64  # of a longer text
MAX_STRINGS = 1 << 23
# longer values, such as vocabularies, are stepped over; a plan has one value per layer
MAX_KEPT_VALUES = 4096
# but centers have one float32 per channel
MAX_KEPT_FLOAT_BYTES = 1 << 22
FLOAT32_BYTES = 4
MAX_KEPT_BYTES = 1 << 20
MAX_KEPT_BYTES_IN_ALL = 1 << 24

LENGTH = struct.Struct("<Q")
SCALARS: dict[int, struct.Struct] = {
    kind: struct.Struct(code)
    for kind, code in {
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
    }.items()
}


@dataclass(frozen=True)
class Skipped:
    """Stands for a value that was too long to keep: how a text starts, or how many values a list has."""

    start: str = ""
    count: int = 0

    def __repr__(self) -> str:
        return "too long"


class Cursor:
    """A position in the mapped file that never passes its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.position = 0
        self._path = path
        self._data = data
        self._strings_left = MAX_STRINGS
        self._keep_left = MAX_KEPT_BYTES_IN_ALL

    def fail(self, reason: str) -> KvtunerError:
        return KvtunerError(f"{self._path}: {reason}: fetch the file again")

    def take(self, n_bytes: int) -> int:
        """The position before a step of ``n_bytes``."""
        start, size = self.position, len(self._data)
        if n_bytes > size - start:
            raise self.fail(f"truncated GGUF, {n_bytes} bytes are missing at byte {start} of {size}")
        self.position = start + n_bytes
        return start

    def scalar(self, kind: int) -> int | float | bool:
        code = SCALARS[kind]
        return code.unpack_from(self._data, self.take(code.size))[0]

    def u32(self) -> int:
        return int(self.scalar(GGUFValueType.UINT32))

    def u32_ahead(self) -> int:
        """The next value, not stepped over."""
        start, value = self.position, self.u32()
        self.position = start
        return value

    def u64(self) -> int:
        return int(self.scalar(GGUFValueType.UINT64))

    def name(self) -> str:
        """The name of a key or a tensor."""
        n_bytes = self.u64()
        start = self.take(n_bytes)
        if n_bytes > MAX_NAME_BYTES:
            raise self.fail(f"damaged GGUF, the name at byte {start} has {n_bytes} bytes")
        return self._text(start, n_bytes)

    def value(self, kind: int, key: str) -> object:
        """One value of type ``kind``, a `Skipped` where it is too long to keep."""
        if kind == GGUFValueType.STRING:
            return self._string()
        if kind == GGUFValueType.ARRAY:
            return self._list(self.u32(), self.u64(), key)
        if kind not in SCALARS:
            raise self.fail(f"damaged GGUF, {key[:80]!r} has the unknown type {kind}")
        return self.scalar(kind)

    def _text(self, start: int, n_bytes: int) -> str:
        return self._data[start : start + n_bytes].decode("utf-8", errors="backslashreplace")

    def _string(self) -> str | Skipped:
        """Up to its first NUL: llama.cpp reads the strings of a GGUF as those of C."""
        n_bytes = self.u64()
        start = self.take(n_bytes)
        if self._keeps(n_bytes, MAX_KEPT_BYTES):
            return self._text(start, n_bytes).partition("\0")[0]
        return Skipped(start=self._text(start, SHOWN_BYTES).partition("\0")[0])

    def _list(self, kind: int, count: int, key: str) -> list | np.ndarray | Skipped:
        if kind == GGUFValueType.STRING:
            return self._strings(count, key)
        if kind == GGUFValueType.ARRAY:
            raise self.fail(f"{key[:80]!r} is a nested list, which llama.cpp does not read either")
        if kind not in SCALARS:
            raise self.fail(f"damaged GGUF, {key[:80]!r} is a list of the unknown type {kind}")
        code = SCALARS[kind]
        start = self.take(code.size * count)
        if kind == GGUFValueType.FLOAT32 and count > MAX_KEPT_VALUES:
            return self._floats(start, count)
        if count > MAX_KEPT_VALUES or not self._keeps(code.size * count, MAX_KEPT_BYTES):
            return Skipped(count=count)
        return [value for (value,) in code.iter_unpack(self._data[start : self.position])]

    def _strings(self, count: int, key: str) -> list | Skipped:
        if LENGTH.size * count > len(self._data) - self.position:
            raise self.fail(f"truncated GGUF, {key[:80]!r} has {count} values, more than the file")
        self._strings_left -= count
        if self._strings_left < 0:
            raise self.fail(f"damaged GGUF, with {key[:80]!r} there are more than {MAX_STRINGS} strings in lists")
        if count <= MAX_KEPT_VALUES:
            return [self._string() for _ in range(count)]
        self._step_over_strings(count)
        return Skipped(count=count)

    def _step_over_strings(self, count: int) -> None:
        """As `_string` ``count`` times, but fast, since a vocabulary has some 100,000."""
        data, unpack, position = self._data, LENGTH.unpack_from, self.position
        last = len(data) - LENGTH.size
        for _ in range(count):
            if position > last:
                raise self.fail(f"truncated GGUF, a string is missing at byte {position} of {len(data)}")
            position += LENGTH.size + unpack(data, position)[0]
        self.take(position - self.position)

    def _floats(self, start: int, count: int) -> np.ndarray | Skipped:
        if not self._keeps(FLOAT32_BYTES * count, MAX_KEPT_FLOAT_BYTES):
            return Skipped(count=count)
        return np.frombuffer(self._data[start : self.position], "<f4")

    def _keeps(self, n_bytes: int, limit: int) -> bool:
        if n_bytes > min(limit, self._keep_left):
            return False
        self._keep_left -= n_bytes
        return True
