"""Made-up rows of every cache type, and their values."""

from __future__ import annotations

from dataclasses import dataclass

import gguf
import numpy as np


@dataclass(frozen=True)
class Format:
    """Blocks of ``values`` values in ``size`` bytes, the scale first, and the scale that gives values of about 1."""

    values: int
    size: int
    scale: float
    least: float = 0.0


FORMATS = {
    "q8_0": Format(32, 34, 1 / 73),
    "q5_1": Format(32, 24, 1 / 9.2, -1.7),
    "q5_0": Format(32, 22, 1 / 9.2),
    "q4_1": Format(32, 20, 1 / 4.6, -1.6),
    "q4_0": Format(32, 18, 1 / 4.6),
    "iq4_nl": Format(32, 18, 1 / 70),
    "q3_nl": Format(64, 26, 1 / 14),
    "q2_nl": Format(64, 18, 1 / 7),
}
NUMBERS = {"f32": 4, "f16": 2, "bf16": 2}
CACHE_TYPES = (*NUMBERS, *FORMATS)
LEVELS = {"q2_nl": (-10, -3, 3, 10), "q3_nl": (-26, -16, -9, -3, 3, 9, 16, 26)}


def fits(cache_type: str, head_size: int) -> bool:
    """Whether a head is whole blocks."""
    return cache_type in NUMBERS or head_size % FORMATS[cache_type].values == 0


def row_bytes(cache_type: str, n: int) -> int:
    """Of ``n`` values."""
    if cache_type in NUMBERS:
        return n * NUMBERS[cache_type]
    return n // FORMATS[cache_type].values * FORMATS[cache_type].size


def random_rows(cache_type: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Bytes ``[..., row]`` of values ``shape``: any codes, with scales around those of values of about 1."""
    if cache_type in NUMBERS:
        return _as_bytes(cache_type, rng.standard_normal(shape, dtype=np.float32))
    form = FORMATS[cache_type]
    blocks = rng.integers(0, 256, (*shape[:-1], shape[-1] // form.values, form.size), dtype=np.uint8)
    scales = (form.scale * rng.uniform(0.5, 1.5, blocks.shape[:-1])).astype(np.float16)
    blocks[..., :2] = scales[..., None].view(np.uint8)
    if form.least:
        least = (form.least * rng.uniform(0.5, 1.5, blocks.shape[:-1])).astype(np.float16)
        blocks[..., 2:4] = least[..., None].view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)


def values_of(cache_type: str, rows: np.ndarray) -> np.ndarray:
    """The values of ``rows`` in float64."""
    if cache_type == "bf16":
        return (rows.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if cache_type in NUMBERS:
        return rows.view(f"<f{NUMBERS[cache_type]}").astype(np.float64)
    if cache_type in LEVELS:
        return _low_bits(cache_type, rows)
    kind = gguf.GGMLQuantizationType[cache_type.upper()]
    return gguf.quants.dequantize(rows, kind).astype(np.float64)


def _as_bytes(cache_type: str, values: np.ndarray) -> np.ndarray:
    if cache_type == "bf16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    return values.astype(f"<f{NUMBERS[cache_type]}").view(np.uint8)


def _low_bits(cache_type: str, rows: np.ndarray) -> np.ndarray:
    """As cpp/format/kvtuner-blocks.h says."""
    blocks = rows.reshape(*rows.shape[:-1], -1, FORMATS[cache_type].size)
    at = np.arange(64)
    codes = blocks[..., 2 + at % 16] >> (2 * (at // 16)).astype(np.uint8) & 3
    if cache_type == "q3_nl":
        codes = codes | (blocks[..., 18 + at % 8] >> (at // 8).astype(np.uint8) & 1) << 2
    scale = np.ascontiguousarray(blocks[..., :2]).view(np.float16).astype(np.float64)
    return (np.array(LEVELS[cache_type])[codes] * scale).reshape(*rows.shape[:-1], -1)
