from __future__ import annotations

import copy
import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import SCHEMA, Plan
from kvtuner_gguf.published.bitstable import BitsTable, parse_types
from kvtuner_gguf.published.forms import read_table

FOLDER = Path(__file__).parents[2] / "configs" / "kvtuner"
TABLES = FOLDER / "tables.json"
PLAN = FOLDER / "llama-3.1-8b-kivi-c3.25.json"
CONFIGS = json.loads(TABLES.read_text())["configs"]

# The paper's Table 10, Qwen2.5-32B in mode kivi, as the released code has it: the third and the fourth group share
# layers. The bits are chosen for the test.
SHARED_32B = [
    [*range(5)],
    [11],
    [5, 6, 7, 8, 9, 10, 12, 14, 16, *range(18, 29), 32],
    [13, 15, 17, 22, 24, 25, 29, 30, 31, *range(33, 63)],
    [63],
]


def name_of(config: dict) -> str:
    return "_".join(config[key] for key in ("model", "mode", "preset"))


def write(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data))
    return path


def error_of(path: Path, data: object, name: str | None = None) -> str:
    with pytest.raises(KvtunerError) as caught:
        read_table(write(path, data), name)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


# --- the tables


def test_all_tables_can_be_read() -> None:
    assert len(CONFIGS) == 32
    assert len({(config["model"], config["mode"]) for config in CONFIGS}) == 8
    for config in CONFIGS:
        table = read_table(TABLES, name_of(config))
        assert table.k == tuple(config["k_bits"])
        assert table.v == tuple(config["v_bits"])
        assert table.mean_bits == pytest.approx(config["mean_bits"], abs=5e-5)
        assert set(table.k + table.v) <= {2, 4, 8}


def test_a_known_table() -> None:
    """Qwen2.5-7B per token, C4.00: four layers keep 8 bits of K."""
    plan = read_table(TABLES, "Qwen2.5-7B-Instruct_pertoken_KVTuner4_0").plan(parse_types())
    by_pair: dict[str, set[int]] = {}
    for il, pair in enumerate(plan.pairs):
        by_pair.setdefault(str(pair), set()).add(il)
    assert by_pair.pop("q8_0/q8_0") == {0}
    assert by_pair.pop("q8_0/q2_nl") == {3, 13, 27}
    assert by_pair.pop("q4_0/q2_nl") == {1, 2, 4, 5, 8, 24, 25}
    assert by_pair.keys() == {"q4_0/q4_0"}


def test_a_name_is_needed_and_known(tmp_path: Path) -> None:
    for name in (None, "Qwen2.5-7B", "Qwen2.5-7B-Instruct_pertoken"):
        with pytest.raises(KvtunerError) as caught:
            read_table(TABLES, name)
        assert all(name_of(config) in str(caught.value) for config in CONFIGS)
        assert "--name" in str(caught.value)
    one = write(tmp_path / "one.json", {"configs": CONFIGS[:1]})
    assert read_table(one) == read_table(one, name_of(CONFIGS[0]))
    assert read_table(one).shape is None
    assert "called" in error_of(tmp_path / "two.json", {"configs": CONFIGS[:1] * 2}, name_of(CONFIGS[0]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k_bits": [4] * 31}, ("k_bits", "31", "32 layers")),
        ({"v_bits": [4] * 33}, ("v_bits", "33", "32 layers")),
        ({"v_bits": None}, ("v_bits", "None", "32 layers")),
        ({"k_bits": "8" * 32}, ("k_bits", "32 layers")),
        ({"n_layers": 28}, ("k_bits", "32", "28 layers")),
        ({"n_layers": True}, ("n_layers", "True")),
        ({"n_layers": 10**9}, ("n_layers", "4096")),
        ({"v_bits": [4] * 31 + [0]}, ("layer 31", "V", "0 bits", "1 to 16")),
        ({"k_bits": [17] + [4] * 31}, ("layer 0", "K", "17 bits", "1 to 16")),
        ({"k_bits": [4, "4"] + [4] * 30}, ("layer 1", "K", "'4'")),
        ({"k_bits": [4, True] + [4] * 30}, ("layer 1", "K", "True")),
        ({"k_bits": [4, 4.0] + [4] * 30}, ("layer 1", "K", "4.0")),
        ({"k_bits": [4, [[[4]]]] + [4] * 30}, ("layer 1", "K", "[[[4]]]")),
        ({"k_bits": [4, 10**4000] + [4] * 30}, ("layer 1", "K")),
        ({"mean_bits": 3.97}, ("mean_bits", "3.97", "3.0625")),
        ({"mean_bits": 10**400}, ("mean_bits", "3.0625")),
        ({"mean_bits": float("nan")}, ("mean_bits", "nan")),
        ({"mean_bits": "3.0625"}, ("mean_bits", "'3.0625'")),
        ({"paper_label": ["C3"]}, ("paper_label", "C3")),
        ({"paper_label": "\x1b[2J"}, ("paper_label",)),
        ({"model": "../x"}, ("table 0", "../x")),
        ({"model": "\ud800"}, ("table 0", "ud800")),
        ({"mode": 3}, ("table 0", "3", "mode")),
        ({"preset": None}, ("table 0", "preset")),
    ],
)
def test_a_bad_table_names_layer_value_and_remedy(change: dict, words: tuple[str, ...], tmp_path: Path) -> None:
    message = error_of(tmp_path / "table.json", {"configs": [CONFIGS[0] | change]})
    assert all(word in message for word in words), message
    assert len(message) < 300


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"configs": []}, ("configs",)),
        ({"configs": {"a": 1}}, ("configs",)),
        ({"configs": [3]}, ("table 0", "3")),
        ({"configs": CONFIGS[:1], "models": [1]}, ("models",)),
        ({"configs": CONFIGS[:1], "models": {CONFIGS[0]["model"]: 3}}, ("model",)),
        ({"configs": CONFIGS[:1], "models": {CONFIGS[0]["model"]: {"n_layer": 10**12, "n_head_kv": 8}}}, ("n_layer",)),
        ([], ("no table",)),
        ({}, ("no table",)),
        (None, ("no table",)),
        ("x", ("no table",)),
    ],
)
def test_a_bad_file_of_tables(data: object, words: tuple[str, ...], tmp_path: Path) -> None:
    message = error_of(tmp_path / "table.json", data)
    assert all(word in message for word in words), message


