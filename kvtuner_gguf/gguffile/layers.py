"""The shape of each layer's KV cache, from the metadata of a model as llama.cpp reads them.

Source: ``llama_model_base::load_hparams`` and ``llama_model::create_memory`` in ``src/llama-model.cpp`` at the pinned
base; `kvtuner_gguf.gguffile.architectures` has what differs by architecture.
"""

from __future__ import annotations

from dataclasses import replace

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.gguffile import architectures as archs
from kvtuner_gguf.gguffile.counts import count, each_layer, flags
from kvtuner_gguf.gguffile.keys import Keys
from kvtuner_gguf.gguffile.reader import GgufHeader
from kvtuner_gguf.plan.shape import LayerShape
from kvtuner_gguf.plan.shapefields import MAX_LAYERS


def layer_shapes(header: GgufHeader) -> list[LayerShape]:
    """One shape per layer; raises `KvtunerError` where metadata do not tell it."""
    n_layer, arch = count(header, Keys.BLOCK_COUNT), header.architecture
    n_loop = count(header, Keys.NUM_LOOPS, 1) if arch in archs.LOOPED else 1
    if n_layer * n_loop > MAX_LAYERS:
        raise KvtunerError(f"{header.path}: {n_layer * n_loop} layers are more than {MAX_LAYERS}: the file is damaged")
    if arch in archs.UNCOUNTED:
        raise KvtunerError(f"{header.path}: architecture {arch} {archs.UNCOUNTED[arch]}: choose another model")
    if arch not in archs.KNOWN:
        raise KvtunerError(f"{header.path}: the KV cache of architecture {arch} is not known: choose another model")
    return _all_layers(header, n_layer) * n_loop


def _all_layers(header: GgufHeader, n_layer: int) -> list[LayerShape]:
    n_head = each_layer(header, Keys.HEAD_COUNT, n_layer)
    heads = each_layer(header, Keys.HEAD_COUNT_KV, n_layer) if header.get(Keys.HEAD_COUNT_KV) is not None else n_head
    full = _head_sizes(header, n_head[0] if n_head else 0)
    windowed = tuple(
        count(header, key, size) for key, size in zip((Keys.KEY_LENGTH_SWA, Keys.VALUE_LENGTH_SWA), full, strict=True)
    )
    latent = is_latent(header)
    layers = [
        LayerShape(n, *(windowed if window else full), window=window, keeps=kept, latent=latent, turned=turned)
        for n, window, kept, turned in zip(
            heads, _windows(header, n_layer), _kept(header, n_layer), _turned(header, n_layer), strict=True
        )
    ]
    return _shared(header, layers)


def _head_sizes(header: GgufHeader, n_head: int) -> tuple[int, int]:
    """Head sizes of K and V in layers that see all tokens, in a model whose first layer has ``n_head`` heads."""
    default = count(header, Keys.EMBEDDING_LENGTH) // n_head if n_head else 0
    if not n_head and header.architecture != "plamo2":
        return 0, 0
    return count(header, Keys.KEY_LENGTH, default), count(header, Keys.VALUE_LENGTH, default)


def is_latent(header: GgufHeader) -> bool:
    """Whether K and V share one tensor. Source: ``llama_hparams::is_mla`` and who reads its two sizes."""
    sizes = (count(header, key, 0) for key in (Keys.KEY_LENGTH_MLA, Keys.VALUE_LENGTH_MLA))
    return header.architecture in archs.LATENT and all(sizes)


def _windows(header: GgufHeader, n_layer: int) -> list[int]:
    """Tokens of the sliding window of each layer, 0 where it sees all."""
    windows = archs.WINDOWS.get(header.architecture)
    n_trunk = n_layer - _n_draft(header, n_layer)
    if windows is None or windows.n_layer not in (None, n_trunk):
        return [0] * n_layer
    n_tokens = count(header, Keys.SLIDING_WINDOW, windows.default)
    if not n_tokens and not windows.optional:
        name = header.name(Keys.SLIDING_WINDOW)
        raise KvtunerError(f"{header.path}: {name} is 0: this is no model that can be tuned")
    n_tokens = n_tokens and (windows.fixed or n_tokens)
    return [n_tokens if here else 0 for here in _pattern(header, windows, n_layer, n_trunk)]


