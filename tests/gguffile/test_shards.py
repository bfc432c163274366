"""Split models: through links, renamed, and incomplete."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.gguffile.annotate import annotate, strip
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.gguffile.stored_plan import plan_of
from kvtuner_gguf.plan.plan import Plan
from tests.gguffile.test_annotate import PAIRS, assert_one_line, digest, run, split_model, write_plan

N = 3
WRITE = {"annotate": lambda model, out: annotate(model, Plan(PAIRS), out), "strip": strip}


def hub_cache(folder: Path) -> Path:
    """The layout of Hugging Face's cache: shards are relative links to blobs with no names; the first shard."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "main"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in split_model(blobs, N):
        blob = path.rename(blobs / digest(path))
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot / f"m-00001-of-0000{N}.gguf"


@pytest.mark.parametrize("command", WRITE)
@pytest.mark.parametrize("can_link", [True, False])
def test_a_model_of_links_is_whole_elsewhere(
    command: str, can_link: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = hub_cache(tmp_path / "hub"), tmp_path / "new" / "copy.gguf"
    out.parent.mkdir()
    if not can_link:

        def link(*args: object) -> None:
            raise OSError("another file system")

        monkeypatch.setattr(os, "link", link)
    blobs = {path: digest(path) for path in (tmp_path / "hub" / "blobs").iterdir()}
    WRITE[command](model, out)
    made = sorted(out.parent.iterdir())
    assert [path.name for path in made] == [f"copy-{i:05d}-of-0000{N}.gguf" for i in (1, 2, 3)]
    assert all(path.is_file() and not path.is_symlink() for path in made)
    assert (plan_of(read_model(made[1])) is None) == (command == "strip")
    sources = [model.with_name(f"m-{i:05d}-of-0000{N}.gguf") for i in (2, 3)]
    assert [digest(path) for path in made[1:]] == [digest(path) for path in sources]
    assert {path: digest(path) for path in blobs} == blobs


def test_links_in_place_stay_links(tmp_path: Path) -> None:
    model = hub_cache(tmp_path)
    assert run("annotate", model, write_plan(tmp_path / "plan.json"), "--in-place").exit_code == 0
    assert model.is_symlink()
    assert plan_of(read_model(model)).pairs == PAIRS
    strip(model, model)
    assert digest(model) == model.resolve().name


@pytest.mark.parametrize("command", WRITE)
def test_a_renamed_first_shard_is_told_with_what_is_missing(command: str, tmp_path: Path) -> None:
    renamed = split_model(tmp_path, N)[0].rename(tmp_path / "model.gguf")
    words = (
        "it is shard 1 of 3, as its metadata says: fetch model-00002-of-00003.gguf, model-00003-of-00003.gguf "
        "beside it, and give it the name model-00001-of-00003.gguf"
    )
    with pytest.raises(KvtunerError, match=f"^{re.escape(f'{renamed}: {words}')}$"):
        WRITE[command](renamed, tmp_path / "out.gguf")
    assert not list(tmp_path.glob("out*"))


def test_a_name_of_fewer_shards_is_told(tmp_path: Path) -> None:
    first, second, _ = split_model(tmp_path, N)
    first, second = (path.rename(tmp_path / f"m-0000{i}-of-00002.gguf") for i, path in ((1, first), (2, second)))
    with pytest.raises(KvtunerError, match=r"shard 1 of 3, .* fetch m-00002-of-00003\.gguf beside it, and give it"):
        annotate(first, Plan(PAIRS), tmp_path / "out.gguf")


def test_shards_under_each_others_names_are_told(tmp_path: Path) -> None:
    first, second, third = split_model(tmp_path, N)
    second.rename(tmp_path / "kept")
    third.rename(second)
    (tmp_path / "kept").rename(third)
    words = r"m-00002-of-00003\.gguf: it is shard 3 of 3, .*: give it the name m-00003-of-00003\.gguf"
    with pytest.raises(KvtunerError, match=words):
        annotate(first, Plan(PAIRS), tmp_path / "out.gguf")


def test_a_blob_by_its_own_name_is_told(tmp_path: Path) -> None:
    blob = hub_cache(tmp_path).resolve()
    with pytest.raises(KvtunerError, match=rf"{blob.name}-00002-of-00003\.gguf, .* beside it"):
        read_model(blob)


def fifo_first(folder: Path) -> None:
    os.mkfifo(folder / "out-00001-of-00003.gguf")


def fifo_third(folder: Path) -> None:
    os.mkfifo(folder / "out-00003-of-00003.gguf")


def dangling(folder: Path) -> None:
    (folder / "out-00002-of-00003.gguf").symlink_to("no/folder/shard.gguf")


@pytest.mark.parametrize("place", [fifo_first, fifo_third, dangling])
def test_no_shard_is_written_where_one_cannot_be(place: Callable[[Path], None], tmp_path: Path) -> None:
    model = split_model(tmp_path, N)[0]
    (tmp_path / "new").mkdir()
    place(tmp_path / "new")
    before = sorted((tmp_path / "new").iterdir())
    result = run("annotate", model, write_plan(tmp_path / "plan.json"), "-o", tmp_path / "new" / "out.gguf")
    assert_one_line(result, before[0].name)
    assert sorted((tmp_path / "new").iterdir()) == before


@pytest.mark.parametrize("out", ["m.gguf", "m-00002-of-00003.gguf", "link.gguf"])
def test_a_split_model_is_not_replaced_by_another_of_its_names(out: str, tmp_path: Path) -> None:
    shards = split_model(tmp_path, N)
    (tmp_path / "link.gguf").symlink_to(shards[0])
    before = [digest(path) for path in shards]
    result = run("annotate", shards[0], write_plan(tmp_path / "plan.json"), "-o", tmp_path / out)
    assert_one_line(result, "is the model itself", "--in-place")
    assert [digest(path) for path in shards] == before
    assert not re.search(r"link-0000", str(list(tmp_path.iterdir())))
