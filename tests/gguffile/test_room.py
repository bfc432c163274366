"""A header with room for two plans: in place nothing else is written, and at no moment is the file anything else."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner, Result

import kvtuner_gguf.gguffile.annotate as annotating
from kvtuner_gguf.cli import main
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files import locking
from kvtuner_gguf.files.copying import BLOCK_BYTES
from kvtuner_gguf.gguffile.annotate import annotate, strip, write_plan
from kvtuner_gguf.gguffile.cursor import Cursor
from kvtuner_gguf.gguffile.fields import string_field, uint64_list_start
from kvtuner_gguf.gguffile.keys import Keys
from kvtuner_gguf.gguffile.reader import GgufHeader, read_gguf
from kvtuner_gguf.gguffile.room import HALVES_START, SPARE_BYTES, UNIT, Room, room_of
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.gguffile.stored_plan import plan_of
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.scales import Scales
from tests.conftest import HEAD_DIM, N_HEAD_KV, N_LAYER, write_model

SMALL = Plan.uniform(Pair.parse("q4_0"), N_LAYER)
VECTORS = (np.arange(1, N_HEAD_KV * HEAD_DIM + 1, dtype=np.float16).tobytes(),) * N_LAYER
SPREAD = {name: [1.5] * N_LAYER for name in ("largest", "largest_centered", "rms", "rms_centered")}
KNOWN = {"text_sha256": "0123456789abcdef" * 4, "text_tokens": 1024, "kld_mean": 0.5, "keys": SPREAD}
LARGEST = Plan.uniform(Pair.parse("iq4_nl"), N_LAYER)
LARGEST = replace(LARGEST, centers=Centers(VECTORS, 256), scales=Scales(VECTORS), ends=Ends(4, 128), provenance=KNOWN)
SECTOR = 512
GIB = 1 << 30


@pytest.fixture
def path(model: Path) -> Path:
    """A model with room, and a plan in it."""
    annotate(model, SMALL, model)
    return model


def run(*args: object) -> Result:
    return CliRunner().invoke(main, list(map(str, args)))


def data_of(path: Path) -> bytes:
    return path.read_bytes()[read_gguf(path).data_start :]


def pairs_of(path: Path) -> tuple[Pair, ...]:
    plan = plan_of(read_model(path))
    assert plan is not None
    return plan.pairs


def the_room(path: Path) -> Room:
    room = room_of(read_gguf(path))
    assert room is not None
    return room


def test_the_largest_plan_fits_after_the_smallest(path: Path) -> None:
    inode, header, data = path.stat().st_ino, read_gguf(path), data_of(path)
    for plan in (LARGEST, LARGEST, SMALL, LARGEST):
        written = annotate(path, plan, path)
        found = plan_of(read_model(path))
        assert (found, found.fingerprint) == (replace(written, provenance=found.provenance), plan.fingerprint)
        assert path.stat().st_ino == inode
        assert read_gguf(path).data_start == header.data_start
        assert data_of(path) == data


def test_in_place_only_bytes_of_the_room_are_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room, written, whole = the_room(path), [], os.pwrite

    def pwrite(fd: int, data: bytes, start: int) -> int:
        written.append((start, start + len(data)))
        return whole(fd, data, start)

    monkeypatch.setattr(os, "pwrite", pwrite)
    for plan in (LARGEST, SMALL):
        annotate(path, plan, path)
    (second, first), switches = written[::2], written[1::2]
    assert room.middle == second[0] < second[1] < room.end
    assert room.start == first[0] < first[1] < room.middle
    assert switches == [(16, HALVES_START)] * 2


@pytest.mark.parametrize("alignment", [1, 8, 32, 64, 8192])
@pytest.mark.parametrize("text", range(0, 64, 7))
def test_data_stays_where_it_is_in_a_block(alignment: int, text: int, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.gguf", alignment=alignment, test__text="x" * text)
    annotate(model, SMALL, tmp_path / "a.gguf")
    before, after = read_gguf(model).data_start, read_gguf(tmp_path / "a.gguf").data_start
    if before % 32 == 0:
        assert (after - before) % BLOCK_BYTES == 0
    assert after % 32 == after % alignment == 0
    annotate(tmp_path / "a.gguf", LARGEST, tmp_path / "a.gguf")
    assert read_gguf(tmp_path / "a.gguf").data_start == after
    assert data_of(tmp_path / "a.gguf") == data_of(model)
    strip(tmp_path / "a.gguf", tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == model.read_bytes()


def test_gguf_py_reads_every_key(path: Path) -> None:
    for plan in (LARGEST, SMALL):
        annotate(path, plan, path)
        fields = gguf.GGUFReader(path).fields
        assert all(field.contents() is not None for field in fields.values())
        assert fields["llama.attention.kv_cache.type_k"].contents() == [pair.k for pair in plan.pairs]


def states_on_disk(path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> list[list[bytes]]:
    """Annotate in place; for each stretch between two syncs what the disk may hold if power is lost there.

    A disk may have written any of the sectors of a stretch, in any order: all of them one by one, and drawn subsets.
    """
    rng, before, stretches, pending = random.Random(5), bytearray(path.read_bytes()), [], {}
    whole = os.pwrite

    def pwrite(fd: int, data: bytes, start: int) -> int:
        n = whole(fd, data, start)
        now = path.read_bytes()
        for sector in range(start // SECTOR, (start + n - 1) // SECTOR + 1):
            pending[sector] = now[sector * SECTOR : (sector + 1) * SECTOR]
        return n

    def fsync(fd: int) -> None:
        orders = [list(pending), *(rng.sample(list(pending), len(pending)) for _ in range(20))]
        stretches.append([after(order[:n]) for order in orders for n in range(len(order) + 1)])
        before[:] = after(list(pending))
        pending.clear()

    def after(sectors: list[int]) -> bytes:
        state = bytearray(before)
        for sector in sectors:
            state[sector * SECTOR : (sector + 1) * SECTOR] = pending[sector]
        return bytes(state)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", pwrite)
        patched.setattr(os, "fsync", fsync)
        annotate(path, plan, path)
    assert bytes(before) == path.read_bytes()
    assert not pending
    return stretches


@pytest.mark.parametrize("plan", [SMALL, LARGEST], ids=["small", "large"])
@pytest.mark.parametrize("second", [False, True], ids=["from the first half", "from the second half"])
def test_a_loss_of_power_leaves_the_old_plan_or_the_new_one(
    second: bool, plan: Plan, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Plan.uniform(Pair.parse("q8_0/f16"), N_LAYER)
    for _ in range(2 if second else 1):
        annotate(path, old, path)
    data, torn, found = data_of(path), tmp_path / "torn.gguf", []
    for states in states_on_disk(path, plan, monkeypatch):
        found.append(set())
        for state in states:
            torn.write_bytes(state)
            stored = plan_of(read_model(torn))
            known = next(each for each in (old, plan) if each.pairs == stored.pairs)
            assert stored.fingerprint == read_gguf(torn).get(Keys.PLAN_FINGERPRINT) == known.fingerprint
            assert data_of(torn) == data
            found[-1].add(known is plan)
    assert found == [{False}, {False, True}]


def test_kills_at_any_moment_lose_nothing(tmp_path: Path) -> None:
    command = [sys.executable, Path(__file__).with_name("killed.py"), tmp_path, "1000", "3"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    states = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=300, env=env).stdout)
    assert set(states["calls in place"]) == {"large", "small"}
    assert set(states["calls whole"]) == {"large", "none"}
    assert len(states["calls in place"]) >= 8
    assert sum(sum(states[name].values()) for name in ("in place", "whole")) == 1000
    assert set(states["in place"]) == {"large", "small"}


def test_two_commands_at_once_leave_one_of_both_plans(path: Path, tmp_path: Path) -> None:
    plans = [SMALL, LARGEST]
    script = (
        "import sys; from kvtuner_gguf.gguffile.annotate import annotate; from kvtuner_gguf.plan.plan import Plan\n"
        "for _ in range(40): annotate(sys.argv[1], Plan.load(sys.argv[2]), sys.argv[1])"
    )
    for i, plan in enumerate(plans):
        plan.save(tmp_path / f"{i}.json")
    commands = [[sys.executable, "-c", script, path, tmp_path / f"{i}.json"] for i in range(2)]
    processes = [subprocess.Popen(command) for command in commands]
    assert [process.wait(60) for process in processes] == [0, 0]
    found = plan_of(read_model(path))
    assert read_gguf(path).get(Keys.PLAN_FINGERPRINT) == found.fingerprint
    assert found.fingerprint in {plan.fingerprint for plan in plans}


def test_no_command_changes_a_header_that_is_being_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n_read, read = 0, Cursor.name

    def name(cursor: Cursor) -> str:
        nonlocal n_read
        n_read += 1
        with path.open("r+b") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return read(cursor)

    monkeypatch.setattr(Cursor, "name", name)
    read_gguf(path)
    assert n_read > 10
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_readers_wait_for_a_command_that_is_changing_the_header(path: Path) -> None:
    found: list[GgufHeader] = []
    reader = threading.Thread(target=lambda: found.append(read_gguf(path)))
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        reader.start()
        reader.join(0.5)
        assert (reader.is_alive(), found) == (True, [])
    reader.join(60)
    assert len(found) == 1


def test_a_file_that_was_replaced_behind_the_reading_is_written_as_it_is_now(path: Path, tmp_path: Path) -> None:
    headers, data = read_model(path), data_of(path)
    strip(path, path)
    write_plan(headers, SMALL, tmp_path / "other.gguf")
    assert pairs_of(tmp_path / "other.gguf") == SMALL.pairs
    assert data_of(tmp_path / "other.gguf") == data


def test_another_model_that_took_the_place_gets_no_plan(path: Path, tmp_path: Path) -> None:
    headers = read_model(path)
    os.replace(write_model(tmp_path / "another.gguf", n_layer=N_LAYER + 1), path)
    with pytest.raises(KvtunerError, match="another model took its place while it was read: give the command again"):
        write_plan(headers, SMALL, tmp_path / "other.gguf")
    assert not (tmp_path / "other.gguf").exists()


@pytest.mark.parametrize("seconds", ["READER_SECONDS", "WRITER_SECONDS"])
def test_a_lock_of_another_program_is_not_waited_for_long(
    seconds: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locking, "READER_SECONDS", 0.05)
    monkeypatch.setattr(locking, "WRITER_SECONDS", 0.05)
    monkeypatch.setattr(locking, seconds, 0.5)
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        started = time.monotonic()
        if seconds == "READER_SECONDS":
            assert read_gguf(path).get(Keys.PLAN_FINGERPRINT) == SMALL.fingerprint
        else:
            annotate(path, LARGEST, path)
        assert 0.5 <= time.monotonic() - started < 5
    assert pairs_of(path) == (SMALL if seconds == "READER_SECONDS" else LARGEST).pairs


def test_other_names_of_the_file_keep_what_it_held(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    os.link(path, other)
    annotate(path, LARGEST, path)
    assert pairs_of(other) == SMALL.pairs
    assert pairs_of(path) == LARGEST.pairs
    assert not path.samefile(other)


def test_without_locks_the_file_is_replaced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    inode = path.stat().st_ino
    monkeypatch.setattr(fcntl, "flock", refused)
    annotate(path, LARGEST, path)
    assert path.stat().st_ino != inode
    assert pairs_of(path) == LARGEST.pairs


def test_a_full_disk_leaves_the_old_plan(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = path.read_bytes()
    LARGEST.save(tmp_path / "plan.json")
    monkeypatch.setattr(os, "pwrite", full)
    result = run("annotate", path, tmp_path / "plan.json", "--in-place")
    assert (result.exit_code, path.read_bytes()) == (1, before)
    assert result.output.startswith(f"Error: cannot write {path}: No space left on device; ")


def test_strip_leaves_the_room_where_asked_to(path: Path, model: Path, tmp_path: Path) -> None:
    inode = path.stat().st_ino
    result = run("strip", path, "--in-place", "--keep-room")
    assert "the plan is taken out\nonly the header was changed, in 0." in result.output
    assert path.stat().st_ino == inode
    assert plan_of(read_model(path)) is None
    assert "there was no plan in it" in run("strip", path, "--in-place", "--keep-room").output
    LARGEST.save(tmp_path / "plan.json")
    assert "only the header was changed" in run("annotate", path, tmp_path / "plan.json", "--in-place").output
    assert "the whole file was made anew" in run("strip", path, "--in-place").output
    assert room_of(read_gguf(path)) is None


def test_annotate_says_what_it_wrote_and_what_comes_next(model: Path, tmp_path: Path) -> None:
    SMALL.save(tmp_path / "plan.json")
    out = tmp_path / "a file.gguf"
    lines = run("annotate", model, tmp_path / "plan.json", "-o", out).output.splitlines()
    assert lines[-2].startswith("the whole file was made anew, in ")
    assert lines[-1] == f"next: llama-server -m '{out}'"
    lines = run("annotate", out, tmp_path / "plan.json", "--in-place").output.splitlines()
    assert lines[-2].startswith("only the header was changed, in ")
    found = json.loads(run("annotate", out, tmp_path / "plan.json", "--in-place", "--json").stdout)
    assert (found["header_only"], found["next"]) == (True, [lines[-1].removeprefix("next: ")])


def test_the_first_of_many_shards_has_room_too(tmp_path: Path) -> None:
    for i in range(2):
        write_model(tmp_path / f"m-0000{i + 1}-of-00002.gguf", seed=i, split__no=i, split__count=2)
    first = tmp_path / "m-00001-of-00002.gguf"
    annotate(first, SMALL, first)
    inode = first.stat().st_ino
    annotate(tmp_path / "m-00002-of-00002.gguf", LARGEST, tmp_path / "m-00002-of-00002.gguf")
    assert first.stat().st_ino == inode
    assert pairs_of(first) == LARGEST.pairs


def moved(raw: bytes, header: GgufHeader, key: str, to: str) -> bytes:
    """``raw`` with the field of ``key`` before that of ``to``."""
    field, place = header.fields[key], header.fields[to].start
    piece, rest = raw[field.start : field.end], raw[: field.start] + raw[field.end :]
    at = place - len(piece) if place > field.start else place
    return rest[:at] + piece + rest[at:]


def renamed(raw: bytes, old: str, new: str) -> bytes:
    assert len(old) == len(new)
    assert raw.count(old.encode()) == 1
    return raw.replace(old.encode(), new.encode())


def larger(raw: bytes, header: GgufHeader) -> bytes:
    """The spare list begins only behind the middle, as if the plan were larger than half of the room."""
    padding, spare = header.fields[Keys.PADDING], header.fields[Keys.SPARE]
    count = (spare.end - spare.start - SPARE_BYTES) // UNIT
    text = string_field(Keys.PADDING, padding.value + " " * UNIT * (count - 1))
    changed = text + uint64_list_start(Keys.SPARE, 1)
    return raw[: padding.start] + changed + raw[padding.start + len(changed) :]


ODD: dict[str, Callable[[bytes, GgufHeader], bytes]] = {
    "another name in front": lambda raw, _: renamed(raw, Keys.RESERVED, "kvtuner.Reserved"),
    "no padding": lambda raw, _: renamed(raw, Keys.PADDING, "kvtuner.Padding"),
    "a key of others in the room": lambda raw, _: renamed(raw, Keys.SCHEMA, "others. schema"),
    "a key of ours behind": lambda raw, _: renamed(raw, "test.of.theirs", "kvtuner.theirs"),
    "the padding elsewhere": lambda raw, header: moved(raw, header, Keys.PADDING, Keys.SCHEMA),
    "the list in front elsewhere": lambda raw, header: moved(raw, header, Keys.RESERVED, Keys.SCHEMA),
    "a plan larger than a half": larger,
}


@pytest.mark.parametrize("case", ODD)
def test_a_room_that_is_not_as_it_should_be_is_not_written_to(case: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", test__of__theirs=7)
    annotate(path, SMALL, path)
    data, inode = data_of(path), path.stat().st_ino
    path.write_bytes(ODD[case](path.read_bytes(), read_gguf(path)))
    assert room_of(read_gguf(path)) is None
    annotate(path, LARGEST, path)
    assert path.stat().st_ino != inode
    assert pairs_of(path) == LARGEST.pairs
    assert data_of(path) == data
    assert the_room(path)


def test_a_key_in_front_of_the_room_is_none_of_it(path: Path) -> None:
    annotate(path, LARGEST, path)  # in the second half
    data, raw, header = data_of(path), path.read_bytes(), read_gguf(path)
    first = string_field("kvtuner.first ", "123456")
    count = (the_room(path).middle - HALVES_START - len(first)) // UNIT
    changed = raw[:16] + struct.pack("<Q", len(header.fields) + 1) + first + uint64_list_start(Keys.RESERVED, count)
    path.write_bytes(changed + raw[len(changed) :])
    assert pairs_of(path) == LARGEST.pairs
    assert room_of(read_gguf(path)) is None
    annotate(path, SMALL, path)
    assert (pairs_of(path), data_of(path)) == (SMALL.pairs, data)


def own(path: Path) -> tuple[list[bytes], bytes]:
    """The model's own keys, encoded, and its data."""
    raw, header = path.read_bytes(), read_gguf(path)
    kept = [field for field in header.fields.values() if not Keys.is_ours(field.key)]
    return [raw[field.start : field.end] for field in kept], raw[header.data_start :]


