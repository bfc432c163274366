"""Models with random weights and the shapes of known ones: their speed is that of the real ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

BLOCK = 32  # values of q4_0
SCALE = 0.02


@dataclass(frozen=True)
class Shape:
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_size: int
    n_vocab: int

    @property
    def n_values(self) -> int:
        """Values that a token has in the KV cache."""
        return 2 * self.n_layer * self.n_head_kv * self.head_size


SHAPES = {
    "llama-3.1-8b": Shape(32, 4096, 14336, 32, 8, 128, 128256),
    "qwen2.5-7b": Shape(28, 3584, 18944, 28, 4, 128, 152064),
    "head-256": Shape(16, 5120, 17408, 24, 4, 256, 151936),
    "head-512": Shape(10, 2816, 8448, 16, 2, 512, 65536),
    "group-8": Shape(24, 2880, 8640, 64, 8, 64, 65536),
    "smollm2-135m": Shape(30, 576, 1536, 9, 3, 64, 49152),
    "mha-16": Shape(24, 2048, 5632, 16, 16, 128, 32000),
}


def _random_q4_0(rows: int, columns: int, seed: int) -> np.ndarray:
    """Bytes of a matrix: [rows, bytes of a row]. A part of it is random and repeats."""
    rng = np.random.default_rng(seed)
    n = rows * columns // BLOCK
    blocks = rng.integers(0, 256, (min(n, 1 << 16), 18), dtype=np.uint8)
    blocks[:, :2] = np.frombuffer(np.float16(SCALE / 8).tobytes(), dtype=np.uint8)
    return np.resize(blocks, (n, 18)).reshape(rows, -1)


def write_model(shape: Shape, path: Path) -> None:
    """Write a llama model of q4_0 matrices, without a vocabulary."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(shape.n_layer)
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.n_vocab)
    writer.add_tokenizer_model("no_vocab")

    def add(name: str, rows: int, columns: int) -> None:
        data = _random_q4_0(rows, columns, seed=len(name) + rows)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    def add_norm(name: str) -> None:
        writer.add_tensor(name, np.ones(shape.n_embd, dtype=np.float32))

    n_q, n_kv = shape.n_head * shape.head_size, shape.n_head_kv * shape.head_size
    add("token_embd.weight", shape.n_vocab, shape.n_embd)
    add("output.weight", shape.n_vocab, shape.n_embd)
    add_norm("output_norm.weight")
    for il in range(shape.n_layer):
        add_norm(f"blk.{il}.attn_norm.weight")
        add(f"blk.{il}.attn_q.weight", n_q, shape.n_embd)
        add(f"blk.{il}.attn_k.weight", n_kv, shape.n_embd)
        add(f"blk.{il}.attn_v.weight", n_kv, shape.n_embd)
        add(f"blk.{il}.attn_output.weight", shape.n_embd, n_q)
        add_norm(f"blk.{il}.ffn_norm.weight")
        add(f"blk.{il}.ffn_gate.weight", shape.n_ff, shape.n_embd)
        add(f"blk.{il}.ffn_up.weight", shape.n_ff, shape.n_embd)
        add(f"blk.{il}.ffn_down.weight", shape.n_embd, shape.n_ff)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
