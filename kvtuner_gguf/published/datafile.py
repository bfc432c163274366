"""Read a JSON or YAML file of someone else's making into plain data, whatever it holds.

Read are mappings, lists and plain values. What such a file has no use for is refused: aliases, which can
swell a small file to any size, merges, tags, keys that are given twice, deep nesting.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files.artifact import MAX_JSON_BYTES

MAX_YAML_BYTES = 256 << 10
MAX_DEPTH = 16
MAX_SCALAR = 1024  # characters of one YAML value


def read_data(path: Path) -> Any:
    """What is in the file: JSON where its name ends in ``.json``, else YAML.

    Raises `KvtunerError` where it cannot be read, is too large (16 MiB of JSON, 256 KiB of YAML) or is not well-formed.
    The message does not name the file.
    """
    is_json = Path(path).suffix.lower() == ".json"
    raw = _read(path, MAX_JSON_BYTES if is_json else MAX_YAML_BYTES)
    try:
        data = _load_json(raw.decode()) if is_json else _load_yaml(raw.decode())
    except KvtunerError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as err:
        reason = " ".join(str(err).split())
        raise KvtunerError(f"not {'JSON' if is_json else 'YAML'} ({reason:.200}): correct the file") from err
    _check_depth(data)
    return data


def _check_depth(data: Any) -> None:
    level = [data]
    for _ in range(MAX_DEPTH):
        level = [inner for value in level for inner in _values_in(value)]
    if any(isinstance(value, dict | list) for value in level):
        raise KvtunerError(f"values are nested more than {MAX_DEPTH} deep: no table is")


def _values_in(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _read(path: Path, limit: int) -> bytes:
    try:
        with Path(path).open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as err:
        raise KvtunerError(f"it cannot be read ({err.strerror}): check the path") from err
    if len(raw) > limit:
        raise KvtunerError(f"more than {limit >> 10} KiB is no table of bits: check the path")
    return raw


def _load_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_each_key_once)


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        raise _given_twice([key for key, _ in pairs])
    return data


def _given_twice(keys: list[Any]) -> KvtunerError:
    key = Counter(keys).most_common(1)[0][0]
    return KvtunerError(f"the key {key!r:.40} is given twice in one place: keep one")


def _load_yaml(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader for plain data alone."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        where = f"line {event.start_mark.line + 1}"
        if getattr(event, "anchor", None) is not None or getattr(event, "value", None) == "<<":
            raise KvtunerError(f"{where}: anchors, aliases and merges (&, * and <<) are not read: write the value out")
        if getattr(event, "tag", None) is not None:
            raise KvtunerError(f"{where}: tags (!) are not read: write plain values")
        if len(getattr(event, "value", "")) > MAX_SCALAR:
            raise KvtunerError(f"{where}: a value of more than {MAX_SCALAR} characters is none of a table: shorten it")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        data = super().construct_mapping(node, deep=True)
        if len(data) < len(node.value):
            raise _given_twice([self.construct_object(key, deep=True) for key, _ in node.value])
        return data
