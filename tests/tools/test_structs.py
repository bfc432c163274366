"""Structs of ctypes against those of C headers, field by field."""

from __future__ import annotations

from pathlib import Path

import pytest
from upstream.c_structs import Headers
from upstream.pins import ROOT
from upstream.structs import wrong_structs

HEADER = """\
#pragma once
#include <stddef.h> // struct fake { int x; };
/* struct fake { int y; }; */
#define MACRO(x) struct fake { \\
    int z; };
typedef int32_t token;
typedef struct other * other_t;
typedef bool (*callback)(float progress, void * data);
enum kind { A = 1, B };
typedef struct params {
    uint32_t n_ctx;    // text; context
    enum kind kind;
    float scale, base; /* two */
    const char * name;
    token ** tokens;
    other_t other;
    callback call;
    void (*free)(struct params * p, int n);
    char key[128];
    union {
        int64_t i;
        char    text[16];
    };
    struct inner inside;
    size_t size;
    bool last;
} params;
"""
MODULE = """\
import ctypes
from ctypes import Structure, Union, c_char

token = ctypes.c_int32
call = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_float, ctypes.c_void_p)

class inner(Structure): ...

class value(Union):
    _fields_ = [("i", ctypes.c_int64), ("text", c_char * 16)]

class params(ctypes.Structure):
    if TYPE_CHECKING:
        n_ctx: int
    _fields_ = [
        ("n_ctx", ctypes.c_uint32),
        ("kind", ctypes.c_int),
        ("scale", ctypes.c_float),
        ("base", ctypes.c_float),
        ("name", ctypes.c_char_p),
        ("tokens", ctypes.POINTER(ctypes.POINTER(token))),
        ("other", ctypes.c_void_p),
        ("call", call),
        ("free", ctypes.c_void_p),
        ("key", ctypes.c_char * 128),
        ("value", value),
        ("inside", inner),
        ("size", ctypes.c_size_t),
        ("last", ctypes.c_bool),
    ]
"""


def problems(tmp_path: Path, header: str, module: str) -> list[str]:
    for name, text in (("vendor/llama.cpp/include/llama.h", header), ("llama_cpp/llama_cpp.py", module)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return wrong_structs(tmp_path)


def test_equal_structs_are_equal(tmp_path: Path) -> None:
    assert problems(tmp_path, HEADER, MODULE) == []


def test_comments_and_macros_are_no_structs(tmp_path: Path) -> None:
    (tmp_path / "a.h").write_text(HEADER)
    assert Headers([tmp_path / "a.h"]).struct("fake") is None


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "    size_t size;",
            "    size_t moe; size_t size;",
            "`size` (uint64) as field 12, its header has `moe` (uint64)",
        ),
        ("    bool last;", "", "`last` (bool) as field 13, its header has nothing"),
        ("    bool last;", "    bool last; bool more;", "nothing as field 14, its header has `more` (bool)"),
        ("uint32_t n_ctx", "uint64_t n_ctx", "`n_ctx` (uint32) as field 0, its header has `n_ctx` (uint64)"),
        ("uint32_t n_ctx", "int32_t n_ctx", "`n_ctx` (uint32) as field 0, its header has `n_ctx` (int32)"),
        ("scale, base", "base, scale", "`scale` (float) as field 2, its header has `base` (float)"),
        ("token ** tokens", "token tokens", "`tokens` (pointer) as field 5, its header has `tokens` (int32)"),
        ("key[128]", "key[64]", "`key` (char[128]) as field 9, its header has `key` (char[64])"),
        (
            "int64_t i;",
            "int32_t i;",
            "(union(int64, char[16])) as field 10, its header has union(int32, char[16])",
        ),
        ("struct inner", "struct outer", "`inside` (struct inner) as field 11, its header has `inside` (struct outer)"),
        ("typedef struct params", "typedef struct parameters", "is in no header"),
    ],
)
def test_the_first_difference_is_told(tmp_path: Path, old: str, new: str, told: str) -> None:
    assert old in HEADER
    (found,) = problems(tmp_path, HEADER.replace(old, new), MODULE)
    assert found.startswith("llama_cpp/llama_cpp.py: struct params ")
    assert found.endswith(told)


def test_fields_set_after_the_class_count(tmp_path: Path) -> None:
    module = 'class a(Structure): ...\n\na._fields_ = [("x", c_int)]\n'
    assert problems(tmp_path, "struct a { int x; };", module) == []
    assert problems(tmp_path, "struct a { bool x; };", module) != []


def test_names_of_another_module_are_known(tmp_path: Path) -> None:
    (tmp_path / "llama_cpp").mkdir()
    (tmp_path / "llama_cpp/mtmd_cpp.py").write_text('class b(Structure):\n    _fields_ = [("x", llama_cpp.token)]\n')
    assert problems(tmp_path, "struct b { int32_t x; };", "token = ctypes.c_int32\n") == []


@pytest.mark.native
def test_the_prepared_bindings_have_the_structs_of_the_headers() -> None:
    assert wrong_structs(ROOT / "build" / "src") == []
