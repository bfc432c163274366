#!/usr/bin/env python3
"""Prepare the pinned upstream source with our patches, and keep the patches in order.

  prepare   fetch the sdist, verify it, unpack it, apply the series (nothing to do where the stamp matches)
  export    write the commits of the prepared tree back to patches/ and patches/series
  rebase    move the series onto another sdist: apply it on the pinned one, then `git rebase --onto`
  check     prove that export reproduces the committed patch files byte for byte

The prepared tree is a git repository: tag `upstream` is the sdist as it came, one commit per patch follows.
To change a patch, commit in the tree (or `git rebase -i upstream`), then export.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATCHES = ROOT / "patches"
DEFAULT_TREE = ROOT / "build" / "src"
STAMP = "kvtuner-stamp"  # kept inside .git, so that the tree shows only upstream's files and ours
IDENTITY = {
    "GIT_AUTHOR_NAME": "kvtuner-gguf",
    "GIT_AUTHOR_EMAIL": "kvtuner-gguf@localhost",
    "GIT_COMMITTER_NAME": "kvtuner-gguf",
    "GIT_COMMITTER_EMAIL": "kvtuner-gguf@localhost",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}
BASE_DATE = "2026-01-01T00:00:00+0000"
GROUPS = {"vendor/llama.cpp/": "llama.cpp", "llama_cpp/": "bindings"}


@dataclass(frozen=True)
class Upstream:
    """The pin of ``patches/UPSTREAM``."""

    package: str
    version: str
    sha256: str

    @classmethod
    def read(cls, path: Path = PATCHES / "UPSTREAM") -> Upstream:
        lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
        values = dict(tuple(part.strip() for part in line.split("=", 1)) for line in lines if line)
        return cls(values["package"], values["version"], values["sha256"])


def git(tree: Path, *args: str, check: bool = True, **env: str) -> str:
    """Run git in ``tree`` with our identity and no settings of the user; its output."""
    done = subprocess.run(
        ["git", "-C", str(tree), *args], env={**os.environ, **IDENTITY, **env}, capture_output=True, text=True
    )
    if check and done.returncode:
        sys.exit(f"git {' '.join(args)} failed in {tree}:\n{done.stdout}{done.stderr}")
    return done.stdout


def series() -> list[Path]:
    """The patch files in the order in which they apply."""
    return [PATCHES / line for line in (PATCHES / "series").read_text().split("\n") if line.strip()]


def series_digest(upstream: Upstream) -> str:
    digest = hashlib.sha256(upstream.sha256.encode())
    for patch in series():
        digest.update(patch.read_bytes())
    return digest.hexdigest()


def fetch(upstream: Upstream, folder: Path, sdist: Path | None) -> Path:
    """The sdist: the file given, or the package client's download; its sha256 is verified."""
    if sdist is None:
        folder.mkdir(parents=True, exist_ok=True)
        wanted = f"{upstream.package}=={upstream.version}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", upstream.package]
        if subprocess.run([*command, wanted, "--dest", str(folder)]).returncode:
            sys.exit(f"cannot download {wanted}: give a copy of its sdist with --sdist FILE")
        sdist = next(folder.glob(f"*{upstream.version}.tar.gz"))
    found = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if found != upstream.sha256:
        sys.exit(f"{sdist}: sha256 {found} is not the pinned {upstream.sha256}: fetch it again")
    return sdist


def unpack(sdist: Path, tree: Path) -> None:
    """Unpack the sdist as ``tree`` and make it a git repository with the tag `upstream`."""
    shutil.rmtree(tree, ignore_errors=True)
    tree.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=tree.parent) as temporary, tarfile.open(sdist) as archive:
        archive.extractall(temporary, filter="data")
        (only,) = Path(temporary).iterdir()
        only.rename(tree)
    for nested in tree.glob("**/.git"):  # the sdist keeps its submodule's link, which would hide the files from git
        shutil.rmtree(nested) if nested.is_dir() else nested.unlink()
    git(tree, "init", "--quiet", "--initial-branch=main")
    commit_base(tree)


def commit_base(tree: Path) -> None:
    git(tree, "add", "--all", "--force")
    date = {"GIT_AUTHOR_DATE": BASE_DATE, "GIT_COMMITTER_DATE": BASE_DATE}
    git(tree, "commit", "--quiet", "--message", "upstream", **date)
    git(tree, "tag", "--force", "upstream")


