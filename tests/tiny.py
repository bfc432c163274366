"""Tiny models with a tokenizer, which both torch and llama.cpp load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

N_HEAD, N_HEAD_KV, N_VOCAB = 4, 2, 258
TEXT = "The quick brown fox jumps over the lazy dog; " * 3


def byte_names() -> list[str]:
    """How byte-level tokenizers write the 256 bytes."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


def metadata(writer: gguf.GGUFWriter, n_layer: int, head_dim: int) -> None:
    writer.add_block_count(n_layer)
    writer.add_context_length(512)
    writer.add_embedding_length(N_HEAD * head_dim)
    writer.add_feed_forward_length(2 * N_HEAD * head_dim)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD_KV)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(head_dim)
    writer.add_vocab_size(N_VOCAB)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default" if writer.arch == "llama" else "qwen2")
    writer.add_token_list([*byte_names(), "th", "<|end|>"])
    writer.add_token_types([1] * (N_VOCAB - 1) + [3])
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(N_VOCAB - 1)
    writer.add_eos_token_id(N_VOCAB - 1)
    writer.add_add_bos_token(False)


def weights(arch: str, n_layer: int, head_dim: int) -> dict[str, np.ndarray]:
    """Random float32 weights, so that llama.cpp, too, computes in float32; attention is sharper than chance."""
    rng = np.random.default_rng(11)
    n_embd = N_HEAD * head_dim
    gain = {"attn_q": 1.5, "attn_k": 1.5, "attn_v": 1.5}
    rows = {"attn_q": n_embd, "attn_k": N_HEAD_KV * head_dim, "attn_v": N_HEAD_KV * head_dim, "attn_output": n_embd}
    shapes = {name: (n, n_embd) for name, n in rows.items()}
    shapes |= {"ffn_gate": (2 * n_embd, n_embd), "ffn_up": (2 * n_embd, n_embd), "ffn_down": (n_embd, 2 * n_embd)}
    made = {
        "token_embd.weight": rng.standard_normal((N_VOCAB, n_embd)),
        "output_norm.weight": 1 + 0.1 * rng.standard_normal(n_embd),
        "output.weight": 3 * rng.standard_normal((N_VOCAB, n_embd)) / n_embd**0.5,
    }
    for il in range(n_layer):
        for name in ("attn_norm", "ffn_norm"):
            made[f"blk.{il}.{name}.weight"] = 1 + 0.1 * rng.standard_normal(n_embd)
        for name, shape in shapes.items():
            made[f"blk.{il}.{name}.weight"] = gain.get(name, 1) * rng.standard_normal(shape) / shape[1] ** 0.5
        if arch == "qwen2":
            made |= {f"blk.{il}.{name}.bias": rng.standard_normal(rows[name]) for name in gain}
    return made


def write_tiny(
    path: Path,
    arch: str,
    n_layer: int = 2,
    head_dim: int = 64,
    change: Mapping[str, np.ndarray | None] | None = None,
    **strings: str,
) -> Path:
    """A model of ``arch``; ``change`` adds tensors, or leaves out those that are None; ``strings`` are metadata."""
    writer = gguf.GGUFWriter(path, arch)
    metadata(writer, n_layer, head_dim)
    for key, value in strings.items():
        writer.add_string(key.replace("__", "."), value)
    for name, tensor in {**weights(arch, n_layer, head_dim), **(change or {})}.items():
        if tensor is not None:
            writer.add_tensor(name, tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
