"""The structs of C headers, as far as llama.cpp's interface uses C.

A kind is what two compilers must agree on: `int32`, `pointer`, `char[128]`, `struct NAME`, `union(...)` of kinds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", re.MULTILINE)
STRUCT = re.compile(r"\bstruct\s+(\w+)\s*\{")
FUNCTION_POINTER = re.compile(r"\(\s*\*\s*(\w+)\s*\)\s*\(")
TYPEDEF = re.compile(r"\btypedef\s+([^;{}()]+?)\s*\b(\w+)\s*;")
TYPEDEF_POINTER = re.compile(r"\btypedef\s+[^;{}()]+?\(\s*\*\s*(\w+)\s*\)\s*\(")
DECLARATOR = re.compile(r"(\**)\s*(\w+)\s*((?:\[\w+\])*)$")
QUALIFIERS = {"const", "volatile", "struct"}
BASIC = {
    "bool": "bool",
    "char": "char",
    "int8_t": "int8",
    "uint8_t": "uint8",
    "int16_t": "int16",
    "uint16_t": "uint16",
    "int": "int32",
    "int32_t": "int32",
    "uint32_t": "uint32",
    "unsigned int": "uint32",
    "int64_t": "int64",
    "uint64_t": "uint64",
    "size_t": "uint64",
    "float": "float",
    "double": "double",
}

Fields = list[tuple[str, str]]  # names and kinds, in order


class Headers:
    """The structs and typedefs of some headers."""

    def __init__(self, paths: Iterable[Path]) -> None:
        text = "\n".join(DIRECTIVE.sub("", COMMENT.sub(" ", path.read_text())) for path in paths)
        self.bodies = {match[1]: braced(text, match.end() - 1) for match in STRUCT.finditer(text)}
        self.typedefs = {name: "*" for name in TYPEDEF_POINTER.findall(text)}
        self.typedefs |= {name: meaning for meaning, name in TYPEDEF.findall(text)}

    def struct(self, name: str) -> Fields | None:
        """The fields of a struct; None where no header has it."""
        return self.fields(self.bodies[name]) if name in self.bodies else None

    def fields(self, body: str) -> Fields:
        return [made for declaration in declarations(body) for made in self.declared(declaration)]

    def declared(self, text: str) -> Iterator[tuple[str, str]]:
        """What a declaration declares; an anonymous union has no name."""
        pointer = FUNCTION_POINTER.search(text)
        if text.startswith("union") and "{" in text:
            kinds = ", ".join(kind for _, kind in self.fields(braced(text, text.index("{"))))
            yield text[text.rindex("}") + 1 :].strip(), f"union({kinds})"
        elif pointer:
            yield pointer[1], "pointer"
        else:
            yield from self.plain(text)

    def plain(self, text: str) -> Iterator[tuple[str, str]]:
        first, *others = (part.strip() for part in text.split(","))
        declarator = DECLARATOR.search(first)
        base = first[: declarator.start()].strip() if declarator else first
        for part in (first[len(base) :].strip(), *others):
            stars, name, sizes = DECLARATOR.match(part).groups()
            yield name, ("pointer" if stars else self.kind(base)) + sizes

    def kind(self, text: str) -> str:
        """The kind of a type without declarator."""
        if "*" in text:
            return "pointer"
        words = [word for word in text.split() if word not in QUALIFIERS]
        name = " ".join(words)
        if words[0] == "enum":
            return "int32"
        if name not in BASIC and name in self.typedefs and self.typedefs[name].split()[-1] != name:
            return self.kind(self.typedefs[name])
        return BASIC.get(name, f"struct {name}")


def braced(text: str, start: int) -> str:
    """What stands between the brace at ``start`` and its partner."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[start + 1 : i]
    return text[start + 1 :]


def declarations(body: str) -> Iterator[str]:
    """The declarations of a struct's body, split at the semicolons outside braces."""
    depth, start = 0, 0
    for i, letter in enumerate(body):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == ";" and depth == 0:
            yield " ".join(body[start:i].split())
            start = i + 1
