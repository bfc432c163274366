"""`kvtuner-gguf inspect`: the plan of a file, or what is allocated without one."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kvtuner_gguf.cli.kinds import MODEL, OUTPUT
from kvtuner_gguf.cli.nextstep import print_next, steps_to_a_plan
from kvtuner_gguf.cli.outputs import check_outputs
from kvtuner_gguf.errors import KvtunerError, about
from kvtuner_gguf.plan.keyspread import KeySpread
from kvtuner_gguf.plan.pairs import F16
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape


def _default_plan(shape: ModelShape) -> Plan:
    """What the runtime allocates for a model without a plan."""
    return Plan(Plan.uniform(F16, shape.n_layer).pairs, shape)


@click.command("inspect")
@click.argument("model_or_cfg", type=MODEL)
@click.option("--png", type=OUTPUT, help="Also draw the keys of each layer, before and after centering, to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect_command(model_or_cfg: Path, png: Path | None, as_json: bool) -> None:
    """Show the plan of a GGUF file or of a plan file: the types of each layer, true bits per value, bytes per token.

    Exact ends are counted in a context of 8192 tokens of one sequence: in the bits the rows of first and last
    positions, in the MiB also those of a ubatch of 512 tokens, which a context keeps once.

    Where keys are centered, a table shows the largest and the root mean square key of each layer before and after. For
    a model without a plan, show what llama.cpp then allocates, f16 in every layer, and the commands that give it one.
    """
    from kvtuner_gguf.gguffile.metadata import model_shape
    from kvtuner_gguf.gguffile.shards import read_model
    from kvtuner_gguf.gguffile.stored_plan import load_plan
    from kvtuner_gguf.report.plans import plan_summary, plan_to_json
    from kvtuner_gguf.report.spreads import print_keys
    from kvtuner_gguf.report.terminal import print_text

    check_outputs(png, inputs=[model_or_cfg])
    plan, source = load_plan(model_or_cfg)
    steps: list[str] = []
    if plan is None:
        shape = model_shape(read_model(model_or_cfg))
        plan, source = _default_plan(shape), "default"
        steps = steps_to_a_plan(model_or_cfg, shape)
    with about(model_or_cfg):
        spread = KeySpread.from_json(plan.provenance["keys"]) if "keys" in plan.provenance else None
        data = {"source": source, **plan_to_json(plan), "next": steps}
        shown = json.dumps(data, indent=1) if as_json else plan_summary(plan)
    if png is not None:
        _draw_keys(spread, png, model_or_cfg)
    if source == "default" and not as_json:
        print_text(f"{model_or_cfg}: no plan; llama.cpp allocates")
    if as_json:
        click.echo(shown)
        return
    print_text(shown)
    for name, value in plan.provenance.items():
        if name != "keys":
            print_text(f"{name}: {value}")
    if spread is not None:
        print_keys(spread)
    for step in steps:
        print_next(step)


def _draw_keys(spread: KeySpread | None, png: Path, source: Path) -> None:
    from kvtuner_gguf.report.spreads import save_key_chart

    if spread is None:
        raise KvtunerError(f"{source}: it does not say how far keys reach: tune the model with centering")
    save_key_chart(spread, png, source.name)
