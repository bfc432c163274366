"""The options that a measurement was made with, from what its file says of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kvtuner_gguf.files.assets import TEXTS, TUNING_TEXT

_OPTIONS = {"text_tokens": "--tokens", "n_ctx": "--ctx", "seed": "--seed"}


def measuring_options(facts: Mapping[str, Any]) -> list[str]:
    """Text, tokens, context and seed of the provenance ``facts``; texts go by their names, in the folder of a shell."""
    words = [word for key, option in _OPTIONS.items() if key in facts for word in (option, str(facts[key]))]
    if facts.get("text") in (None, TEXTS[TUNING_TEXT].filename):
        return words
    return [*words, *(word for text in _texts(str(facts["text"])) for word in ("--text", text))]


def _texts(names: str) -> list[str]:
    """Texts with weights as options name them: ``"0.5 a.txt + 1 b.txt"`` is ``a.txt=0.5`` and ``b.txt=1``."""
    found = [re.fullmatch(r"(\d\S*) (.+)", part) for part in names.split(" + ")]
    return [f"{one[2]}={one[1]}" if one else part for one, part in zip(found, names.split(" + "), strict=True)]
