"""Plans whose centers have a span, good and wrong, for the comparison of both readers."""

from __future__ import annotations

import struct

from tests.native.corpus import (
    CENTER_K,
    CENTER_SPAN,
    ENDS,
    LAYERS,
    MODEL,
    Q4,
    Q8,
    floats,
    gguf,
    name,
    pack_list,
    plan,
    string,
    uint32,
)

CENTERED = [{**LAYERS[0], "center_k": "ADwAQA=="}]
CENTERS = floats(CENTER_K, 192)


def spanned(span: object, **other: object) -> bytes:
    return plan(CENTERED, center_span=span, **other)


SPAN_INPUTS: dict[str, bytes] = {
    "span-null.json": spanned(None),
    "span-smallest.json": spanned(16),
    "span-largest.json": spanned(65536),
    "span-too-small.json": spanned(8),
    "span-too-large.json": spanned(131072),
    "span-of-none.json": spanned(0),
    "span-negative.json": spanned(-256),
    "span-huge.json": spanned(1 << 64),
    "span-half.json": spanned(256.0),
    "span-true.json": spanned(True),
    "span-text.json": spanned("256"),
    "span-list.json": spanned([256]),
    "span-null-alone.json": plan(LAYERS, center_span=None),
    "span-odd-alone.json": plan(LAYERS, center_span=100),
    "span-of-zeros.json": plan([{**LAYERS[0], "center_k": "AAAAAA=="}], center_span=256),
    "span-after-centers.json": plan([{**LAYERS[0], "center_k": "ADwA"}], center_span=100),
    "span-after-model.json": spanned(100, model=MODEL | {"n_layer": -1}),
    "span-before-ends.json": spanned(100, ends=4),
    "span-before-size.json": spanned(100, model=MODEL | {"n_layer": 1, "n_head_kv": 1}),
    "span-with-ends.json": spanned(256, ends={"first": 4, "last": 32, "type": "f16"}),
    "span-whole.gguf": gguf(Q8, Q4, CENTERS, uint32(CENTER_SPAN, 256)),
    "span-with-ends.gguf": gguf(Q8, Q4, CENTERS, uint32(CENTER_SPAN, 65536), *ENDS),
    "span-odd.gguf": gguf(Q8, Q4, CENTERS, uint32(CENTER_SPAN, 257)),
    "span-huge.gguf": gguf(Q8, Q4, CENTERS, uint32(CENTER_SPAN, 1 << 31)),
    "span-of-none.gguf": gguf(Q8, Q4, CENTERS, uint32(CENTER_SPAN, 0)),
    "span-of-zeros.gguf": gguf(Q8, Q4, floats(CENTER_K, 192, 0.0), uint32(CENTER_SPAN, 256)),
    "span-int32.gguf": gguf(Q8, Q4, CENTERS, string(CENTER_SPAN) + struct.pack("<Ii", 5, 256)),
    "span-uint64.gguf": gguf(Q8, Q4, CENTERS, string(CENTER_SPAN) + struct.pack("<IQ", 10, 256)),
    "span-text.gguf": gguf(Q8, Q4, CENTERS, name(CENTER_SPAN, "256")),
    "span-list.gguf": gguf(Q8, Q4, CENTERS, pack_list(CENTER_SPAN, 4, 1, struct.pack("<I", 256))),
    "span-text-alone.gguf": gguf(Q8, Q4, name(CENTER_SPAN, "256")),
    "span-before-ends.gguf": gguf(Q8, Q4, CENTERS, uint32(CENTER_SPAN, 100), ENDS[0]),
    "span-after-centers.gguf": gguf(Q8, Q4, floats(CENTER_K, 5), name(CENTER_SPAN, "256")),
    "span-without-types.gguf": gguf(CENTERS, uint32(CENTER_SPAN, 256)),
}
