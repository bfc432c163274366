"""A model in one file or in many shards."""

from __future__ import annotations

import re
from pathlib import Path

from kvtuner_gguf.errors import KvtunerError, shown
from kvtuner_gguf.gguffile.keys import Keys
from kvtuner_gguf.gguffile.reader import GgufHeader, read_gguf

SHARD_NAME = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


def shard_paths(path: Path | str) -> list[Path]:
    """All shards of the model that ``path`` is or belongs to, the first one first."""
    path = Path(path)
    match = SHARD_NAME.match(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    return [path.with_name(f"{match['stem']}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]


def read_model(path: Path | str) -> list[GgufHeader]:
    """The headers of all shards; raises `KvtunerError` where one is missing, and for an adapter of a model."""
    paths = shard_paths(path)
    missing = next((shard for shard in paths if not shard.exists()), None)
    if missing is not None and len(paths) > 1:
        raise KvtunerError(f"{missing}: this shard of the model is missing: fetch it beside the others")
    headers = [read_gguf(shard) for shard in paths]
    for i, header in enumerate(headers):
        _check_no_adapter(header)
        _check_shard(header, i, len(headers))
    return headers


def _check_no_adapter(header: GgufHeader) -> None:
    kind = header.get(Keys.ADAPTER_TYPE)
    if kind is None and header.get(Keys.TYPE) != "adapter":
        return
    what = "a LoRA adapter" if kind in (None, "lora") else f"an adapter of type {shown(kind)}"
    raise KvtunerError(
        f"{header.path}: it is {what}, no model, and a plan is for a whole one: merge it into its model, with "
        "llama-export-lora or before it is converted, and give the merged file"
    )


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
