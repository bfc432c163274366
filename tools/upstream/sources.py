"""Source packages: fetched, verified, unpacked and laid out as the tree that our patches apply to."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from upstream.pins import BINDINGS, LLAMA, Pin, Pins

VENDOR = "vendor/llama.cpp"  # where the bindings keep llama.cpp
MARKS = ("CMakeLists.txt", "include/llama.h", "ggml", "src")  # what a llama.cpp tree has


def digest(path: Path) -> str:
    """The sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def verify(sdist: Path, *wanted: str) -> Path:
    """The file, where its sha256 is one of ``wanted``; else the program ends."""
    found = digest(sdist)
    if found not in wanted:
        sys.exit(f"{sdist}: sha256 {found} is not the pinned {' or '.join(wanted)}: fetch it again")
    return sdist


def download(package: str, version: str, folder: Path) -> Path:
    """Fetch the sdist of a package with the package client, which compares it with the index; the file."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", package]
        if subprocess.run([*command, f"{package}=={version}", "--dest", scratch]).returncode:
            sys.exit(f"cannot download {package}=={version}: give a copy of its sdist with --sdist FILE")
        (only,) = Path(scratch).iterdir()
        return only.rename(folder / only.name)


def fetch(pin: Pin, folder: Path, given: Sequence[Path]) -> Path:
    """The sdist of ``pin``: a file given, one in ``folder``, or a new one there; its sha256 is verified."""
    for path in (*given, *folder.glob(f"*{pin.version}.tar.gz")):
        if digest(path) == pin.sha256:
            return path
    return verify(download(pin.package, pin.version, folder), pin.sha256)


def without_git(member: tarfile.TarInfo, target: str) -> tarfile.TarInfo | None:
    """Leave out repositories, which would hide files from ours or take its place."""
    return None if ".git" in Path(member.name).parts else tarfile.data_filter(member, target)


@contextmanager
def opened(path: Path, beside: Path) -> Iterator[Path]:
    """The files of a folder or an sdist as a folder that may be taken apart; it lies in ``beside`` until the end."""
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside) as scratch:
        if path.is_dir():
            shutil.copytree(path, f"{scratch}/{path.name}", symlinks=True, ignore=shutil.ignore_patterns(".git"))
        else:
            unpack(path, Path(scratch))
        (only,) = Path(scratch).iterdir()
        yield only


def unpack(sdist: Path, folder: Path) -> None:
    try:
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter=without_git)
    except (tarfile.TarError, OSError) as err:
        sys.exit(f"{sdist} is no sdist that can be read: {err}")
    if len(list(folder.iterdir())) != 1:
        sys.exit(f"{sdist} is no sdist: it must hold one folder")


def part_of(root: Path) -> str:
    """Which part the files of ``root`` are: the bindings, or something that carries llama.cpp."""
    return BINDINGS if (root / "llama_cpp").is_dir() and (root / VENDOR).is_dir() else LLAMA


def find_llama(root: Path, folder: str | None = None) -> str:
    """The folder of llama.cpp in ``root``, relative to it; ends the program where there is none, or not one alone."""
    if folder is not None:
        return folder if is_llama(root / folder) else sys.exit(f"{folder} is no llama.cpp tree: it needs {MARKS}")
    if part_of(root) == BINDINGS:
        return VENDOR
    headers = sorted(root.rglob("include/llama.h"))
    found = [str(path.parents[1].relative_to(root)) for path in headers if is_llama(path.parents[1])]
    if len(found) != 1:
        sys.exit(f"llama.cpp lies in {' and '.join(found) or 'no folder'} there: name the one to take with --folder")
    return found[0]


def is_llama(folder: Path) -> bool:
    return all((folder / mark).exists() for mark in MARKS)


def overlay(llama: Path, bindings: Path) -> None:
    """Put a llama.cpp tree in the place of the bindings' own."""
    shutil.rmtree(bindings / VENDOR, ignore_errors=True)
    (bindings / VENDOR).parent.mkdir(parents=True, exist_ok=True)
    llama.rename(bindings / VENDOR)


@contextmanager
def laid_out(pins: Pins, folder: Path, given: Sequence[Path]) -> Iterator[Path]:
    """The pinned sources as one folder until the end; ``given`` are sdists that need no download."""
    for path in given:
        verify(path, *(pin.sha256 for pin in pins.all()))
    with opened(fetch(pins.bindings, folder, given), folder) as root:
        base = root / pins.bindings.folder
        if pins.llama is None:
            yield base
            return
        with opened(fetch(pins.llama, folder, given), folder) as carrier:
            overlay(carrier / find_llama(carrier, pins.llama.folder), base)
            yield base
