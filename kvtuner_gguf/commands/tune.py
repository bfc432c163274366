"""`kvtuner-gguf tune`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kvtuner_gguf.errors import KvtunerError

FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("tune")
@click.argument("model", type=FILE)
@click.option("-o", "--out", type=FILE, default="cfg.json", show_default=True, help="Write the plan here.")
@click.option("--bits", type=float, default=6.5, show_default=True, help="Budget in true bits per value.")
@click.option("--text", type=FILE, help="Calibration text, UTF-8. Default: a web text that is fetched once.")
@click.option("--tokens", type=int, default=1024, show_default=True, help="Calibration tokens.")
@click.option("--ctx", type=int, default=512, show_default=True, help="Context length of a chunk of them.")
@click.option("--candidates", metavar="A,B,...", help="Cache types to choose from. Default: q8_0 down to q4_0.")
@click.option("--trials", type=int, default=40, show_default=True, help="Trades between layers that are judged.")
@click.option(
    "--center/--no-center",
    default=True,
    show_default=True,
    help="Take off what the keys have in common; left out where the architecture forbids it.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same plan.")
@click.option("--threads", type=int, help="Threads of the reference model. Default: all processors.")
@click.option("--profile-out", type=FILE, help="Also write the errors of every pair in every layer here.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def tune_command(
    model: Path,
    out: Path,
    bits: float,
    text: Path | None,
    tokens: int,
    ctx: int,
    candidates: str | None,
    trials: int,
    center: bool,
    seed: int,
    threads: int | None,
    profile_out: Path | None,
    as_json: bool,
) -> None:
    """Search the K and V cache type of each layer of MODEL for a budget in bits.

    A torch model in float32, loaded from the GGUF itself, is run on a calibration text. The error that each pair of
    types makes in each layer's attention prunes the candidates; the KL divergence of the model's predictions prices
    them; an exact solver finds the plan, trades between layers refine it, and text that was held out judges it.
    """
    from kvtuner_gguf.gguffile.shape import centering_obstacle, model_shape, read_model
    from kvtuner_gguf.report.plans import plan_summary, plan_to_json
    from kvtuner_gguf.report.progress import step_progress

    headers = read_model(model)
    shape = model_shape(headers)
    if center and (obstacle := centering_obstacle(headers)):
        click.echo(f"keys are not centered, since this model {obstacle}", err=True)
        center = False
    settings, tune = _prepare(bits, tokens, ctx, candidates, trials, seed, threads, center)
    tuned = tune(model, shape, text or default_text(), settings, step_progress)
    tuned.plan.save(out)
    if profile_out is not None:
        tuned.profile.save(profile_out)
    if as_json:
        click.echo(json.dumps({"file": str(out), **plan_to_json(tuned.plan)}, indent=1))
        return
    click.echo(f"{out}\n{plan_summary(tuned.plan)}")
    click.echo(
        f"mean KLD in torch: {tuned.kld_tuning:.5f} on the tuning text, {tuned.kld_held_out:.5f} on held-out text"
    )


def _prepare(
    bits: float,
    tokens: int,
    ctx: int,
    candidates: str | None,
    trials: int,
    seed: int,
    threads: int | None,
    center: bool,
) -> tuple:
    import_torch(threads)
    from kvtuner_gguf.tuning.tune import DEFAULT_CANDIDATES, Settings, tune

    names = tuple(candidates.split(",")) if candidates else DEFAULT_CANDIDATES
    return Settings(bits, tokens, ctx, names, seed, trials, center), tune


def import_torch(threads: int | None) -> None:
    """Raise `KvtunerError` where what `kvtuner_gguf.tuning` needs is not installed; set torch's threads."""
    try:
        import accelerate  # noqa: F401
        import torch
        import transformers  # noqa: F401
    except ImportError as err:
        raise KvtunerError(f"tuning needs {err.name}: pip install 'kvtuner-gguf[tune]'") from err
    if threads is not None:
        torch.set_num_threads(max(1, threads))


def default_text() -> Path:
    """The pinned calibration text, fetched once."""
    from kvtuner_gguf import assets
    from kvtuner_gguf.report.progress import byte_progress

    with byte_progress("fetch the calibration text") as progress:
        return assets.fetch_text("web", progress)
