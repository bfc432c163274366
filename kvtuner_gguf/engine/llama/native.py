"""The built llama.cpp in this process: one model, contexts with the caches asked for, logits as numpy views.

FlashAttention is on in every context, the f16 one included, so that contexts differ in nothing but their caches.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from kvtuner_gguf.engine.llama.nativelog import NativeLog, captured_log
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.pairs import F16, Pair
from kvtuner_gguf.plan.plan import Plan

_OK = 0
MAX_PIECE = 256  # bytes of a token
_HOST_REMEDY = "--no-kv-offload"  # what the library names where a device cannot hold a cache that the host can


def patched_llama_cpp() -> ModuleType:
    """The bindings of the patched build; raises `KvtunerError` where they are missing or are the stock ones."""
    try:
        llama_cpp = importlib.import_module("llama_cpp")
        importlib.import_module("llama_cpp.kvtuner")
    except (ImportError, OSError, RuntimeError) as err:
        reason = " ".join(str(err).split()) or type(err).__name__
        raise KvtunerError(
            f"no patched llama-cpp-python here ({reason}): run 'make build' in the kvtuner-gguf sources, or install "
            "the wheel llama_cpp_python 0.3.36+kvtuner.N that it makes"
        ) from err
    return llama_cpp


def default_threads() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Context:
    """One sequence and its KV cache. Made by `Model.context`."""

    def __init__(self, llama_cpp: ModuleType, pointer: int, n_vocab: int, n_batch: int) -> None:
        self._lib = llama_cpp
        self._pointer = pointer
        self._n_vocab = n_vocab
        self._batch = llama_cpp.llama_batch_init(n_batch, 0, 1)
        self.n_batch = n_batch

    def clear(self) -> None:
        """Forget all tokens."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._pointer), True)

    def decode(self, tokens: np.ndarray, position: int, want_logits: bool) -> np.ndarray:
        """Decode ``tokens`` (int32, at most `n_batch`) from ``position`` on.

        Returns the float32 logits, shape (tokens, vocabulary), or (0, vocabulary) where they are not wanted. They are
        a view that the next call overwrites.
        """
        n_tokens = len(tokens)
        self._fill_batch(tokens, position, want_logits)
        status = self._lib.llama_decode(self._pointer, self._batch)
        if status != _OK:
            raise KvtunerError(
                f"cannot decode {n_tokens} tokens at position {position} (status {status}): use less --ctx"
            )
        if not want_logits:
            return np.empty((0, self._n_vocab), np.float32)
        return np.ctypeslib.as_array(self._lib.llama_get_logits(self._pointer), (n_tokens, self._n_vocab))

    def _fill_batch(self, tokens: np.ndarray, position: int, want_logits: bool) -> None:
        n_tokens, batch = len(tokens), self._batch
        batch.n_tokens = n_tokens
        np.ctypeslib.as_array(batch.token, (n_tokens,))[:] = tokens
        np.ctypeslib.as_array(batch.pos, (n_tokens,))[:] = np.arange(position, position + n_tokens)
        np.ctypeslib.as_array(batch.n_seq_id, (n_tokens,))[:] = 1
        np.ctypeslib.as_array(batch.logits, (n_tokens,))[:] = want_logits
        for i in range(n_tokens):
            batch.seq_id[i][0] = 0

    @property
    def cache_types(self) -> list[Pair | None]:
        """The pair that each layer really has; None for a layer without a cache of its own."""
        return [pair and Pair(*pair) for pair in self._lib.kvtuner.kv_cache_types(self._pointer)]

    @property
    def cache_bytes(self) -> int:
        """Bytes of all K and V tensors."""
        return self._lib.kvtuner.kv_cache_bytes(self._pointer)

    def close(self) -> None:
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self._pointer)


