"""From a GGUF header to the shape of the model's KV cache, and to the plan that it carries."""

from __future__ import annotations

import hashlib
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
from gguf import GGUFValueType

from kvtuner_gguf.errors import KvtunerError, shown
from kvtuner_gguf.gguffile.cursor import Skipped
from kvtuner_gguf.gguffile.keys import Keys
from kvtuner_gguf.gguffile.reader import GgufHeader, read_gguf
from kvtuner_gguf.plan.cachetypes import cache_type
from kvtuner_gguf.plan.centers import Centers, from_flat, raw_vector
from kvtuner_gguf.plan.keyspread import KeySpread
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import MAX_LAYERS, ModelShape

SHARD_NAME = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
# architectures whose attention logits go through a tanh, with the cap in the metadata or without
CAPPED_LOGITS = frozenset({"gemma2", "grok"})
# architectures whose graphs write to the cache in ways of their own
OWN_ATTENTION = frozenset({"dflash", "minimax-m3", "qwen4exp"})
SINKS_SUFFIX = ".attn_sinks.weight"
PROVENANCE = {
    Keys.VERSION: "version",
    Keys.TEXT_SHA256: "text_sha256",
    Keys.TEXT_TOKENS: "text_tokens",
    Keys.KLD_MEAN: "kld_mean",
}


def shard_paths(path: Path) -> list[Path]:
    """All shards of the model that ``path`` is or belongs to, the first one first."""
    path = Path(path)
    match = SHARD_NAME.match(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    return [path.with_name(f"{match['stem']}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]


def read_model(path: Path) -> list[GgufHeader]:
    """The headers of all shards; raises `KvtunerError` where one is missing."""
    paths = shard_paths(path)
    missing = next((shard for shard in paths if not shard.exists()), None)
    if missing is not None and len(paths) > 1:
        raise KvtunerError(f"{missing}: this shard of the model is missing: fetch it beside the others")
    headers = [read_gguf(shard) for shard in paths]
    for i, header in enumerate(headers):
        _check_shard(header, i, len(headers))
    return headers


def _check_shard(header: GgufHeader, number: int, count: int) -> None:
    """Raise `KvtunerError` where the metadata has another place for a shard than its name."""
    found_count = header.get(Keys.SPLIT_COUNT)
    if type(found_count) is not int or found_count < 2:
        return
    found = header.get(Keys.SPLIT_NO)
    found = found if type(found) is int and 0 <= found < found_count else number
    if (found, found_count) == (number, count):
        return
    match = SHARD_NAME.match(header.path.name)
    stem = match["stem"] if match else header.path.name.removesuffix(".gguf")
    name, *others = _shard_names(stem, found_count, found)
    missing = [other for other in others if not header.path.with_name(other).exists()]
    remedy = f"fetch {_listed(missing)} beside it, and give" if missing else "give"
    raise KvtunerError(
        f"{header.path}: it is shard {found + 1} of {found_count}, as its metadata says: {remedy} it the name {name}"
    )


def _shard_names(stem: str, count: int, first: int) -> list[str]:
    """The names of all ``count`` shards, that of number ``first`` in front."""
    numbers = [first, *(i for i in range(count) if i != first)]
    return [f"{stem}-{i + 1:05d}-of-{count:05d}.gguf" for i in numbers]


def _listed(names: list[str]) -> str:
    """The first names; a model may have hundreds of shards."""
    shown = ", ".join(names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"


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
    if first.architecture in OWN_ATTENTION:
        return "has an attention of its own"
    return None


def plan_of(headers: list[GgufHeader]) -> Plan | None:
    """The plan in the metadata, or None; raises `KvtunerError` where it is unusable."""
    return plan_in(headers[0], model_shape(headers))


def plan_in(header: GgufHeader, shape: ModelShape) -> Plan | None:
    """The plan in the metadata of a model of this shape, as `plan_of`."""
    if header.get(Keys.TYPE_K) is None and header.get(Keys.TYPE_V) is None:
        return None
    try:
        names_k, names_v = (_names(header, side, shape.n_layer) for side in ("K", "V"))
        pairs = tuple(Pair(k, v) for k, v in zip(names_k, names_v, strict=True))
        return Plan(pairs, shape, _provenance(header), _centers(header, shape))
    except KvtunerError as err:
        raise KvtunerError(f"{header.path}: {err}") from err


def _provenance(header: GgufHeader) -> dict[str, object]:
    found = {name: header.get(key) for key, name in PROVENANCE.items() if header.get(key) is not None}
    spread = {field.name: header.get(Keys.KEY_SPREAD.format(field=field.name)) for field in fields(KeySpread)}
    if any(values is not None for values in spread.values()):
        found["keys"] = spread
    return found


def _centers(header: GgufHeader, shape: ModelShape) -> Centers | None:
    k = _vectors(header, "K", Keys.CENTER_K, shape.sizes_k)
    v = _vectors(header, "V", Keys.CENTER_V, shape.sizes_v)
    return Centers(k, v) if any(k) or any(v) else None


def _vectors(header: GgufHeader, side: str, key: str, sizes: list[int]) -> tuple[bytes, ...]:
    found = header.find(key)
    if found is None:
        return (b"",) * len(sizes)
    if found.element != GGUFValueType.FLOAT32:
        raise KvtunerError(f"{header.name(key)} is no list of float32 values: annotate the model again")
    values = found.value
    if isinstance(values, Skipped):  # no number in it, and its length tells more often what is wrong
        values = np.broadcast_to(np.float32(np.nan), values.count)
    parts = from_flat(np.asarray(values, np.float32), sizes, side)
    return tuple(raw_vector(part, il, side) for il, part in enumerate(parts))


def _names(header: GgufHeader, side: str, n_layer: int) -> list[str]:
    """The type names of one side, in the checks and words of `types_from_key` in ``cpp/kvtuner-plan.cpp``."""
    key = {"K": Keys.TYPE_K, "V": Keys.TYPE_V}[side]
    found, name = header.find(key), header.name(key)
    if found is None:
        raise KvtunerError(f"{name} is missing while its counterpart is there: annotate the model again")
    if found.kind == GGUFValueType.STRING:
        return [_type_name(found.value, 0, side)] * n_layer
    if found.kind != GGUFValueType.ARRAY:
        raise KvtunerError(f"{name} has the value {shown(found.value)}, no list of names: annotate the model again")
    n_found = found.value.count if isinstance(found.value, Skipped) else len(found.value)
    if n_found != n_layer:
        raise KvtunerError(f"{name} has {n_found} entries, the model {n_layer} layers: annotate the model again")
    if found.element != GGUFValueType.STRING:
        raise KvtunerError(f"layer 0: {name} holds no name: annotate the model again")
    return [_type_name(text, il, side) for il, text in enumerate(found.value)]


def _type_name(text: str | Skipped, il: int, side: str) -> str:
    try:
        return cache_type(text.start if isinstance(text, Skipped) else text, f" for {side}").name
    except KvtunerError as err:
        raise KvtunerError(f"layer {il}: {err}") from err


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
