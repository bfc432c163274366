"""From a file to a table: the forms that tables of the KVTuner paper (arXiv 2502.04420, ICML 2025) come in.

Three are read, as JSON or YAML:

layers
    ``{layer: {nbits_key, nbits_value}}``, the presets that were released with the paper.
groups
    ``{n_layers, groups: [{layers, nbits_key, nbits_value}]}``, a pair for each group of layers, as in the paper's
    Table 10. The groups are a partition of the layers.
configs
    ``{configs: [{model, mode, preset, n_layers, k_bits, v_bits}]}``, many tables in one file, as in
    ``configs/kvtuner/tables.json``. A table may have ``mean_bits``, which its layers must then give, and
    ``paper_label``; ``models: {model: shape}`` beside ``configs`` has shapes as in ``configs/plan.schema.json``.

A plan of our own is read, too, and stays as it is.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvtuner_gguf.errors import KvtunerError, about
from kvtuner_gguf.plan.layerlist import in_order
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.shape import ModelShape
from kvtuner_gguf.plan.shapefields import MAX_LAYERS
from kvtuner_gguf.published.bitstable import MAX_BITS, BitsTable
from kvtuner_gguf.published.datafile import read_data

MAX_NAMES = 64  # that an error lists
MEAN_TOLERANCE = 0.01  # the paper rounds or cuts means to two digits
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}")


def read_table(path: Path, name: str | None = None) -> BitsTable | Plan:
    """The table in the file, or the plan if it holds one of ours.

    ``name``, as ``MODEL_MODE_PRESET``, chooses among the tables of a file that has many. Raises `KvtunerError` naming
    the file, and the layer and the value where there is one.
    """
    with about(path):
        return _interpret(read_data(path), name)


def _interpret(data: object, name: str | None) -> BitsTable | Plan:
    if not isinstance(data, Mapping) or not data:
        raise KvtunerError(
            "it holds no table: give each layer nbits_key and nbits_value, groups of layers with them, or configs"
        )
    if "configs" in data:
        return _from_configs(data, name)
    if name is not None:
        raise KvtunerError("there is one table in it: leave out --name")
    if "schema" in data:
        return Plan.from_json(data)
    return _from_groups(data) if "groups" in data else _from_layers(data)


def _from_layers(data: Mapping[Any, Any]) -> BitsTable:
    entries = in_order((_layer_number(key), entry) for key, entry in data.items())
    return _table([_bits_of(entry, f"layer {il}") for il, entry in enumerate(entries)])


def _layer_number(value: object) -> int:
    if isinstance(value, str) and re.fullmatch("[0-9]{1,4}", value):  # JSON has no other keys
        value = int(value)
    if type(value) is not int or not 0 <= value < MAX_LAYERS:
        raise KvtunerError(f"{reprlib.repr(value)} is no layer number: give whole numbers from 0 to {MAX_LAYERS - 1}")
    return value


def _bits_of(entry: object, where: str) -> tuple[Any, Any]:
    if not isinstance(entry, Mapping):
        raise KvtunerError(f"{where} is {reprlib.repr(entry)}: give it nbits_key and nbits_value")
    missing = next((key for key in ("nbits_key", "nbits_value") if key not in entry), None)
    if missing is not None:
        raise KvtunerError(f"{where} has no {missing}: give it nbits_key and nbits_value")
    return entry["nbits_key"], entry["nbits_value"]


def _table(bits: Sequence[tuple[Any, Any]]) -> BitsTable:
    return BitsTable(tuple(k for k, _ in bits), tuple(v for _, v in bits))


def _from_groups(data: Mapping[Any, Any]) -> BitsTable:
    n_layer, groups = _layer_count(data), data["groups"]
    if not isinstance(groups, list) or not groups:
        raise KvtunerError("'groups' must be a list of {layers, nbits_key, nbits_value}")
    bits: dict[int, tuple[Any, Any]] = {}
    for il, number in _group_of_each_layer(groups, n_layer).items():
        bits[il] = _bits_of(groups[number], _group_name(groups, number))
    return _table([bits[il] for il in range(n_layer)])


def _group_of_each_layer(groups: Sequence[object], n_layer: int) -> dict[int, int]:
    """The number of the group that each layer is in; raises `KvtunerError` unless the groups are a partition."""
    found: dict[int, int] = {}
    for number in range(len(groups)):
        for il in _group_layers(groups, number):
            if il >= n_layer:
                raise KvtunerError(
                    f"layer {il} in {_group_name(groups, number)} is none of {n_layer} layers: correct it or n_layers"
                )
            if il in found:
                raise KvtunerError(_in_two_groups(groups, il, found[il], number))
            found[il] = number
    missing = next((il for il in range(n_layer) if il not in found), None)
    if missing is not None:
        raise KvtunerError(f"layer {missing} of {n_layer} is in none of the {len(groups)} groups: add it to one")
    return found


def _group_layers(groups: Sequence[object], number: int) -> list[int]:
    group = groups[number]
    layers = group.get("layers") if isinstance(group, Mapping) else None
    if not isinstance(layers, list) or not layers:
        raise KvtunerError(f"group {number} has no list of layers: give it layers, nbits_key and nbits_value")
    return [_layer_number(il) for il in layers]


def _in_two_groups(groups: Sequence[object], il: int, first: int, second: int) -> str:
    if first == second:
        return f"layer {il} is twice in {_group_name(groups, first)}: keep one"
    return f"layer {il} is in {_group_name(groups, first)} and in {_group_name(groups, second)}: keep it in one"


def _group_name(groups: Sequence[Any], number: int) -> str:
    return f"group {number} ({reprlib.repr(groups[number]['layers'])})"


def _layer_count(data: Mapping[Any, Any]) -> int:
    count = data.get("n_layers")
    if type(count) is not int or not 1 <= count <= MAX_LAYERS:
        raise KvtunerError(f"n_layers is {reprlib.repr(count)}: give the number of layers, 1 to {MAX_LAYERS}")
    return count


def _from_configs(data: Mapping[Any, Any], name: str | None) -> BitsTable:
    configs = data["configs"]
    if not isinstance(configs, list) or not configs:
        raise KvtunerError("'configs' must be a list of {model, mode, preset, n_layers, k_bits, v_bits}")
    names = [_config_name(config, number) for number, config in enumerate(configs)]
    chosen = _chosen(names, name)
    with about(chosen):
        return _from_config(configs[names.index(chosen)], data.get("models"))


def _chosen(names: Sequence[str], name: str | None) -> str:
    if name is None and len(names) == 1:
        return names[0]
    if name is not None and names.count(name) == 1:
        return name
    if name in names:
        raise KvtunerError(f"there are {names.count(name)} tables called {name} in it: keep one")
    listed = ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")
    what = (
        f"there are {len(names)} tables in it: give --name"
        if name is None
        else f"there is no table {name!r:.80} in it: give --name"
    )
    raise KvtunerError(f"{what}, one of {listed}")


def _config_name(config: object, number: int) -> str:
    keys = ("model", "mode", "preset")
    words: list[Any] = [config.get(key) for key in keys] if isinstance(config, Mapping) else [config]
    wrong = next((word for word in words if not isinstance(word, str) or not _WORD.fullmatch(word)), None)
    if wrong is not None or len(words) < 3 or None in words:
        raise KvtunerError(
            f"table {number} of 'configs' is called {reprlib.repr(wrong)}: give it model, mode and preset, "
            "in letters, digits and . _ + -"
        )
    return "_".join(words)


def _from_config(config: Mapping[str, Any], models: object) -> BitsTable:
    n_layer = _layer_count(config)
    sides: dict[str, Any] = {key: config.get(key) for key in ("k_bits", "v_bits")}
    for key, bits in sides.items():
        if not isinstance(bits, list) or len(bits) != n_layer:
            found = f"has {len(bits)} entries" if isinstance(bits, list) else f"is {reprlib.repr(bits)}"
            raise KvtunerError(f"{key} {found} for {n_layer} layers: give it one number of bits per layer")
    table = BitsTable(*map(tuple, sides.values()), _facts(config), _shape(models, config["model"]))
    _check_mean(table, config.get("mean_bits"))
    return table


def _facts(config: Mapping[str, Any]) -> dict[str, str]:
    facts = {key: config[key] for key in ("model", "mode", "preset")}
    label = config.get("paper_label")
    if label is None:
        return facts
    if not isinstance(label, str) or len(label) > 80 or not label.isprintable():
        raise KvtunerError(f"paper_label is {reprlib.repr(label)}: give a short text, or leave it out")
    return facts | {"label": label}


def _shape(models: object, model: str) -> ModelShape | None:
    if models is not None and not isinstance(models, Mapping):
        raise KvtunerError(f"'models' is {reprlib.repr(models)}: give the shape of each model by its name")
    return None if models is None or model not in models else ModelShape.from_json(models[model])


def _check_mean(table: BitsTable, mean: Any) -> None:
    if mean is None:
        return
    is_bits = type(mean) in (int, float) and 0 < mean <= MAX_BITS
    if not is_bits or abs(mean - table.mean_bits) > MEAN_TOLERANCE:
        raise KvtunerError(
            f"mean_bits is {reprlib.repr(mean)}, but its layers give {table.mean_bits:.4f}: correct one of them"
        )
