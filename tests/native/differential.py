"""Two readers, one truth: what Python and the library say of the same plans, in JSON and in GGUF metadata.

``python tests/native/differential.py FUZZ SECONDS SEED`` compares them for that long, ``FUZZ`` being ``kvtuner-fuzz``.
"""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files import strictjson
from kvtuner_gguf.files.artifact import MAX_JSON_BYTES
from kvtuner_gguf.gguffile.reader import read_gguf
from kvtuner_gguf.gguffile.stored_plan import plan_in
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape
from tests.native.corpus import (
    CENTER_K,
    CENTER_V,
    LAYERS,
    MODEL,
    Q4,
    Q8,
    SEEDS,
    TYPE_K,
    floats,
    gguf,
    name,
    names,
    pack_list,
    plan,
    raw_name,
    string,
)
from tests.native.ends_inputs import ENDS_INPUTS
from tests.native.scale_inputs import SCALE_INPUTS
from tests.native.span_inputs import SPAN_INPUTS

SHAPE = ModelShape("llama", (1, 1, 0, 1), 64, 64)
TOKENS = [
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b",",
        b'"',
        b"\\",
        b"\0",
        b"\n",
        b" ",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\xc3\xa9",
    ),
    *(b"null", b"true", b"false", b"NaN", b"Infinity", b"-Infinity", b"-0", b"0", b"1", b"-1", b"00", b"0.0", b"1e0"),
    *(b"1e400", b"-1e400", b"9" * 309, b"9" * 308, b"18446744073709551616", b"2147483648", b"4096", b"1."),
    *(b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\ud83d\\ude00"', b'"\\u0000"', b'"q8_0\\u0000"', b"'", b"//", b"[" * 70),
    *(b'"layer"', b'"k"', b'"v"', b'"model"', b'"provenance"', b'"schema"', b'"n_head_kv"'),
    *(b'"center_k"', b'"center_v"', b'"AAA="', b'"ends"', b'"first"', b'"last"', b'"type"', b"1048576", b"1048577"),
    *(b'"scale_k"', b'"ADwAQA=="', b'"AAAAwA=="'),
    *(b'"center_span"', b"16", b"256", b"65536", b"131072"),
    *(struct.pack("<I", n) for n in range(14)),
    *(struct.pack("<Q", n) for n in (0, 1, 3, 4, 5, 1 << 63, (1 << 64) - 1)),
]


def for_model(layers: list[dict] = LAYERS, **other: object) -> bytes:
    return plan(layers, model=MODEL | other)


