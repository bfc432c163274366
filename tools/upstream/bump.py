"""Another version of a pinned package, from the download to patches that are exported and checked."""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from upstream.compare import compare_folders, source
from upstream.pins import BINDINGS, LLAMA, Pin, Pins
from upstream.rebase import Move, begin, commit_bindings, commit_llama, proceed, require_rest
from upstream.series import export
from upstream.sources import digest, download, find_llama, opened, part_of
from upstream.structs import wrong_structs
from upstream.syntax import syntax_errors


@dataclass(frozen=True)
class Target:
    """Where to move to: a folder or an sdist, what it must be, and what it is called in patches/UPSTREAM."""

    path: Path
    package: str
    version: str
    sha256: str | None = None
    folder: str | None = None
    commit: str = ""

    def verified(self) -> str:
        """The sha256 of the sdist; ends the program where another one was asked for. A folder has none."""
        found = "none" if self.path.is_dir() else digest(self.path)
        if self.sha256 not in (None, found):
            sys.exit(f"{self.path}: sha256 {found} is not the {self.sha256} asked for: fetch it again")
        return found


def move(tree: Path, target: Target, like: str | None = None, pinned: bool = False) -> None:
    """Rebase the patches onto ``target``, whose llama.cpp must be that of ``like``; patches/UPSTREAM if ``pinned``."""
    require_rest(tree)
    sha256, folder = target.verified(), tree.parent / "sdist"
    with opened(target.path, folder) as root, tempfile.TemporaryDirectory(dir=folder) as scratch:
        part, llama = part_of(root), find_llama(root, target.folder)
        if like is not None:
            require_same(root / llama, like, folder)
        pin = Pin(target.package, target.version, sha256, "." if part == BINDINGS else llama, target.commit)
        print(f"{part} from {target.path}: sha256 {sha256}, folder {pin.folder}")
        pins = Pins.read().moved(part, pin)
        if part == LLAMA:
            base = commit_llama(tree, root / llama, Path(scratch))
        else:
            base = commit_bindings(tree, root, Path(scratch), own_llama=pins.llama is None)
    begin(tree, Move(base, pins.identity, pins.text() if pinned else None))


def require_same(llama: Path, like: str, scratch_folder: Path) -> None:
    """End the program where files of a llama.cpp tree differ from those of another source."""
    with opened(source(like, scratch_folder), scratch_folder) as other:
        found = compare_folders(llama, other / find_llama(other))
    print(found.report(), flush=True)
    if found.different:
        sys.exit(f"{like} has other files: one of the two is not upstream's own")


def bump(tree: Path, wanted: str, sdist: Path | None, like: str | None, **rest: str | None) -> None:
    """Move to PACKAGE==VERSION: fetch, compare, rebase, pin, export, verify."""
    package, equals, version = wanted.partition("==")
    if not equals:
        sys.exit(f"{wanted} is no PACKAGE==VERSION")
    path = sdist or download(package, version, tree.parent / "sdist")
    move(tree, Target(path, package, version, **rest), like, pinned=True)
    conclude(tree)


def resume(tree: Path) -> None:
    """Go on with a rebase whose conflict was resolved, and with the bump that it is part of."""
    if proceed(tree).upstream is not None:
        conclude(tree)


def conclude(tree: Path) -> None:
    export(tree)
    verify(tree)


def verify(tree: Path, jobs: int | None = None) -> None:
    """End the program where a source does not compile or a struct of the bindings is not the header's."""
    problems = wrong_structs(tree) + syntax_errors(tree, jobs or os.cpu_count() or 1)
    if problems:
        sys.exit("\n".join(problems))
    print("all compile, and the bindings' structs are the headers'")
