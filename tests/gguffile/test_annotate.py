from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner, Result

from kvtuner_gguf.cli import main
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.gguffile.annotate import annotate, strip
from kvtuner_gguf.gguffile.keys import Keys
from kvtuner_gguf.gguffile.metadata import model_shape
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.gguffile.stored_plan import plan_of
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from tests.conftest import LATENT, N_LAYER, write_model

PAIRS = tuple(Pair.parse(name) for name in ("q8_0/q4_0", "f16/q5_1", "iq4_nl", "f16"))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(*args: object) -> Result:
    return CliRunner().invoke(main, list(map(str, args)))


def write_plan(path: Path, pairs: tuple[Pair, ...] = PAIRS) -> Path:
    Plan(pairs).save(path)
    return path


def split_model(folder: Path, count: int = 3) -> list[Path]:
    """A model in shards: metadata in the first, a layer or two in each."""
    paths = [folder / f"m-{i:05d}-of-{count:05d}.gguf" for i in range(1, count + 1)]
    for i, path in enumerate(paths):
        write_model(path, n_layer=N_LAYER, seed=i, split__no=i, split__count=count)
    return paths


def test_everything_else_stays(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    annotate(model, Plan(PAIRS, provenance={"text_sha256": "ab", "text_tokens": 7, "kld_mean": 0.25}), target)
    before, after = gguf.GGUFReader(model), gguf.GGUFReader(target)
    kept = [name for name in after.fields if not Keys.is_ours(name) and not name.startswith("GGUF.")]
    assert kept == [name for name in before.fields if not name.startswith("GGUF.")]
    for name in kept:
        assert before.fields[name].contents() == after.fields[name].contents()
    for a, b in zip(before.tensors, after.tensors, strict=True):
        assert (a.name, a.tensor_type, a.shape.tolist()) == (b.name, b.tensor_type, b.shape.tolist())
        assert np.array_equal(a.data, b.data)
        assert b.data_offset % after.alignment == 0
    assert after.fields["llama.attention.kv_cache.type_k"].contents() == [pair.k for pair in PAIRS]
    assert after.fields["kvtuner.text_tokens"].contents() == 7


def test_strip_gives_the_file_back_byte_for_byte(model: Path, tmp_path: Path) -> None:
    annotate(model, Plan(PAIRS), tmp_path / "a.gguf")
    assert strip(tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert digest(tmp_path / "b.gguf") == digest(model)
    assert not strip(model, tmp_path / "c.gguf")


def test_a_second_plan_replaces_the_first_in_place(model: Path) -> None:
    before = digest(model)
    model.chmod(0o640)
    annotate(model, Plan(PAIRS), model)
    other = PAIRS[::-1]
    annotate(model, Plan(other), model)
    assert plan_of(read_model(model)).pairs == other
    annotate(model, Plan(PAIRS), model)
    assert plan_of(read_model(model)).pairs == PAIRS
    assert model.stat().st_mode & 0o777 == 0o640
    assert strip(model, model)
    assert digest(model) == before


def test_an_alignment_of_its_own_is_kept(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.gguf", general__alignment=64)
    annotate(model, Plan(PAIRS), tmp_path / "a.gguf")
    header = read_model(tmp_path / "a.gguf")[0]
    assert header.alignment == 64
    assert header.data_start % 64 == 0


def test_only_the_first_shard_of_a_split_model_changes(tmp_path: Path) -> None:
    shards = split_model(tmp_path)
    before = [digest(path) for path in shards]
    annotate(shards[1], Plan(PAIRS), shards[1])
    after = [digest(path) for path in shards]
    assert after[0] != before[0]
    assert after[1:] == before[1:]
    assert plan_of(read_model(shards[2])).pairs == PAIRS


def test_a_split_model_elsewhere_is_whole(tmp_path: Path) -> None:
    shards = split_model(tmp_path)
    (tmp_path / "new").mkdir()
    annotate(shards[0], Plan(PAIRS), tmp_path / "new" / "copy.gguf")
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == [f"copy-{i:05d}-of-00003.gguf" for i in (1, 2, 3)]
    assert plan_of(read_model(tmp_path / "new" / names[1])).pairs == PAIRS


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    shards = split_model(tmp_path)
    shards[1].unlink()
    with pytest.raises(KvtunerError, match=r"m-00002-of-00003\.gguf: this shard .* missing"):
        annotate(shards[0], Plan(PAIRS), shards[0])


def test_a_plan_for_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other.gguf", head_dim=64)
    plan = Plan(PAIRS, model_shape(read_model(other)))
    with pytest.raises(KvtunerError, match="another model: its K head size is 64, this model's 32"):
        annotate(model, plan, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_mla_needs_equal_types(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.gguf", arch="deepseek2", **LATENT)
    with pytest.raises(KvtunerError, match="layer 0: K type q8_0 and V type q4_0 differ"):
        annotate(model, Plan(PAIRS), tmp_path / "out.gguf")
    annotate(model, Plan.uniform(Pair.parse("q8_0"), N_LAYER), tmp_path / "out.gguf")


BAD_PLANS = {
    "wrong layer count": ('[{"layer": 0, "k": "f16", "v": "f16"}]', ("1 layers", "4")),
    "unknown type": ('[{"layer": 0, "k": "q7_7", "v": "f16"}]', ("layer 0", "q7_7", "use one of")),
    "duplicate layer": ('[{"layer": 0, "k": "f16", "v": "f16"}, {"layer": 0, "k": "f16", "v": "f16"}]', ("layer 0",)),
    "missing layer": ('[{"layer": 0, "k": "f16", "v": "f16"}, {"layer": 2, "k": "f16", "v": "f16"}]', ("layer 1",)),
    "syntax": ("[", ("not JSON",)),
}


@pytest.mark.parametrize("name", BAD_PLANS)
def test_a_bad_plan_is_one_line_and_touches_nothing(name: str, model: Path, tmp_path: Path) -> None:
    layers, words = BAD_PLANS[name]
    plan = tmp_path / "plan.json"
    plan.write_text(f'{{"schema": "kvtuner.plan/1", "layers": {layers}}}')
    before = digest(model)
    assert_one_line(run("annotate", model, plan, "--in-place"), *words)
    assert digest(model) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf", "plan.json"]


def assert_one_line(result: Result, *words: str) -> None:
    assert result.exit_code != 0
    (line,) = result.output.strip().splitlines()
    assert line.startswith("Error: ")
    assert all(word in line for word in words), line


def test_a_block_that_does_not_fit_names_the_layer(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.gguf", head_dim=48)
    plan = write_plan(tmp_path / "plan.json")
    assert_one_line(run("annotate", model, plan, "--in-place"), "layer 0", "q8_0", "48", "f16")


def test_a_truncated_or_foreign_file_is_refused(model: Path, tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "plan.json")
    whole = model.read_bytes()
    for cut in (3, 20, 300, len(whole) - 1):
        model.write_bytes(whole[:cut])
        assert_one_line(run("annotate", model, plan, "--in-place"), "model.gguf")
        assert model.read_bytes() == whole[:cut]
    model.write_bytes(b"PK\3\4 something else")
    assert_one_line(run("annotate", model, plan, "--in-place"), "not a GGUF")


def test_targets_that_cannot_be_written(model: Path, tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "plan.json")
    assert_one_line(run("annotate", model, plan, "-o", tmp_path / "no" / "out.gguf"), "cannot write", "out.gguf")
    assert_one_line(run("annotate", model, plan), "-o OUT or --in-place")
    assert_one_line(run("annotate", model, plan, "-o", model), "--in-place")


def test_no_room_on_disk_leaves_the_model(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    plan, before = write_plan(tmp_path / "plan.json"), digest(model)
    monkeypatch.setattr(os, "fsync", full)
    assert_one_line(run("annotate", model, plan, "--in-place"), "No space left on device", "room")
    assert digest(model) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf", "plan.json"]


def test_a_file_size_limit_leaves_the_model(model: Path, tmp_path: Path) -> None:
    plan, before = write_plan(tmp_path / "plan.json"), digest(model)
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        "from kvtuner_gguf.cli import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-B", "-c", script, "annotate", str(model), str(plan), "--in-place"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "cannot write" in done.stderr
    assert digest(model) == before


def test_a_kill_in_the_middle_leaves_the_model(model: Path, tmp_path: Path) -> None:
    plan, before = write_plan(tmp_path / "plan.json"), digest(model)
    script = (
        "import sys, time, kvtuner_gguf.gguffile.annotate as a\n"
        "def slow(*args): print('half', flush=True); time.sleep(60)\n"
        "a.copy_range = slow\n"
        "from kvtuner_gguf.cli import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", script, "annotate", str(model), str(plan), "--in-place"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGKILL)
    assert digest(model) == before
    annotate(model, Plan(PAIRS), model)
    assert plan_of(read_model(model)).pairs == PAIRS


def test_a_large_file_is_copied_in_time(tmp_path: Path) -> None:
    model = write_model(tmp_path / "big.gguf", head_dim=512)
    started = time.monotonic()
    steps: list[tuple[int, int]] = []
    annotate(model, Plan(PAIRS), tmp_path / "out.gguf", lambda done, total: steps.append((done, total)))
    assert steps[-1][0] == steps[-1][1] > 10 << 20
    assert time.monotonic() - started < 30
    shutil.rmtree(tmp_path, ignore_errors=True)
