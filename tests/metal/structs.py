"""The arguments of kernels, their numbers of function constants and sizes, from the header that upstream's host has."""

from __future__ import annotations

import ctypes
import re

from tests.metal.library import UPSTREAM

FIELD_TYPES = {
    "int32_t": ctypes.c_int32,
    "uint64_t": ctypes.c_uint64,
    "float": ctypes.c_float,
    "bool": ctypes.c_bool,
}
STRUCT = re.compile(r"typedef struct \{([^}]*)\} ggml_metal_kargs_(\w+);")
FIELD = re.compile(r"^\s*(\w+)\s+(\w+);", re.MULTILINE)
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
    body = next(body for body, found in STRUCT.findall(header()) if found == name)
    fields = [(field, FIELD_TYPES[kind]) for kind, field in FIELD.findall(body)]
    if set(values) != {field for field, _ in fields}:
        raise TypeError(f"{name}: {sorted(set(values) ^ {field for field, _ in fields})}")
    struct = type(name, (ctypes.Structure,), {"_fields_": fields})
    return struct(**values)
