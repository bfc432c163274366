"""What the metadata of a model say of its KV cache: its shape, and what a plan may not do there."""

from __future__ import annotations

import hashlib

from kvtuner_gguf.gguffile.architectures import UNCAPTURED
from kvtuner_gguf.gguffile.counts import count
from kvtuner_gguf.gguffile.keys import Keys
from kvtuner_gguf.gguffile.layers import is_latent, layer_shapes
from kvtuner_gguf.gguffile.reader import GgufHeader
from kvtuner_gguf.plan.shape import MAX_WEIGHED_CTX, ModelShape

# architectures whose attention logits go through a tanh, with the cap in the metadata or without; for others it means
# nothing there. Source: ``attn_soft_cap`` of ``llama_hparams``, and the graph of grok
CAPPED_LOGITS = frozenset({"gemma2", "grok"})
SINKS_SUFFIX = ".attn_sinks.weight"
# those whose graphs do not attend as others do
OWN_ATTENTION = frozenset({"minimax-m3", "qwen4exp", "dflash"})


def model_shape(headers: list[GgufHeader]) -> ModelShape:
    """The shape of the KV cache; raises `KvtunerError` where the metadata do not tell it."""
    first = headers[0]
    layers = layer_shapes(first)
    n_ctx = MAX_WEIGHED_CTX
    if any(layer.window for layer in layers):
        n_ctx = min(n_ctx, count(first, Keys.CONTEXT_LENGTH))
    return ModelShape.of_layers(first.architecture, layers, _fingerprint(headers), n_ctx)


def centering_obstacle(headers: list[GgufHeader]) -> str | None:
    """Why centering would not be exact in this model, or None where it is. The runtime refuses the same models."""
    first = headers[0]
    if is_latent(first):
        return "keeps K and V in one tensor"
    if first.architecture in CAPPED_LOGITS:
        return "caps the attention logits"
    if any(tensor.name.endswith(SINKS_SUFFIX) for header in headers for tensor in header.tensors):
        return "adds attention sinks to the softmax"
    return None


def measuring_obstacle(headers: list[GgufHeader]) -> str | None:
    """Why keys of this model cannot be measured and centered, or None where they can."""
    return centering_obstacle(headers) or UNCAPTURED.get(headers[0].architecture)


def scaling_obstacle(shape: ModelShape) -> str | None:
    """Why keys cannot be scaled in this model, or None where they can. The runtime refuses the same models."""
    if shape.latent:
        return "keeps K and V in one tensor"
    return "has an attention of its own" if shape.architecture in OWN_ATTENTION else None


def _fingerprint(headers: list[GgufHeader]) -> str:
    """Hex digest over names and shapes of all tensors; the same model in another weight type has the same one."""
    digest = hashlib.sha256(headers[0].architecture.encode())
    tensors = sorted((tensor.name, tensor.shape) for header in headers for tensor in header.tensors)
    for name, shape in tensors:
        digest.update(f"\n{name} {shape}".encode())
    return digest.hexdigest()[:32]
