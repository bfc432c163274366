from __future__ import annotations

import shutil
from pathlib import Path

from gallery_page import PAGE, page

from kvtuner_gguf.files.configs import CONFIGS
from kvtuner_gguf.plan.plan import Plan


def test_the_page_is_what_the_files_give() -> None:
    assert PAGE.read_text() == page(), "run `make docs-pages`"


def test_every_plan_is_there_with_its_bits() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    plans = [path for path in CONFIGS.rglob("*.json") if path.name not in ("plan.schema.json", "tables.json")]
    assert plans
    for path in plans:
        (row,) = [row for row in rows if f"[{path.stem}](" in row]
        bits = Plan.load(path).bits_per_value()
        assert f"| {bits:.3f} |" in row or f"| {bits:.4f} |" in row


def test_a_plan_more_changes_the_page(tmp_path: Path) -> None:
    shutil.copytree(CONFIGS, tmp_path / "configs")
    shutil.copy(CONFIGS / "smollm2-135m-4.0.json", tmp_path / "configs" / "other-model-4.0.json")
    assert "### other-model" in page(tmp_path / "configs")