def test_the_shape_of_another_model_is_refused(tmp_path: Path) -> None:
    data = json.loads(TABLES.read_text())
    data["models"][CONFIGS[0]["model"]]["n_layer"] = 28
    table = read_table(write(tmp_path / "table.json", data), name_of(CONFIGS[0]))
    with pytest.raises(KvtunerError, match="32 layers, the model 28"):
        table.plan(parse_types())


# --- bits by layers


def preset(n_layer: int) -> dict[int, dict[str, int]]:
    return {il: {"nbits_key": 8 if il == 0 else 4, "nbits_value": 2} for il in range(n_layer)}


def test_a_preset_as_released(tmp_path: Path) -> None:
    path = tmp_path / "preset.yaml"
    path.write_text(
        "".join(f"{il}:\n  nbits_key: {e['nbits_key']}\n  nbits_value: 2\n" for il, e in preset(28).items())
    )
    table = read_table(path)
    assert table == read_table(write(tmp_path / "preset.json", preset(28)))
    assert table.k == (8, *[4] * 27)
    assert table.v == (2,) * 28
    plan = table.described(table.plan(parse_types()))
    assert plan.pairs == (Pair("q8_0", "q2_nl"), *[Pair("q4_0", "q2_nl")] * 27)
    assert plan.model is None
    assert plan.provenance["payload_bits"] == pytest.approx((8 + 27 * 4 + 28 * 2) / 56, abs=5e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"2": None}, ("layer 2", "None", "nbits_key")),
        ({"2": {}}, ("layer 2", "nbits_key")),
        ({"2": {"nbits_key": 4}}, ("layer 2", "nbits_value")),
        ({"2": {"nbits_key": 4, "nbits_value": 0}}, ("layer 2", "V", "0 bits")),
        ({"2": {"nbits_key": -1, "nbits_value": 4}}, ("layer 2", "K", "-1 bits")),
        ({"2": {"0": {"nbits_key": 4, "nbits_value": 4}}}, ("layer 2", "nbits_key")),
        ({"5": {"nbits_key": 4, "nbits_value": 4}}, ("layer 4", "missing")),
        ({"4096": {"nbits_key": 4, "nbits_value": 4}}, ("4096",)),
        ({"-1": {"nbits_key": 4, "nbits_value": 4}}, ("-1",)),
        ({"0x1": {"nbits_key": 4, "nbits_value": 4}}, ("0x1",)),
        ({"٣": {"nbits_key": 4, "nbits_value": 4}}, ("layer number",)),
        ({"02": {"nbits_key": 4, "nbits_value": 4}}, ("layer 2", "twice")),
    ],
)
def test_a_bad_preset_names_layer_value_and_remedy(change: dict, words: tuple[str, ...], tmp_path: Path) -> None:
    data = {str(il): entry for il, entry in preset(4).items()} | change
    message = error_of(tmp_path / "preset.json", data)
    assert all(word in message for word in words), message


def test_a_layer_given_twice_in_yaml(tmp_path: Path) -> None:
    path = tmp_path / "preset.yaml"
    path.write_text("0: {nbits_key: 4, nbits_value: 4}\n0: {nbits_key: 8, nbits_value: 4}\n")
    with pytest.raises(KvtunerError, match=r"preset\.yaml: the key 0 is given twice"):
        read_table(path)


