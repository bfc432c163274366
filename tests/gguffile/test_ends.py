"""Exact ends in a GGUF file: written, read back, shown, taken out, and refused where they are of no use."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvtuner_gguf.cli import main
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.gguffile.annotate import annotate, strip
from kvtuner_gguf.gguffile.keys import Keys
from kvtuner_gguf.gguffile.reader import read_gguf
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.gguffile.stored_plan import plan_of
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from tests.conftest import HEAD_DIM, N_HEAD_KV, N_LAYER

PAIRS = (Pair("q4_0", "q4_0"),) * (N_LAYER - 1) + (Pair("f16", "f16"),)
PLAN = Plan(PAIRS, ends=Ends(4, 32))


def shown(*args: object) -> str:
    result = CliRunner().invoke(main, list(map(str, args)))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("ends", [Ends(4, 32), Ends(0, 128, "q8_0"), Ends(1, 0)])
def test_a_file_carries_ends_and_gives_them_back(ends: Ends, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    written = annotate(model, replace(PLAN, ends=ends), path)
    read = plan_of(read_model(path))
    assert read.ends == written.ends == ends
    header = read_gguf(path)
    keys = (Keys.EXACT_FIRST, Keys.EXACT_LAST, Keys.EXACT_TYPE)
    assert tuple(map(header.get, keys)) == (ends.first, ends.last, ends.type)
    assert header.get(Keys.PLAN_FINGERPRINT) == read.fingerprint == written.fingerprint
    strip(path, path)
    assert path.read_bytes() == model.read_bytes()


def test_a_plan_without_ends_leaves_no_key_of_them(model: Path, tmp_path: Path) -> None:
    path, plain = tmp_path / "a.gguf", tmp_path / "plain.gguf"
    annotate(model, PLAN, path)
    annotate(model, PLAN.without_ends(), plain)
    assert b"exact_" not in plain.read_bytes()
    annotate(path, PLAN.without_ends(), path)
    assert read_gguf(path).fields.keys() == read_gguf(plain).fields.keys()


def test_inspect_and_verify_show_the_ends(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    bits = PLAN.bits_with_ends(annotate(model, PLAN, path).model, 8192)
    n_bytes = (36 + 512) * (N_LAYER - 1) * 2 * N_HEAD_KV * HEAD_DIM * 2
    lines = shown("inspect", path).splitlines()
    assert f"exact ends: 4 first and 32 last positions in f16, layers 0-{N_LAYER - 2}" in lines
    assert f"with them {bits:.4f} bits per value for 8192 tokens, {n_bytes / 2**20:.2f} MiB more" in lines
    found = json.loads(shown("inspect", path, "--json"))["ends"]
    assert found == {"first": 4, "last": 32, "type": "f16", "n_ctx": 8192, "bits_per_value": bits, "bytes": n_bytes}
    assert f"exact ends 4+32:f16, {bits:.4f} with them for 8192 tokens" in shown("verify", path)
    assert json.loads(shown("verify", path, "--json"))["ends"] == found


def test_a_plan_file_shows_its_ends_without_a_model(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    PLAN.save(path)
    assert "exact ends: 4 first and 32 last positions in f16\n" in shown("inspect", path)
    assert json.loads(shown("inspect", path, "--json"))["ends"] == PLAN.ends.to_json()
    PLAN.without_ends().save(path)
    assert "ends" not in shown("inspect", path)
    assert json.loads(shown("inspect", path, "--json"))["ends"] is None
    assert json.loads(shown("verify", path, "--json"))["ends"] is None


def test_ends_that_no_layer_has_say_so(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    annotate(model, replace(PLAN, pairs=(Pair("f16", "f16"),) * N_LAYER), path)
    assert "in f16, in no layer of this model\n" in shown("inspect", path)


@pytest.mark.parametrize(
    ("find", "put", "words"),
    [
        (b"exact_last", b"exact_lost", "exact_last is missing while others of the ends are there: annotate the model"),
        (b"exact_first", b"exact_furst", "exact_first is missing while others of the ends are there: annotate"),
        (b"exact_type", b"exact_tipe", "exact_type is missing while others of the ends are there: annotate the model"),
        (b"exact_first\4", b"exact_first\5", "exact_first is no uint32: annotate the model again"),
        (b"exact_first\4\0\0\0\4\0\0\0", b"exact_first\4\0\0\0\4\0\1\1", "the ends have 16842756 first positions"),
        (b"\3\0\0\0\0\0\0\0f16", b"\3\0\0\0\0\0\0\0f32", "unknown type 'f32' for the ends: use f16 or q8_0"),
    ],
)
def test_damaged_ends_in_a_file_give_one_line(find: bytes, put: bytes, words: str, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    annotate(model, replace(PLAN, pairs=(Pair("q4_0", "q4_0"),) * N_LAYER), path)
    raw = path.read_bytes()
    assert raw.count(find) == 1
    path.write_bytes(raw.replace(find, put))
    with pytest.raises(KvtunerError, match=words) as caught:
        plan_of(read_model(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
