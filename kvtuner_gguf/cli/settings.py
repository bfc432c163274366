"""From the options of a command to the settings of a tuning, and what can be said against them without loading it."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kvtuner_gguf.cli.failures import wrong_usage
from kvtuner_gguf.engine.devices import Device, chosen_devices
from kvtuner_gguf.engine.llama.devices import offered_backend
from kvtuner_gguf.engine.opening import check_engine, engine_on_gpus
from kvtuner_gguf.files.assets import TUNING_TEXT, cached_text
from kvtuner_gguf.gguffile.chosen_ends import chosen_ends
from kvtuner_gguf.gguffile.metadata import centering_obstacle, model_shape
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.plan.backends import chosen_backend
from kvtuner_gguf.tuning.fixed import parse_fixed
from kvtuner_gguf.tuning.goal import DEFAULT_BITS, Goal
from kvtuner_gguf.tuning.settings import Settings, asked_facts, check_tunable
from kvtuner_gguf.tuning.storageurl import check_storage
from kvtuner_gguf.tuning.texts import Texts
from kvtuner_gguf.tuning.work import check_folder

if TYPE_CHECKING:
    from kvtuner_gguf.gguffile.reader import GgufHeader
    from kvtuner_gguf.plan.shape import ModelShape

# the types for the paper's 8, 4 and 2 bits
PAPER_TYPES = ("q8_0", "q4_0", "q2_nl")


class Asked(NamedTuple):
    """What a command that measures is asked for; ``texts`` is None where they are to be fetched."""

    shape: ModelShape
    settings: Settings
    devices: Sequence[Device]
    texts: Texts | None


def asked(model: Path, options: dict[str, Any], work: Path | None) -> Asked:
    """The model's shape, the settings and the devices that ``options`` stand for; ``work`` keeps what is finished.

    Raises what stands against them, as far as it is known from the metadata of the model and from ``work``: neither
    torch nor a model is loaded, and nothing is fetched.
    """
    headers = read_model(model)
    shape = model_shape(headers)
    check_tunable(shape)
    with wrong_usage():
        devices = chosen_devices(options["device"], options["gpus"], engine_on_gpus(headers, options["engine"]))
        settings = _settings(shape, headers, options)
        if settings.storage is not None:
            check_storage(settings.storage)
    check_engine(model, headers, options["engine"], devices[0].in_engine)
    texts = _texts_at_hand(options["texts"], settings)
    if work is not None:
        check_folder(work, asked_facts(shape, texts, settings), options["fresh"])
    return Asked(shape, settings, devices, texts)


def own_folder(work: Path | None, storage: str | None) -> Path | None:
    """``work``, or a folder of this machine's own in it where others join the search."""
    return work / socket.gethostname() if work is not None and storage is not None else work


def _texts_at_hand(named: Sequence[tuple[Path, float]], settings: Settings) -> Texts | None:
    """Those that are named, or the default one, none of them far too short; None where that is to be fetched."""
    default = cached_text(TUNING_TEXT)
    if not named and default is None:
        return None
    with wrong_usage():
        texts = Texts(*zip(*(named or [(default, 1.0)]), strict=True))
    texts.check_long_enough(settings.n_tokens, settings.n_ctx)
    return texts


def _settings(shape: ModelShape, headers: list[GgufHeader], options: dict[str, Any]) -> Settings:
    from kvtuner_gguf.report.terminal import print_text

    ends = chosen_ends(options["ends"], shape)
    names = options["candidates"]
    if options.get("method") == "paper" and not (names or options["backend"]):
        names = PAPER_TYPES
    backend = chosen_backend(options["backend"], names or (), offered_backend())
    obstacle = centering_obstacle(headers)
    measure = {"n_tokens": options["tokens"], "n_ctx": options["ctx"], "seed": options["seed"]}
    center = options["center"] and obstacle is None
    settings = Settings(backend=backend, center=center, ends=ends, **measure, **_search_settings(options))
    if options["center"] and obstacle:
        print_text(f"keys are not centered, since this model {obstacle}", stderr=True)
    return settings


def _search_settings(options: dict[str, Any]) -> dict[str, Any]:
    """Those settings of a search that are not left to their defaults."""
    if "bits" not in options:
        return {}
    bits, mib, max_kld = (options[name] for name in ("bits", "mib", "max_kld"))
    if bits is None and mib is None and max_kld is None:
        bits = DEFAULT_BITS
    return {
        "goal": Goal(bits, mib, options["for_ctx"], max_kld),
        "method": options["method"],
        "objective": options.get("objective", "kld"),
        "trials": options["trials"],
        "n_rungs": options["rungs"],
        "evolve": options["evolve"],
        "n_points": options["points"],
        "fixed": parse_fixed(options["fix"]),
        "prices": options["prices"],
        "windows": options["windows"],
        "storage": options["storage"],
    }
