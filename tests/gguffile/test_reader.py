from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.gguffile.metadata import model_shape
from kvtuner_gguf.gguffile.reader import read_gguf
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.gguffile.stored_plan import plan_of
from tests.conftest import HEAD_DIM, N_HEAD_KV, N_LAYER, write_model


def header(version: int = 3, n_tensors: int = 0, n_fields: int = 0, order: str = "<") -> bytes:
    return b"GGUF" + struct.pack(f"{order}IQQ", version, n_tensors, n_fields)


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def test_the_header_agrees_with_the_reference_reader(model: Path) -> None:
    ours, reference = read_gguf(model), gguf.GGUFReader(model)
    names = [name for name in reference.fields if not name.startswith("GGUF.")]
    assert list(ours.fields) == names
    assert all(ours.fields[name].value == pytest.approx(reference.fields[name].contents()) for name in names[1:8])
    assert ours.data_start == reference.data_offset
    assert [t.name for t in ours.tensors] == [t.name for t in reference.tensors]
    assert [t.n_bytes for t in ours.tensors] == [int(t.n_bytes) for t in reference.tensors]


def test_the_shape(model: Path) -> None:
    shape = model_shape(read_model(model))
    assert (shape.architecture, shape.n_layer) == ("llama", N_LAYER)
    assert shape.n_head_kv == (N_HEAD_KV,) * N_LAYER
    assert (shape.head_dim_k, shape.head_dim_v) == (HEAD_DIM, HEAD_DIM)


def test_the_fingerprint_knows_names_and_shapes(tmp_path: Path) -> None:
    def fingerprint(name: str, **kwargs: int) -> str:
        return model_shape(read_model(write_model(tmp_path / name, **kwargs))).fingerprint

    assert fingerprint("a.gguf") == fingerprint("b.gguf", seed=1)
    assert len({fingerprint("c.gguf"), fingerprint("d.gguf", n_layer=5), fingerprint("e.gguf", head_dim=64)}) == 3


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not a GGUF"),
        (b"GGUF", "truncated"),
        (header(1), "version 1"),
        (header(3, order=">"), "big-endian"),
        (header(n_fields=1 << 60), "truncated"),
        (header(n_tensors=1 << 60), "truncated"),
        (header(n_fields=1) + struct.pack("<Q", 1 << 62), "truncated"),
        (header(n_fields=1) + string(b"k") + struct.pack("<I", 99), "unknown type 99"),
        (header(n_fields=1) + string(b"k") + struct.pack("<IIQ", 9, 0, 1 << 61), "truncated"),
        (header(n_fields=1) + string(b"k") + struct.pack("<IIQ", 9, 8, 1 << 61), "truncated"),
        (header(n_fields=1) + string(b"k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 200, "nested"),
        (header(n_fields=2) + (string(b"k") + struct.pack("<IB", 0, 1)) * 2, "twice"),
        (header(n_tensors=1) + string(b"t") + struct.pack("<I", 1 << 31), "dimensions"),
        (header(n_tensors=1) + string(b"t") + struct.pack("<IQIQ", 1, 1 << 62, 0, 1 << 62), "truncated"),
        (header(n_fields=1) + string(b"general.alignment") + struct.pack("<II", 4, 3), "alignment"),
        (header(n_fields=1) + string(b"general.alignment") + struct.pack("<II", 4, 0), "alignment"),
    ],
)
def test_hostile_headers_are_one_line(raw: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw)
    with pytest.raises(KvtunerError, match=words) as caught:
        read_gguf(path)
    assert "\n" not in str(caught.value)
    assert "bad.gguf" in str(caught.value)


def with_types(path: Path, k: object, v: object) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_head_count(2)
    for side, value in (("k", k), ("v", v)):
        key = f"llama.attention.kv_cache.type_{side}"
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif value is not None:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("k", "v", "words"),
    [
        (["q8_0"], ["q8_0"], "1 entries, the model 2 layers"),
        (["q8_0", "q9_0"], ["f16", "f16"], "layer 1: unknown cache type 'q9_0'"),
        (["q8_0", "q8_0"], None, "missing"),
        ([1, 2], ["f16", "f16"], "layer 0"),
        (7, 7, "the value 7"),
    ],
)
def test_hostile_plan_keys(k: object, v: object, words: str, tmp_path: Path) -> None:
    path = with_types(tmp_path / "m.gguf", k, v)
    with pytest.raises(KvtunerError, match=words) as caught:
        plan_of(read_model(path))
    assert "{" not in str(caught.value)  # the key as it is in the file


def test_a_wrong_count_of_heads_names_the_key_of_the_file(tmp_path: Path) -> None:
    path = write_heads(tmp_path / "m.gguf", [2, 2, 2])
    with pytest.raises(KvtunerError, match=r"m\.gguf: llama\.attention\.head_count has 3 entries"):
        model_shape(read_model(path))


def write_heads(path: Path, heads: list[int]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_array("llama.attention.head_count", heads)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_one_name_stands_for_all_layers(tmp_path: Path) -> None:
    plan = plan_of(read_model(with_types(tmp_path / "m.gguf", "q8_0", "q4_0")))
    assert [str(pair) for pair in plan.pairs] == ["q8_0/q4_0"] * 2


# a position in the header and the byte to put there
CHANGE = st.tuples(st.integers(0, 1 << 16), st.integers(0, 255))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, 4096),
)
def test_mutated_files_give_a_header_or_an_error_of_ours(
    changes: list[tuple[int, int]], cut: int, tmp_path: Path
) -> None:
    source = tmp_path / "source.gguf"
    if not source.exists():
        write_model(source, llama__attention__kv_cache__type_k="q8_0", llama__attention__kv_cache__type_v="q4_0")
    raw = bytearray(source.read_bytes())
    end = read_gguf(source).infos_end
    for position, value in changes:
        raw[position % end] = value
    path = tmp_path / "mutated.gguf"
    path.write_bytes(raw[: len(raw) - cut])
    with suppress(KvtunerError):
        plan_of(read_model(path))
