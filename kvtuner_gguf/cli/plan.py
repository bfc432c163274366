"""`kvtuner-gguf plan`: a plan without a search."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvtuner_gguf.cli.centered import measured_options, print_plan, with_centers
from kvtuner_gguf.cli.failures import wrong_usage
from kvtuner_gguf.cli.kinds import ENDS, FIX, MODEL, OUTPUT, PAIR
from kvtuner_gguf.cli.options import ENDS_HELP
from kvtuner_gguf.cli.outputs import check_outputs
from kvtuner_gguf.gguffile.chosen_ends import DEFAULT_ENDS

if TYPE_CHECKING:
    from kvtuner_gguf.gguffile.reader import GgufHeader
    from kvtuner_gguf.plan.pairs import Pair
    from kvtuner_gguf.plan.plan import Plan


@click.command("plan")
@click.argument("model", type=MODEL)
@click.option(
    "--uniform", type=PAIR, metavar="K/V", required=True, help="The pair of all layers; one type stands for both sides."
)
@click.option(
    "--fix",
    type=FIX,
    metavar="LAYERS=K/V",
    multiple=True,
    help="Another pair for some layers, for example 0,26-27=q8_0/q4_0. Repeatable.",
)
@click.option("-o", "--out", type=OUTPUT, required=True, help="Write the plan here.")
@click.option("--ends", type=ENDS, metavar="F+L[:TYPE]", help=f"{ENDS_HELP}  [{DEFAULT_ENDS}]")
@click.option(
    "--center/--no-center",
    default=True,
    show_default=True,
    help="Take off what the keys have in common, and scale their channels; left out where the architecture forbids it.",
)
@measured_options
@click.option("--json", "as_json", is_flag=True, help="Print the plan's facts as JSON.")
def plan_command(
    model: Path,
    uniform: Pair,
    fix: tuple[str, ...],
    out: Path,
    ends: str | None,
    center: bool,
    text: Path | None,
    as_json: bool,
    **measured: object,
) -> None:
    """Make a plan for MODEL from types that are given, and measure what its keys have in common.

    Any architecture with a KV cache has such a plan. Layers without a cache of their own are left as they are.
    """
    from kvtuner_gguf.gguffile.metadata import measuring_obstacle, model_shape
    from kvtuner_gguf.gguffile.shards import read_model
    from kvtuner_gguf.report.terminal import print_text

    check_outputs(out, inputs=[model, text])
    headers = read_model(model)
    plan = _of_types(headers, uniform, fix, ends)
    obstacle = measuring_obstacle(headers)
    if center and obstacle:
        print_text(f"keys are not centered, since this model {obstacle}", stderr=True)
    spread = None
    if center and not obstacle and any(pair.types[0].is_quantized for pair in plan.pairs):
        plan, spread = with_centers(model, model_shape(headers), plan, text, measured)
    plan.save(out)
    print_plan(model, out, plan, spread, as_json)


def _of_types(headers: list[GgufHeader], uniform: Pair, fix: Iterable[str], ends: str | None) -> Plan:
    from kvtuner_gguf.gguffile.chosen_ends import chosen_ends
    from kvtuner_gguf.gguffile.fit import fitted
    from kvtuner_gguf.gguffile.metadata import model_shape
    from kvtuner_gguf.plan.plan import Plan
    from kvtuner_gguf.tuning.fixed import check_fixed, parse_fixed

    shape = model_shape(headers)
    with wrong_usage():
        fixed = parse_fixed(fix)
        check_fixed(fixed, shape)
        pairs = tuple(fixed.get(il, uniform) for il in range(shape.n_layer))
        return fitted(Plan(pairs, ends=chosen_ends(ends, shape)), headers)