class Model:
    """A loaded model. Made by `open_model`."""

    def __init__(self, llama_cpp: ModuleType, pointer: int, log: NativeLog, n_threads: int) -> None:
        self._lib = llama_cpp
        self._pointer = pointer
        self._log = log
        self._n_threads = n_threads
        self._vocab = llama_cpp.llama_model_get_vocab(pointer)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        adds_bos = llama_cpp.llama_vocab_get_add_bos(self._vocab)
        self.bos: int | None = llama_cpp.llama_vocab_bos(self._vocab) if adds_bos else None

    def tokenize(self, text: str, add_special: bool = True) -> np.ndarray:
        """The tokens of ``text``, int32; if ``add_special`` with those that the model wants around a text."""
        raw = text.encode()
        tokens = np.empty(len(raw) + 8, np.int32)
        room = tokens.ctypes.data_as(ctypes.POINTER(self._lib.llama_token))
        n_tokens = self._lib.llama_tokenize(self._vocab, raw, len(raw), room, len(tokens), add_special, False)
        if n_tokens < 0:
            raise KvtunerError(f"the tokenizer refuses a text of {len(raw)} bytes: give a shorter --text")
        return tokens[:n_tokens].copy()

    def piece(self, token: int) -> bytes:
        """What ``token`` stands for in a text."""
        room = ctypes.create_string_buffer(MAX_PIECE)
        n_bytes = self._lib.llama_token_to_piece(self._vocab, token, room, MAX_PIECE, 0, False)
        return room.raw[: max(0, n_bytes)]

    def ends(self, token: int) -> bool:
        """Whether ``token`` ends what a model writes."""
        return bool(self._lib.llama_vocab_is_eog(self._vocab, token))

    @contextmanager
    def contexts(self, caches: Sequence[Pair | Plan], n_ctx: int, n_batch: int) -> Generator[list[Context]]:
        """Contexts of ``n_ctx`` tokens side by side, as `context` makes each.

        Their caches lie beside the weights, or all of them in host memory where a device cannot hold one.
        """
        with ExitStack() as stack:

            def make(offload: bool) -> list[Context]:
                return [stack.enter_context(self.context(cache, n_ctx, n_batch, offload)) for cache in caches]

            try:
                made = make(True)
            except KvtunerError as err:
                if _HOST_REMEDY not in str(err):
                    raise
                stack.close()
                made = make(False)
            yield made

    @contextmanager
    def context(
        self, cache: Pair | Plan, n_ctx: int, n_batch: int, offload: bool = True, see: Any = None
    ) -> Generator[Context]:
        """A context of ``n_ctx`` tokens whose layers have the types of ``cache``; raises `KvtunerError` if not.

        The caches of layers on a device lie there if ``offload``, else in host memory. ``see`` is an evaluation
        callback of the bindings.
        """
        pair = cache if isinstance(cache, Pair) else F16
        try:
            self._lib.kvtuner.set_kv_config(self._pointer, "none" if isinstance(cache, Pair) else cache.to_json())
        except ValueError as err:
            raise KvtunerError(str(err)) from err
        params = self._context_params(pair, n_ctx, n_batch, offload)
        if see is not None:
            params.cb_eval = see
        pointer = self._lib.llama_init_from_model(self._pointer, params)
        if not pointer:
            raise KvtunerError(f"cannot make a context of {n_ctx} tokens: {self._log.reason()}; use less --ctx")
        context = Context(self._lib, pointer, self.n_vocab, n_batch)
        try:
            yield context
        finally:
            context.close()

    def _context_params(self, pair: Pair, n_ctx: int, n_batch: int, offload: bool) -> ctypes.Structure:
        params = self._lib.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = n_batch
        params.n_seq_max = 1
        params.n_threads = params.n_threads_batch = self._n_threads
        params.flash_attn_type = self._lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.type_k, params.type_v = (t.ggml_type for t in pair.types)
        params.swa_full = False
        params.offload_kqv = offload
        return params


@contextmanager
def open_model(path: Path, n_threads: int | None = None, vocab_only: bool = False) -> Generator[Model]:
    """Load the GGUF model at ``path``, or its vocabulary alone.

    Raises `KvtunerError` with the native reason where the file cannot be loaded.
    """
    llama_cpp = patched_llama_cpp()
    llama_cpp.llama_backend_init()
    with captured_log(llama_cpp) as log:
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = vocab_only
        pointer = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
        if not pointer:
            raise KvtunerError(f"cannot load {path}: {log.reason()}; check that it is a whole GGUF model")
        try:
            yield Model(llama_cpp, pointer, log, n_threads or default_threads())
        finally:
            llama_cpp.llama_model_free(pointer)