def test_a_damaged_room_never_costs_what_is_the_models_own(path: Path, tmp_path: Path) -> None:
    rng, damaged, n_read = random.Random(7), tmp_path / "damaged.gguf", 0
    annotate(path, LARGEST, path)
    for _ in range(600):
        raw, header = bytearray(path.read_bytes()), read_gguf(path)
        edges = [16, 56, *(header.fields[key].start for key in Keys.ROOM), header.fields[Keys.SPARE].start + 29]
        at = rng.choice(edges) + rng.randrange(8)
        raw[at] = rng.choice([0, 1, raw[at] ^ 1 << rng.randrange(8), raw[at] + 1 & 255])
        damaged.write_bytes(raw)
        with suppress(KvtunerError):
            before = own(damaged)
            annotate(damaged, SMALL, damaged)
            assert own(damaged) == before
            assert pairs_of(damaged) == SMALL.pairs
            n_read += 1
    assert 50 < n_read < 550


def test_a_header_of_40_gib_takes_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(N_LAYER)
    writer.add_context_length(256)
    writer.add_embedding_length(4 * HEAD_DIM)
    writer.add_head_count(4)
    writer.add_head_count_kv(N_HEAD_KV)
    shape = (40 * GIB // 2 // 4096, 4096)
    writer.add_tensor_info("token_embd.weight", shape, np.dtype(np.float16), 40 * GIB)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, -(-path.stat().st_size // 32) * 32 + 40 * GIB)

    def without_data(source: object, start: int, end: int, file, progress: object) -> None:
        file.truncate(file.tell() + end - start)

    with monkeypatch.context() as patched:
        patched.setattr(annotating, "copy_range", without_data)
        annotate(path, SMALL, path)
    started = time.monotonic()
    annotate(path, LARGEST, path)
    assert time.monotonic() - started < 5
    assert pairs_of(path) == LARGEST.pairs
    assert path.stat().st_size > 40 * GIB
    assert path.stat().st_blocks * 512 < 1 << 20
