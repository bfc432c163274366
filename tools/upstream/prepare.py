"""The prepared tree: a git repository with the tag `upstream` on the pinned sources, and one commit per patch."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from upstream.git import commit_folder, git, run_git
from upstream.pins import Pins
from upstream.series import BASE, STAMP, has_base, series, series_digest
from upstream.sources import laid_out


def prepare(tree: Path, given: Sequence[Path]) -> None:
    """Make ``tree`` the pinned source with the series applied; files that stay equal keep their time stamps."""
    pins = Pins.read()
    stamp, wanted = tree / ".git" / STAMP, series_digest(pins)
    if is_moving(tree):
        sys.exit(f"{tree} is being rebased: resolve its conflicts and run continue, or `git rebase --abort` there")
    if stamp.exists() and stamp.read_text() == wanted:
        print(f"{tree}: up to date")
        return
    if (tree / ".git").exists() and git(tree, "status", "--porcelain"):
        sys.exit(f"{tree} has changes that are not committed: commit and export them, or remove the folder")
    if not has_base(tree, pins):
        lay_base(tree, pins, given)
    stamp.unlink(missing_ok=True)
    apply_series(tree)
    stamp.write_text(wanted)
    print(f"{tree}: {' and '.join(map(str, pins.all()))} with {len(series())} patches")


def is_moving(tree: Path) -> bool:
    """Whether git is in the middle of a rebase there."""
    return (tree / ".git" / "rebase-merge").exists()


def lay_base(tree: Path, pins: Pins, given: Sequence[Path]) -> None:
    """Commit the pinned sources there and put the tag on them."""
    with laid_out(pins, tree.parent / "sdist", given) as folder:
        if not (tree / ".git").exists():
            shutil.rmtree(tree, ignore_errors=True)
            tree.mkdir(parents=True)
            git(tree, "init", "--quiet", "--initial-branch=main")
        set_base(tree, commit_folder(tree, folder), pins.identity)


def set_base(tree: Path, commit: str, identity: str) -> None:
    git(tree, "tag", "--force", "upstream", commit)
    (tree / ".git" / BASE).write_text(identity)


def apply_series(tree: Path) -> None:
    run_git(tree, "am", "--abort")
    git(tree, "checkout", "--quiet", "-B", "main", "upstream")
    if series():
        git(tree, "am", "--quiet", "--committer-date-is-author-date", *map(str, series()))
