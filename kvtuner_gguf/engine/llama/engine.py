"""The built llama.cpp as an engine: any architecture that it runs, weights and arithmetic its own."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kvtuner_gguf.engine.attention import Attention, Causal
from kvtuner_gguf.engine.base import Engine, See
from kvtuner_gguf.engine.llama.capture import Capture
from kvtuner_gguf.engine.llama.devices import offered_backend
from kvtuner_gguf.engine.llama.interrupts import interrupts_held
from kvtuner_gguf.engine.llama.native import Context, Model, default_threads, open_model, patched_llama_cpp
from kvtuner_gguf.engine.llama.weights import COPIED, f16_copy, float_products, weights_for
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.plan.pairs import F16, UNQUANTIZED, Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape

# tokens that show what a graph is made of
FEW = 4
# tokens of a batch
N_BATCH = 512
# the tensor of models whose positions have vectors of their own
POSITIONS = "position_embd.weight"
# float32 values of queries, keys and values that are held at once while layers are looked at
MAX_HELD = 1 << 28


class LlamaEngine(Engine):
    """The model of the GGUF at ``path``, loaded when it is first used; each plan is a context of its own.

    Products of quantized weights lose little, in one of the ways of `kvtuner_gguf.engine.llama.weights`: the one that
    ``before`` names where that can be.
    """

    name = "llama"

    def __init__(self, path: Path, shape: ModelShape, threads: int | None = None, before: object = None) -> None:
        lib, headers = patched_llama_cpp(), read_model(path)
        self.model, self.shape, self.device = str(path), shape, offered_backend()
        self._weights = weights_for(headers, self.device, before)
        self._has_vectors = any(tensor.name == POSITIONS for header in headers for tensor in header.tensors)
        self.versions = {"llama_cpp": lib.__version__, "weights": self._weights}
        self._path, self._threads = headers[0].path, threads or default_threads()
        self._open = ExitStack()
        weakref.finalize(self, self._open.close)

    @property
    def can_move(self) -> bool:
        """Not where positions have vectors, nor where a norm with weights follows RoPE."""
        return not self._has_vectors and all(used.relative for used in self._few)

    @cached_property
    def native(self) -> Model:
        with ExitStack() as copied:  # once it is loaded its file is not needed
            path = copied.enter_context(f16_copy(self._path, self._threads)) if self._weights == COPIED else self._path
            return self._open.enter_context(open_model(path, self._threads))

    def tokenize(self, text: str) -> list[int]:
        return self.native.tokenize(text, add_special=False).tolist()

    def capture(self, tokens: Tensor, see: See) -> None:
        for layers in self._groups(tokens.numel()):
            found = [self._used(chunk, layers) for chunk in tokens]
            for il in layers:
                used = joined([chunk.pop(il) for chunk in found])
                see(il, used if self._tells_rope else replace(used, rope=None))

    def logits(self, plan: Plan, tokens: Tensor, rows: slice, start: int = 0) -> Iterator[Tensor]:
        ids, first = _ids(tokens), rows.start or 0
        with self.native.context(_runnable(plan), len(ids), min(N_BATCH, len(ids))) as context:
            _decode(context, ids[:first], start, want_logits=False)
            for at in range(first, rows.stop, context.n_batch):
                batch = ids[at : min(at + context.n_batch, rows.stop)]
                yield torch.from_numpy(_decode(context, batch, start + at, want_logits=True).copy())

    @cached_property
    def _tells_rope(self) -> bool:
        """Whether all layers do."""
        return all(used.rope is not None for used in self._few)

    @cached_property
    def _few(self) -> Collection[Attention]:
        """What a few tokens use in each layer."""
        layers = [il for il, layer in enumerate(self.shape.layers) if layer.keeps]
        return self._used(torch.arange(FEW), layers).values()

    def _groups(self, n_tokens: int) -> Iterator[Sequence[int]]:
        """Layers with a cache of their own, as many at a time as are held together."""
        group: list[int] = []
        held = 0
        for il, layer in enumerate(self.shape.layers):
            if not layer.keeps:
                continue
            values = 4 * n_tokens * (layer.kept_k + layer.kept_v)  # queries have more heads than keys
            if group and held + values > MAX_HELD:
                yield group
                group, held = [], 0
            group.append(il)
            held += values
        yield group

    def _used(self, chunk: Tensor, layers: Sequence[int]) -> dict[int, Attention]:
        ids = _ids(chunk)
        capture = Capture(self.native._lib, self.shape.layers, frozenset(layers))
        made = self.native.context(F16, len(ids), len(ids), see=capture.callback)  # FlashAttention makes it of f32, too
        with made as context, interrupts_held():  # one that is raised in a callback would be lost
            _decode(context, ids, 0, want_logits=False)
        return capture.take()


def _runnable(plan: Plan) -> Plan:
    """``plan`` with f16 in place of f32, of which FlashAttention makes f16 anyway.

    A side that loses nothing loses nothing at the ends either: exact rows are f16 then, as both sides have one type.
    """
    sides = [[t.name for t in pair.types] for pair in plan.pairs]
    pairs = tuple(Pair(*("f16" if name == UNQUANTIZED else name for name in names)) for names in sides)
    one_sided = any(UNQUANTIZED in names for names in sides)
    ends = replace(plan.ends, type="f16") if plan.ends is not None and one_sided else plan.ends
    return replace(plan, pairs=pairs, ends=ends)


def _ids(tokens: Tensor) -> np.ndarray:
    return tokens.numpy().astype(np.int32)


def _decode(context: Context, ids: np.ndarray, start: int, want_logits: bool) -> np.ndarray:
    """Decode ``ids`` from the position ``start`` on; the logits of the last batch, if they are wanted."""
    logits = np.empty((0, 0), np.float32)
    with float_products():
        for at in range(0, len(ids), context.n_batch):
            logits = context.decode(ids[at : at + context.n_batch], start + at, want_logits)
    return logits


def joined(chunks: Sequence[Attention]) -> Attention:
    """Those of several chunks as of one attention; masks may depend on what stands in a chunk."""
    first, masks = chunks[0], tuple(chunk.mask_of(0) for chunk in chunks)
    mask = masks[0] if isinstance(masks[0], Causal) and masks.count(masks[0]) == len(masks) else masks
    query, key, value = (torch.cat([getattr(chunk, name) for chunk in chunks]) for name in ("query", "key", "value"))
    return replace(first, query=query, key=key, value=value, mask=mask)