def prepare(tree: Path, sdist: Path | None) -> None:
    """Make ``tree`` the pinned source with the series applied; files that stay equal keep their time stamps."""
    upstream = Upstream.read()
    stamp, digest = tree / ".git" / STAMP, series_digest(upstream)
    if stamp.exists() and stamp.read_text() == digest:
        print(f"{tree}: up to date")
        return
    if not has_base(tree, upstream):
        unpack(fetch(upstream, tree.parent / "sdist", sdist), tree)
        (tree / ".git" / "kvtuner-base").write_text(upstream.sha256)
    elif git(tree, "status", "--porcelain"):
        sys.exit(f"{tree} has changes that are not committed: commit and export them, or remove the folder")
    stamp.unlink(missing_ok=True)
    apply_series(tree)
    stamp.write_text(digest)
    print(f"{tree}: {upstream.package} {upstream.version} with {len(series())} patches")


def has_base(tree: Path, upstream: Upstream) -> bool:
    base = tree / ".git" / "kvtuner-base"
    return base.exists() and base.read_text() == upstream.sha256


def apply_series(tree: Path) -> None:
    git(tree, "am", "--abort", check=False)
    git(tree, "checkout", "--quiet", "-B", "main", "upstream")
    if series():
        git(tree, "am", "--quiet", "--committer-date-is-author-date", *map(str, series()))


def format_patches(tree: Path, folder: Path) -> list[Path]:
    """Write one file per commit into ``folder``, in a subfolder by what it changes; paths relative to it."""
    names: list[Path] = []
    for commit in git(tree, "rev-list", "--reverse", "upstream..main").split():
        touched = git(tree, "diff-tree", "--no-commit-id", "--name-only", "-r", commit).split("\n")
        groups = {name for prefix, name in GROUPS.items() if any(path.startswith(prefix) for path in touched)}
        if len(groups) != 1:
            sys.exit(f"commit {commit[:10]} must touch either vendor/llama.cpp or the bindings: split it")
        target = folder / groups.pop()
        target.mkdir(parents=True, exist_ok=True)
        numbered = str(1 + sum(name.parent == Path(target.name) for name in names))
        options = ["--zero-commit", "--full-index", "--no-signature", "--no-stat", "-U2", "--start-number", numbered]
        path = git(tree, "format-patch", *options, "--output-directory", str(target), "-1", commit).strip()
        names.append(Path(target.name) / Path(path).name)
    return names


def export(tree: Path) -> None:
    for patch in series():
        patch.unlink(missing_ok=True)
    names = format_patches(tree, PATCHES)
    (PATCHES / "series").write_text("".join(f"{name}\n" for name in names))
    (tree / ".git" / STAMP).write_text(series_digest(Upstream.read()))
    print(f"{PATCHES}: {len(names)} patches")


def check(tree: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        names = format_patches(tree, Path(temporary))
        if [PATCHES / name for name in names] != series():
            sys.exit("patches/series does not name the commits of the prepared tree: run export")
        for name in names:
            if (Path(temporary) / name).read_bytes() != (PATCHES / name).read_bytes():
                sys.exit(f"patches/{name} differs from its commit in the prepared tree: run export")
    print(f"{len(names)} patches are what export writes")


def rebase(tree: Path, sdist: Path) -> None:
    """Put the sdist's files on a branch of their own and move the series onto it; conflicts are left to git."""
    upstream = Upstream.read()
    if not has_base(tree, upstream):
        sys.exit(f"{tree} does not hold the pinned source: run prepare first")
    old = git(tree, "rev-parse", "upstream").strip()
    git(tree, "checkout", "--quiet", "-B", "next", "upstream")
    for path in git(tree, "ls-files", "-z").split("\0"):
        if path:
            (tree / path).unlink(missing_ok=True)
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            _, _, member.name = member.name.partition("/")
            if member.name:
                archive.extract(member, tree, filter="data")
    commit_base(tree)
    git(tree, "checkout", "--quiet", "main")
    done = git(tree, "rebase", "--onto", "next", old, "main", check=False)
    print(done or f"resolve the conflicts in {tree}, `git rebase --continue`, update patches/UPSTREAM, then export")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=DEFAULT_TREE, help="the prepared tree (default: build/src)")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("prepare", "rebase"):
        command = commands.add_parser(name)
        command.add_argument("--sdist", type=Path, required=name == "rebase", help="a copy of the sdist")
    commands.add_parser("export")
    commands.add_parser("check")
    args = parser.parse_args()
    if args.command in ("prepare", "rebase"):
        globals()[args.command](args.tree, args.sdist)
    else:
        globals()[args.command](args.tree)


if __name__ == "__main__":
    main()
