"""The structs that a Python module declares with ctypes, read without importing it; kinds as in `c_structs`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from upstream.c_structs import Fields

BASIC = {
    "c_bool": "bool",
    "c_char": "char",
    "c_byte": "int8",
    "c_ubyte": "uint8",
    "c_int8": "int8",
    "c_uint8": "uint8",
    "c_int16": "int16",
    "c_uint16": "uint16",
    "c_int": "int32",
    "c_int32": "int32",
    "c_uint": "uint32",
    "c_uint32": "uint32",
    "c_int64": "int64",
    "c_uint64": "uint64",
    "c_size_t": "uint64",
    "c_float": "float",
    "c_double": "double",
    "c_void_p": "pointer",
    "c_char_p": "pointer",
    "POINTER": "pointer",
    "CFUNCTYPE": "pointer",
}


class Module:
    """The ctypes declarations of a module at its top level; ``names`` has what the modules before it assign."""

    def __init__(self, path: Path, names: dict[str, ast.expr]) -> None:
        self.path, self.names = path, names
        self.fields: dict[str, ast.expr] = {}
        self.unions: set[str] = set()
        self.classes: list[str] = []
        for node in ast.parse(path.read_text()).body:
            self.read(node)

    def read(self, node: ast.stmt) -> None:
        if isinstance(node, ast.ClassDef):
            bases = {last_name(base) for base in node.bases}
            if bases & {"Structure", "Union"}:
                self.read_class(node, "Union" in bases)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            self.names[node.targets[0].id] = node.value
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            self.set_fields(last_name(node.targets[0].value), node)

    def read_class(self, node: ast.ClassDef, is_union: bool) -> None:
        if is_union:
            self.unions.add(node.name)
        else:
            self.classes.append(node.name)
        for inner in node.body:
            if isinstance(inner, ast.Assign):
                self.set_fields(node.name, inner)

    def set_fields(self, name: str, node: ast.Assign) -> None:
        if last_name(node.targets[0]) == "_fields_":
            self.fields[name] = node.value

    def structs(self) -> dict[str, Fields]:
        """The structs whose fields are given, by name."""
        return {name: list(self.kinds(name)) for name in self.classes if name in self.fields}

    def kinds(self, name: str) -> Iterator[tuple[str, str]]:
        for pair in self.fields[name].elts:
            yield pair.elts[0].value, self.kind(pair.elts[1])

    def kind(self, node: ast.expr) -> str:
        if isinstance(node, ast.BinOp):
            return f"{self.kind(node.left)}[{ast.unparse(node.right)}]"
        name = last_name(node.func if isinstance(node, ast.Call) else node)
        if name in BASIC:
            return BASIC[name]
        if name in self.unions:
            return f"union({', '.join(kind for _, kind in self.kinds(name))})"
        return self.kind(self.names[name]) if name in self.names else f"struct {name}"


def last_name(node: ast.expr) -> str:
    """`c_int` of `ctypes.c_int`."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
