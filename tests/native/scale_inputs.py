"""Plans with scales, good and wrong, for the comparison of both readers."""

from __future__ import annotations

import base64
import struct

from tests.native.corpus import CENTER_SPAN, LAYERS, MODEL, Q4, Q8, SCALE_K, floats, gguf, pack_list, plan, uint32


def half(*values: float) -> str:
    """The base64 of float16 values."""
    return base64.b64encode(struct.pack(f"<{len(values)}e", *values)).decode()


def scaled(scale: object, center: object = None, **other: object) -> bytes:
    return plan([{**LAYERS[0], "scale_k": scale, "center_k": center}], **other)


ONE_LAYER = MODEL | {"n_layer": 1, "n_head_kv": 1}
GOOD = half(1, 2)
NAN, INFINITY = float("nan"), float("inf")

SCALE_INPUTS: dict[str, bytes] = {
    "scale-null.json": scaled(None),
    "scale-with-center.json": scaled(GOOD, half(-1, 2), center_span=256),
    "scale-as-center.json": scaled(None, GOOD),
    "scale-smallest.json": scaled(half(2.0**-24, 65504)),
    "scale-number.json": scaled(7),
    "scale-list.json": scaled([1, 2]),
    "scale-text.json": scaled("???"),
    "scale-empty.json": scaled(""),
    "scale-odd.json": scaled("ADwA"),
    "scale-nan.json": scaled(half(1, NAN)),
    "scale-infinity.json": scaled(half(INFINITY, 1)),
    "scale-zero.json": plan([LAYERS[0], {**LAYERS[1], "scale_k": half(1, 0)}]),
    "scale-minus-zero.json": scaled(half(-0.0, 1)),
    "scale-nan-and-zero.json": scaled(half(0, NAN)),
    "scale-of-zeros.json": scaled(half(0, -0.0)),
    "scale-after-center.json": scaled("ADwA", "???"),
    "scale-after-span.json": scaled("ADwA", GOOD, center_span=100),
    "scale-before-ends.json": scaled("ADwA", ends=4),
    "scale-after-model.json": scaled("ADwA", model=MODEL | {"n_layer": -1}),
    "scale-size.json": scaled(GOOD, model=ONE_LAYER),
    "scale-size-after-center.json": scaled(GOOD, GOOD, model=ONE_LAYER),
    "scale-whole.json": scaled(half(*[0.5] * 64), model=ONE_LAYER),
    "scale-short.gguf": gguf(Q8, Q4, floats(SCALE_K, 5)),
    "scale-doubles.gguf": gguf(Q8, Q4, pack_list(SCALE_K, 12, 192, bytes(8 * 192))),
    "scale-nan.gguf": gguf(Q8, Q4, floats(SCALE_K, 192, NAN)),
    "scale-rounded.gguf": gguf(Q8, Q4, floats(SCALE_K, 192, 0.1)),
    "scale-beyond-float16.gguf": gguf(Q8, Q4, floats(SCALE_K, 192, 1e6)),
    "scale-below-float16.gguf": gguf(Q8, Q4, floats(SCALE_K, 192, 1e-9)),
    "scale-of-zeros.gguf": gguf(Q8, Q4, floats(SCALE_K, 192, 0.0)),
    "scale-many.gguf": gguf(Q8, Q4, floats(SCALE_K, 2_000_000)),
    "scale-after-span.gguf": gguf(Q8, Q4, floats(SCALE_K, 5), uint32(CENTER_SPAN, 256)),
    "scale-before-ends.gguf": gguf(Q8, Q4, floats(SCALE_K, 5), uint32("llama.attention.kv_cache.exact_first", 4)),
    "scale-without-types.gguf": gguf(floats(SCALE_K, 192)),
}
