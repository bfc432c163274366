"""What to do about a path that is no GGUF file: weights of Hugging Face are to be converted first."""

from __future__ import annotations

import os
import re
from pathlib import Path

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files.inputs import unreadable

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
# of files in which Hugging Face keeps weights
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
# of files that are no such repository
_OURS = (".gguf", ".json")
_CONVERTER = "llama.cpp's convert_hf_to_gguf.py"


def cannot_read(path: Path, err: OSError) -> KvtunerError:
    """What to raise where no GGUF file can be read at ``path``."""
    return KvtunerError(f"cannot read {path}: {no_gguf_at(path) or f'{err.strerror or err}; check the path'}")


def no_gguf_at(path: Path) -> str | None:
    """Why no GGUF file can be read at ``path``, and what to do; None where a file is there, whatever is in it."""
    if os.path.isdir(path):
        return _of_folder(path)
    if _REPOSITORY.fullmatch(str(path)) and path.suffix not in _OURS and not os.path.exists(path.parent):
        return (
            "there is no such file: for a repository of Hugging Face fetch a GGUF of it, or its weights with "
            f"'hf download {path} --local-dir {path.name}', and convert these with {_CONVERTER} {path.name} --outfile "
            f"{path.name}.gguf"
        )
    return unreadable(path)


def other_weights(path: Path) -> str | None:
    """What to do with the file at ``path``, which is no GGUF file; None where its name does not tell."""
    return _converted(path.absolute().parent) if path.suffix in _WEIGHTS else None


def _of_folder(path: Path) -> str | None:
    try:
        names = sorted(found.name for found in path.iterdir())
    except OSError:
        return unreadable(path)
    ggufs = [name for name in names if name.endswith(".gguf")]
    if ggufs:
        return f"it is a folder: give a file in it, such as {path / ggufs[0]}"
    if "config.json" in names or any(name.endswith(_WEIGHTS) for name in names):
        return f"it is a folder of Hugging Face, and a GGUF file is needed: {_converted(path)}"
    return "it is a folder: give a GGUF file"


def _converted(folder: Path) -> str:
    return f"convert it with {_CONVERTER} {folder} --outfile {folder.absolute().name}.gguf"
