"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from kvtuner_gguf.cli.kinds import COUNT, ENDS, FIX, FOLDER, N_TOKENS, POSITIVE, SEED, TEXT, TYPES
from kvtuner_gguf.engine import ENGINES
from kvtuner_gguf.gguffile.chosen_ends import DEFAULT_ENDS
from kvtuner_gguf.plan.backends import BACKENDS
from kvtuner_gguf.plan.ends import ENDS_CTX
from kvtuner_gguf.plan.shapefields import MAX_COUNT

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


ENDS_HELP = (
    "First and last positions that are read exactly, FIRST+LAST:TYPE, or none. Without a type q8_0, or f16 where its "
    "blocks do not divide a head."
)

engine_option = click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default="auto",
    show_default=True,
    help="What runs the model: torch in float32, or the built llama.cpp, which runs any architecture; auto is torch "
    "where it has the architecture and the memory, or what an interrupted tuning has begun with; on GPUs where it has "
    "the architecture.",
)

_MEASURE = (
    click.option(
        "--text",
        "texts",
        type=TEXT,
        metavar="FILE[=W]",
        multiple=True,
        help="Calibration text, UTF-8, with its weight among others. Repeatable. Default: a web text, fetched once.",
    ),
    click.option("--tokens", type=N_TOKENS, default=1024, show_default=True, help="Calibration tokens."),
    click.option("--ctx", type=N_TOKENS, default=512, show_default=True, help="Context length of a chunk of them."),
    click.option("--seed", type=SEED, default=0, show_default=True, help="The same seed gives the same plan."),
    click.option(
        "--backend",
        type=click.Choice(list(BACKENDS), case_sensitive=False),
        metavar="NAME",
        help="Only pairs that it runs fast: cpu, cuda, metal, vulkan, or portable, which all of them run. Default: "
        "that of the first GPU of the built llama.cpp, or cpu.",
    ),
    click.option(
        "--candidates", type=TYPES, metavar="A,B,...", help="In place of --backend: any pair of these cache types."
    ),
    click.option(
        "--center/--no-center",
        default=True,
        show_default=True,
        help="Take off what the keys have in common, and scale their channels; left out where the architecture "
        "forbids it.",
    ),
    click.option("--ends", type=ENDS, metavar="F+L[:TYPE]", help=f"{ENDS_HELP}  [{DEFAULT_ENDS}]"),
    engine_option,
    click.option("--threads", type=COUNT, help="Threads of the model. Default: all processors."),
    click.option(
        "--device",
        metavar="A,B,...",
        default="cpu",
        show_default=True,
        help="Where torch runs the model: cpu, cuda, cuda:1; in llama.cpp which GPU it sees. Several, such as "
        "cuda:0,cuda:1, share the layers, each with the whole model in a process of its own.",
    ),
    click.option("--gpus", type=COUNT, metavar="N", help="Short for --device cuda:0,...,cuda:N-1."),
    click.option(
        "--work", type=FOLDER, help="Folder that keeps what is finished; interrupted, go on with the same command."
    ),
    click.option("--fresh", is_flag=True, help="Forget what the folder holds and begin anew."),
)

_GOAL = (
    click.option(
        "--bits", type=POSITIVE, help="Budget in true bits per value, exact ends and centers included.  [6.5]"
    ),
    click.option("--mib", type=POSITIVE, help="Budget in MiB for the tokens of --for-ctx."),
    click.option(
        "--for-ctx",
        type=click.IntRange(1, MAX_COUNT),
        metavar="N",
        help=f"Tokens of the context in which a goal counts; --mib needs it.  [{ENDS_CTX} with ends or centers]",
    ),
    click.option("--max-kld", type=POSITIVE, help="No budget: the smallest plan of at most this mean KLD (nats)."),
    click.option(
        "--fix",
        type=FIX,
        metavar="LAYERS=K/V",
        multiple=True,
        help="Give layers a pair by hand, for example 0,26-27=q8_0/q4_0; the others are searched. Repeatable.",
    ),
    click.option(
        "--windows",
        type=click.Choice(["auto", "search", "f16"]),
        default="auto",
        show_default=True,
        help="Layers with a sliding window: search their types, or leave them at f16; auto leaves them where they take "
        "at most 5 % of the budget, with --max-kld of the smallest plan, for the tokens of --for-ctx.",
    ),
    click.option(
        "--trials",
        type=click.IntRange(min=0),
        help="Plans judged whole: in a refinement at most [4, with kld prices 8], in all by the paper's method [200].",
    ),
    click.option(
        "--storage",
        metavar="PATH|URL",
        help="Share the search of the paper's method: give the same command on every machine; --trials counts those of "
        "all. A journal on a shared disk, or sqlite:///PATH, postgresql://..., mysql://...",
    ),
    click.option(
        "--evolve",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Then evolve the front by so many trials of NSGA-II.",
    ),
    click.option(
        "--prices",
        type=click.Choice(["fisher", "kld"]),
        help="What types cost in layers: from one backward pass, or from the KLD of plans.  [fisher]",
    ),
    click.option("--rungs", type=COUNT, default=1, show_default=True, help="Types measured in every layer by kld."),
    click.option(
        "--points", type=click.IntRange(min=2), default=7, show_default=True, help="Sizes that the front has."
    ),
)
