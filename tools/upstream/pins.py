"""The pins of ``patches/UPSTREAM``: everything that is not ours, as source packages of the index."""

from __future__ import annotations

import configparser
import sys
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATCHES = ROOT / "patches"
FILE = PATCHES / "UPSTREAM"
BINDINGS, LLAMA = "bindings", "llama.cpp"  # the two parts: sections of the file, folders of patches/
HEAD = """\
# The pins of everything that is not ours: source packages of the index, and the folder in them.
# [llama.cpp] lies over vendor/llama.cpp of the bindings. Where it is missing or names their package, their tree serves.
"""


@dataclass(frozen=True)
class Pin:
    """A source package and the ``folder`` in it; ``commit``, which readers alone use, is llama.cpp's."""

    package: str
    version: str
    sha256: str
    folder: str = "."
    commit: str = ""

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


@dataclass(frozen=True)
class Pins:
    """Both pins; ``llama`` is None where the tree inside the bindings serves, ``release`` the N of ``+kvtuner.N``."""

    bindings: Pin
    llama: Pin | None
    release: str

    @classmethod
    def read(cls, path: Path = FILE) -> Pins:
        """The pins of a file; ends the program where it is not one."""
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read_string(path.read_text(), str(path))
            release = parser[BINDINGS].pop("release", "1")
            bindings = Pin(**parser[BINDINGS])
            llama = Pin(**parser[LLAMA]) if LLAMA in parser else None
        except (configparser.Error, KeyError, TypeError) as err:
            sys.exit(f"{path}: {err}")
        return cls(bindings, None, release).moved(LLAMA, llama) if llama else cls(bindings, None, release)

    def moved(self, part: str, pin: Pin) -> Pins:
        """These pins with another one for ``part``."""
        bindings, llama = (pin, self.llama) if part == BINDINGS else (self.bindings, pin)
        same = llama and (llama.package, llama.version) == (bindings.package, bindings.version)
        return replace(self, bindings=bindings, llama=None if same else llama)

    def all(self) -> list[Pin]:
        return [pin for pin in (self.bindings, self.llama) if pin]

    @property
    def identity(self) -> str:
        """Text that is the same for the same base, and for no other."""
        own = self.bindings.sha256
        return f"{own}+{self.llama.sha256}:{self.llama.folder}" if self.llama else own

    def text(self) -> str:
        """The file."""
        sections = [section(BINDINGS, self.bindings, f"release = {self.release}\n")]
        return HEAD + "".join(sections + ([section(LLAMA, self.llama)] if self.llama else []))


def section(part: str, pin: Pin, more: str = "") -> str:
    values = {key: value for key, value in vars(pin).items() if value}
    return f"\n[{part}]\n" + "".join(f"{key} = {value}\n" for key, value in values.items()) + more
