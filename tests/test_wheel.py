"""What a wheel of the package holds, built from a copy of the sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("kvtuner_gguf", "configs", "pyproject.toml", "README.md", "LICENSE")


def files_below(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel unpacks to."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / "src" / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, folder / "src")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(folder / "src")], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_configs_travel_in_the_package(installed: Path) -> None:
    configs = files_below(installed / "kvtuner_gguf" / "configs")
    assert configs == files_below(ROOT / "configs")
    assert {"README.md", "plan.schema.json", "kvtuner/tables.json", "smollm2-135m-4.0.json"} <= set(configs)
    assert not (installed / "kvtuner_gguf" / "configs").is_symlink()


def test_every_module_and_the_mark_of_types_are_there(installed: Path) -> None:
    modules = {name for name in files_below(ROOT / "kvtuner_gguf") if name.endswith((".py", "py.typed"))}
    assert "py.typed" in modules
    assert modules <= set(files_below(installed / "kvtuner_gguf"))


def test_a_shipped_plan_loads_by_its_name(installed: Path, tmp_path: Path) -> None:
    script = (
        "import kvtuner_gguf as k; print(k.__file__)\n"
        "print(k.Plan.load(k.CONFIGS / 'smollm2-135m-4.0.json').bits_per_value() <= 4)"
    )
    env = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [str(installed / "kvtuner_gguf" / "__init__.py"), "True"]
