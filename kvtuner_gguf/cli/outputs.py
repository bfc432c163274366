"""What a command will write is checked before it reads or computes anything."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvtuner_gguf.cli.failures import wrong_usage
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files import atomicfile

if TYPE_CHECKING:
    from kvtuner_gguf.gguffile.annotate import Written


@wrong_usage()
def check_outputs(*outputs: Path | None, inputs: Iterable[Path | None] = ()) -> None:
    """Refuse an output that is one of the ``inputs``, or is named twice.

    What is not asked for is None. Says on stderr where other names of a file keep what it held.
    """
    sources = [path for path in inputs if path is not None]
    checked: list[Path] = []
    for out in outputs:
        if out is None:
            continue
        if any(_is_same(out, source) for source in sources):
            raise KvtunerError(f"{out} would be overwritten, and it is read: choose another target with -o")
        if any(_is_same(out, other) for other in checked):
            raise KvtunerError(f"{out} is to hold two outputs: give each a name of its own")
        checked.append(out)
        _tell_other_names(out)


def _is_same(a: Path, b: Path) -> bool:
    if os.path.realpath(a) == os.path.realpath(b):
        return True
    return a.exists() and b.exists() and a.samefile(b)


def _tell_other_names(out: Path) -> None:
    from kvtuner_gguf.report.terminal import print_text

    others = out.stat().st_nlink - 1 if out.exists() else 0
    if others > 0:
        names = "another name" if others == 1 else f"{others} other names"
        print_text(f"{out} has {names} (hard links), which will keep what it holds now", stderr=True)


@wrong_usage()
def check_search_outputs(
    *outputs: Path | None, inputs: Sequence[Path | None], work: Path | None, texts: Sequence[tuple[Path, float]]
) -> None:
    """`check_outputs` beside the ``texts`` with their weights, and the folder ``work`` of what is finished."""
    check_outputs(*outputs, inputs=[*inputs, *(path for path, _ in texts)])
    for out in outputs:
        if work is not None and out is not None and out.absolute() == work.absolute():
            raise KvtunerError(f"{out} is also the folder of what is finished: choose another with --work or -o")


@wrong_usage()
def model_target(model: Path, out: Path | None, in_place: bool, config: Path | None = None) -> Path:
    """The file that a changed ``model`` goes to; one must be named, and can be written."""
    from kvtuner_gguf.gguffile.shards import shard_paths

    if (out is None) == (not in_place):
        raise KvtunerError("say where to write: give either -o OUT or --in-place")
    if out is None:
        atomicfile.check_target(model)
        check_outputs(model)
        return model
    if out.exists() and any(shard.exists() and out.samefile(shard) for shard in shard_paths(model)):
        raise KvtunerError(f"{out} is the model itself: use --in-place for that, or another target")
    check_outputs(out, inputs=[config])
    return out


def what_was_written(written: Written, seconds: float) -> str:
    """How much of a model was written, and in which time."""
    done = "only the header was changed" if written.header_only else "the whole file was made anew"
    return f"{done}, in {seconds:.2f} s"
