#!/usr/bin/env python3
"""Compile the prepared source once and install it: the wheel of the bindings and the tools of llama.cpp.

Everything lands in the environment of the Python that runs this. A second run compiles only what changed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from build_folders import ROOT, build_folder
from upstream.pins import Pins

SOURCE = ROOT / "build" / "src"
TOOLS = (
    "llama-server",
    "llama-cli",
    "llama-completion",
    "llama-perplexity",
    "llama-bench",
    "llama-batched-bench",
    "llama-quantize",
    "llama-fit-params",
    "ggml-rpc-server",
    "test-backend-ops",
    "test-llama-archs",
)
BINDINGS_FILES = ("pyproject.toml", "README.md", "LICENSE.md")


def run(*command: str | Path) -> None:
    if subprocess.run([str(part) for part in command], cwd=ROOT).returncode:
        sys.exit(f"failed: {' '.join(map(str, command))}")


def compile_native(folder: Path, backend: str, cpu: str, jobs: int, definitions: list[str]) -> None:
    options = [f"-DKVTUNER_BACKEND={backend}", f"-DKVTUNER_CPU={cpu}", *(f"-D{text}" for text in definitions)]
    run("cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-Wno-dev", "--log-level=WARNING", *options)
    run("cmake", "--build", folder, "--target", "kvtuner", "--parallel", str(jobs))


def stage_wheel(folder: Path) -> Path:
    """Lay out the bindings with our module and the compiled libraries, ready to be packed."""
    stage = folder / "wheel"
    shutil.rmtree(stage, ignore_errors=True)
    shutil.copytree(SOURCE / "llama_cpp", stage / "llama_cpp")
    for name in BINDINGS_FILES:
        shutil.copy2(SOURCE / name, stage)
    shutil.copy2(ROOT / "cpp" / "bindings" / "kvtuner.py", stage / "llama_cpp")
    init = stage / "llama_cpp" / "__init__.py"
    local = f"+kvtuner.{Pins.read().release}"
    version, count = re.subn(r'__version__ = "([\d.]+)"', rf'__version__ = "\1{local}"', init.read_text())
    if count != 1:
        sys.exit(f"{init} has no plain version to extend")
    init.write_text(version)
    run("cmake", "--install", folder, "--component", "kvtuner-wheel", "--prefix", stage / "llama_cpp" / "lib")
    return stage


def pack_wheel(stage: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    settings = ("-C", "wheel.cmake=false", "-C", "wheel.platlib=true", "-C", "sdist.include=llama_cpp/lib/*")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    run(*pip, *settings, "--wheel-dir", target, stage)
    return next(target.glob("*.whl"))


def install(wheel: Path, folder: Path) -> None:
    run(sys.executable, "-m", "pip", "install", "--quiet", "--force-reinstall", "--no-deps", wheel)
    scripts = Path(sysconfig.get_path("scripts"))
    for name in TOOLS:
        link = scripts / name
        link.unlink(missing_ok=True)
        link.symlink_to(folder / "bin" / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("cpu", "cuda", "metal", "vulkan"), default="cpu")
    parser.add_argument("--cpu", default="native", help="native, all, haswell, x86-64-v4, ...: see cpp/cpu.cmake")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="parallel compile jobs")
    parser.add_argument("-D", dest="definitions", action="append", default=[], help="pass NAME=VALUE on to CMake")
    args = parser.parse_args()
    folder = build_folder(args.backend, args.cpu)
    compile_native(folder, args.backend, args.cpu, args.jobs, args.definitions)
    install(pack_wheel(stage_wheel(folder), folder / "dist"), folder)


if __name__ == "__main__":
    main()
