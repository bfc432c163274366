"""The tuner of a command that measures, from what it is asked for."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvtuner_gguf.cli.texts import texts_of
from kvtuner_gguf.engine.torch.install import import_torch

if TYPE_CHECKING:
    from kvtuner_gguf.cli.settings import Asked
    from kvtuner_gguf.tuning.tuner import Tuner


@contextmanager
def running(model: Path, asked: Asked, options: dict[str, Any], work: Path | None) -> Generator[Tuner]:
    """What measures ``model``, on all devices; ``work`` keeps what is finished, ``options`` are as of `asked`."""
    from kvtuner_gguf.report.stages import step_progress

    with step_progress("load torch"):
        import_torch(options["threads"])
    from kvtuner_gguf.engine.opening import open_engines
    from kvtuner_gguf.tuning.crew import Crew
    from kvtuner_gguf.tuning.tuner import Tuner
    from kvtuner_gguf.tuning.work import facts_of

    text, fresh = texts_of(options["texts"]), options["fresh"]
    before = facts_of(work, fresh)
    engine, helpers = open_engines(model, asked.shape, asked.devices, options["threads"], options["engine"], before)
    with Crew(helpers) as crew:
        yield Tuner(engine, text, asked.settings, work, fresh, step_progress, crew)