GOOD = plan(LAYERS)
MORE: dict[str, bytes] = {
    "bom.json": b"\xef\xbb\xbf" + GOOD,
    "two-boms.json": b"\xef\xbb\xbf" * 2 + GOOD,
    "utf-16.json": GOOD.decode().encode("utf-16"),
    "nan.json": GOOD[:-1] + b', "x": NaN}',
    "infinity.json": GOOD[:-1] + b', "x": [-Infinity]}',
    "behind-a-nul.json": GOOD + b"\0{}",
    "nul.json": GOOD + b"\0",
    "trailing.json": GOOD + b" x",
    "surrogate.json": GOOD[:-1] + b', "x": "\\ud800"}',
    "pair.json": GOOD[:-1] + b', "x": "\\ud83d\\ude00"}',
    "twice-a-name.json": GOOD[:-1] + b', "schema": "kvtuner.plan/1"}',
    "too-large.json": GOOD[:-1] + b', "x": 1e400}',
    "many-digits.json": GOOD[:-1] + b', "x": ' + b"9" * 5000 + b"}",
    "minus-zero.json": plan([LAYERS[0]]).replace(b'"layer": 0', b'"layer": -0'),
    "true-layer.json": plan([{**LAYERS[0], "layer": True}]),
    "64-levels.json": GOOD[:-1] + b', "x": ' + b"[" * 63 + b"]" * 63 + b"}",
    "65-levels.json": GOOD[:-1] + b', "x": ' + b"[" * 64 + b"]" * 64 + b"}",
    "deep-and-cut.json": b"[" * 100_000,
    "long.json": b" " * (MAX_JSON_BYTES + 1),
    "model.json": for_model(),
    "model-of-one-layer.json": for_model(n_layer=1, n_head_kv=1),
    "odd-head.json": for_model(head_dim_v=80),
    "model-center.json": for_model([{**LAYERS[0], "center_k": "ADwAQA=="}], n_layer=1, n_head_kv=1),
    "center-of-values-first.json": plan([{**LAYERS[0], "center_k": "ADwA", "center_v": 7}]),
    "center-of-values-later.json": plan([{**LAYERS[0], "center_k": "ADwA"}, {**LAYERS[1], "center_v": ""}]),
    "center-of-values-null.json": plan([{**LAYERS[0], "center_k": "ADwAQA==", "center_v": None}]),
    "center-of-values-wrong-type.json": plan([{**LAYERS[0], "center_v": "AL4="}, {**LAYERS[1], "v": "q9_9"}]),
    "center-of-values-wrong-model.json": for_model([{**LAYERS[0], "center_v": "AL4="}], n_layer=-1),
    "center-of-values-odd-head.json": for_model(
        [{**LAYERS[0], "center_v": "AL4="}], n_layer=1, n_head_kv=1, head_dim_v=80
    ),
    "no-text.json": for_model(architecture=["llama"]),
    "head-sizes.json": for_model(head_dim_k=[64, 32, 64, 64], head_dim_v=[64, 64, 1, 64]),
    "odd-head-of-one.json": for_model(head_dim_k=[64, 64, 64, 80]),
    "few-head-sizes.json": for_model(head_dim_v=[64, 64, 64]),
    "odd-head-sizes.json": for_model(head_dim_k=[64, 64, None, 64]),
    "windows.json": for_model(window=[512, 0, 512, 0], n_ctx=4096),
    "one-window.json": for_model(window=512),
    "no-window.json": for_model(window="512"),
    "half-a-context.json": for_model(n_ctx=0.5),
    "caches.json": for_model(cache=[0, 1, None, 1]),
    "odd-head-without-cache.json": for_model(cache=[0, None, 2, 3], head_dim_k=[64, 80, 64, 64]),
    "few-caches.json": for_model(cache=[0, 1]),
    "true-cache.json": for_model(cache=[0, True, 2, 3]),
    "cache-of-no-layer.json": for_model(cache=[0, 1, 2, 4]),
    "one-cache.json": for_model(cache=0),
    "latent.json": for_model(latent=True),
    "half-latent.json": for_model(latent=1),
    "turned.json": for_model(turned=[1, 0, 1, 1]),
    "none-turned.json": for_model(turned=0),
    "few-turned.json": for_model(turned=[1]),
    "half-turned.json": for_model(turned=0.5),
    "negative-heads.json": for_model(n_head_kv=-1),
    "name-nul.gguf": gguf(raw_name(TYPE_K, b"q8_0\0junk"), Q4),
    "name-utf8.gguf": gguf(raw_name(TYPE_K, b"q8\xff\xc3\xa9"), Q4),
    "key-nul.gguf": gguf(name(TYPE_K + "\0x", "q8_0"), Q4),
    "empty-key.gguf": gguf(name("", "x"), Q8, Q4),
    "twice.gguf": gguf(Q8, Q8, Q4),
    "scalar.gguf": gguf(string(TYPE_K) + struct.pack("<If", 6, 1.5), Q4),
    "bool.gguf": gguf(string(TYPE_K) + struct.pack("<I?", 7, True), Q4),
    "empty-floats.gguf": gguf(pack_list(TYPE_K, 6, 0, b""), Q4),
    "many-names.gguf": gguf(names(TYPE_K, ["q8_0"] * 5000), Q4),
    "long-name.gguf": gguf(name(TYPE_K, "q8_0" * (1 << 19)), Q4),
    "doubles.gguf": gguf(Q8, Q4, pack_list(CENTER_K, 12, 192, bytes(8 * 192))),
    "floats.gguf": gguf(Q8, Q4, floats(CENTER_K, 192)),
    "rounded.gguf": gguf(Q8, Q4, floats(CENTER_K, 192, 0.1)),
    "beyond-float16.gguf": gguf(Q8, Q4, floats(CENTER_K, 192, 1e6)),
    "below-float16.gguf": gguf(Q8, Q4, floats(CENTER_K, 192, 1e-9)),
    "many-floats.gguf": gguf(Q8, Q4, floats(CENTER_K, 2_000_000)),
    "values-wrong-type.gguf": gguf(name(TYPE_K, "q9_9"), Q4, floats(CENTER_V, 192)),
    "values-one-side.gguf": gguf(Q4, floats(CENTER_V, 192)),
    "values-no-list.gguf": gguf(Q8, Q4, name(CENTER_V, "none"), floats(CENTER_K, 5)),
    "values-alone.gguf": gguf(floats(CENTER_V, 192)),
    "alignment-64.gguf": gguf(string("general.alignment") + struct.pack("<IQ", 10, 32), Q8, Q4),
    "alignment-0.gguf": gguf(string("general.alignment") + struct.pack("<II", 4, 0), Q8, Q4),
    "alignment-48.gguf": gguf(string("general.alignment") + struct.pack("<II", 4, 48), Q8, Q4),
    "alignment-1.gguf": gguf(string("general.alignment") + struct.pack("<II", 4, 1), Q8, Q4),
}


