"""What the commands of the tuning's stages have in common: their options, and what they need installed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kvtuner_gguf.commands.outputs import check_outputs
from kvtuner_gguf.errors import KvtunerError

if TYPE_CHECKING:
    from kvtuner_gguf.plan.backends import Backend
    from kvtuner_gguf.plan.shape import ModelShape
    from kvtuner_gguf.tuning.calibration import Texts

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
DEFAULT_BACKEND = "cpu"
# of <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3

Command = TypeVar("Command", bound=Callable[..., Any])


def measure_options(command: Command) -> Command:
    """Options of what measures a model on a text."""
    for option in reversed(_MEASURE):
        command = option(command)
    return command


def goal_options(command: Command) -> Command:
    """Options of what a plan is searched for."""
    for option in reversed(_GOAL):
        command = option(command)
    return command


_MEASURE = (
    click.option(
        "--text",
        "texts",
        metavar="FILE[=W]",
        multiple=True,
        help="Calibration text, UTF-8, with its weight among others. Repeatable. Default: a web text, fetched once.",
    ),
    click.option("--tokens", type=int, default=1024, show_default=True, help="Calibration tokens."),
    click.option("--ctx", type=int, default=512, show_default=True, help="Context length of a chunk of them."),
    click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same plan."),
    click.option(
        "--backend",
        metavar="NAME",
        help="Only pairs that it runs fast: cpu, cuda, metal, vulkan, or portable, which all of them run.  [cpu]",
    ),
    click.option("--candidates", metavar="A,B,...", help="In place of --backend: any pair of these cache types."),
    click.option(
        "--center/--no-center",
        default=True,
        show_default=True,
        help="Take off what the keys have in common; left out where the architecture forbids it.",
    ),
    click.option("--threads", type=int, help="Threads of the reference model. Default: all processors."),
    click.option(
        "--device", default="cpu", show_default=True, help="Where torch runs the reference model: cpu, cuda, cuda:1."
    ),
    click.option(
        "--work", type=FOLDER, help="Folder that keeps what is finished; interrupted, go on with the same command."
    ),
    click.option("--fresh", is_flag=True, help="Forget what the folder holds and begin anew."),
)

_GOAL = (
    click.option("--bits", type=float, help="Budget in true bits per value.  [6.5]"),
    click.option("--mib", type=float, help="Budget in MiB for the tokens of --for-ctx."),
    click.option("--for-ctx", type=int, metavar="N", help="How many tokens --mib is for."),
    click.option("--max-kld", type=float, help="No budget: the smallest plan of at most this mean KLD (nats)."),
    click.option(
        "--fix",
        metavar="LAYERS=K/V",
        multiple=True,
        help="Give layers a pair by hand, for example 0,26-27=q8_0/q4_0; the others are searched. Repeatable.",
    ),
    click.option(
        "--trials",
        type=int,
        help="Plans judged whole: in a refinement at most [32], or in all by the paper's method [200].",
    ),
    click.option(
        "--evolve", type=int, default=0, show_default=True, help="Then evolve the front by so many trials of NSGA-II."
    ),
    click.option("--rungs", type=int, default=1, show_default=True, help="Types measured in every layer."),
    click.option("--points", type=int, default=10, show_default=True, help="Sizes that the front has."),
)


def chosen_backend(name: str | None, candidates: str | None) -> Backend:
    """The pairs that may be used; raises `KvtunerError` where both or unknown ones are named."""
    from kvtuner_gguf.plan.backends import backend, of_types

    if name and candidates:
        raise KvtunerError("--backend and --candidates both say which types to use: give one of them")
    return of_types(candidates.split(",")) if candidates else backend(name or DEFAULT_BACKEND)


def shape_to_tune(model: Path, center: bool) -> tuple[ModelShape, bool]:
    """The shape of ``model``, and whether its keys are to be centered."""
    from kvtuner_gguf.gguffile.metadata import centering_obstacle, model_shape
    from kvtuner_gguf.gguffile.shards import read_model

    headers = read_model(model)
    if center and (obstacle := centering_obstacle(headers)):
        click.echo(f"keys are not centered, since this model {obstacle}", err=True)
        center = False
    return model_shape(headers), center


def import_torch(threads: int | None) -> None:
    """Raise `KvtunerError` where what `kvtuner_gguf.tuning` needs is not installed; set torch's threads."""
    try:
        import accelerate  # noqa: F401
        import optuna  # noqa: F401
        import torch
        import transformers  # noqa: F401
    except ImportError as err:
        raise KvtunerError(f"tuning needs {err.name}: pip install 'kvtuner-gguf[tune]'") from err
    _keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(max(1, threads))


def _keep_freed_memory() -> None:
    """Have glibc, where it is the C library, give big freed blocks to the next tensor instead of the kernel.

    Each layer would fault in its pages anew: about a tenth of a forward's time on the CPU.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def check_search_outputs(
    *outputs: Path | None, inputs: Sequence[Path | None], work: Path | None, texts: Sequence[str]
) -> None:
    """`check_outputs` beside the ``texts`` as they are named, and the folder ``work`` of what is finished."""
    check_outputs(*outputs, inputs=[*inputs, *(_text_and_weight(name)[0] for name in texts)])
    for out in outputs:
        if work is not None and out is not None and out.absolute() == work.absolute():
            raise KvtunerError(f"{out} is also the folder of what is finished: choose another with --work or -o")


def texts_of(names: Sequence[str]) -> Texts:
    """The texts that are named, or else the default one."""
    from kvtuner_gguf.tuning.calibration import Texts

    parts = [_text_and_weight(name) for name in names] or [(default_text(), 1.0)]
    paths, weights = zip(*parts, strict=True)
    return Texts(paths, weights)


def _text_and_weight(name: str) -> tuple[Path, float]:
    path, equals, weight = name.rpartition("=")
    try:
        return (Path(path), float(weight)) if equals and not Path(name).exists() else (Path(name), 1.0)
    except ValueError:
        return Path(name), 1.0


def default_text() -> Path:
    """The pinned calibration text, fetched once."""
    from kvtuner_gguf.files import assets
    from kvtuner_gguf.report.bars import byte_progress

    with byte_progress("fetch the calibration text") as progress:
        return assets.fetch_text("web", progress)
