"""The seeds of the fuzz harness: good plans and hostile ones, as JSON and as GGUF metadata.

``python tests/native/corpus.py FOLDER`` writes them as files.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

MODEL = {"architecture": "llama", "n_layer": 4, "n_head_kv": [1, 1, 0, 1], "head_dim_k": 64, "head_dim_v": 64}
NAMES = (("q8_0", "q4_0"), ("f16", "f16"), ("q5_1", "iq4_nl"), ("bf16", "q5_0"))
LAYERS = [{"layer": il, "k": k, "v": v} for il, (k, v) in enumerate(NAMES)]
TYPE_K, TYPE_V = (f"llama.attention.kv_cache.type_{side}" for side in "kv")
CENTER_K, CENTER_V = (f"llama.attention.kv_cache.center_{side}" for side in "kv")
SCALE_K = "llama.attention.kv_cache.scale_k"
CENTER_SPAN = "llama.attention.kv_cache.center_span"
EXACT_FIRST, EXACT_LAST, EXACT_TYPE = (f"llama.attention.kv_cache.exact_{of}" for of in ("first", "last", "type"))
STRING, ARRAY, UINT32, FLOAT32 = 8, 9, 4, 6


def plan(layers: object, **other: object) -> bytes:
    return json.dumps({"schema": "kvtuner.plan/1", "layers": layers, **other}).encode()


def ends(first: object = 4, last: object = 32, type_: object = "f16") -> bytes:
    """A plan with these ends."""
    return plan(LAYERS, ends={"first": first, "last": last, "type": type_})


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def name(key: str, value: str) -> bytes:
    return string(key) + struct.pack("<I", STRING) + string(value)


def names(key: str, values: list[str]) -> bytes:
    return string(key) + struct.pack("<IIQ", ARRAY, STRING, len(values)) + b"".join(map(string, values))


def pack_list(key: str, kind: int, count: int, raw: bytes) -> bytes:
    return string(key) + struct.pack("<IIQ", ARRAY, kind, count) + raw


def raw_name(key: str, raw: bytes) -> bytes:
    return string(key) + struct.pack("<IQ", STRING, len(raw)) + raw


def floats(key: str, n_values: int, value: float = 0.5) -> bytes:
    return string(key) + struct.pack(f"<IIQ{n_values}f", ARRAY, FLOAT32, n_values, *[value] * n_values)


def uint32(key: str, value: int) -> bytes:
    return string(key) + struct.pack("<II", UINT32, value)


def gguf(*fields: bytes) -> bytes:
    fields = (name("general.architecture", "llama"), *fields)
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(fields)) + b"".join(fields)


Q8, Q4 = name(TYPE_K, "q8_0"), name(TYPE_V, "q4_0")
ENDS = (uint32(EXACT_FIRST, 4), uint32(EXACT_LAST, 32), name(EXACT_TYPE, "f16"))
SEEDS: dict[str, bytes] = {
    "good.json": plan(LAYERS),
    "twice.json": plan([LAYERS[0]] * 2),
    "gap.json": plan([LAYERS[0], LAYERS[2]]),
    "float-layer.json": plan([{"layer": 0.5, "k": "f16", "v": "f16"}]),
    "huge-layer.json": plan([{"layer": (1 << 64) - 1, "k": "f16", "v": "f16"}]),
    "negative-layer.json": plan([{"layer": -1, "k": "f16", "v": "f16"}]),
    "control-name.json": plan([{"layer": 0, "k": "\n\0q8", "v": "f16"}]),
    "no-layers.json": plan([]),
    "deep.json": b"[" * 200 + b"]" * 200,
    "bad-utf8.json": plan(LAYERS).replace(b"q8_0", b"\xff\xfe"),
    "center.json": plan([{**LAYERS[0], "center_k": "ADwAQA=="}]),
    "center-nan.json": plan([{**LAYERS[0], "center_k": "AH4AfA=="}]),
    "center-odd.json": plan([{**LAYERS[0], "center_k": "ADwA"}]),
    "center-of-values.json": plan([LAYERS[0], {**LAYERS[1], "center_k": "ADwAQA==", "center_v": "AL4="}]),
    "span.json": plan([{**LAYERS[0], "center_k": "ADwAQA=="}], center_span=256),
    "span-alone.json": plan(LAYERS, center_span=256),
    "span-odd.json": plan([{**LAYERS[0], "center_k": "ADwAQA=="}], center_span=100),
    "scale.json": plan([{**LAYERS[0], "scale_k": "ADwAQA=="}]),
    "scale-negative.json": plan([{**LAYERS[0], "scale_k": "ADwAwA=="}]),
    "ends.json": ends(),
    "ends-q8.json": ends(0, 128, "q8_0"),
    "ends-of-none.json": ends(0, 0),
    "ends-negative.json": ends(-1),
    "ends-type.json": ends(type_="q4_0"),
    "cut.json": plan(LAYERS)[:-7],
    "good.gguf": gguf(names(TYPE_K, [k for k, _ in NAMES]), names(TYPE_V, [v for _, v in NAMES])),
    "center.gguf": gguf(Q8, Q4, floats(CENTER_K, 6)),
    "center-of-values.gguf": gguf(Q8, Q4, floats(CENTER_V, 6)),
    "center-short.gguf": gguf(Q8, Q4, floats(CENTER_K, 5)),
    "center-nan.gguf": gguf(Q8, Q4, floats(CENTER_K, 6, float("nan"))),
    "span.gguf": gguf(Q8, Q4, floats(CENTER_K, 6), uint32(CENTER_SPAN, 256)),
    "span-alone.gguf": gguf(Q8, Q4, uint32(CENTER_SPAN, 256)),
    "scale.gguf": gguf(Q8, Q4, floats(SCALE_K, 192)),
    "scale-negative.gguf": gguf(Q8, Q4, floats(SCALE_K, 192, -0.5)),
    "ends.gguf": gguf(Q8, Q4, *ENDS),
    "ends-of-none.gguf": gguf(Q8, Q4, uint32(EXACT_FIRST, 0), uint32(EXACT_LAST, 0), ENDS[2]),
    "ends-missing.gguf": gguf(Q8, Q4, *ENDS[:2]),
    "ends-type.gguf": gguf(Q8, Q4, *ENDS[:2], name(EXACT_TYPE, "q4_0")),
    "one-name.gguf": gguf(Q8, Q4),
    "one-side.gguf": gguf(names(TYPE_K, ["q8_0"] * 4)),
    "wrong-count.gguf": gguf(names(TYPE_K, ["q8_0"] * 3), names(TYPE_V, ["q8_0"] * 4)),
    "empty-list.gguf": gguf(names(TYPE_K, []), names(TYPE_V, [])),
    "unknown.gguf": gguf(name(TYPE_K, "q9_9"), name(TYPE_V, "\n\x01")),
    "numbers.gguf": gguf(string(TYPE_K) + struct.pack("<IIQ4I", ARRAY, UINT32, 4, 8, 8, 8, 8), name(TYPE_V, "f16")),
}


def write_corpus(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file, raw in SEEDS.items():
        (folder / file).write_bytes(raw)
    return folder


if __name__ == "__main__":
    write_corpus(Path(sys.argv[1]))
