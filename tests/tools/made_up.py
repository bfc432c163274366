"""Source packages made here, small enough to move patches about in a second, and a project that pins them."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "llama_patches.py"
LLAMA_H = "struct llama_batch {\n    int n_tokens;\n    float * embd; // may be null\n};\n"
LLAMA_CPP_PY = """\
import ctypes

class llama_batch(ctypes.Structure):
    _fields_ = [("n_tokens", ctypes.c_int32), ("embd", ctypes.POINTER(ctypes.c_float))]
"""
LLAMA = {
    "CMakeLists.txt": "\n",
    "ggml/ggml.c": "int ggml;\n",
    "include/llama.h": LLAMA_H,
    "src/a.cpp": "int a() {\n    return 1;\n}\n",
    "src/b.cpp": "int b() {\n    return 2;\n}\n",
    ".git": "gitdir: ../../.git/modules/vendor/llama.cpp\n",
}
REPOSITORY = {".git/HEAD": "ref: refs/heads/elsewhere\n", ".git/config": "[core]\n", ".git/index": "no index\n"}


def below(folder: str, files: dict[str, str]) -> dict[str, str]:
    return {f"{folder}/{name}": text for name, text in files.items()}


FILES = {
    **below("vendor/llama.cpp", LLAMA),
    **REPOSITORY,
    "llama_cpp/x.py": "x = 1\n",
    "llama_cpp/llama_cpp.py": LLAMA_CPP_PY,
}
CMAKE = """\
cmake_minimum_required(VERSION 3.21)
project(made_up CXX)
set(LLAMA ${KVTUNER_SOURCE}/vendor/llama.cpp)
add_library(made_up OBJECT ${LLAMA}/src/a.cpp cpp/ours.cpp)
target_include_directories(made_up PRIVATE ${LLAMA}/include)
"""
BUILD = """\
import os

def prepare_metadata_for_build_wheel(folder, settings=None):
    os.mkdir(f"{folder}/NAME-VERSION.dist-info")
    with open(f"{folder}/NAME-VERSION.dist-info/METADATA", "w") as file:
        file.write("Metadata-Version: 2.1\\nName: NAME\\nVersion: VERSION\\n")
    return "NAME-VERSION.dist-info"
"""


def write_sdist(path: Path, files: dict[str, str]) -> Path:
    """An sdist with one folder, named like the file."""
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"{path.name.removesuffix('.tar.gz')}/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


def write_package(folder: Path, name: str, version: str, files: dict[str, str]) -> Path:
    """An sdist that pip can fetch from ``folder``."""
    build = BUILD.replace("NAME", name).replace("VERSION", version)
    pyproject = '[build-system]\nrequires = []\nbuild-backend = "build"\nbackend-path = ["."]\n'
    folder.mkdir(exist_ok=True)
    return write_sdist(folder / f"{name}-{version}.tar.gz", {**files, "build.py": build, "pyproject.toml": pyproject})


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pin(part: str, path: Path, folder: str = ".") -> str:
    """The section of patches/UPSTREAM for an sdist."""
    package, _, version = path.name.removesuffix(".tar.gz").rpartition("-")
    return f"[{part}]\npackage = {package}\nversion = {version}\nsha256 = {digest(path)}\nfolder = {folder}\n"


class Project:
    """A project folder with the tool, a pin of a made-up package, a build of two sources and no patches yet."""

    def __init__(self, root: Path) -> None:
        self.root, self.tree = root, root / "build" / "src"
        self.patches, self.index = root / "patches", root / "index"
        for folder in ("tools", "patches", "cpp"):
            (root / folder).mkdir(parents=True)
        shutil.copy(TOOL, root / "tools")
        shutil.copytree(TOOL.parent / "upstream", root / "tools" / "upstream")
        (root / "CMakeLists.txt").write_text(CMAKE)
        (root / "cpp" / "ours.cpp").write_text('#include "llama.h"\nint n(llama_batch b) { return b.n_tokens; }\n')
        self.sdist = write_sdist(root / "pkg-1.0.tar.gz", FILES)
        self.pin(pin("bindings", self.sdist))
        (self.patches / "series").write_text("")

    def pin(self, *sections: str) -> None:
        (self.patches / "UPSTREAM").write_text("\n".join(sections))

    def tool(self, *args: object) -> subprocess.CompletedProcess[str]:
        """Run the tool; pip finds the packages of ``index`` and no others."""
        command = [sys.executable, str(self.root / "tools" / TOOL.name), *map(str, args)]
        env = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.index)}
        return subprocess.run(command, capture_output=True, text=True, env=env)

    def prepare(self, *sdists: Path) -> str:
        options = [part for sdist in sdists or (self.sdist,) for part in ("--sdist", sdist)]
        done = self.tool("prepare", *options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def git(self, *args: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@localhost", "-c", "core.editor=true")
        command = ["git", "-C", str(self.tree), *identity, *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, name: str, old: str, new: str, title: str) -> None:
        path = self.tree / name
        path.write_text(path.read_text().replace(old, new))
        self.git("commit", "-qam", title)

    def text(self, name: str) -> str:
        return (self.tree / name).read_text()

    def state(self) -> tuple[str, ...]:
        """What a rebase must leave alone until it has succeeded."""
        marks = ((self.tree / ".git" / name).read_text() for name in ("kvtuner-base", "kvtuner-stamp"))
        return (self.git("rev-parse", "upstream"), *marks, (self.patches / "UPSTREAM").read_text())


def patched_project(root: Path) -> Project:
    """A project with a patch for each part, exported."""
    made = Project(root)
    made.prepare()
    made.commit("vendor/llama.cpp/src/a.cpp", "1", "10", "a: ten")
    made.commit("llama_cpp/x.py", "1", "10", "x: ten")
    assert made.tool("export").returncode == 0
    return made