# --- bits by groups


def groups(*layers: list[int], n_layers: int = 4) -> dict:
    bits = [(8, 4), (4, 2), (4, 4), (8, 2), (2, 2)]
    return {
        "n_layers": n_layers,
        "groups": [
            {"layers": ils, "nbits_key": k, "nbits_value": v} for ils, (k, v) in zip(layers, bits, strict=False)
        ],
    }


def test_groups_give_each_layer_its_bits(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "groups.json", groups([0, 3], [2], [1])))
    assert table.k == (8, 4, 4, 8)
    assert table.v == (4, 4, 2, 4)
    path = tmp_path / "groups.yaml"
    path.write_text(
        "n_layers: 2\ngroups:\n- layers: [1]\n  nbits_key: 8\n  nbits_value: 4\n"
        "- layers: [0]\n  nbits_key: 2\n  nbits_value: 1\n"
    )
    assert read_table(path) == BitsTable((2, 8), (1, 4))


def test_a_grouping_of_the_paper_with_shared_layers_is_refused(tmp_path: Path) -> None:
    """Which bits layers 22, 24 and 25 have cannot be told, and the mean bits of the paper count them twice."""
    message = error_of(tmp_path / "groups.json", groups(*SHARED_32B, n_layers=64))
    assert message == (
        "layer 22 is in group 2 ([5, 6, 7, 8, 9, 10, ...]) and in group 3 ([13, 15, 17, 22, 24, 25, ...]): "
        "keep it in one"
    )
    repaired = copy.deepcopy(SHARED_32B)
    repaired[3] = [il for il in repaired[3] if il not in (22, 24, 25)]
    table = read_table(write(tmp_path / "groups.json", groups(*repaired, n_layers=64)))
    assert len(table.k) == 64
    assert (table.k[22], table.v[22]) == (4, 4)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (groups([0, 1], [1, 2, 3]), ("layer 1", "group 0", "group 1", "[0, 1]", "[1, 2, 3]")),
        (groups([0, 1, 1], [2, 3]), ("layer 1", "twice", "group 0")),
        (groups([0, 1], [3]), ("layer 2 of 4", "none of the 2 groups")),
        (groups([0, 1], [2, 3, 4]), ("layer 4", "group 1", "4 layers")),
        (groups([0, 1], [2, -3]), ("-3",)),
        (groups([0, 1], [2, True]), ("True",)),
        (groups([0, 1], []), ("group 1", "layers")),
        (groups([0, 1], [2, 3]) | {"n_layers": None}, ("n_layers", "None")),
        ({"groups": [], "n_layers": 4}, ("groups",)),
        ({"groups": {}, "n_layers": 4}, ("groups",)),
        ({"groups": [3], "n_layers": 4}, ("group 0",)),
        ({"groups": [{"layers": 3}], "n_layers": 4}, ("group 0",)),
        ({"groups": [{"layers": [0], "candidates": ["KV8", "KV4"]}], "n_layers": 1}, ("group 0", "nbits_key")),
        ({"groups": [{"layers": [0], "nbits_key": 4, "nbits_value": 99}], "n_layers": 1}, ("layer 0", "V", "99")),
    ],
)
def test_groups_that_are_no_partition_name_layer_and_groups(data: dict, words: tuple[str, ...], tmp_path: Path) -> None:
    message = error_of(tmp_path / "groups.json", data)
    assert all(word in message for word in words), message


# --- plans


def test_a_plan_of_ours_stays_as_it_is(tmp_path: Path) -> None:
    assert read_table(PLAN) == Plan.load(PLAN)
    bad = {"schema": SCHEMA, "layers": [{"layer": 0, "k": "q9_9", "v": "f16"}]}
    assert "layer 0" in error_of(tmp_path / "plan.json", bad)
    with pytest.raises(KvtunerError, match="leave out --name"):
        read_table(PLAN, "x")


# --- anything

KEYS = ["configs", "groups", "layers", "n_layers", "nbits_key", "nbits_value", "model", "mode", "preset", "k_bits"]
WORDS = [*KEYS, "v_bits", "mean_bits", "models", "schema", "0", "1", "x"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.integers(0, 8) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=6),
    max_leaves=16,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JSON)
def test_any_json_is_a_table_or_an_error_of_ours(tmp_path: Path, data: object) -> None:
    with suppress(KvtunerError):
        found = read_table(write(tmp_path / "any.json", data))
        if isinstance(found, BitsTable):
            found.plan(parse_types())


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet="0123 abn:-[]{},\"'&*!<>|#?%\n\t_=.", max_size=60))
def test_any_yaml_is_a_table_or_an_error_of_ours(tmp_path: Path, text: str) -> None:
    path = tmp_path / "any.yaml"
    path.write_text(text)
    with suppress(KvtunerError):
        read_table(path)
