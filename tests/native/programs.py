"""Programs of the installed build that test one part each."""

from __future__ import annotations

import subprocess

from build_folders import installed_folder


def output_of(name: str) -> str:
    """What the program prints, which ends without a failure."""
    done = subprocess.run([installed_folder() / name], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