def _pattern(header: GgufHeader, windows: archs.Windows, n_layer: int, n_trunk: int) -> list[bool]:
    """Which layers have windows. Source: ``load_swa_pattern`` and ``llama_hparams::set_swa_pattern``."""
    if windows.every:
        return [il < n_trunk for il in range(n_layer)]
    listed = flags(header, Keys.SLIDING_WINDOW_PATTERN)
    if listed is not None:
        return [il < len(listed) and listed[il] for il in range(n_layer)]
    if windows.period is None:
        name = header.name(Keys.SLIDING_WINDOW_PATTERN)
        raise KvtunerError(f"{header.path}: {name} is no list, one entry per layer: this is no model that can be tuned")
    period = count(header, Keys.SLIDING_WINDOW_PATTERN, windows.period)
    dense = 0 if windows.dense_first else period - 1
    return [il < n_trunk and (not period or il % period != dense) for il in range(n_layer)]


def _turned(header: GgufHeader, n_layer: int) -> list[bool]:
    """In which layers centers turn. Source: ``llama_hparams::has_rope`` and who fills its pattern."""
    arch = header.architecture
    if arch in archs.WITHOUT_ROPE or arch in archs.WITHOUT_ENDS:
        return [False] * n_layer
    if arch in archs.ROPE_IF_FINETUNED:
        return [header.get(Keys.ROPE_FINETUNED) is not False] * n_layer
    listed = flags(header, Keys.ROPE_PATTERN) if arch in archs.ROPE_LISTED else None
    return [listed is None or il >= len(listed) or listed[il] for il in range(n_layer)]


def _n_draft(header: GgufHeader, n_layer: int) -> int:
    n_draft = count(header, Keys.NEXTN_LAYERS, 0)
    if n_draft > n_layer:
        name = header.name(Keys.NEXTN_LAYERS)
        raise KvtunerError(f"{header.path}: {name} is {n_draft} of {n_layer} layers: the file is damaged")
    return n_draft


def _kept(header: GgufHeader, n_layer: int) -> list[bool]:
    """Which layers have a cache in the model's own context, if they have KV heads at all."""
    arch = header.architecture
    if arch in archs.WITHOUT_CACHE:
        return [False] * n_layer
    n_trunk = n_layer - _n_draft(header, n_layer)
    kept = [il < n_trunk or not n_trunk or arch in archs.WITH_DRAFT_LAYERS for il in range(n_layer)]
    if arch in archs.FULL_ATTENTION:
        is_recurrent = _recurrent(header, archs.FULL_ATTENTION[arch], n_layer)
        kept = [il < n_trunk and not recurrent for il, recurrent in enumerate(is_recurrent)]
    if arch in archs.FEED_FORWARD_ALONE:
        kept = [
            keeps and not n_ff
            for keeps, n_ff in zip(kept, each_layer(header, Keys.FEED_FORWARD_LENGTH, n_layer), strict=True)
        ]
    return kept


def _recurrent(header: GgufHeader, interval: int, n_layer: int) -> list[bool]:
    listed = flags(header, Keys.RECURRENT_LAYERS)
    if listed is not None:
        return [il < len(listed) and listed[il] for il in range(n_layer)]
    if header.get(Keys.RECURRENT_LAYERS) is not None:
        return [bool(count(header, Keys.RECURRENT_LAYERS))] * n_layer
    interval = count(header, Keys.FULL_ATTENTION_INTERVAL, interval) or 1
    return [(il + 1) % interval != 0 for il in range(n_layer)]


def _shared(header: GgufHeader, layers: list[LayerShape]) -> list[LayerShape]:
    """``layers`` where those that read another's cache have none of their own."""
    first = archs.SHARED_FROM.get(header.architecture)
    if header.architecture == "gemma4":
        first = len(layers) - count(header, Keys.SHARED_KV_LAYERS, 0)
    if first is None or first >= len(layers):
        return layers
    if first < 2:
        n_shared = len(layers) - first
        raise KvtunerError(f"{header.path}: {n_shared} of {len(layers)} layers share caches: the file is damaged")
    sharing = [replace(layer, keeps=False, source=first - (2 if layer.window else 1)) for layer in layers[first:]]
    return layers[:first] + sharing
