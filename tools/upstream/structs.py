"""Whether the structs of the bindings are those of llama.cpp's headers: one that is not shifts all after it."""

from __future__ import annotations

import ast
from itertools import zip_longest
from pathlib import Path

from upstream.c_structs import Fields, Headers
from upstream.ctypes_structs import Module
from upstream.sources import VENDOR

MODULES = ("llama_cpp/llama_cpp.py", "llama_cpp/mtmd_cpp.py")
HEADERS = ("include/*.h", "ggml/include/*.h", "tools/mtmd/*.h")
NONE = ("", "")


def wrong_structs(tree: Path) -> list[str]:
    """One line for each struct of the bindings that differs from its header."""
    headers = Headers(path for pattern in HEADERS for path in sorted((tree / VENDOR).glob(pattern)))
    names: dict[str, ast.expr] = {}
    modules = [Module(tree / name, names) for name in MODULES if (tree / name).exists()]
    return [
        f"{module.path.relative_to(tree)}: struct {name} {problem}"
        for module in modules
        for name, fields in module.structs().items()
        if (problem := difference(fields, headers.struct(name)))
    ]


def difference(bindings: Fields, header: Fields | None) -> str:
    """The first field that differs, in words; nothing where none does."""
    if header is None:
        return "is in no header"
    for i, ((name, kind), (c_name, c_kind)) in enumerate(zip_longest(bindings, header, fillvalue=NONE)):
        if kind != c_kind or (c_name and name != c_name):
            return f"has {told(name, kind)} as field {i}, its header has {told(c_name, c_kind)}"
    return ""


def told(name: str, kind: str) -> str:
    return f"`{name}` ({kind})" if name else kind or "nothing"
