"""`kvtuner-gguf import-kvtuner`: a table of the paper as a plan."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvtuner_gguf.cli.kinds import ENDS, INPUT, MODEL, OUTPUT, Kind
from kvtuner_gguf.cli.nextstep import ANY_MODEL, print_next
from kvtuner_gguf.cli.options import ENDS_HELP
from kvtuner_gguf.cli.outputs import check_outputs
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.gguffile.chosen_ends import DEFAULT_ENDS
from kvtuner_gguf.published.bitstable import DEFAULT_TYPES, parse_types
from kvtuner_gguf.report.shell import annotating

if TYPE_CHECKING:
    from kvtuner_gguf.plan.plan import Plan


@click.command("import-kvtuner")
@click.argument("file", type=INPUT)
@click.option("-o", "--out", type=OUTPUT, default="cfg.json", show_default=True, help="Write the plan here.")
@click.option("--name", help="Which table of FILE, as MODEL_MODE_PRESET; needed where it has several.")
@click.option(
    "--types",
    type=Kind("types", parse_types),
    metavar="BITS=TYPE,...",
    help=f"The cache type for each number of bits, over the default: {DEFAULT_TYPES}.",
)
@click.option("--model", type=MODEL, help="Fit the plan to this GGUF file: take its shape, refuse what does not fit.")
@click.option("--ends", type=ENDS, metavar="F+L[:TYPE]", help=f"{ENDS_HELP}  [{DEFAULT_ENDS} with --model, else none]")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def import_kvtuner_command(
    file: Path,
    out: Path,
    name: str | None,
    types: Mapping[int, str] | None,
    model: Path | None,
    ends: str | None,
    as_json: bool,
) -> None:
    """Turn a table of the KVTuner paper into a plan.

    FILE has bits of K and V for each layer: a YAML preset of the paper's released code, the same for groups of layers,
    many tables in one file such as configs/kvtuner/tables.json, or a plan, which stays as it is. A name in .json is
    read as JSON, any other as YAML.

    The paper counts the bits of the codes alone; the true bits of the types, which hold scales, too, stand beside
    them. The paper's results were had with quantizers of its own: judge the plan with `eval`. `center` adds centers,
    which models with large constant keys such as Qwen2.5 need.
    """
    from kvtuner_gguf.plan.plan import Plan
    from kvtuner_gguf.published.forms import read_table
    from kvtuner_gguf.report.plans import plan_summary, plan_to_json
    from kvtuner_gguf.report.terminal import print_text

    check_outputs(out, inputs=[file, model])
    found = read_table(file, name)
    table = None if isinstance(found, Plan) else found
    plan = _own_plan(found, types) if isinstance(found, Plan) else found.plan(types or parse_types())
    plan = _with_ends(_fitted(plan, model), ends, model is not None)
    if table is not None:
        plan = table.described(plan)
    plan.save(out)
    following = annotating(model or ANY_MODEL, out)
    if as_json:
        payload = None if table is None else table.mean_bits
        data = {"file": str(out), "payload_bits": payload, **plan_to_json(plan), "next": [following]}
        click.echo(json.dumps(data, indent=1))
        return
    click.echo(f"{out}")
    print_text(plan_summary(plan))
    if table is not None:
        bits = plan.bits_per_value()
        print_text(f"{table.mean_bits:.4f} payload bits per value, as the paper counts; {bits:.4f} true bits per value")
    print_next(following)


def _own_plan(plan: Plan, types: Mapping[int, str] | None) -> Plan:
    if types is not None:
        raise KvtunerError("the file is a plan, which has its types: leave out --types")
    return plan


def _fitted(plan: Plan, model: Path | None) -> Plan:
    from kvtuner_gguf.gguffile.fit import fitted
    from kvtuner_gguf.gguffile.shards import read_model

    return plan if model is None else fitted(plan, read_model(model))


def _with_ends(plan: Plan, ends: str | None, is_fitted: bool) -> Plan:
    """``plan`` with the ends asked for, or those that it has, or the default ones where its model was looked at."""
    from kvtuner_gguf.gguffile.chosen_ends import NONE, chosen_ends, parse_ends

    if ends is None and (plan.ends is not None or not is_fitted):
        return plan
    if plan.model is not None:
        return replace(plan, ends=chosen_ends(ends, plan.model))
    return replace(plan, ends=None if ends in (None, NONE) else parse_ends(ends)[0])
