"""git in the prepared tree: with our identity, and no settings of the user."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

IDENTITY = {
    "GIT_AUTHOR_NAME": "kvtuner-gguf",
    "GIT_AUTHOR_EMAIL": "kvtuner-gguf@localhost",
    "GIT_COMMITTER_NAME": "kvtuner-gguf",
    "GIT_COMMITTER_EMAIL": "kvtuner-gguf@localhost",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_EDITOR": "true",
}
BASE_DATE = "2026-01-01T00:00:00+0000"
BASE_DATES = {"GIT_AUTHOR_DATE": BASE_DATE, "GIT_COMMITTER_DATE": BASE_DATE}


def run_git(tree: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run git in ``tree``, whatever comes of it."""
    command = ["git", "-C", str(tree), *args]
    return subprocess.run(command, env={**os.environ, **IDENTITY, **env}, capture_output=True, text=True)


def git(tree: Path, *args: str, **env: str) -> str:
    """The output of git in ``tree``; ends the program where it fails."""
    done = run_git(tree, *args, **env)
    if done.returncode:
        sys.exit(f"git {' '.join(args)} failed in {tree}:\n{done.stdout}{done.stderr}")
    return done.stdout


def succeeds(tree: Path, *args: str) -> bool:
    return run_git(tree, *args).returncode == 0


def commit_folder(tree: Path, folder: Path) -> str:
    """Commit the files of ``folder`` into the repository of ``tree``, which stays as it is; the commit."""
    repository = tree.resolve() / ".git"
    with tempfile.TemporaryDirectory() as scratch:
        env = {"GIT_INDEX_FILE": f"{scratch}/index", **BASE_DATES}
        git(folder, f"--git-dir={repository}", "--work-tree=.", "add", "--all", "--force", ".", **env)
        return commit_tree(tree, git(tree, "write-tree", **env).strip())


def commit_tree(tree: Path, files: str, *parents: str) -> str:
    """A commit of the tree object ``files``."""
    options = [option for parent in parents for option in ("-p", parent)]
    return git(tree, "commit-tree", files, *options, "-m", "upstream", **BASE_DATES).strip()


def patched_commits(tree: Path, end: str = "main") -> list[str]:
    """The commits of our patches, in order."""
    return git(tree, "rev-list", "--reverse", f"upstream..{end}").split()
