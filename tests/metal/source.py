"""Metal kernels as C++: what clang cannot be told by macros is rewritten, line for line."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

INSTANTIATION = re.compile(r'^template \[\[host_name\("([^"]+?)"\s*\)\]\]\s+kernel\s+\w+\s+(\w+<.*>);')
PLAIN_KERNEL = re.compile(r"^kernel void (\w+)\(")
BUILT_IN = re.compile(r"\s*\[\[(thread\w*|simdgroup\w*)\]\]")
THREADGROUP_POINTER = re.compile(r"\s*\[\[threadgroup\(\d+\)\]\]")
THREADGROUP_VARIABLE = re.compile(r"^(\s+)threadgroup (\w+) (\w+)\[([^\]]+)\];")
FUNCTION_CONSTANT = re.compile(r"^constant (\w+)\s+(\w+)\s*\[\[function_constant\((.+?)\)\]\];")
ANNOTATION = re.compile(r"\[\[(?!maybe_unused)\w+")


class Untranslated(ValueError):
    """A line of Metal that the emulator does not know."""


def translate(text: str, name: str, wanted: Collection[str]) -> str:
    """``text`` of a Metal file as C++, with the line numbers of file ``name``.

    Of its kernels those whose host names are ``wanted`` are compiled and registered.
    Raises `Untranslated` where an attribute is left.
    """
    lines = text.split("\n")
    translated = [_line(line, lines[i - 1] if i else "", wanted) for i, line in enumerate(lines)]
    for number, line in enumerate(translated, 1):
        if ANNOTATION.search(line.split("//")[0]):
            raise Untranslated(f"{name}:{number}: {line.strip()}")
    plain = [kernel for kernel in _plain_kernels(lines) if kernel in wanted]
    return "\n".join([f'#line 1 "{name}"', *translated, *(f'EMULATE("{kernel}", {kernel})' for kernel in plain), ""])


def _plain_kernels(lines: list[str]) -> list[str]:
    """Those that are no templates."""
    found = [(PLAIN_KERNEL.match(line), lines[i - 1] if i else "") for i, line in enumerate(lines)]
    return [match[1] for match, before in found if match and not before.rstrip().endswith(">")]


def _line(line: str, before: str, wanted: Collection[str]) -> str:
    if found := INSTANTIATION.match(line):
        return f'EMULATE("{found[1]}", {found[2]})' if found[1] in wanted else ""
    if "[[host_name" in line:
        return ""
    if found := FUNCTION_CONSTANT.match(line):
        return f"static const emulator::FunctionConstant<{found[1]}> {found[2]}{{ {found[3]} }};"
    if found := THREADGROUP_VARIABLE.match(line):
        space, kind, name, size = found.groups()
        make = f"emulator::threadgroup_variable(sizeof({kind}) * ({size}), __LINE__)"
        return f"{space}{kind} * const {name} = static_cast<{kind} *>({make});"
    return BUILT_IN.sub(r" = emulator::\1()", THREADGROUP_POINTER.sub("", line))


def host_names(text: str) -> list[str]:
    """The kernels of a Metal file by the names under which a host asks for them."""
    lines = text.split("\n")
    return _plain_kernels(lines) + [match[1] for line in lines if (match := INSTANTIATION.match(line))]


def barrier_lines(path: Path, kind: str) -> list[int]:
    """The lines of ``path`` with a barrier of ``kind``: threadgroup or simdgroup; without those in ``#if 0``."""
    found, skipped = [], False
    for number, line in enumerate(path.read_text().split("\n"), 1):
        if line.startswith("#if 0"):
            skipped = True
        elif line.startswith("#endif"):
            skipped = False
        elif not skipped and f"{kind}_barrier(" in line.split("//")[0]:
            found.append(number)
    return found
