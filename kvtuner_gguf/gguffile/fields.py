"""The fields of a plan as bytes of GGUF metadata."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import numpy as np
from gguf import GGUFValueType

import kvtuner_gguf
from kvtuner_gguf.gguffile.keys import SCHEMA_VERSION, Keys
from kvtuner_gguf.plan.keyspread import KeySpread
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.plan.vectors import flat_float32


def plan_fields(plan: Plan, shape: ModelShape) -> list[bytes]:
    """The encoded fields for a model of this shape."""
    arch = shape.architecture
    return [
        _string_list(Keys.TYPE_K.format(arch=arch), [pair.k for pair in plan.pairs]),
        _string_list(Keys.TYPE_V.format(arch=arch), [pair.v for pair in plan.pairs]),
        _scalar(Keys.SCHEMA, GGUFValueType.UINT32, "<I", SCHEMA_VERSION),
        string_field(Keys.VERSION, str(plan.provenance.get("version", kvtuner_gguf.__version__))),
        string_field(Keys.PLAN_FINGERPRINT, plan.fingerprint),
        _scalar(Keys.BITS_PER_VALUE, GGUFValueType.FLOAT32, "<f", plan.bits_per_value()),
        *_center_fields(plan, shape),
        *_scale_fields(plan, shape),
        *_end_fields(plan, arch),
        *_known_provenance(plan),
    ]


def _center_fields(plan: Plan, shape: ModelShape) -> Iterable[bytes]:
    if plan.centers is not None and any(plan.centers.k):
        arch = shape.architecture
        yield _float_list(Keys.CENTER_K.format(arch=arch), flat_float32(plan.centers.k, shape.sizes_k))
        if plan.centers.span is not None:
            yield _scalar(Keys.CENTER_SPAN.format(arch=arch), GGUFValueType.UINT32, "<I", plan.centers.span)


def _scale_fields(plan: Plan, shape: ModelShape) -> Iterable[bytes]:
    if plan.scales is not None:
        yield _float_list(Keys.SCALE_K.format(arch=shape.architecture), flat_float32(plan.scales.k, shape.sizes_k))


def _end_fields(plan: Plan, arch: str) -> Iterable[bytes]:
    if plan.ends is not None:
        yield _scalar(Keys.EXACT_FIRST.format(arch=arch), GGUFValueType.UINT32, "<I", plan.ends.first)
        yield _scalar(Keys.EXACT_LAST.format(arch=arch), GGUFValueType.UINT32, "<I", plan.ends.last)
        yield string_field(Keys.EXACT_TYPE.format(arch=arch), plan.ends.type)


def _known_provenance(plan: Plan) -> Iterable[bytes]:
    text, tokens, kld = (plan.provenance.get(name) for name in ("text_sha256", "text_tokens", "kld_mean"))
    if isinstance(text, str):
        yield string_field(Keys.TEXT_SHA256, text)
    if type(tokens) is int and 0 <= tokens < 1 << 32:
        yield _scalar(Keys.TEXT_TOKENS, GGUFValueType.UINT32, "<I", tokens)
    if isinstance(kld, float):
        yield _scalar(Keys.KLD_MEAN, GGUFValueType.FLOAT32, "<f", kld)
    if "keys" in plan.provenance:
        for name, values in KeySpread.from_json(plan.provenance["keys"]).to_json().items():
            yield _float_list(Keys.KEY_SPREAD.format(field=name), np.array(values, np.float32))


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _scalar(key: str, kind: GGUFValueType, code: str, value: float) -> bytes:
    return _string(key) + struct.pack("<I", kind) + struct.pack(code, value)


def string_field(key: str, value: str) -> bytes:
    """One encoded field that holds a text."""
    return _string(key) + struct.pack("<I", GGUFValueType.STRING) + _string(value)


def _string_list(key: str, values: list[str]) -> bytes:
    kind = struct.pack("<IIQ", GGUFValueType.ARRAY, GGUFValueType.STRING, len(values))
    return _string(key) + kind + b"".join(map(_string, values))


def _float_list(key: str, values: np.ndarray) -> bytes:
    kind = struct.pack("<IIQ", GGUFValueType.ARRAY, GGUFValueType.FLOAT32, len(values))
    return _string(key) + kind + values.astype("<f4").tobytes()


def uint64_list_start(key: str, count: int) -> bytes:
    """All of a field that holds ``count`` values of uint64 but these."""
    return _string(key) + struct.pack("<IIQ", GGUFValueType.ARRAY, GGUFValueType.UINT64, count)