def tensor(name_: str, shape: Sequence[int], kind: int, offset: int) -> bytes:
    return string(name_) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def with_tensors(*infos: bytes, n_data: int, alignment: int = 32, fields: Sequence[bytes] = ()) -> bytes:
    raw = bytearray(gguf(Q8, Q4, *fields) + b"".join(infos))
    raw[8:16] = struct.pack("<Q", len(infos))
    return bytes(raw + bytes(-len(raw) % alignment) + bytes(n_data))


F32, Q8_0 = 0, 8
ALIGNED_64 = string("general.alignment") + struct.pack("<II", 4, 64)
TENSORS: dict[str, bytes] = {
    "tensors.gguf": with_tensors(tensor("a", [3], F32, 0), tensor("b", [64, 2], Q8_0, 32), n_data=32 + 136),
    "cut-tensors.gguf": with_tensors(tensor("a", [3], F32, 0), tensor("b", [64, 2], Q8_0, 32), n_data=32 + 135),
    "gap.gguf": with_tensors(tensor("a", [3], F32, 0), tensor("b", [3], F32, 64), n_data=128),
    "overlap.gguf": with_tensors(tensor("a", [3], F32, 0), tensor("b", [3], F32, 0), n_data=128),
    "rows.gguf": with_tensors(tensor("a", [33], Q8_0, 0), n_data=128),
    "long-tensor-name.gguf": with_tensors(tensor("a" * 64, [3], F32, 0), n_data=128),
    "tensor-name.gguf": with_tensors(tensor("a" * 63, [3], F32, 0), n_data=128),
    "tensor-type.gguf": with_tensors(tensor("a", [3], 99, 0), n_data=128),
    "removed-type.gguf": with_tensors(tensor("a", [32], 4, 0), n_data=128),
    "our-type.gguf": with_tensors(tensor("a", [64], 43, 0), n_data=128),
    "huge.gguf": with_tensors(tensor("a", [1 << 32, 1 << 32], F32, 0), n_data=128),
    "negative.gguf": with_tensors(tensor("a", [1 << 63], F32, 0), n_data=128),
    "no-values.gguf": with_tensors(tensor("a", [0, 1 << 62], F32, 0), tensor("b", [3], F32, 0), n_data=128),
    "no-values-at-last.gguf": with_tensors(tensor("a", [1 << 40, 1 << 40, 0], F32, 0), n_data=128),
    "no-dimensions.gguf": with_tensors(tensor("a", [], F32, 0), n_data=128),
    "five-dimensions.gguf": with_tensors(tensor("a", [1] * 5, F32, 0), n_data=128),
    "aligned-64.gguf": with_tensors(
        tensor("a", [3], F32, 0), tensor("b", [3], F32, 64), n_data=128, alignment=64, fields=[ALIGNED_64]
    ),
    "aligned-32-not-64.gguf": with_tensors(
        tensor("a", [3], F32, 0), tensor("b", [3], F32, 32), n_data=128, alignment=64, fields=[ALIGNED_64]
    ),
}
INPUTS = {**SEEDS, **MORE, **ENDS_INPUTS, **SPAN_INPUTS, **SCALE_INPUTS, **TENSORS}


