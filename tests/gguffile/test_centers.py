"""Centers in a GGUF file: written, read back, taken out, and refused where they are of no use."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from kvtuner_gguf.cli import main
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.gguffile.annotate import annotate, strip
from kvtuner_gguf.gguffile.keys import Keys
from kvtuner_gguf.gguffile.metadata import centering_obstacle
from kvtuner_gguf.gguffile.reader import read_gguf
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.gguffile.stored_plan import plan_of
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.contextsize import ContextSize
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.keyspread import KeySpread
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from tests.conftest import HEAD_DIM, LATENT, N_HEAD_KV, N_LAYER, write_model
from tests.gguffile.test_ends import shown

N_VALUES = N_HEAD_KV * HEAD_DIM
RNG = np.random.default_rng(2)
K = [RNG.standard_normal(N_VALUES) for _ in range(N_LAYER - 1)] + [None]
SPREAD = KeySpread(*((float(i),) * N_LAYER for i in range(1, 5)))
PLAN = Plan(
    (Pair.parse("q8_0/q4_0"),) * N_LAYER,
    provenance={"keys": SPREAD.to_json()},
    centers=Centers.from_arrays(K),
)


def test_a_file_carries_centers_and_gives_them_back(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    written = annotate(model, PLAN, path)
    read = plan_of(read_model(path))
    assert read.centers == PLAN.centers
    assert read.fingerprint == written.fingerprint == PLAN.fingerprint
    assert KeySpread.from_json(read.provenance["keys"]) == SPREAD
    assert read_gguf(path).get(Keys.CENTER_V) is None
    strip(path, path)
    assert path.read_bytes() == model.read_bytes()


def test_a_file_carries_the_span_and_gives_it_back(model: Path, tmp_path: Path) -> None:
    path, single = tmp_path / "a.gguf", tmp_path / "single.gguf"
    plan = replace(PLAN, centers=replace(PLAN.centers, span=256))
    written = annotate(model, plan, path)
    read = plan_of(read_model(path))
    assert read.centers == plan.centers
    assert read_gguf(path).get(Keys.CENTER_SPAN) == 256
    assert read.fingerprint == written.fingerprint == plan.fingerprint
    annotate(path, PLAN, single)
    assert read_gguf(single).find(Keys.CENTER_SPAN) is None
    strip(path, path)
    assert path.read_bytes() == model.read_bytes()


@pytest.mark.parametrize("ends", [None, Ends(4, 32)], ids=str)
def test_inspect_and_verify_count_the_tables(ends: Ends | None, model: Path, tmp_path: Path) -> None:
    path, file = tmp_path / "a.gguf", tmp_path / "plan.json"
    plan = replace(PLAN, centers=replace(PLAN.centers, span=256), ends=ends)
    plan = replace(plan, model=annotate(model, plan, path).model)
    tables = (N_LAYER - 1) * 32 * N_HEAD_KV * HEAD_DIM * 2
    mib = (tables + plan.ends_bytes(plan.model, ContextSize(8192))) / 2**20
    bits = plan.bits_with_ends(plan.model, 8192)
    lines = shown("inspect", path).splitlines()
    turned = f"keys centered in layers 0-{N_LAYER - 2}, turned every 256 positions"
    assert f"{turned} ({tables / 2**20:.2f} MiB for 8192 tokens)" in lines
    assert f"with them {bits:.4f} bits per value for 8192 tokens, {mib:.2f} MiB more" in lines
    data = json.loads(shown("inspect", path, "--json"))
    assert (data["center_span"], data["centers_bytes"]) == (256, tables)
    assert f"centers turned every 256 positions, {bits:.4f} with them for 8192 tokens" in shown("verify", path)
    replace(plan, model=None).save(file)
    assert turned in shown("inspect", file).splitlines()
    assert json.loads(shown("inspect", file, "--json"))["centers_bytes"] is None
    annotate(model, PLAN, path)
    assert "with them" not in shown("inspect", path) + shown("verify", path)
    data = json.loads(shown("inspect", path, "--json"))
    assert (data["center_span"], data["centers_bytes"]) == (None, 0)


def test_inspect_shows_and_draws_the_keys(model: Path, tmp_path: Path) -> None:
    path, png = tmp_path / "a.gguf", tmp_path / "keys.png"
    annotate(model, PLAN, path)
    result = CliRunner().invoke(main, ["inspect", str(path), "--png", str(png)])
    assert result.exit_code == 0, result.output
    assert f"keys centered in layers 0-{N_LAYER - 2}\n" in result.output
    assert "largest key" in result.output
    assert png.read_bytes().startswith(b"\x89PNG")
    data = json.loads(CliRunner().invoke(main, ["inspect", str(path), "--json"]).output)
    assert [entry["center_k"] for entry in data["layers"]] == [True] * (N_LAYER - 1) + [False]
    plain = CliRunner().invoke(main, ["inspect", str(model), "--png", str(png)])
    assert plain.exit_code == 1
    assert "tune the model with centering" in plain.output


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"arch": "gemma2"}, "caps the attention logits"),
        ({"arch": "deepseek2", **LATENT}, "keeps K and V in one tensor"),
    ],
)
def test_a_model_where_centering_is_not_exact_refuses_it(extra: dict, reason: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", **extra)
    before = path.read_bytes()
    equal = Plan((Pair.parse("q8_0"),) * N_LAYER, centers=PLAN.centers)
    with pytest.raises(KvtunerError, match=reason):
        annotate(path, equal, path)
    assert path.read_bytes() == before
    annotate(path, equal.without_centers(), path)


def test_a_cap_that_a_graph_does_not_read_forbids_nothing(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", llama__attn_logit_softcapping=30)
    assert centering_obstacle(read_model(path)) is None


def test_compressed_keys_alone_forbid_nothing(tmp_path: Path) -> None:
    """minicpm3 expands them before the cache, which has K and V apart: the library centers and mixes types there."""
    model = write_model(tmp_path / "m.gguf", arch="minicpm3", minicpm3__attention__kv_lora_rank=32)
    written = annotate(model, PLAN, tmp_path / "out.gguf")
    assert (written.pairs, written.centers) == (PLAN.pairs, PLAN.centers)


def damaged(path: Path, target: Path, find: bytes, put: bytes) -> Path:
    raw = path.read_bytes()
    assert raw.count(find) == 1
    target.write_bytes(raw.replace(find, put))
    return target


def test_centers_of_values_are_refused_and_taken_out(model: Path, tmp_path: Path) -> None:
    """An earlier version could write them: `annotate` and `strip` leave nothing of them."""
    path, new = tmp_path / "a.gguf", tmp_path / "new.gguf"
    annotate(model, PLAN, path)
    assert read_gguf(path).find(Keys.CENTER_V) is None
    old = damaged(path, tmp_path / "old.gguf", b"kv_cache.center_k", b"kv_cache.center_v")
    words = "llama.attention.kv_cache.center_v is no longer used, since centers give values nothing"
    with pytest.raises(KvtunerError, match=f"^{re.escape(f'{old}: {words}: annotate the model again')}$"):
        plan_of(read_model(old))
    shown = CliRunner().invoke(main, ["inspect", str(old)])
    assert shown.exit_code == 1
    assert words in shown.output
    annotate(old, PLAN, new)
    assert new.read_bytes() == path.read_bytes()
    strip(old, old)
    assert old.read_bytes() == model.read_bytes()


def test_hostile_centers_in_a_file_give_one_line(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    annotate(model, PLAN, path)
    first = np.frombuffer(PLAN.centers.k[0], "<f2").astype("<f4").tobytes()[:16]
    bad = damaged(path, tmp_path / "nan.gguf", first, np.full(4, np.nan, "<f4").tobytes())
    with pytest.raises(KvtunerError, match="layer 0: the K center holds a value that is no number"):
        plan_of(read_model(bad))
    key = b"llama.attention.kv_cache.center_k"
    elements = (9).to_bytes(4, "little") + (6).to_bytes(4, "little")
    as_integers = damaged(path, tmp_path / "int.gguf", key + elements, key + elements[:4] + (5).to_bytes(4, "little"))
    with pytest.raises(KvtunerError, match="no list of float32 values"):
        plan_of(read_model(as_integers))


@pytest.mark.parametrize(
    ("find", "put", "words"),
    [
        (b"center_span\4", b"center_span\5", "center_span is no uint32: annotate the model again"),
        (b"center_span\4\0\0\0\0\1", b"center_span\4\0\0\0\1\1", "the center span is 257: give a power of two from 16"),
        (b"center_k", b"center_l", "center_span is given, and no layer has a center: leave it out"),
    ],
)
def test_a_damaged_span_gives_one_line(find: bytes, put: bytes, words: str, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    annotate(model, replace(PLAN, centers=replace(PLAN.centers, span=256)), path)
    bad = damaged(path, tmp_path / "bad.gguf", find, put)
    with pytest.raises(KvtunerError, match=words):
        plan_of(read_model(bad))
