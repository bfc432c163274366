"""`kvtuner-gguf center`: the centers and scales of a plan alone, without a search."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvtuner_gguf.cli.options import ENDS_HELP, FILE, engine_option
from kvtuner_gguf.cli.outputs import check_outputs
from kvtuner_gguf.cli.texts import default_text
from kvtuner_gguf.engine.opening import open_engine
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.gguffile.chosen_ends import DEFAULT_ENDS

if TYPE_CHECKING:
    from kvtuner_gguf.plan.plan import Plan


@click.command("center")
@click.argument("model", type=FILE)
@click.argument("config", metavar="[CFG]", type=FILE, required=False)
@click.option("--uniform", metavar="K/V", help="In place of CFG: a plan with this pair in all layers.")
@click.option("-o", "--out", type=FILE, required=True, help="Write the centered plan here.")
@click.option("--ends", metavar="F+L[:TYPE]", help=f"{ENDS_HELP}  [those of CFG; {DEFAULT_ENDS} with --uniform]")
@click.option("--text", type=FILE, help="Calibration text, UTF-8. Default: a web text that is fetched once.")
@click.option("--tokens", type=int, default=2048, show_default=True, help="Calibration tokens.")
@click.option("--ctx", type=int, default=512, show_default=True, help="Context length of a chunk of them.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which places of the text are taken.")
@engine_option
@click.option("--threads", type=int, help="Threads of the model. Default: all processors.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan's facts as JSON.")
def center_command(
    model: Path,
    config: Path | None,
    uniform: str | None,
    out: Path,
    ends: str | None,
    text: Path | None,
    tokens: int,
    ctx: int,
    seed: int,
    engine: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure what the keys of MODEL have in common, and write it into a plan.

    The types of the plan are those of CFG, or one pair in all layers. The runtime takes the centers off before it
    writes to the cache, and stretches the channels that queries make more of: exact, and with less left to lose in few
    bits. Layers that quantize nothing stay as they are. `tune` does the same on its own.
    """
    from kvtuner_gguf.gguffile.metadata import centering_obstacle, model_shape
    from kvtuner_gguf.gguffile.shards import read_model
    from kvtuner_gguf.report.bars import step_progress
    from kvtuner_gguf.report.plans import plan_summary, plan_to_json
    from kvtuner_gguf.report.spreads import key_table

    check_outputs(out, inputs=[model, text])  # CFG may be centered in place
    headers = read_model(model)
    if obstacle := centering_obstacle(headers):
        raise KvtunerError(f"{model}: keys cannot be centered, since this model {obstacle}")
    plan = _types(headers, config, uniform, ends)
    if not any(pair.types[0].is_quantized for pair in plan.pairs):
        raise KvtunerError("no layer of the plan has a quantized K: nothing to center")
    runs = open_engine(model, model_shape(headers), threads=threads, engine=engine)
    from kvtuner_gguf.tuning.center import center_plan

    with step_progress("center keys") as progress:
        plan, spread = center_plan(runs, plan, text or default_text(), tokens, ctx, seed, progress)
    plan.save(out)
    if as_json:
        click.echo(json.dumps({"file": str(out), **plan_to_json(plan)}, indent=1))
    else:
        click.echo(f"{out}\n{plan_summary(plan)}\n{key_table(spread)}")


def _types(headers: list, config: Path | None, uniform: str | None, ends: str | None) -> Plan:
    from kvtuner_gguf.gguffile.chosen_ends import chosen_ends
    from kvtuner_gguf.gguffile.fit import fitted
    from kvtuner_gguf.gguffile.metadata import model_shape
    from kvtuner_gguf.plan.pairs import Pair
    from kvtuner_gguf.plan.plan import Plan

    shape = model_shape(headers)
    if config is not None and uniform is None:
        plan = Plan.load(config).without_centers().without_scales()
    elif uniform is not None and config is None:
        plan = Plan((Pair.parse(uniform),) * shape.n_layer, ends=chosen_ends(ends, shape))
    else:
        raise KvtunerError("say which types the plan has: give either CFG or --uniform K/V")
    if ends is not None:
        plan = replace(plan, ends=chosen_ends(ends, shape))
    return fitted(plan, headers)
