"""From the options of a command to the settings of a tuning."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvtuner_gguf.engine.llama.devices import offered_backend
from kvtuner_gguf.engine.torch.install import import_torch
from kvtuner_gguf.gguffile.chosen_ends import chosen_ends
from kvtuner_gguf.plan.backends import chosen_backend

if TYPE_CHECKING:
    from kvtuner_gguf.plan.shape import ModelShape

# the types for the paper's 8, 4 and 2 bits
PAPER_TYPES = "q8_0,q4_0,q2_nl"


def make_settings(model: Path, options: dict[str, Any]) -> tuple:
    """The shape of the model and the settings that ``options`` stand for."""
    import_torch(options["threads"])
    shape, center = shape_to_tune(model, options["center"])
    ends = chosen_ends(options["ends"], shape)
    names = options["candidates"]
    if options.get("method") == "paper" and not (names or options["backend"]):
        names = PAPER_TYPES
    backend = chosen_backend(options["backend"], names.split(",") if names else (), offered_backend())
    from kvtuner_gguf.tuning.settings import Settings

    measure = {"n_tokens": options["tokens"], "n_ctx": options["ctx"], "seed": options["seed"]}
    return shape, Settings(backend=backend, center=center, ends=ends, **measure, **_search_settings(options))


def own_folder(work: Path | None, storage: str | None) -> Path | None:
    """``work``, or a folder of this machine's own in it where others join the search."""
    return work / socket.gethostname() if work is not None and storage is not None else work


def _search_settings(options: dict[str, Any]) -> dict[str, Any]:
    """Those settings of a search that are not left to their defaults."""
    if "bits" not in options:
        return {}
    from kvtuner_gguf.tuning.fixed import parse_fixed
    from kvtuner_gguf.tuning.goal import DEFAULT_BITS, Goal

    bits, mib, max_kld = (options[name] for name in ("bits", "mib", "max_kld"))
    if bits is None and mib is None and max_kld is None:
        bits = DEFAULT_BITS
    method = options["method"]
    goal = Goal(bits, mib, options["for_ctx"], max_kld)
    objective = options.get("objective", "kld")
    return {
        "goal": goal,
        "method": method,
        "objective": objective,
        "trials": options["trials"],
        "n_rungs": options["rungs"],
        "evolve": options["evolve"],
        "n_points": options["points"],
        "fixed": parse_fixed(options["fix"]),
        "prices": options["prices"],
        "windows": options["windows"],
        "storage": options["storage"],
    }


def shape_to_tune(model: Path, center: bool) -> tuple[ModelShape, bool]:
    """The shape of ``model``, and whether its keys are to be centered."""
    from kvtuner_gguf.gguffile.metadata import centering_obstacle, model_shape
    from kvtuner_gguf.gguffile.shards import read_model

    headers = read_model(model)
    if center and (obstacle := centering_obstacle(headers)):
        click.echo(f"keys are not centered, since this model {obstacle}", err=True)
        center = False
    return model_shape(headers), center
