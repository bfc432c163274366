"""Tiny synthetic GGUF files for unit tests, without a tokenizer and with one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.tiny import TEXT, write_tiny

N_LAYER, N_HEAD, N_HEAD_KV, HEAD_DIM = 4, 4, 2, 32
LATENT = {f"deepseek2__attention__{side}_length_mla": 64 for side in ("key", "value")}

WriteModel = Callable[..., Path]


def write_model(
    path: Path,
    *,
    arch: str = "llama",
    n_layer: int = N_LAYER,
    head_dim: int = HEAD_DIM,
    seed: int = 0,
    alignment: int = gguf.GGUF_DEFAULT_ALIGNMENT,
    **extra: object,
) -> Path:
    """A llama-shaped file with random weights, a small vocabulary and ``extra`` metadata of strings and integers."""
    rng = np.random.default_rng(seed)
    n_embd = N_HEAD * head_dim
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(n_layer)
    writer.add_context_length(256)
    writer.add_embedding_length(n_embd)
    writer.add_feed_forward_length(2 * n_embd)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD_KV)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list([f"token {i}" for i in range(40)])
    writer.add_array("test.floats", [0.5, 1.5])
    if alignment != gguf.GGUF_DEFAULT_ALIGNMENT:
        writer.add_custom_alignment(alignment)
    for key, value in extra.items():
        name = key.replace("__", ".")
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(name, value)
    writer.add_tensor("token_embd.weight", rng.standard_normal((40, n_embd), dtype=np.float32))
    for il in range(n_layer):
        for name, rows in (("attn_q", n_embd), ("attn_k", N_HEAD_KV * head_dim)):
            weight = rng.standard_normal((rows, n_embd)).astype(np.float16)
            writer.add_tensor(f"blk.{il}.{name}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.gguf")


@pytest.fixture(scope="session")
def tiny():
    return write_tiny


@pytest.fixture(scope="session")
def text() -> str:
    return TEXT
