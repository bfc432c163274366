#!/usr/bin/env python3
"""Compile the unpatched library from the pinned source, for the tests that compare the patched one with it."""

from __future__ import annotations

import argparse
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from build_folders import ROOT, stock_folder

SOURCE = ROOT / "build" / "stock-src"
NEEDED = (
    ROOT / "patches" / "llama.cpp" / "0001-cpu-keep-the-whole-AMX-tile-configuration.patch",
)  # it crashes without
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DLLAMA_BUILD_COMMON=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_TOOLS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_APP=OFF",
)


def run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True)


def check_out() -> None:
    """Make `SOURCE` the source as it came, with what it needs to run at all."""
    prepared = ROOT / "build" / "src"
    if not SOURCE.exists():
        run("git", "-C", prepared, "worktree", "prune")
        run("git", "-C", prepared, "worktree", "add", "--force", "--detach", SOURCE, "upstream")
    if not is_applied():
        run("git", "-C", SOURCE, "checkout", "--quiet", "--force", "--detach", "upstream")
        run("git", "-C", SOURCE, "apply", *NEEDED)


def is_applied() -> bool:
    """Whether the source is the pinned one with `NEEDED` and nothing else."""
    base = git_output("rev-parse", "HEAD") == git_output("rev-parse", "upstream")
    return base and git_output("diff", "--full-index", "-U2") == "".join(map(difference, NEEDED))


def difference(patch: Path) -> str:
    return "diff --git" + patch.read_text().partition("diff --git")[2]


def git_output(*args: str) -> str:
    return subprocess.run(["git", "-C", str(SOURCE), *args], check=True, capture_output=True, text=True).stdout


def configure(folder: Path, options: Iterable[str | Path]) -> None:
    llama = SOURCE / "vendor" / "llama.cpp"
    run("cmake", "-S", llama, "-B", folder, "-G", "Ninja", "-Wno-dev", "--log-level=WARNING", *options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", default="native", help="as for tools/build_native.py")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="parallel compile jobs")
    args = parser.parse_args()
    check_out()
    folder = stock_folder(args.cpu)
    cpu = (f"-DKVTUNER_SOURCE={SOURCE}", f"-DKVTUNER_CPU={args.cpu}", "-C", ROOT / "cpp" / "cpu.cmake")
    configure(folder, (*cpu, *OPTIONS))
    run("cmake", "--build", folder, "--target", "llama", "--parallel", str(args.jobs))


if __name__ == "__main__":
    main()
