"""What Apple's compiler rejects in a kernel and clang, which knows no address spaces, accepts."""

from __future__ import annotations

import re
from collections.abc import Iterator

THREADGROUP_LIMIT = 32 * 1024
SPACES = ("device", "constant", "threadgroup", "thread", "object_data", "ray_data")
ATTRIBUTES = frozenset(
    [
        "host_name",
        "function_constant",
        "buffer",
        "threadgroup",
        "threadgroup_position_in_grid",
        "thread_position_in_threadgroup",
        "thread_position_in_grid",
        "threads_per_threadgroup",
        "threadgroups_per_grid",
        "thread_index_in_threadgroup",
        "thread_index_in_simdgroup",
        "simdgroup_index_in_threadgroup",
        "simdgroups_per_threadgroup",
        "threads_per_simdgroup",
        "max_total_threads_per_threadgroup",
        "maybe_unused",
    ]
)
SIZES = {"char": 1, "uchar": 1, "int8_t": 1, "uint8_t": 1, "half": 2, "short": 2, "ushort": 2, "float": 4, "int": 4}
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
LITERAL = re.compile(r'"(?:\\.|[^"\\\n])*"')
SKIPPED = re.compile(r"^#if 0\b.*?^#(?:endif|else)\b", re.DOTALL | re.MULTILINE)
DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n\\]|\\\n|\\.)*", re.MULTILINE)
FUNCTION = re.compile(r"\b(\w+)\s*\(([^(){};]*)\)\s*\{")
STATEMENTS = frozenset(("if", "for", "while", "switch"))
PARAMETER = re.compile(r"[\s\w]*\w(?:<[^<>]*>)?\s*[*&]\s*(?:const\s+)?\w+\s*")
DECLARATION = re.compile(r"(?<=[;{}])\s*((?:\w+\s+)*)([A-Za-z_]\w*)\s*\*\s*(\w+)\s*(?==|;)")
MIXED = re.compile(
    r"\b(device|constant|threadgroup)\s[\w\s]*\*\s*\w+\s*=\s*\(\s*(device|constant|threadgroup|thread)\b"
)
LAMBDA = re.compile(r"(?<![\w\])\[])\[[&=\w\s,]*\]\s*(?:\([^()]*\)\s*)?(?:->\s*\w+\s*)?\{")
ARRAY = re.compile(r"^\s+((?:threadgroup\s+)?(?:const\s+)?\w+)\s+(\w+)((?:\[[^\]]+\])+)\s*(?:;|=)", re.MULTILINE)
ATTRIBUTE = re.compile(r"\[\[\s*(\w+)")
CONSTANT_NAME = re.compile(r"\b[A-Za-z_]\w*\b")
CONSTANT = re.compile(r"\b(?:constexpr\s+(?:constant\s+|static\s+)*\w+\s+(\w+)\s*=|const\s+\w+\s+(\w+)\s*=\s*\d+\s*;)")
TEMPLATE = re.compile(r"\btemplate\s*<")
FORBIDDEN = re.compile(r"\b(new|delete|throw|try|catch|dynamic_cast|typeid|virtual|goto|double|std::\w+)\b")


def findings(text: str, names: frozenset[str] = frozenset()) -> list[str]:
    """The faults of a Metal ``text``, each as ``LINE: what``; ``names`` are constants of the files that it includes."""
    code = _blank(text)
    found = [*_attributes(code), *_lambdas(code), *_arrays(code, names), *_spaces(code), *_forbidden(code)]
    return [f"{code.count(chr(10), 0, at) + 1}: {what}" for at, what in sorted(found)]


def _blank(text: str) -> str:
    """Comments, texts, directives and what is switched off as spaces: places stay."""
    for pattern in (SKIPPED, COMMENT, LITERAL, DIRECTIVE):
        text = pattern.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    return text


def _attributes(code: str) -> Iterator[tuple[int, str]]:
    for match in ATTRIBUTE.finditer(code):
        if match[1] not in ATTRIBUTES:
            yield match.start(), f"attribute {match[1]}"


def _lambdas(code: str) -> Iterator[tuple[int, str]]:
    for match in LAMBDA.finditer(code):
        yield match.start(), "a lambda"


def _forbidden(code: str) -> Iterator[tuple[int, str]]:
    for match in FORBIDDEN.finditer(code):
        yield match.start(), f"{match[1]} is not in Metal"


def _spaces(code: str) -> Iterator[tuple[int, str]]:
    """Pointers and references among parameters and variables without an address space."""
    for match in FUNCTION.finditer(code):
        if match[1] in STATEMENTS:
            continue
        for parameter in re.finditer(r"[^,]+", re.sub(r"\[\[.*?\]\]", lambda found: " " * len(found[0]), match[2])):
            if PARAMETER.fullmatch(parameter[0]) and not _has_space(parameter[0]):
                yield match.start(2) + parameter.start(), f"no address space: {parameter[0].strip()}"
    for match in DECLARATION.finditer(code):
        if not _has_space(match[1]) and "return" not in match[1].split() and match[2] not in ("return", *SPACES):
            yield match.start(3), f"no address space: {match[2]} * {match[3]}"
    for match in MIXED.finditer(code):
        if match[1] != match[2]:
            yield match.start(), f"{match[1]} and {match[2]} are mixed"


def _has_space(declaration: str) -> bool:
    return any(re.search(rf"\b{space}\b", declaration) for space in SPACES)


def _arrays(code: str, names: frozenset[str]) -> Iterator[tuple[int, str]]:
    """Arrays whose size is no constant, and more threadgroup memory than there is."""
    known = names | frozenset(name for pair in CONSTANT.findall(code) for name in pair) | _template_parameters(code)
    bytes_used = 0
    for match in ARRAY.finditer(code):
        if match[1] == "return":
            continue
        sizes = re.findall(r"\[([^\]]+)\]", match[3])
        for name in (name for size in sizes for name in CONSTANT_NAME.findall(size)):
            if name not in known and not name.isupper() and not name.startswith(("sizeof", "QK")):
                yield match.start(2), f"the size of {match[2]} is no constant: {name}"
        if match[1].startswith("threadgroup") and all(size.strip().isdigit() for size in sizes):
            count = 1
            for size in sizes:
                count *= int(size)
            bytes_used += count * SIZES.get(match[1].split()[-1], 16)
            if bytes_used > THREADGROUP_LIMIT:
                yield match.start(2), f"{bytes_used} bytes of threadgroup memory"


def _template_parameters(code: str) -> frozenset[str]:
    found: set[str] = set()
    for match in TEMPLATE.finditer(code):
        end = code.find(">", match.end())
        found |= set(re.findall(r"\b(?:short|int|uint|ushort|bool)\s+(\w+)", code[match.end() : end + 200]))
    return frozenset(found)
