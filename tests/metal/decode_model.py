"""Run by tests in a process of its own: the logits of a text's last tokens, decoded one at a time over a plan's cache.

Back ends are those that ``GGML_BACKEND_PATH`` names besides the CPU.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import time

import llama_cpp
import numpy as np
from llama_cpp import _ggml, kvtuner

N_GPU_LAYERS = 999
CONTEXT_MADE = "the context is made"  # of the process's errors a line


class _Override(ctypes.Structure):
    """llama_model_tensor_buft_override"""

    _fields_ = [("pattern", ctypes.c_char_p), ("buft", ctypes.c_void_p)]


def decode(context: object, tokens: list[int], position: int) -> None:
    """Raises `SystemExit` where it fails."""
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i] = token, position + i
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        batch.logits[i] = i == len(tokens) - 1
    if llama_cpp.llama_decode(context, batch):
        sys.exit("llama_decode failed")
    llama_cpp.llama_batch_free(batch)


def tokenized(vocab: object, text: str) -> list[int]:
    raw = text.encode()
    tokens = (llama_cpp.llama_token * (len(raw) + 8))()
    return tokens[: llama_cpp.llama_tokenize(vocab, raw, len(raw), tokens, len(tokens), True, False)]


def on_the_host(params: llama_cpp.llama_model_params) -> object:
    """Keeps the weights in the host's memory, where the CPU multiplies; what keeps this alive."""
    kept = (_Override * 2)()
    _ggml.libggml.ggml_backend_cpu_buffer_type.restype = ctypes.c_void_p
    kept[0].pattern, kept[0].buft = b".*", _ggml.libggml.ggml_backend_cpu_buffer_type()
    params.tensor_buft_overrides = ctypes.addressof(kept)
    return kept


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("out", help="for logits [tokens, vocabulary] as .npy")
    parser.add_argument("--plan", default="none")
    parser.add_argument("--no-ends", action="store_true")
    parser.add_argument("--device", action="store_true", help="layers and caches are on the first device, not the CPU")
    parser.add_argument("--weights-on-host", action="store_true")
    parser.add_argument("--text", required=True)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()

    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    if not args.verbose:
        llama_cpp.llama_log_set(silent, None)
    _ggml.libggml.ggml_backend_load_all()
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = N_GPU_LAYERS if args.device else 0
    kept = on_the_host(params) if args.weights_on_host else None
    model = llama_cpp.llama_model_load_from_file(args.model.encode(), params)
    kvtuner.set_kv_config(model, args.plan, kv_ends=not args.no_ends)
    wanted = llama_cpp.llama_context_default_params()
    wanted.n_ctx, wanted.n_batch, wanted.n_ubatch = 256, 256, 256
    wanted.n_threads = wanted.n_threads_batch = 2
    wanted.offload_kqv = args.device
    wanted.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
    context = llama_cpp.llama_init_from_model(model, wanted)
    if not context:
        sys.exit(kvtuner.failure("no context"))
    print(CONTEXT_MADE, file=sys.stderr, flush=True)
    vocab = llama_cpp.llama_model_get_vocab(model)
    n_vocab = llama_cpp.llama_vocab_n_tokens(vocab)
    tokens = tokenized(vocab, args.text)
    first = len(tokens) - args.tokens
    logits = []
    begun = time.time()
    decode(context, tokens[:first], 0)
    for position in range(first, len(tokens)):
        decode(context, tokens[position : position + 1], position)
        row = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), shape=(1, n_vocab))
        logits.append(row[0].copy())
        print(f"token {position}: {time.time() - begun:.1f} s", flush=True)
    np.save(args.out, np.stack(logits))
    del kept


if __name__ == "__main__":
    main()
