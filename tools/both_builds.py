"""The unpatched and the patched llama.cpp, compiled with the same options."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import build_stock
from build_folders import build_folder

OPTION = re.compile(
    r"^((?:GGML|LLAMA)_\w+|BUILD_SHARED_LIBS|CMAKE_BUILD_TYPE|CMAKE_CUDA_ARCHITECTURES|CMAKE_CUDA_COMPILER)"
    r":(?:BOOL|STRING|FILEPATH|UNINITIALIZED)=(.*)$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Build:
    """A build folder, where in it llama.cpp is, and what makes Python import the bindings that belong to it."""

    name: str
    folder: Path
    llama: Path
    bindings: dict[str, str] = field(default_factory=dict)

    @property
    def programs(self) -> Path:
        return self.folder / "bin"

    @property
    def scratch(self) -> Path:
        """For logs and files of the tests."""
        return self.folder / "upstream-tests"


def both_builds(backend: str) -> tuple[Build, Build]:
    """The unpatched build and the patched one."""
    stock, ours = build_folder(f"stock-{backend}"), build_folder(backend)
    bindings = {"PYTHONPATH": str(build_stock.SOURCE), "LLAMA_CPP_LIB_PATH": str(stock / "bin")}
    return Build("unpatched", stock, stock, bindings), Build("patched", ours, ours / "llama.cpp")


def compile_both(unpatched: Build, patched: Build, jobs: int, parts: Sequence[str]) -> None:
    """Compile these folders of llama.cpp in both builds; `make build` has configured the patched one."""
    cache = patched.folder / "CMakeCache.txt"
    if not cache.is_file():
        sys.exit(f"{cache} is missing: run make build")
    build_stock.check_out()
    build_stock.configure(unpatched.folder, options(cache.read_text()))
    for build in (unpatched, patched):
        targets = [build.llama.relative_to(build.folder) / part / "all" for part in parts]
        command = ("cmake", "--build", build.folder, "--parallel", jobs, "--target", *targets)
        if subprocess.run([str(part) for part in command]).returncode:
            sys.exit(f"{', '.join(parts)} of the {build.name} build does not compile: see above")


def options(cache: str) -> list[str]:
    """The choices in the CMake cache of one build as arguments for another, which finds ccache as upstream does."""
    return [f"-D{name}={value}" for name, value in OPTION.findall(cache) if name != "GGML_CCACHE"]
