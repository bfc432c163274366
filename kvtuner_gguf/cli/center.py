"""`kvtuner-gguf center`: the centers and scales of a plan alone, without a search."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvtuner_gguf.cli.centered import measured_options, print_plan, with_centers
from kvtuner_gguf.cli.failures import wrong_usage
from kvtuner_gguf.cli.kinds import ENDS, INPUT, MODEL, OUTPUT
from kvtuner_gguf.cli.options import ENDS_HELP
from kvtuner_gguf.cli.outputs import check_outputs
from kvtuner_gguf.errors import KvtunerError

if TYPE_CHECKING:
    from kvtuner_gguf.gguffile.reader import GgufHeader
    from kvtuner_gguf.plan.plan import Plan


@click.command("center")
@click.argument("model", type=MODEL)
@click.argument("config", metavar="CFG", type=INPUT)
@click.option("-o", "--out", type=OUTPUT, required=True, help="Write the centered plan here.")
@click.option("--ends", type=ENDS, metavar="F+L[:TYPE]", help=f"{ENDS_HELP}  [those of CFG]")
@measured_options
@click.option("--json", "as_json", is_flag=True, help="Print the plan's facts as JSON.")
def center_command(
    model: Path, config: Path, out: Path, ends: str | None, text: Path | None, as_json: bool, **measured: object
) -> None:
    """Measure what the keys of MODEL have in common, and write it into the plan CFG.

    The runtime takes the centers off before it writes to the cache, and stretches the channels that queries make more
    of: exact, and with less left to lose in few bits. Layers that quantize nothing stay as they are. `tune` and `plan`
    do the same on their own.
    """
    from kvtuner_gguf.gguffile.metadata import measuring_obstacle, model_shape
    from kvtuner_gguf.gguffile.shards import read_model

    check_outputs(out, inputs=[model, text])  # CFG may be centered in place
    headers = read_model(model)
    if obstacle := measuring_obstacle(headers):
        raise KvtunerError(f"{model}: keys cannot be centered, since this model {obstacle}")
    plan = _given(headers, config, ends)
    if not any(pair.types[0].is_quantized for pair in plan.pairs):
        raise KvtunerError("no layer of the plan has a quantized K: nothing to center")
    plan, spread = with_centers(model, model_shape(headers), plan, text, measured)
    plan.save(out)
    print_plan(model, out, plan, spread, as_json)


def _given(headers: list[GgufHeader], config: Path, ends: str | None) -> Plan:
    from kvtuner_gguf.gguffile.chosen_ends import chosen_ends
    from kvtuner_gguf.gguffile.fit import fitted
    from kvtuner_gguf.gguffile.metadata import model_shape
    from kvtuner_gguf.gguffile.stored_plan import given_plan

    plan = given_plan(config).without_centers().without_scales()
    if ends is not None:
        with wrong_usage():
            plan = replace(plan, ends=chosen_ends(ends, model_shape(headers)))
    return fitted(plan, headers)
