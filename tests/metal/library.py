"""Kernels and emulator, compiled by clang into one library and kept by the hash of all that went into it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path

from tests.metal.source import translate

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TREE = Path(os.environ.get("KVTUNER_METAL_TREE", ROOT / "build" / "src"))
UPSTREAM = TREE / "vendor" / "llama.cpp" / "ggml" / "src"
OURS = (ROOT / "cpp" / "metal", ROOT / "cpp" / "format")
FIBERS = ROOT / "cpp" / "test"  # which it shares with the emulator of CUDA
CACHE = Path(os.environ.get("KVTUNER_METAL_BUILD", ROOT / "build" / "metal-emulator"))
# where the first is not installed, the second is: a wheel with clang in it
CLANG, WHEEL = "clang++-19", "ziglang"
AS_CLANG = ["-mcpu=baseline", "-fno-sanitize=undefined", "-D_LIBCPP_REMOVE_TRANSITIVE_INCLUDES"]
COMMON = ["-std=c++17", "-g1", "-fPIC", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas"]
RUNTIME = [*COMMON, "-O2"]
QUIET = [
    "pass-failed", "duplicate-decl-specifier", "user-defined-literals", "c99-designator",
    "unused-function", "unused-variable", "unused-const-variable",
]  # fmt: skip
# each access calls the emulator, also one that a write follows; of vectors longer than 16 bytes clang would tell
# nothing; half is computed in half
KERNELS = [
    *COMMON, "-O1", "-fsanitize=thread", "-fno-vectorize", "-fno-slp-vectorize", "-fno-strict-aliasing",
    *(f"-Wno-{name}" for name in QUIET),
    "-mllvm", "-tsan-instrument-read-before-write", "-mllvm", "-tsan-instrument-func-entry-exit=0",
    "-Xclang", "-ffloat16-excess-precision=none",
]  # fmt: skip
# of kernels that are not upstream's: those read words of four bytes at places that are even
UNDEFINED = ["-fsanitize=undefined,float-cast-overflow", "-fno-sanitize=function,vptr"]
PLACE = re.compile(r"\{\+(0x[0-9a-f]+)\}")


@lru_cache
def compiler() -> list[str] | None:
    """How clang is called; None where it is not installed."""
    if found := shutil.which(CLANG):
        return [found]
    if importlib.util.find_spec(WHEEL):
        return [sys.executable, "-m", WHEEL, "c++", *AS_CLANG]
    return None


def build(
    file: Path,
    kernels: Collection[str],
    includes: Path = UPSTREAM,
    defines: Mapping[str, str | int] | None = None,
    has_bfloat: bool = True,
) -> Path:
    """A library with the ``kernels`` of the Metal ``file`` by their host names, which includes files of ``includes``
    and of ours; ``defines`` are macros that its host gives it, as it does where the device ``has_bfloat``.

    Raises `RuntimeError` with the compiler's words where they do not compile.
    """
    sources = {path: path.read_bytes() for path in _sources(file, includes)}
    more = [f"-D{name}={value}" for name, value in sorted((defines or {}).items())]
    more += ["-DGGML_METAL_HAS_BF16=1"] if has_bfloat else []
    more += [] if file.is_relative_to(UPSTREAM) else UNDEFINED
    parts = [repr((KERNELS, RUNTIME, file.name, sorted(kernels), more)).encode(), _version()]
    digest = hashlib.sha256(
        b"\0".join([*parts, *(p.name.encode() + b"\0" + t for p, t in sources.items())])
    ).hexdigest()
    made = CACHE / f"{file.stem}-{digest[:16]}.so"
    if not made.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            _compile(file, kernels, includes, more, Path(folder), made)
    return made


def locate(library: Path, message: str) -> str:
    """``message`` with the places in the code of ``library`` as file and line."""
    return PLACE.sub(lambda found: _line_of(library, found[1]), message)


def _sources(file: Path, includes: Path) -> list[Path]:
    folders = (file.parent, includes / "ggml-metal" / "kernels", *OURS)
    kernels = [path for folder in folders for path in _metal_files(folder)]
    headers = [includes / "ggml-common.h", includes / "ggml-metal" / "ggml-metal-impl.h"]
    own = [path for folder in ("shim", "emulator") for path in sorted((HERE / folder).iterdir())]
    own += sorted(FIBERS.glob("fiber.*"))
    used = [path for path in kernels if path == file or path.suffix == ".h" or path.stem.endswith("_common")]
    return [*dict.fromkeys(used), *(path for path in headers if path.exists()), *own, HERE / "source.py"]


def _metal_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in {".metal", ".h"}) if folder.is_dir() else []


@lru_cache
def _version() -> bytes:
    return subprocess.run([*(compiler() or []), "--version"], capture_output=True, check=True).stdout


def _compile(file: Path, kernels: Collection[str], includes: Path, more: list[str], folder: Path, made: Path) -> None:
    for path in _metal_files(file.parent):
        (folder / path.name).write_text(translate(path.read_text(), path.name, kernels))
    upstream = (includes / "ggml-metal" / "kernels", includes / "ggml-metal", includes)
    paths = [f"-I{path}" for path in (folder, HERE / "shim", HERE / "emulator", FIBERS, *OURS, *upstream)]
    main = folder / "kernels.o"
    include = ["-include", str(HERE / "shim" / "metal_stdlib")]
    run_compiler([*KERNELS, *more, *paths, *include, "-x", "c++", "-c", str(folder / file.name), "-o", str(main)])
    own = [*map(str, sorted((HERE / "emulator").glob("*.cpp"))), str(FIBERS / "fiber.cpp")]
    unfinished = folder / made.name
    run_compiler([*RUNTIME, f"-I{FIBERS}", "-shared", str(main), *own, "-ldl", "-o", str(unfinished)])
    unfinished.replace(made)


def run_compiler(arguments: list[str]) -> None:
    """Raises `RuntimeError` with the compiler's words where it fails."""
    command = [*(compiler() or []), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


def _line_of(library: Path, offset: str) -> str:
    """The innermost line there that is a kernel's, inlined or not, and not one of the shim's."""
    command = ["addr2line", "-i", "-e", str(library), offset]
    frames = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    places = [f"{Path(frame.split(':')[0]).name}:{frame.split(':')[1]}" for frame in frames if ":" in frame]
    shim = {path.name for path in (HERE / "shim").iterdir()}
    kernel = [place for place in places if place.split(":")[0] not in shim]
    return (kernel or places or [offset])[0]
