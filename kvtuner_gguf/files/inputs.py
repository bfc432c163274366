"""Whether a file that is to be read is there, and what to do where it is not."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path


def unreadable(path: Path) -> str | None:
    """Why no file can be read at ``path``, and what to do; None where one can."""
    if os.path.isdir(path):
        return "it is a folder: give a file"
    if not os.path.exists(path):
        return f"there is no such file: {_guess(path)}"
    return None if os.access(path, os.R_OK) else "this user may not read it: change its permissions"


def _guess(path: Path) -> str:
    """The name of a file beside it that is like it."""
    try:
        names = [found.name for found in path.absolute().parent.iterdir()]
    except OSError:
        return "check the path"
    like = get_close_matches(path.name, names, n=1, cutoff=0.8)
    return f"did you mean {path.with_name(like[0])}?" if like else "check the path"
