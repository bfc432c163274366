"""Files that the tools write: argparse refuses at once what cannot be written at the end."""

from __future__ import annotations

import argparse
from pathlib import Path

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files import atomicfile


def output_file(name: str) -> Path:
    """The ``type`` of an option of argparse that names an output."""
    try:
        atomicfile.check_target(Path(name))
    except KvtunerError as err:
        raise argparse.ArgumentTypeError(str(err)) from err
    return Path(name)
