"""Two copies of llama.cpp side by side: files that differ are not upstream's own in one of them."""

from __future__ import annotations

import filecmp
import sys
from dataclasses import dataclass
from pathlib import Path

from upstream.sources import download, find_llama, opened

SHOWN = 20  # names of a list


@dataclass(frozen=True)
class Comparison:
    """Paths below the two folders, sorted."""

    equal: list[str]
    different: list[str]
    only_first: list[str]
    only_second: list[str]

    def report(self) -> str:
        lines = [f"{len(self.equal)} files are equal"]
        lists = {
            "differ": self.different,
            "are in the first alone": self.only_first,
            "are in the second alone": self.only_second,
        }
        for what, names in lists.items():
            more = [f"  and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
            lines += [f"{len(names)} files {what}", *(f"  {name}" for name in names[:SHOWN]), *more]
        return "\n".join(lines)


def compare_folders(first: Path, second: Path) -> Comparison:
    """Compare files by their bytes."""
    names, others = files_of(first), files_of(second)
    equal, different, failed = filecmp.cmpfiles(first, second, sorted(names & others), shallow=False)
    return Comparison(equal, sorted(different + failed), sorted(names - others), sorted(others - names))


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def source(text: str, folder: Path) -> Path:
    """A folder, an sdist, or PACKAGE==VERSION, which is fetched into ``folder``."""
    path = Path(text)
    if path.exists():
        return path
    package, equals, version = text.partition("==")
    return download(package, version, folder) if equals else sys.exit(f"{text} is no file, nor PACKAGE==VERSION")


def compare(first: str, second: str, folder: Path) -> Comparison:
    """Compare the llama.cpp trees that two sources carry; ``folder`` is where they are unpacked."""
    with opened(source(first, folder), folder) as one, opened(source(second, folder), folder) as other:
        return compare_folders(one / find_llama(one), other / find_llama(other))