def of_python(path: Path) -> str | None:
    """The verdict in the words of ``kvtuner-fuzz --verdicts``; None where the file is of another architecture."""
    try:
        if path.suffix == ".gguf":
            return _of_gguf(path)
        raw = path.read_bytes()
        if len(raw) > MAX_JSON_BYTES:
            raise KvtunerError(f"more than {MAX_JSON_BYTES >> 20} MiB is no plan: check the path")
        return f"plan {Plan.from_json(strictjson.parse(raw)).fingerprint}"
    except KvtunerError as err:
        return "error " + str(err).removeprefix(f"{path}: ")


def _of_gguf(path: Path) -> str | None:
    try:
        header = read_gguf(path)
    except KvtunerError:
        return "unreadable"
    try:
        if header.architecture != SHAPE.architecture:
            return None
    except KvtunerError:
        return None
    found = plan_in(header, SHAPE)
    return "none" if found is None else f"plan {found.fingerprint}"


def of_library(program: Path, paths: Sequence[Path]) -> list[str]:
    named = "".join(f"{path}\n" for path in paths)
    done = subprocess.run([program, "--verdicts"], input=named, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def differences(program: Path, inputs: Mapping[str, bytes], folder: Path) -> list[str]:
    """A line for each input of which the two say different things."""
    paths = []
    for file, raw in inputs.items():
        paths.append(folder / file)
        paths[-1].write_bytes(raw)
    found = zip(paths, map(of_python, paths), of_library(program, paths), strict=True)
    return [f"{path}: {mine!r} and {other!r}" for path, mine, other in found if mine not in (None, other)]


def mutated(random_: random.Random) -> tuple[str, bytes]:
    """One of the inputs, short ones alone, changed in up to four places; the end of its name."""
    file, raw = random_.choice([(file, raw) for file, raw in INPUTS.items() if len(raw) < 5000])
    for _ in range(random_.randint(1, 4)):
        at = random_.randrange(len(raw) + 1)
        token = random_.choice(TOKENS) if random_.random() < 0.7 else bytes([random_.randrange(256)])
        end = at + random_.choice((0, 0, 1, len(token)))
        raw = raw[:at] + token + raw[end:]
    return Path(file).suffix, raw


def batch(random_: random.Random, n_inputs: int) -> dict[str, bytes]:
    made = (mutated(random_) for _ in range(n_inputs))
    return {f"{i}{end}": raw for i, (end, raw) in enumerate(made)}


def main(program: str, seconds: str, seed: str) -> None:
    random_, end, n_inputs = random.Random(int(seed)), time.monotonic() + float(seconds), 0
    while time.monotonic() < end:
        with tempfile.TemporaryDirectory() as folder:
            inputs = batch(random_, 1000)
            found = differences(Path(program), inputs, Path(folder))
            if found:
                name_of_first = Path(found[0].partition(": ")[0]).name
                sys.exit("\n".join([*found, repr(inputs[name_of_first])]))
        n_inputs += len(inputs)
    print(f"{n_inputs} inputs, no difference")


if __name__ == "__main__":
    main(*sys.argv[1:])
