"""Run by tests in a process of its own, under either library: logits, a greedy completion, or a saved state.

The bindings and the library are chosen by PYTHONPATH and LLAMA_CPP_LIB_PATH. Uses the low-level calls only, which the
patched and the unpatched bindings share.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from pathlib import Path

import llama_cpp
import numpy as np

SILENT = llama_cpp.llama_log_callback(lambda level, text, data: None)


def make_context(args: argparse.Namespace, model: object) -> object:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 512, 512, 128
    params.n_threads = params.n_threads_batch = 2
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO
    params.type_k, params.type_v = args.type_k, args.type_v
    return llama_cpp.llama_init_from_model(model, params)


def decode(context: object, tokens: list[int], position: int, all_logits: bool) -> None:
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i] = token, position + i
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        batch.logits[i] = all_logits or i == len(tokens) - 1
    if llama_cpp.llama_decode(context, batch):
        sys.exit("llama_decode failed")
    llama_cpp.llama_batch_free(batch)


def logits(context: object, rows: int, n_vocab: int) -> np.ndarray:
    return np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), shape=(rows, n_vocab)).copy()


def state(context: object) -> bytes:
    raw = (ctypes.c_uint8 * llama_cpp.llama_state_get_size(context))()
    return bytes(raw[: llama_cpp.llama_state_get_data(context, raw, len(raw))])


def tokenize(vocab: object, text: str) -> list[int]:
    raw = text.encode()
    tokens = (llama_cpp.llama_token * (len(raw) + 8))()
    return tokens[: llama_cpp.llama_tokenize(vocab, raw, len(raw), tokens, len(tokens), True, False)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--text", default="")
    parser.add_argument("--state", help="FIRST:END, token numbers to decode; write the state that follows")
    parser.add_argument("--type-k", type=int, default=1)
    parser.add_argument("--type-v", type=int, default=1)
    parser.add_argument("--kv-config", help="only with the patched bindings")
    parser.add_argument("--greedy", type=int, default=0, help="tokens to generate; 0: logits of all positions")
    args = parser.parse_args()

    llama_cpp.llama_log_set(SILENT, None)
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(args.model.encode(), llama_cpp.llama_model_default_params())
    if args.kv_config:
        from llama_cpp import kvtuner

        kvtuner.set_kv_config(model, args.kv_config)
    context = make_context(args, model)
    vocab = llama_cpp.llama_model_get_vocab(model)
    n_vocab = llama_cpp.llama_vocab_n_tokens(vocab)
    if args.state:
        decode(context, list(range(*map(int, args.state.split(":")))), 0, all_logits=False)
        Path(args.out).write_bytes(state(context))
        return
    tokens = tokenize(vocab, args.text)[:256]
    if not args.greedy:
        # a long first part and single tokens after it, so that both kinds of kernel are used
        decode(context, tokens[:-8], 0, all_logits=True)
        parts = [logits(context, len(tokens) - 8, n_vocab)]
        for i in range(len(tokens) - 8, len(tokens)):
            decode(context, tokens[i : i + 1], i, all_logits=False)
            parts.append(logits(context, 1, n_vocab))
        np.save(args.out, np.concatenate(parts))
        return
    tokens, generated = tokens[:32], []
    decode(context, tokens, 0, all_logits=False)
    for i in range(args.greedy):
        generated.append(int(logits(context, 1, n_vocab).argmax()))
        decode(context, generated[-1:], len(tokens) + i, all_logits=False)
    np.save(args.out, np.array(generated))


if __name__ == "__main__":
    main()
