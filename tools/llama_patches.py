#!/usr/bin/env python3
"""Prepare the pinned upstream sources with our patches, and keep the patches in order.

  prepare   fetch the sdists, verify them, unpack them, apply the series (nothing to do where the stamp matches)
  export    write the commits of the prepared tree back to patches/ and patches/series
  check     prove that export reproduces the committed patch files byte for byte
  bump      move to another version of a package: fetch, compare, rebase, pin, export, verify
  rebase    move the series onto other sources that are at hand
  continue  go on with either, once the conflict at which it stopped is resolved
  compare   put two copies of llama.cpp side by side; fails where a file differs
  verify    compile what the patches touch, without output, and hold the bindings' structs to llama.cpp's headers

The prepared tree is a git repository: tag `upstream` is the sources as they came, one commit per patch follows.
To change a patch, commit in the tree (or `git rebase -i upstream`), then export.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from upstream.bump import Target, bump, move, resume, verify
from upstream.compare import compare
from upstream.pins import ROOT
from upstream.prepare import prepare
from upstream.series import check, export

DEFAULT_TREE = ROOT / "build" / "src"


def run_rebase(args: argparse.Namespace) -> None:
    move(args.tree, Target(args.sdist, args.sdist.name, "", args.sha256, args.folder))
    print("pin it in patches/UPSTREAM, then export and verify")


def run_bump(args: argparse.Namespace) -> None:
    rest = {"sha256": args.sha256, "folder": args.folder, "commit": args.commit}
    bump(args.tree, args.package, args.sdist, args.like, **rest)


def run_compare(args: argparse.Namespace) -> None:
    found = compare(args.first, args.second, args.tree.parent / "sdist")
    print(found.report())
    sys.exit(1 if found.different else 0)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=DEFAULT_TREE, help="the prepared tree (default: build/src)")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        made = commands.add_parser(name)
        made.set_defaults(run=run)
        return made

    command("prepare", lambda args: prepare(args.tree, args.sdist)).add_argument(
        "--sdist", type=Path, action="append", default=[], help="a copy of a pinned sdist; may be repeated"
    )
    command("export", lambda args: export(args.tree))
    command("check", lambda args: check(args.tree))
    command("continue", lambda args: resume(args.tree))
    command("verify", lambda args: verify(args.tree))
    add_targets(command("rebase", run_rebase)).add_argument(
        "--sdist", type=Path, required=True, help="an sdist or a folder: the bindings, or what carries a llama.cpp tree"
    )
    bumping = add_targets(command("bump", run_bump))
    bumping.add_argument("package", help="PACKAGE==VERSION")
    bumping.add_argument("--sdist", type=Path, help="a copy of its sdist, instead of a download")
    bumping.add_argument("--like", help="a folder, an sdist or PACKAGE==VERSION with the same llama.cpp, to compare")
    bumping.add_argument("--commit", default="", help="llama.cpp's commit or tag, for readers of patches/UPSTREAM")
    comparing = command("compare", run_compare)
    for name in ("first", "second"):
        comparing.add_argument(name, help="a folder, an sdist or PACKAGE==VERSION")
    return parser.parse_args()


def add_targets(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument("--sha256", help="refuse a file with another one")
    command.add_argument("--folder", help="where llama.cpp lies in it, if more than one folder looks like it")
    return command


def main() -> None:
    args = parse()
    args.run(args)


if __name__ == "__main__":
    main()
