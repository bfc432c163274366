"""The layers of a model from its metadata, as llama.cpp reads them for each architecture."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.gguffile.fit import fitted
from kvtuner_gguf.gguffile.layers import layer_shapes
from kvtuner_gguf.gguffile.metadata import model_shape
from kvtuner_gguf.gguffile.reader import GgufHeader, read_gguf
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan

N_LAYER = 6
BASE = {"block_count": N_LAYER, "context_length": 8192, "embedding_length": 256, "attention.head_count": 4}


def header(folder: Path, arch: str, **fields: object) -> GgufHeader:
    """A file of metadata alone; ``fields`` have ``__`` in place of a dot."""
    path = folder / "m.gguf"
    writer = gguf.GGUFWriter(path, arch)
    for key, value in {**BASE, **{name.replace("__", "."): value for name, value in fields.items()}}.items():
        add = {list: writer.add_array, bool: writer.add_bool}.get(type(value), writer.add_uint32)
        add(f"{arch}.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return read_gguf(path)


def windows(folder: Path, arch: str, **fields: object) -> list[int]:
    return [layer.window for layer in layer_shapes(header(folder, arch, **fields))]


def kept(folder: Path, arch: str, **fields: object) -> list[int]:
    shape = model_shape([header(folder, arch, **fields)])
    return [il for il, layer in enumerate(shape.layers) if layer.keeps]


WINDOW = {"attention__sliding_window": 512}


@pytest.mark.parametrize(
    ("arch", "fields", "expected"),
    [
        ("gemma3", WINDOW, [512] * 5 + [0]),
        ("gemma3", {}, [0] * 6),
        ("gemma3", {**WINDOW, "attention__sliding_window_pattern": 3}, [512, 512, 0] * 2),
        ("gemma3", {**WINDOW, "attention__sliding_window_pattern": 1}, [0] * 6),
        ("gemma3", {**WINDOW, "attention__sliding_window_pattern": 0}, [512] * 6),
        ("gemma3", {**WINDOW, "attention__sliding_window_pattern": [True, False] * 3}, [512, 0] * 3),
        ("gemma2", {}, [4096, 0] * 3),
        ("gemma2", WINDOW, [512, 0] * 3),
        ("cohere2moe", WINDOW, [0, 512, 512, 512, 0, 512]),
        ("smallthinker", WINDOW, [0, 4096, 4096, 4096, 0, 4096]),
        ("llama4", {}, [8192] * 3 + [0] + [8192] * 2),
        ("llama4", {"attention__sliding_window": 0}, [0] * 6),
        ("exaone4", WINDOW, [0] * 6),
        ("exaone4", {**WINDOW, "block_count": 64}, [512, 512, 512, 0] * 16),
        ("phi3", WINDOW, [0] * 6),
        ("llama", WINDOW, [0] * 6),
        ("mimo2", {**WINDOW, "attention__sliding_window_pattern": [0, 1, 1, 0, 1, 1]}, [0, 512, 512] * 2),
        ("lfm2", {**WINDOW, "attention__head_count_kv": [2, 0] * 3}, [512] * 6),
        (
            "gemma3",
            {**WINDOW, "nextn_predict_layers": 1, "attention__sliding_window_pattern": 4},
            [512] * 3 + [0, 512, 0],
        ),
    ],
)
def test_windows(arch: str, fields: dict, expected: list[int], tmp_path: Path) -> None:
    assert windows(tmp_path, arch, **fields) == expected


@pytest.mark.parametrize(
    ("arch", "fields", "expected"),
    [
        ("llama", {}, [0, 1, 2, 3, 4, 5]),
        ("glm4moe", {"nextn_predict_layers": 1}, [0, 1, 2, 3, 4]),
        ("minimax-m3", {"nextn_predict_layers": 1}, [0, 1, 2, 3, 4, 5]),
        ("qwen35", {}, [3]),
        ("qwen35", {"full_attention_interval": 2}, [1, 3, 5]),
        ("qwen35", {"full_attention_interval": 2, "nextn_predict_layers": 1}, [1, 3]),
        ("qwen3next", {"attention__recurrent_layers": [1, 1, 0, 0, 1, 1]}, [2, 3]),
        ("jamba", {"attention__head_count_kv": [0, 2, 0, 2, 0, 0]}, [1, 3]),
        ("falcon-h1", {}, [0, 1, 2, 3, 4, 5]),
        (
            "nemotron_h",
            {"attention__head_count_kv": [0, 2, 2, 0, 2, 0], "feed_forward_length": [0, 0, 64, 64, 0, 0]},
            [1, 4],
        ),
        ("mamba", {}, []),
        ("dream", {}, []),
    ],
)
def test_which_layers_keep_a_cache(arch: str, fields: dict, expected: list[int], tmp_path: Path) -> None:
    assert kept(tmp_path, arch, **fields) == expected


def test_layers_of_gemma3n_share(tmp_path: Path) -> None:
    layers = layer_shapes(header(tmp_path, "gemma3n", **WINDOW, block_count=30))
    assert [layer.keeps for layer in layers] == [True] * 20 + [False] * 10
    assert [layer.source for layer in layers[20:]] == [18, 18, 18, 18, 19] * 2
    assert [layer.n_head_kv for layer in layers] == [4] * 30


def test_gemma4_has_two_head_sizes_and_shares(tmp_path: Path) -> None:
    sizes = {"attention__key_length": 512, "attention__value_length": 512}
    sizes |= {"attention__key_length_swa": 256, "attention__value_length_swa": 256}
    heads = {"attention__head_count_kv": [2, 2, 1, 2, 2, 1]}
    pattern = {"attention__sliding_window_pattern": [True, True, False] * 2, "attention__shared_kv_layers": 2}
    shape = model_shape([header(tmp_path, "gemma4", **WINDOW, **sizes, **heads, **pattern)])
    assert (shape.head_dim_k, shape.head_dim_v) == ((256, 256, 512) * 2,) * 2
    assert shape.cache == (0, 1, 2, 3, 2, 3)
    assert shape.sizes_k == [512] * 6
    assert shape.n_ctx == 8192


def test_latent_attention_needs_its_architecture_and_both_sizes(tmp_path: Path) -> None:
    mla = {"attention__key_length_mla": 192, "attention__value_length_mla": 128, "attention__kv_lora_rank": 512}
    assert model_shape([header(tmp_path, "deepseek2", **mla)]).latent
    assert not model_shape([header(tmp_path, "deepseek2", attention__kv_lora_rank=512)]).latent
    assert not model_shape([header(tmp_path, "minicpm3", **mla)]).latent


def test_only_layers_with_a_latent_cache_need_equal_types(tmp_path: Path) -> None:
    mla = {"attention__key_length_mla": 64, "attention__value_length_mla": 64}
    found = header(tmp_path, "kimi-linear", **mla, attention__head_count_kv=[0, 0, 0, 1, 0, 1])
    mixed, equal = Pair("q8_0", "q4_0"), Pair("q8_0", "q8_0")
    pairs = fitted(Plan((mixed, mixed, mixed, equal, mixed, equal)), [found]).pairs
    assert pairs == tuple(equal if il in (3, 5) else Pair("f16", "f16") for il in range(N_LAYER))
    with pytest.raises(KvtunerError, match="layer 5: K type q8_0 and V type q4_0 differ"):
        fitted(Plan((mixed, mixed, mixed, equal, mixed, mixed)), [found])


def test_head_sizes_follow_the_first_layer(tmp_path: Path) -> None:
    layers = layer_shapes(header(tmp_path, "openelm", attention__head_count=[2, 4, 4, 4, 4, 8]))
    assert {layer.head_dim_k for layer in layers} == {128}


def test_looped_layers_have_a_cache_each_time(tmp_path: Path) -> None:
    assert len(layer_shapes(header(tmp_path, "nanbeige", num_loops=3))) == 3 * N_LAYER


@pytest.mark.parametrize(
    ("arch", "fields", "turned"),
    [
        ("llama", {}, 1),
        ("gpt2", {}, 0),
        ("nemotron_h", {"attention__head_count_kv": [0, 2] * 3, "feed_forward_length": [1, 0] * 3}, 0),
        ("minimax-m3", {}, 0),
        ("granite", {"rope__scaling__finetuned": False}, 0),
        ("granite", {"rope__scaling__finetuned": True}, 1),
        ("granitemoe", {"rope__scaling__finetuned": False}, 1),
        (
            "granite_swa",
            {**WINDOW, "attention__sliding_window_pattern": [1] * 6, "attention__rope_pattern": [1, 0, 1, 0]},
            (1, 0, 1, 0, 1, 1),
        ),
    ],
)
def test_centers_turn_where_rope_turns_keys(arch: str, fields: dict, turned: object, tmp_path: Path) -> None:
    shape = model_shape([header(tmp_path, arch, **fields)])
    assert shape.turned == turned
    assert shape.has_turned == bool(turned)


@pytest.mark.parametrize(
    ("arch", "fields", "words"),
    [
        ("mystery", {}, "the KV cache of architecture mystery is not known"),
        ("deepseek4", {}, "deepseek4 keeps compressed keys, to which no plan applies"),
        ("gemma4-assistant", {}, "drafts for another model"),
        ("cohere2", {}, "attention.sliding_window is missing: this is no model"),
        ("cohere2", {"attention__sliding_window": 0}, "attention.sliding_window is 0"),
        ("mimo2", {**WINDOW, "attention__sliding_window_pattern": 2}, "sliding_window_pattern is no list"),
        ("llama", {"nextn_predict_layers": 7}, "nextn_predict_layers is 7 of 6 layers"),
        ("gemma4", {**WINDOW, "attention__sliding_window_pattern": [1] * 6, "attention__shared_kv_layers": 5}, "share"),
    ],
)
def test_what_is_not_known_is_said(arch: str, fields: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(KvtunerError, match=words):
        layer_shapes(header(tmp_path, arch, **fields))
