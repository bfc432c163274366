"""What the metadata of a model say of its KV cache: its shape, and what a plan may not do there."""

from __future__ import annotations

import hashlib

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.gguffile.keys import Keys
from kvtuner_gguf.gguffile.reader import GgufHeader
from kvtuner_gguf.plan.shape import MAX_LAYERS, ModelShape

# architectures whose attention logits go through a tanh, with the cap in the metadata or without
CAPPED_LOGITS = frozenset({"gemma2", "grok"})
SINKS_SUFFIX = ".attn_sinks.weight"


def model_shape(headers: list[GgufHeader]) -> ModelShape:
    """The shape of the KV cache; raises `KvtunerError` where the metadata does not tell it."""
    first = headers[0]
    n_layer = _count(first, Keys.BLOCK_COUNT)
    if n_layer > MAX_LAYERS:
        raise KvtunerError(f"{first.path}: {n_layer} layers are more than {MAX_LAYERS}: the file is damaged")
    n_head = _per_layer(first, Keys.HEAD_COUNT, n_layer)
    n_head_kv = _per_layer(first, Keys.HEAD_COUNT_KV, n_layer) if first.get(Keys.HEAD_COUNT_KV) is not None else n_head
    default = _count(first, Keys.EMBEDDING_LENGTH) // max(*n_head, 1)
    return ModelShape(
        architecture=first.architecture,
        n_head_kv=n_head_kv,
        head_dim_k=_count(first, Keys.KEY_LENGTH, default),
        head_dim_v=_count(first, Keys.VALUE_LENGTH, default),
        fingerprint=_fingerprint(headers),
    )


def is_mla(header: GgufHeader) -> bool:
    """Whether K and V share one tensor (multi-head latent attention)."""
    return bool(header.get(Keys.KV_LORA_RANK))


def centering_obstacle(headers: list[GgufHeader]) -> str | None:
    """Why centering would not be exact in this model, or None where it is. The runtime refuses the same models."""
    first = headers[0]
    if is_mla(first):
        return "keeps K and V in one tensor"
    if first.architecture in CAPPED_LOGITS or first.get(Keys.LOGIT_SOFTCAPPING):
        return "caps the attention logits"
    if any(tensor.name.endswith(SINKS_SUFFIX) for header in headers for tensor in header.tensors):
        return "adds attention sinks to the softmax"
    return None


def _count(header: GgufHeader, key: str, default: int | None = None) -> int:
    value = header.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        name = key.format(arch=header.architecture)
        raise KvtunerError(f"{header.path}: {name} is {value!r:.40}, not a count: this is no model that can be tuned")
    return value


def _per_layer(header: GgufHeader, key: str, n_layer: int) -> tuple[int, ...]:
    value = header.get(key)
    if not isinstance(value, list):
        return (_count(header, key),) * n_layer
    if len(value) != n_layer or not all(type(count) is int and count >= 0 for count in value):
        name = header.name(key)
        raise KvtunerError(f"{header.path}: {name} has {len(value)} entries, not one count per layer ({n_layer})")
    return tuple(value)


def _fingerprint(headers: list[GgufHeader]) -> str:
    """Hex digest over names and shapes of all tensors; the same model in another weight type has the same one."""
    digest = hashlib.sha256(headers[0].architecture.encode())
    tensors = sorted((tensor.name, tensor.shape) for header in headers for tensor in header.tensors)
    for name, shape in tensors:
        digest.update(f"\n{name} {shape}".encode())
    return digest.hexdigest()[:32]
