"""`kvtuner-gguf tune`: the whole offline stage."""

from __future__ import annotations

import socket
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvtuner_gguf.cli.failures import wrong_usage
from kvtuner_gguf.cli.kinds import COUNT, INPUT, MODEL, OUTPUT
from kvtuner_gguf.cli.nextstep import print_next
from kvtuner_gguf.cli.options import goal_options, measure_options
from kvtuner_gguf.cli.outputs import check_search_outputs
from kvtuner_gguf.cli.running import running
from kvtuner_gguf.cli.settings import asked, own_folder
from kvtuner_gguf.cli.talk import goes_on_from
from kvtuner_gguf.cli.tuned import print_judged, print_tuned, print_tuned_json, save_tuned_page
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.evaluation.tasks import load_tasks
from kvtuner_gguf.report.shell import annotating
from kvtuner_gguf.tuning.settings import check_goal

if TYPE_CHECKING:
    from kvtuner_gguf.evaluation.rows import Row
    from kvtuner_gguf.evaluation.tasks import Task
    from kvtuner_gguf.tuning.judges import TaskJudge
    from kvtuner_gguf.tuning.tuner import Tuned


@click.command("tune")
@click.argument("model", type=MODEL)
@click.option("-o", "--out", type=OUTPUT, default="cfg.json", show_default=True, help="Write the plan here.")
@click.option(
    "--method",
    type=click.Choice(["exact", "paper"]),
    default="exact",
    show_default=True,
    help="Prices and an exact solver, or the groups and the genetic search of the KVTuner paper.",
)
@click.option(
    "--objective",
    type=click.Choice(["kld", "perplexity", "failed"]),
    default="kld",
    show_default=True,
    help="What the paper's method minimises; failed: the share of --tasks that llama.cpp does not solve.",
)
@click.option(
    "--tasks", type=INPUT, help="JSON lines with 'question' and 'answer', as in GSM8K; the last 4 are examples."
)
@click.option("--n-tasks", type=COUNT, default=200, show_default=True, help="Tasks of that file.")
@goal_options
@measure_options
@click.option("--png", type=OUTPUT, help="Also draw the front, KLD against bits, to this file.")
@click.option("--html", type=OUTPUT, help="Also write a report to this file: one page that needs no network.")
@click.option(
    "--native/--no-native", default=True, help="Have the built llama.cpp judge the plan, too.  [if it is there]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def tune_command(
    model: Path,
    out: Path,
    tasks: Path | None,
    n_tasks: int,
    png: Path | None,
    html: Path | None,
    native: bool,
    as_json: bool,
    work: Path | None,
    **options: Any,
) -> None:
    """Search the K and V cache type of each layer of MODEL.

    An engine runs the model on a calibration text: torch in float32, or the built llama.cpp, which has every
    architecture. The KL divergence of the model's predictions prices what each type costs in each layer, from backward
    passes in torch, from plans that change one layer in llama.cpp; an exact solver finds the plan, trades between
    layers refine it. Text that was held out judges it, in the engine and in the built llama.cpp with the weights of
    the file.

    Standard errors say how sure losses are, and the noise floor how far two runs differ that should be alike: in
    llama.cpp no trade is made that wins less than either. Torch, in float32, counts as exact.

    A budget in bits or MiB counts exact ends and tables of turned centers, too.

    What is finished is kept in the folder OUT.tune (see --work): an interrupted tuning goes on where it was, another
    goal for the same model takes the profile and the prices from there. With --storage that is OUT.HOST.tune, or
    HOST in the folder of --work.
    """
    host = f".{socket.gethostname()}" if options["storage"] else ""  # the others may write beside this one
    folder = own_folder(work, options["storage"]) or out.with_suffix(f"{host}.tune")
    goes_on_from(folder, "--fresh" if options["fresh"] else None)
    check_search_outputs(out, png, html, inputs=[model, tasks], work=folder, texts=options["texts"])
    wanted = asked(model, options, folder)
    with wrong_usage():
        check_goal(wanted.settings, wanted.shape)
    given_tasks = _tasks(options["objective"], tasks, n_tasks)
    with running(model, wanted, options, folder) as tuner, _task_judge(model, given_tasks, options["threads"]) as judge:
        tuned = tuner.run(judge)
    tuned.plan.save(out)
    if png is not None:
        from kvtuner_gguf.report.fronts import save_front_chart

        save_front_chart(tuned.front, tuned.plan, png, model.name)
    if not as_json:
        print_tuned(out, tuned)  # before native code runs, which may crash
    judged = _native_row(model, tuned, options["threads"]) if native else None
    if html is not None:
        save_tuned_page(html, model, out, tuned, judged)
    if as_json:
        print_tuned_json(out, tuned, judged, annotating(model, out))
        return
    if judged is not None:
        print_judged(tuned, judged)
    print_next(annotating(model, out))


def _tasks(objective: str, tasks: Path | None, n_tasks: int) -> list[Task]:
    """Those that plans are judged by, where they are the objective."""
    if objective != "failed":
        return []
    with wrong_usage():
        if tasks is None:
            raise KvtunerError("--objective failed needs --tasks: give a file of tasks")
    return load_tasks(tasks, n_tasks)


@contextmanager
def _task_judge(model: Path, tasks: Sequence[Task], threads: int | None) -> Generator[TaskJudge | None]:
    """What judges plans by ``tasks``, if there are any."""
    if not tasks:
        yield None
        return
    from kvtuner_gguf.evaluation.task_runner import TaskRunner

    with TaskRunner(model, tasks, threads) as runner:
        yield runner


def _native_row(model: Path, tuned: Tuned, threads: int | None) -> Row | None:
    """The plan on the held-out text in the built llama.cpp; None, with a word on stderr, where that is not there."""
    from kvtuner_gguf.engine.llama.native import patched_llama_cpp
    from kvtuner_gguf.evaluation.by_llama import evaluate
    from kvtuner_gguf.evaluation.chunks import Chunks
    from kvtuner_gguf.report.stages import step_progress
    from kvtuner_gguf.report.terminal import print_text

    try:
        patched_llama_cpp()
    except KvtunerError as err:
        print_text(f"llama.cpp does not judge the plan: {err}", stderr=True)
        return None
    with step_progress("judge by llama.cpp") as progress:
        caches = {"plan, llama.cpp": tuned.plan}
        return evaluate(model, tuned.front.model, caches, Chunks(tuned.held_out), threads, progress)[1]
