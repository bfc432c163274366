"""The arguments of kernels, their numbers of function constants and sizes, from the headers that hosts have."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping

from tests.metal.library import OURS, UPSTREAM

FIELD_TYPES = {
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "uint64_t": ctypes.c_uint64,
    "float": ctypes.c_float,
    "bool": ctypes.c_bool,
}
STRUCT = re.compile(r"typedef struct \{([^}]*)\} (\w+);")
FIELD = re.compile(r"^\s*(\w+)\s+(\w+)(?:\[(\d+)\])?;", re.MULTILINE)
DEFINE = re.compile(r"^#define (\w+)\s+(\d+)\s*$", re.MULTILINE)


def header() -> str:
    return (UPSTREAM / "ggml-metal" / "ggml-metal-impl.h").read_text()


def constants() -> dict[str, int]:
    """The header's whole numbers: ``FC_...`` begin function constants, ``OP_...`` are sizes."""
    return {name: int(value) for name, value in DEFINE.findall(header())}


def arguments(name: str, **values: float) -> ctypes.Structure:
    """``ggml_metal_kargs_NAME`` with ``values`` for its fields, each of which must be given.

    Raises `TypeError` where one is missing or unknown.
    """
    return _filled(header(), f"ggml_metal_kargs_{name}", values)


def our_arguments(file: str, name: str, **values: float | tuple[int, ...]) -> ctypes.Structure:
    """``NAME`` of a header of ours in the same way; a struct or an array in it is given as the tuple of its values."""
    return _filled((OURS[0] / file).read_text(), name, values)


def _filled(text: str, name: str, values: Mapping[str, float | tuple[int, ...]]) -> ctypes.Structure:
    struct = _struct(name, {found: body for body, found in STRUCT.findall(text)})
    kinds = dict(struct._fields_)
    if set(values) != set(kinds):
        raise TypeError(f"{name}: {sorted(set(values) ^ set(kinds))}")
    return struct(**{key: kinds[key](*value) if isinstance(value, tuple) else value for key, value in values.items()})


def _struct(name: str, structs: Mapping[str, str]) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(_fields(name, structs).items())})


def _fields(name: str, structs: Mapping[str, str]) -> dict[str, type]:
    found = {}
    for kind, field, count in FIELD.findall(structs[name]):
        one = FIELD_TYPES.get(kind) or _struct(kind, structs)
        found[field] = one * int(count) if count else one
    return found
