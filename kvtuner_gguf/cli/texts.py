"""The calibration texts that commands are given, or else the pinned one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvtuner_gguf.tuning.texts import Texts


def texts_of(named: Sequence[tuple[Path, float]]) -> Texts:
    """The texts that are ``named`` with their weights, or else the default one."""
    from kvtuner_gguf.tuning.texts import Texts

    paths, weights = zip(*(named or [(default_text(), 1.0)]), strict=True)
    return Texts(paths, weights)


def text_and_weight(name: str) -> tuple[Path, float]:
    """What ``FILE`` or ``FILE=WEIGHT`` stands for."""
    path, equals, weight = name.rpartition("=")
    try:
        return (Path(path), float(weight)) if equals and not Path(name).exists() else (Path(name), 1.0)
    except ValueError:
        return Path(name), 1.0


def default_text() -> Path:
    """The pinned calibration text, fetched once."""
    from kvtuner_gguf.files import assets
    from kvtuner_gguf.report.stages import byte_progress

    with byte_progress("fetch the calibration text") as progress:
        return assets.fetch_text(assets.TUNING_TEXT, progress)
