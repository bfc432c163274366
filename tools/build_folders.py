"""Where builds lie: the only place that knows the folders' names, with the Makefile."""

from __future__ import annotations

import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def build_folder(backend: str, cpu: str = "native") -> Path:
    """The patched build for a back end and a processor."""
    return ROOT / "build" / (backend if cpu == "native" else f"{backend}-{cpu}")


def stock_folder(cpu: str = "native") -> Path:
    """The unpatched library for a processor."""
    return build_folder("stock", cpu)


def installed_folder() -> Path:
    """The build that the tools and bindings of this environment come from."""
    return (Path(sysconfig.get_path("scripts")) / "llama-server").resolve().parents[1]


def installed_cpu() -> str:
    """The processor that it was compiled for."""
    _, _, cpu = installed_folder().name.partition("-")
    return cpu or "native"
