"""Queries, keys and values of every layer, as a graph of the built llama.cpp really uses them.

Keys and values are taken where they are written to the cache, before they are rounded; queries, the mask and what is
done to the products where they are read. So windows, partial rotary embeddings, biases of positions, soft caps and
sinks are those of the model, whatever its architecture.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from kvtuner_gguf.engine.attention import Alibi, Attention, Causal, Mask, Rope, Seen
from kvtuner_gguf.engine.llama.nodes import Library, Node
from kvtuner_gguf.engine.llama.ropenode import rope_of
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.shape import LayerShape

_CACHE = re.compile(r"cache_([kv])_l(\d+)")
_ATTENTION, _WRITE, _ROPE = "FLASH_ATTN_EXT", "SET_ROWS", "ROPE"
# what changes the shape of values alone, or the size of all channels of a head, before RoPE or after it
_COMMUTING = ("RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE", "CONT", "CPY", "RMS_NORM", "L2_NORM", "SCALE")
# what else may lie between RoPE and the cache
_UNEVEN = ("MUL", "ADD", "NORM")  # treat channels of a pair in different ways
_BEHIND_ROPE = (*_COMMUTING, *_UNEVEN, "CONCAT", "REPEAT", "PAD")
REMEDY = "make a plan without a search, kvtuner-gguf plan MODEL --uniform q8_0/f16 --no-center"
# rows of a mask at a time
_ROWS = 256


@dataclass
class _Layer:
    """Of one layer and chunk; keys and values [tokens, values of a token]."""

    key: np.ndarray | None = None
    value: np.ndarray | None = None
    written: Node | None = None
    used: Attention | None = None


@dataclass(repr=False)
class Capture:
    """What graphs of one chunk at a time have used in the ``layers`` that are ``wanted``; ``callback`` sees them."""

    lib: ModuleType
    layers: tuple[LayerShape, ...]
    wanted: Collection[int]
    failed: Exception | None = None
    _found: dict[int, _Layer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._library = Library()
        self.callback = self.lib.ggml_backend_sched_eval_callback(self._see)

    def take(self) -> dict[int, Attention]:
        """What each layer has used of the chunk that was decoded.

        Raises `KvtunerError` where a layer with a cache has not attended by FlashAttention.
        """
        if self.failed is not None:
            raise self.failed
        found, self._found = self._found, {}
        missing = [il for il in self.wanted if il not in found or found[il].used is None]
        if missing:
            raise KvtunerError(
                f"layer {missing[0]}: this model does not attend by FlashAttention there, and nothing else is "
                f"captured: {REMEDY}"
            )
        return {il: layer.used for il, layer in found.items() if layer.used is not None}

    def _see(self, address: int, ask: bool, _user_data: object) -> bool:
        """Whether the node is wanted, before it is computed; after it, whether the graph goes on."""
        if self.failed is not None:
            return not ask
        try:
            node = Node(self._library, address)
            return self._place(node) is not None if ask else self._computed(node)
        except Exception as err:  # nothing may be raised through native code
            self.failed = err
            return False

    def _place(self, node: Node) -> tuple[str, int] | None:
        """Which side and layer a node writes, or which layer it attends; None for others."""
        if node.op not in (_ATTENTION, _WRITE):
            return None
        cache = node.source(1) if node.op == _ATTENTION else node
        match = _CACHE.fullmatch(cache.storage.name) if cache else None
        return (match[1], int(match[2])) if match and int(match[2]) in self.wanted else None

    def _computed(self, node: Node) -> bool:
        place = self._place(node)
        if place is None:
            return True
        side, il = place
        layer = self._found.setdefault(il, _Layer())
        if node.op == _ATTENTION:
            if layer.used is None:  # layers that read another's cache come later
                layer.used = self._attention(node, layer, self.layers[il])
        elif side == "k":
            layer.key, layer.written = _written(node), node
        else:
            layer.value = _written(node)
        return True

    def _attention(self, node: Node, layer: _Layer, shape: LayerShape) -> Attention:
        query = node.source(0)
        if layer.key is None or layer.written is None or query is None or (layer.value is None and not shape.latent):
            raise KvtunerError("a layer attends before it writes its keys and values: it cannot be captured")
        n_tokens = len(layer.key)
        key = _heads(layer.key, shape.n_head_kv)
        value = key[..., : shape.head_dim_v] if layer.value is None else _heads(layer.value, shape.n_head_kv)
        scale, max_bias, soft_cap = (float(x) for x in node.floats()[:3])
        sinks, mask = node.source(4), node.source(3)
        queries = torch.from_numpy(query.array().astype(np.float32)[:1])
        if queries.shape[1] % shape.n_head_kv or queries.shape[-1] != shape.head_dim_k:
            raise KvtunerError(
                f"{queries.shape[1]} heads of {queries.shape[-1]} values attend {shape.n_head_kv} of "
                f"{shape.head_dim_k}: an attention of this kind is not captured: {REMEDY}"
            )
        return Attention(
            queries,
            key,
            value,
            scale,
            _mask(mask, n_tokens, shape.window),
            soft_cap or None,
            None if sinks is None else torch.from_numpy(sinks.array().reshape(-1)),
            rope=_rope(layer.written, shape.head_dim_k),
            alibi=Alibi.of(queries.shape[1], max_bias) if max_bias else None,
            latent=shape.latent,
            relative=_is_relative(layer.written.source(0)),
        )


def _written(node: Node) -> np.ndarray:
    values = node.source(0)
    if values is None:
        raise KvtunerError(f"{node.name} writes nothing: it cannot be captured")
    found = values.array().astype(np.float32)
    return found.reshape(-1, found.shape[-1])


def _rope(node: Node, head_size: int) -> Rope | None:
    """What turns the keys that are written; None where other things are done to them after that."""
    found = node.source(0)
    while found is not None and found.op in _COMMUTING:
        found = found.source(0)
    if found is not None and found.op == _ROPE:
        return rope_of(found, head_size)
    return None if _has_rope(found) else _no_rope(head_size)


def _has_rope(node: Node | None) -> bool:
    """Whether RoPE turns some of what the node is made of."""
    if node is None or node.op == _ROPE:
        return node is not None
    return node.op in _BEHIND_ROPE and any(_has_rope(node.source(i)) for i in (0, 1))


def _is_relative(node: Node | None) -> bool:
    """Whether what RoPE turns stays whole until it is written, so that moving all positions changes no product."""
    if node is None or node.op == _ROPE or not _has_rope(node):
        return True
    return node.op not in _UNEVEN and all(_is_relative(node.source(i)) for i in (0, 1))


def _heads(values: np.ndarray, n_head: int) -> Tensor:
    """[1, heads, tokens, head size]"""
    return torch.from_numpy(values).unflatten(-1, (n_head, -1)).transpose(0, 1)[None].contiguous()


def _no_rope(head_size: int) -> Rope:
    return Rope(torch.zeros(head_size // 2, dtype=torch.float64), interleaved=False)


def _mask(node: Node | None, n_tokens: int, window: int) -> Mask:
    """That of the graph: the causal one with the layer's window where it is that."""
    if node is None:
        return Seen(torch.ones(n_tokens, n_tokens, dtype=torch.bool))
    hidden = torch.from_numpy(np.isneginf(node.array()[0, 0, :n_tokens, :n_tokens]))
    parts = torch.arange(n_tokens).split(_ROWS)
    causal = Causal(window or None)
    if all(torch.equal(causal.hides(rows, n_tokens), hidden[rows]) for rows in parts):
        return causal
    return Seen(~hidden)
