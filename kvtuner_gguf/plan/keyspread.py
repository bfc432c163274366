"""How far the keys of each layer reach, before and after centering: what a quantized cache has to cover."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from kvtuner_gguf.errors import KvtunerError


@dataclass(frozen=True)
class KeySpread:
    """Per layer, over the calibration text: the largest magnitude and the root mean square of all key channels."""

    largest: tuple[float, ...]
    largest_centered: tuple[float, ...]
    rms: tuple[float, ...]
    rms_centered: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, values in asdict(self).items():
            if len(values) != len(self.largest):
                raise KvtunerError(f"'{name}' has {len(values)} layers, not {len(self.largest)}: tune the model again")
            for il, value in enumerate(values):
                if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                    raise KvtunerError(f"layer {il}: '{name}' is {value!r:.40}, no size of keys: tune the model again")

    @property
    def n_layer(self) -> int:
        return len(self.largest)

    def to_json(self) -> dict[str, list[float]]:
        return {name: list(values) for name, values in asdict(self).items()}

    @classmethod
    def from_json(cls, data: object) -> KeySpread:
        """Raises `KvtunerError` naming what is wrong."""
        names = [field.name for field in fields(cls)]
        if not isinstance(data, Mapping) or any(not _is_list(data.get(name)) for name in names):
            raise KvtunerError(f"the key spread must have the lists {', '.join(names)}: tune the model again")
        return cls(*(tuple(data[name]) for name in names))


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
