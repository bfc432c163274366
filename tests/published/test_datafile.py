from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.published.datafile import MAX_DEPTH, MAX_SCALAR, MAX_YAML_BYTES, read_data


def read(folder: Path, raw: bytes, suffix: str = ".yaml") -> object:
    path = folder / f"table{suffix}"
    path.write_bytes(raw)
    return read_data(path)


def test_json_and_yaml_give_the_same_data(tmp_path: Path) -> None:
    expected = {"groups": [{"layers": [0, 1], "nbits_key": 8}], "mean": 3.5, "label": None, "on": True}
    raw = b'{"groups": [{"layers": [0, 1], "nbits_key": 8}], "mean": 3.5, "label": null, "on": true}'
    assert read(tmp_path, raw, ".json") == expected
    assert read(tmp_path, raw, ".JSON") == expected
    text = b"groups:\n- layers: [0, 1]\n  nbits_key: 8\nmean: 3.5\nlabel: null\n'on': true\n"
    assert read(tmp_path, text) == expected


def test_numbers_are_keys_in_yaml(tmp_path: Path) -> None:
    assert read(tmp_path, b"0:\n  nbits_key: 8\n1:\n  nbits_key: 4\n") == {0: {"nbits_key": 8}, 1: {"nbits_key": 4}}


def start_of(value: object) -> str | None:
    return repr(value[:20]) if isinstance(value, bytes) else None


def swelling(levels: int) -> bytes:
    """Nine aliases a level: 9 ** levels values if they were followed."""
    lines = ["a0: &a0 [1]"]
    lines += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines).encode()


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (swelling(30), ("line 1", "aliases")),
        (b"a: *b", ("line 1", "aliases")),
        (b"0: 1\n<<: {0: 1}", ("line 2", "merges")),
        (b"a:\n  b: !!python/object/apply:os.getcwd []", ("line 2", "tags")),
        (b"a: !!int ''", ("line 1", "tags")),
        (b"a: !!bool maybe", ("line 1", "tags")),
        (b"0: 1\n1: 2\n0: 3", ("key 0", "twice")),
        (b"a: {b: 1, b: 2}", ("key 'b'", "twice")),
        (b"? [1]\n: 2", ("not YAML", "unhashable")),
        (b"a: 2001-99-99", ("not YAML", "month")),
        (b"a: 0x_", ("not YAML",)),
        (b"a: " + b"9" * 5000, ("line 1", "1024 characters")),
        (b"a: " + b"x" * (MAX_SCALAR + 1), ("line 1", "1024 characters")),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), ("nested", "16")),
        (b"[" * 100_000, ("not YAML",)),
        (b"- " * 100_000, ("not YAML",)),
        (b"a: [1", ("not YAML",)),
        (b"---\n1\n---\n2", ("not YAML", "single document")),
        (b"a: \x00", ("not YAML",)),
        (b"\xff\xfe", ("not YAML", "utf-8")),
        (b"#" * (MAX_YAML_BYTES + 1), ("256 KiB",)),
    ],
    ids=start_of,
)
def test_hostile_yaml_is_one_line_that_says_what_is_wrong(raw: bytes, words: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(KvtunerError) as caught:
        read(tmp_path, raw)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", ("not JSON",)),
        (b"{", ("not JSON",)),
        (b'{"a": 1, "a": 2}', ("key 'a'", "twice")),
        (b"9" * 5000, ("not JSON", "digits")),
        (b"[" * 100_000, ("not JSON",)),
        (b"[" * 17 + b"]" * 17, ("nested", "16")),
        (b"\xff", ("not JSON", "utf-8")),
        (b" " * ((16 << 20) + 1), ("16384 KiB",)),
    ],
    ids=start_of,
)
def test_hostile_json_is_one_line_that_says_what_is_wrong(raw: bytes, words: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(KvtunerError) as caught:
        read(tmp_path, raw, ".json")
    assert all(word in str(caught.value) for word in words), caught.value


def test_nesting_up_to_the_limit_is_read(tmp_path: Path) -> None:
    raw = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert read(tmp_path, raw, ".json") == read(tmp_path, raw)


@pytest.mark.parametrize("name", ["missing.yaml", "", "x" * 5000])
def test_what_cannot_be_read(name: str, tmp_path: Path) -> None:
    with pytest.raises(KvtunerError, match="cannot be read"):
        read_data(tmp_path / name)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no such device")
def test_a_device_without_an_end() -> None:
    with pytest.raises(KvtunerError, match="256 KiB"):
        read_data(Path("/dev/zero"))
