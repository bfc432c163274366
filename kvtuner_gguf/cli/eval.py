"""`kvtuner-gguf eval`: plans and uniform pairs against the f16 cache."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvtuner_gguf.cli.failures import wrong_usage
from kvtuner_gguf.cli.kinds import COUNT, ENDS, INPUT, MODEL, OUTPUT, PAIR
from kvtuner_gguf.cli.options import ENDS_HELP
from kvtuner_gguf.cli.outputs import check_outputs
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.gguffile.chosen_ends import NONE

if TYPE_CHECKING:
    from kvtuner_gguf.plan.pairs import Pair
    from kvtuner_gguf.plan.plan import Plan
    from kvtuner_gguf.plan.shape import ModelShape

OWN_PLAN = "auto"


@click.command("eval")
@click.argument("model", type=MODEL)
@click.option(
    "--config",
    "configs",
    type=INPUT,
    multiple=True,
    help="Judge this plan, or that of an annotated model. Repeatable.",
)
@click.option(
    "--uniform", "uniform", type=PAIR, metavar="K/V", multiple=True, help="Judge this pair in all layers. Repeatable."
)
@click.option(
    "--centers",
    type=INPUT,
    help="Judge every uniform pair a second time, centered and scaled as in this plan or annotated model.",
)
@click.option(
    "--ends", type=ENDS, default=NONE, show_default=True, metavar="F+L[:TYPE]", help=f"Of uniform pairs: {ENDS_HELP}"
)
@click.option("--auto/--no-auto", default=True, help="Judge the plan that MODEL itself carries, if any, as 'auto'.")
@click.option("--text", type=INPUT, help="UTF-8 text to judge on.  [default: a pinned encyclopedia text]")
@click.option("--ctx", type=click.IntRange(min=4), default=512, show_default=True, help="Tokens in a chunk.")
@click.option("--chunks", type=COUNT, default=8, show_default=True, help="Chunks, from the text's start.")
@click.option(
    "--start-pos",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Position of the first token of a chunk, by --evaluator torch: what RoPE does to keys at this depth.",
)
@click.option("--threads", type=COUNT, help="Threads of the evaluator.  [default: all processors]")
@click.option(
    "--evaluator",
    type=click.Choice(["native", "torch"]),
    default="native",
    show_default=True,
    help="The built llama.cpp, or the float32 reference model in torch.",
)
@click.option("--png", type=OUTPUT, help="Also draw KLD against bits to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON and nothing else.")
def eval_command(
    model: Path,
    configs: Sequence[Path],
    uniform: Sequence[Pair],
    centers: Path | None,
    ends: str,
    auto: bool,
    text: Path | None,
    ctx: int,
    chunks: int,
    start_pos: int,
    threads: int | None,
    evaluator: str,
    png: Path | None,
    as_json: bool,
) -> None:
    """Judge plans and uniform pairs for MODEL against its f16 KV cache.

    All caches decode the same tokens side by side in the built llama.cpp, FlashAttention on, the f16 cache too, which
    is the first row. Every chunk starts with an empty cache and its second half is scored, as llama-perplexity does.
    KLD is in nats per token, '+-' the standard error of its mean; 'same top' is how often the most likely token is that
    of the f16 cache; bits count block scales, and stand a second time with exact ends and tables of turned centers,
    counted in a context of 8192 tokens. A plan has its own ends.
    """
    from kvtuner_gguf.evaluation.by_either import check_evaluator, check_there, evaluate
    from kvtuner_gguf.evaluation.chunks import Sample, read_text
    from kvtuner_gguf.gguffile.metadata import model_shape
    from kvtuner_gguf.gguffile.shards import read_model
    from kvtuner_gguf.report.stages import step_progress

    check_outputs(png, inputs=[model, *configs, centers, text])
    headers = read_model(model)
    shape = model_shape(headers)
    with wrong_usage():
        check_evaluator(evaluator, start_pos)
        pairs = _uniform(shape, uniform, ends)
    check_there(evaluator, model, headers)
    caches = _plans(headers, configs, auto) | pairs
    if centers is not None:
        caches |= _centered(headers, centers, uniform, ends)
    with wrong_usage():
        if png and not caches:
            raise KvtunerError("--png has nothing to draw but the f16 cache: add --uniform or --config")
    sample = Sample(read_text(text), ctx, chunks, start_pos)
    with step_progress(f"eval {model.name}") as progress:
        rows = evaluate(evaluator, model, shape, caches, sample, threads, progress)
    title = f"{model.name}: {chunks} x {ctx} tokens of {text.name if text else 'encyclopedia text'}"
    if start_pos:
        title += f", from position {start_pos}"
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        from kvtuner_gguf.report.rows import print_rows

        print_rows(rows, title)
    if png:
        from kvtuner_gguf.report.chart import save_chart

        save_chart(rows, png, title)


def _plans(headers: list, configs: Sequence[Path], auto: bool) -> dict[str, Plan]:
    """Plans to judge, by their names in the table: the model's own, others by file name."""
    from kvtuner_gguf.errors import about
    from kvtuner_gguf.gguffile.fit import fitted
    from kvtuner_gguf.gguffile.stored_plan import given_plan, plan_of

    caches: dict[str, Plan] = {}
    own = plan_of(headers) if auto else None
    if own is not None:
        caches[OWN_PLAN] = own
    stems = [path.stem for path in configs]
    for path in configs:
        name = path.stem if stems.count(path.stem) == 1 and path.stem != OWN_PLAN else str(path)
        plan = given_plan(path)
        with about(path):
            caches[name] = fitted(plan, headers)
    return caches


def _uniform(shape: ModelShape, uniform: Sequence[Pair], ends: str, like: Plan | None = None) -> dict[str, Plan]:
    """Each uniform pair with such ends, and keys as of ``like``, by its name in the table.

    Scales of a plan with ends are for what is not read exactly: without ends they are left out, as the library does.
    """
    from kvtuner_gguf.gguffile.chosen_ends import chosen_ends
    from kvtuner_gguf.plan.plan import Plan

    exact = chosen_ends(ends, shape)
    name = (" centered" if like else "") + (f" ends {exact}" if exact else "")
    plans = [Plan.uniform(pair, shape.n_layer) for pair in uniform]
    if like is not None:
        like = like if exact else like.without_ends()
        plans = [replace(plan, centers=like.centers, scales=like.scales) for plan in plans]
    return {f"{plan.pairs[0]}{name}": replace(plan, ends=exact) for plan in plans}


def _centered(headers: list, source: Path, uniform: Sequence[Pair], ends: str) -> dict[str, Plan]:
    """Each uniform pair with such ends and the centers and scales of the plan in ``source``."""
    from kvtuner_gguf.gguffile.fit import fitted
    from kvtuner_gguf.gguffile.metadata import model_shape
    from kvtuner_gguf.gguffile.stored_plan import load_plan

    plan, _ = load_plan(source)
    if plan is None or plan.centers is None:
        raise KvtunerError(f"{source}: there are no centers in it: tune the model, or give another --centers")
    return _uniform(model_shape(headers), uniform, ends, fitted(plan, headers))
