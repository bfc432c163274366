"""The patch files: their order, and writing them from the commits of the prepared tree."""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

from upstream.git import git, patched_commits
from upstream.pins import BINDINGS, LLAMA, PATCHES, Pins
from upstream.sources import VENDOR

STAMP = "kvtuner-stamp"  # kept inside .git, so that the tree shows only upstream's files and ours
BASE = "kvtuner-base"
GROUPS = {f"{VENDOR}/": LLAMA, "llama_cpp/": BINDINGS}


def series() -> list[Path]:
    """The patch files in the order in which they apply."""
    return [PATCHES / line for line in (PATCHES / "series").read_text().split("\n") if line.strip()]


def series_digest(pins: Pins) -> str:
    """What the stamp of a prepared tree holds."""
    found = hashlib.sha256(pins.identity.encode())
    for patch in series():
        found.update(patch.read_bytes())
    return found.hexdigest()


def has_base(tree: Path, pins: Pins) -> bool:
    base = tree / ".git" / BASE
    return base.exists() and base.read_text() == pins.identity


def group_of(tree: Path, commit: str) -> str:
    """The part that a commit changes."""
    touched = git(tree, "diff-tree", "--no-commit-id", "--name-only", "-r", commit).split("\n")
    groups = {name for prefix, name in GROUPS.items() if any(path.startswith(prefix) for path in touched)}
    if len(groups) != 1:
        sys.exit(f"commit {commit[:10]} must touch either {VENDOR} or the bindings: split it")
    return groups.pop()


def format_patches(tree: Path, folder: Path) -> list[Path]:
    """Write one file per commit into ``folder``, in a subfolder by what it changes; paths relative to it."""
    names: list[Path] = []
    for commit in patched_commits(tree):
        group = Path(group_of(tree, commit))
        numbered = str(1 + sum(name.parent == group for name in names))
        options = ["--zero-commit", "--full-index", "--no-signature", "--no-stat", "-U2", "--start-number", numbered]
        path = git(tree, "format-patch", *options, "--output-directory", str(folder / group), "-1", commit).strip()
        names.append(group / Path(path).name)
    return names


def export(tree: Path) -> None:
    """Write the commits of the tree to patches/."""
    pins = Pins.read()
    with tempfile.TemporaryDirectory() as scratch:
        names = format_patches(tree, Path(scratch))
        for patch in series():
            patch.unlink(missing_ok=True)
        for name in names:
            (PATCHES / name).parent.mkdir(exist_ok=True)
            shutil.copy(Path(scratch) / name, PATCHES / name)
    (PATCHES / "series").write_text("".join(f"{name}\n" for name in names))
    print(f"{PATCHES}: {len(names)} patches")
    if has_base(tree, pins):
        (tree / ".git" / STAMP).write_text(series_digest(pins))
    else:
        print(f"{tree} holds other sources than patches/UPSTREAM: pin them there, or nobody else can build this")


def check(tree: Path) -> None:
    """End the program where export would change a file."""
    with tempfile.TemporaryDirectory() as scratch:
        names = format_patches(tree, Path(scratch))
        if [PATCHES / name for name in names] != series():
            sys.exit("patches/series does not name the commits of the prepared tree: run export")
        for name in names:
            if (Path(scratch) / name).read_bytes() != (PATCHES / name).read_bytes():
                sys.exit(f"patches/{name} differs from its commit in the prepared tree: run export")
    print(f"{len(names)} patches are what export writes")
