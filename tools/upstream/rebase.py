"""Moving our patches to other sources.

The new base is committed beside the tree. Tag, base and stamp stay as they are until git has put every patch on it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from upstream.git import commit_folder, commit_tree, git, patched_commits, run_git, succeeds
from upstream.pins import FILE, Pins
from upstream.prepare import is_moving, set_base
from upstream.series import STAMP, has_base, series
from upstream.sources import VENDOR, overlay

NEXT = "kvtuner-next"


@dataclass(frozen=True)
class Move:
    """A rebase that has begun: the new base, what it is made of, and the text of patches/UPSTREAM after a bump."""

    base: str
    identity: str
    upstream: str | None = None

    @classmethod
    def read(cls, tree: Path) -> Move:
        path = tree / ".git" / NEXT
        return cls(**json.loads(path.read_text())) if path.exists() else sys.exit(f"no rebase was begun in {tree}")

    def write(self, tree: Path) -> None:
        (tree / ".git" / NEXT).write_text(json.dumps(asdict(self)))


def require_rest(tree: Path) -> None:
    """End the program where the tree is not the pinned source with committed patches."""
    if is_moving(tree):
        sys.exit(f"{tree} is being rebased: resolve its conflicts and run continue, or `git rebase --abort` there")
    if not has_base(tree, Pins.read()):
        sys.exit(f"{tree} does not hold the pinned source: run prepare first")
    if git(tree, "status", "--porcelain"):
        sys.exit(f"{tree} has changes that are not committed: commit them first")


def commit_llama(tree: Path, llama: Path, scratch: Path) -> str:
    """Commit a llama.cpp tree with the bindings of the base."""
    bindings = check_out_base(tree, scratch)
    overlay(llama, bindings)
    return commit_folder(tree, bindings)


def commit_bindings(tree: Path, bindings: Path, scratch: Path, own_llama: bool) -> str:
    """Commit bindings with their own llama.cpp, or with that of the base."""
    if not own_llama:
        overlay(check_out_base(tree, scratch) / VENDOR, bindings)
    return commit_folder(tree, bindings)


def check_out_base(tree: Path, scratch: Path) -> Path:
    """The files of the tag as a folder in ``scratch``."""
    folder = scratch / "base"
    folder.mkdir()
    env = {"GIT_INDEX_FILE": str(scratch / "index")}
    repository = f"--git-dir={tree.resolve() / '.git'}"
    git(folder, repository, "--work-tree=.", "read-tree", "upstream", **env)
    git(folder, repository, "--work-tree=.", "checkout-index", "--all", **env)
    return folder


def begin(tree: Path, move: Move) -> None:
    """List the conflicts to come, then let git rebase; ends the program at the first conflict."""
    conflicts = foresee(tree, move.base)
    print("".join(f"conflict: {name}: {path}\n" for name, path in conflicts), end="", flush=True)
    move.write(tree)
    done = run_git(tree, "rebase", "--onto", move.base, "upstream", "main")
    if done.returncode and not is_moving(tree):
        sys.exit(f"git rebase failed in {tree}:\n{done.stdout}{done.stderr}")
    settle(tree, move)


def proceed(tree: Path) -> Move:
    """Go on after the conflicts of a patch were resolved; ends the program at the next conflict."""
    move = Move.read(tree)
    if is_moving(tree):
        done = run_git(tree, "rebase", "--continue")
        if done.returncode and not unmerged(tree):
            sys.exit(f"git rebase --continue failed in {tree}:\n{done.stdout}{done.stderr}")
    settle(tree, move)
    return move


def settle(tree: Path, move: Move) -> None:
    """Move the tag and the marks, if every patch is on the new base."""
    if is_moving(tree):
        files = " ".join(unmerged(tree))
        sys.exit(f"{stopped_at(tree)} stopped at {files}: resolve it in {tree}, `git add` it, then run continue")
    if not succeeds(tree, "merge-base", "--is-ancestor", move.base, "main"):
        sys.exit(f"the rebase in {tree} was aborted, its patches are where they were: begin it again")
    set_base(tree, move.base, move.identity)
    for mark in (STAMP, NEXT):
        (tree / ".git" / mark).unlink(missing_ok=True)
    if move.upstream is not None:
        FILE.write_text(move.upstream)
    print(f"{tree}: {len(patched_commits(tree))} of {len(series())} patches are on the new base")


def foresee(tree: Path, base: str) -> list[tuple[str, str]]:
    """Every (patch, file) that conflicts on ``base``, the patches before it applied as far as they go."""
    commits = patched_commits(tree)
    files, found = f"{base}^{{tree}}", []
    for commit, name in zip(commits, patch_names(tree, commits), strict=True):
        ours = commit_tree(tree, files, f"{commit}^")  # so that the merge's base is the commit's parent
        merged = run_git(tree, "merge-tree", "--write-tree", "--name-only", "--no-messages", "-z", ours, commit)
        if merged.returncode not in (0, 1):
            sys.exit(f"git merge-tree failed in {tree}, it needs git 2.38:\n{merged.stderr}")
        files, *paths = merged.stdout.rstrip("\0").split("\0")
        found += [(name, path) for path in paths]
    return found


def patch_names(tree: Path, commits: Sequence[str]) -> list[str]:
    """Names for commits: their patch files, or their titles where there is not one file each."""
    files = [f"{path.parent.name}/{path.name}" for path in series()]
    return files if len(files) == len(commits) else [title(tree, commit) for commit in commits]


def title(tree: Path, commit: str) -> str:
    return git(tree, "log", "-1", "--format=%s", commit).strip()


def unmerged(tree: Path) -> list[str]:
    return git(tree, "diff", "--name-only", "--diff-filter=U").splitlines()


def stopped_at(tree: Path) -> str:
    """The patch at which a rebase waits."""
    commits = patched_commits(tree, (tree / ".git" / "rebase-merge" / "orig-head").read_text().strip())
    stopped = git(tree, "rev-parse", "REBASE_HEAD").strip()
    return dict(zip(commits, patch_names(tree, commits), strict=True))[stopped]
