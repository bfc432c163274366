"""The exact ends that a new plan gets: those asked for, or the default ones where a model can have them."""

from __future__ import annotations

import re
from dataclasses import replace

from kvtuner_gguf.errors import KvtunerError, shown
from kvtuner_gguf.gguffile.architectures import WITHOUT_ENDS
from kvtuner_gguf.plan.cachetypes import cache_type
from kvtuner_gguf.plan.ends import Ends, can_have_ends
from kvtuner_gguf.plan.shape import LayerShape, ModelShape

NONE = "none"
# q8_0 rows lose nothing in comparison with f16, and take about half the bytes
DEFAULT_ENDS = Ends(4, 128, "q8_0")
_FORM = re.compile(r"(\d{1,9})\+(\d{1,9})(?::(\w+))?", re.ASCII)


def chosen_ends(text: str | None, shape: ModelShape) -> Ends | None:
    """``"FIRST+LAST"``, ``"FIRST+LAST:TYPE"`` or ``"none"``; None stands for `DEFAULT_ENDS`.

    Without a type they are of the default one, or f16 where its blocks do not divide a head. A model of which no layer
    can have ends has none by default. Raises `KvtunerError` where it is asked for ends, and for text of another form.
    """
    if text == NONE:
        return None
    ends, is_typed = (DEFAULT_ENDS, False) if text is None else parse_ends(text)
    layers = _layers(shape)
    if not layers:
        if text is None:
            return None
        raise KvtunerError(f"no layer of this {shape.architecture} model can have exact ends: give --ends {NONE}")
    if not is_typed and not all(_divides(ends.type, layer) for layer in layers.values()):
        ends = replace(ends, type="f16")
    for il, layer in layers.items():
        ends.check_heads(il, layer)
    return ends


def parse_ends(text: str) -> tuple[Ends, bool]:
    """Ends as they are written, and whether their type is; raises `KvtunerError` for text of another form."""
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise KvtunerError(
            f"the ends are {shown(text)}: give FIRST+LAST or FIRST+LAST:TYPE, for example {DEFAULT_ENDS}, or {NONE}"
        )
    return Ends(int(match[1]), int(match[2]), (match[3] or DEFAULT_ENDS.type).lower()), match[3] is not None


def _layers(shape: ModelShape) -> dict[int, LayerShape]:
    """The layers that can have ends."""
    if shape.architecture in WITHOUT_ENDS:
        return {}
    return {il: layer for il, layer in enumerate(shape.layers) if can_have_ends(layer)}


def _divides(name: str, layer: LayerShape) -> bool:
    block = cache_type(name).block_size
    return layer.head_dim_k % block == layer.head_dim_v % block == 0
