"""Plans with exact ends, good and wrong, for the comparison of both readers."""

from __future__ import annotations

import struct

from tests.native.corpus import (
    CENTER_K,
    ENDS,
    EXACT_FIRST,
    EXACT_LAST,
    EXACT_TYPE,
    LAYERS,
    MODEL,
    Q4,
    Q8,
    TYPE_K,
    ends,
    floats,
    gguf,
    name,
    names,
    pack_list,
    plan,
    raw_name,
    string,
    uint32,
)


def ended(type_: str = "q8_0", **other: object) -> bytes:
    """For a model that differs from `MODEL` in ``other``."""
    return plan(LAYERS, ends={"first": 4, "last": 32, "type": type_}, model=MODEL | other)


ENDS_INPUTS: dict[str, bytes] = {
    "ends-null.json": plan(LAYERS, ends=None),
    "ends-list.json": plan(LAYERS, ends=[4, 32, "f16"]),
    "ends-empty.json": plan(LAYERS, ends={}),
    "ends-false.json": plan(LAYERS, ends=False),
    "ends-first-missing.json": plan(LAYERS, ends={"last": 32, "type": "f16"}),
    "ends-last-missing.json": plan(LAYERS, ends={"first": 4, "type": "f16"}),
    "ends-type-missing.json": plan(LAYERS, ends={"first": 4, "last": 32}),
    "ends-more.json": plan(LAYERS, ends={"first": 4, "last": 32, "type": "f16", "x": [1]}, x=1),
    "ends-largest.json": ends(1 << 20, 1 << 20),
    "ends-too-large.json": ends((1 << 20) + 1),
    "ends-too-large-later.json": ends(0, 1 << 31),
    "ends-huge.json": ends(1 << 64),
    "ends-half.json": ends(4.0),
    "ends-true.json": ends(last=True),
    "ends-text.json": ends("4"),
    "ends-of-none-first.json": ends(0, 0, "q4_0"),
    "ends-type-nul.json": ends(type_="f16\0"),
    "ends-type-number.json": ends(type_=1),
    "ends-type-long.json": ends(type_="f16" * 40),
    "ends-after-centers.json": plan([{**LAYERS[0], "center_k": "ADwA"}], ends=4),
    "ends-before-model.json": plan(LAYERS, ends=4, model=MODEL | {"n_layer": 1, "n_head_kv": 1}),
    "ends-after-model.json": plan(LAYERS, ends=4, model=MODEL | {"n_layer": -1}),
    "ends-model.json": ended(),
    "ends-odd-head.json": ended(head_dim_k=[64, 64, 64, 80]),
    "ends-odd-head-v.json": plan(
        [{"layer": 0, "k": "q8_0", "v": "f16"}],
        ends={"first": 4, "last": 32, "type": "q8_0"},
        model=MODEL | {"n_layer": 1, "n_head_kv": 1, "head_dim_v": 80},
    ),
    "ends-odd-head-f16.json": ended(type_="f16", head_dim_k=[64, 64, 64, 80]),
    "ends-odd-head-unquantized.json": ended(head_dim_k=[64, 80, 64, 64]),
    "ends-odd-head-window.json": ended(head_dim_k=[64, 64, 64, 80], window=[0, 0, 0, 512]),
    "ends-odd-head-shared.json": ended(head_dim_k=[64, 64, 64, 80], cache=[0, 1, None, 1]),
    "ends-odd-head-latent.json": ended(head_dim_k=[64, 64, 64, 80], latent=True),
    "ends-odd-head-not-latent.json": ended(head_dim_k=[64, 64, 64, 80], latent=False),
    "ends-largest.gguf": gguf(Q8, Q4, uint32(EXACT_FIRST, 1 << 20), *ENDS[1:]),
    "ends-too-large.gguf": gguf(Q8, Q4, uint32(EXACT_FIRST, (1 << 20) + 1), *ENDS[1:]),
    "ends-huge.gguf": gguf(Q8, Q4, ENDS[0], uint32(EXACT_LAST, (1 << 32) - 1), ENDS[2]),
    "ends-first-missing.gguf": gguf(Q8, Q4, *ENDS[1:]),
    "ends-last-missing.gguf": gguf(Q8, Q4, ENDS[0], ENDS[2]),
    "ends-two-missing.gguf": gguf(Q8, Q4, ENDS[2]),
    "ends-int32.gguf": gguf(Q8, Q4, string(EXACT_FIRST) + struct.pack("<Ii", 5, 4), *ENDS[1:]),
    "ends-uint64.gguf": gguf(Q8, Q4, ENDS[0], string(EXACT_LAST) + struct.pack("<IQ", 10, 32), ENDS[2]),
    "ends-text.gguf": gguf(Q8, Q4, name(EXACT_FIRST, "4"), *ENDS[1:]),
    "ends-list.gguf": gguf(Q8, Q4, ENDS[0], pack_list(EXACT_LAST, 4, 1, struct.pack("<I", 32)), ENDS[2]),
    "ends-type-number.gguf": gguf(Q8, Q4, *ENDS[:2], uint32(EXACT_TYPE, 1)),
    "ends-type-list.gguf": gguf(Q8, Q4, *ENDS[:2], names(EXACT_TYPE, ["f16"])),
    "ends-type-nul.gguf": gguf(Q8, Q4, *ENDS[:2], raw_name(EXACT_TYPE, b"f16\0junk")),
    "ends-type-utf8.gguf": gguf(Q8, Q4, *ENDS[:2], raw_name(EXACT_TYPE, b"f16\xff\xc3\xa9")),
    "ends-type-long.gguf": gguf(Q8, Q4, *ENDS[:2], name(EXACT_TYPE, "f16" * (1 << 19))),
    "ends-missing-before-kind.gguf": gguf(Q8, Q4, name(EXACT_FIRST, "4"), ENDS[1]),
    "ends-kind-before-range.gguf": gguf(Q8, Q4, uint32(EXACT_FIRST, 1 << 30), ENDS[1], uint32(EXACT_TYPE, 1)),
    "ends-after-centers.gguf": gguf(Q8, Q4, floats(CENTER_K, 5), ENDS[0]),
    "ends-after-types.gguf": gguf(name(TYPE_K, "q9_9"), Q4, ENDS[0]),
    "ends-alone.gguf": gguf(*ENDS),
    "ends-of-another.gguf": gguf(Q8, Q4, *(field.replace(b"llama.", b"qwen2.") for field in ENDS)),
}
