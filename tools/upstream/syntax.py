"""Whether what our patches touch, and our own sources, compile: the compiler's front end alone, nothing is written."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from upstream.git import git
from upstream.pins import ROOT

SOURCES = (".c", ".cpp")
SHOWN = 3  # errors of a file


@dataclass(frozen=True)
class Command:
    """How the build compiles a file."""

    file: Path
    folder: Path
    words: tuple[str, ...]


def touched(tree: Path) -> list[Path]:
    """The C and C++ sources of upstream that our patches change."""
    names = git(tree, "diff", "--name-only", "--diff-filter=d", "upstream", "main").splitlines()
    return [tree / name for name in names if name.endswith(SOURCES)]


def commands(tree: Path, folder: Path) -> dict[Path, Command]:
    """Configure a build of ``tree`` in ``folder``; how each of its files is compiled."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    options = ["-G", "Ninja", "-Wno-dev", "--log-level=WARNING", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"]
    command = ["cmake", "-S", str(ROOT), "-B", str(folder), *options, f"-DKVTUNER_SOURCE={tree.resolve()}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"cmake cannot configure {tree}:\n{done.stdout}{done.stderr}")
    entries = json.loads((folder / "compile_commands.json").read_text())
    made = (Command(Path(e["file"]), Path(e["directory"]), tuple(shlex.split(e["command"]))) for e in entries)
    return {command.file.resolve(): command for command in made}


def syntax_errors(tree: Path, jobs: int) -> list[str]:
    """One text for each source that does not compile; prints how many were tried and which no build compiles."""
    with tempfile.TemporaryDirectory() as scratch:
        known = commands(tree, Path(scratch))
        wanted = [path.resolve() for path in touched(tree)]
        ours = [path for path in known if path.is_relative_to((ROOT / "cpp").resolve())]
        files = [path for path in wanted + ours if path in known]
        with ThreadPoolExecutor(jobs) as pool:
            found = list(pool.map(lambda path: errors_of(known[path]), files))
    print(f"{len(files)} sources checked")
    for path in wanted:
        if path not in known:
            print(f"  not part of this build: {path}")
    return [text for text in found if text]


def errors_of(command: Command) -> str:
    """The file's name and its first errors; nothing where it compiles."""
    words = [*command.words, "-fsyntax-only"]
    at = words.index("-o")
    del words[at : at + 2]
    done = subprocess.run(words, cwd=command.folder, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    errors = [line for line in done.stderr.splitlines() if "error:" in line] or done.stderr.splitlines()
    return "\n  ".join([f"{command.file} does not compile:", *errors[:SHOWN]])
