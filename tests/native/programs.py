"""Programs of the installed build that test one part each."""

from __future__ import annotations

import subprocess
from pathlib import Path

from build_folders import installed_folder


def output_of(name: str, *arguments: str, folder: Path | None = None) -> str:
    """What the program of this build folder, or of the installed one, prints, which ends without a failure."""
    done = subprocess.run(
        [(folder or installed_folder()) / name, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
