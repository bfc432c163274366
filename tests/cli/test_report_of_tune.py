"""The page that `tune` writes, and the same from what a tuning leaves behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("torch")

from kvtuner_gguf.cli import main

N_LAYER = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny) -> Path:
    """A tuning of a tiny model with its page and its picture, and one by the paper's method."""
    path = tmp_path_factory.mktemp("tuned")
    tiny(path / "m.gguf", "llama", n_layer=N_LAYER)
    (path / "text.txt").write_text(" ".join(f"word{i * i % 977}" for i in range(4000)))
    given = ["--text", str(path / "text.txt"), "--tokens", "64", "--ctx", "32", "--candidates", "q8_0,q4_0,q2_nl"]
    given += ["--ends", "none", "--bits", "4", "--no-native"]
    tune(path / "m.gguf", path / "cfg.json", *given, "--html", str(path / "cfg.html"), "--png", str(path / "cfg.png"))
    tune(path / "m.gguf", path / "paper.json", *given, "--method", "paper", "--trials", "5")
    return path


def tune(model: Path, out: Path, *options: str) -> None:
    done = CliRunner().invoke(main, ["tune", str(model), "-o", str(out), *options])
    assert done.exit_code == 0, done.output


def section(page: str, title: str) -> str:
    return page.partition(f"<h2>{title}</h2>")[2].partition("</section>")[0]


def test_tune_writes_a_page_with_all_that_it_knows(folder: Path) -> None:
    page = (folder / "cfg.html").read_text()
    assert "<h1>KV cache of m.gguf</h1>" in page
    layers = section(page, "Types by layer")
    assert layers.count('class="cell"') == 2 * N_LAYER
    assert len(re.findall(r"K costs \S+ nats, V ", layers)) == N_LAYER
    front = section(page, "Front")
    assert all(f">{name}/{name}</text>" in front for name in ("q8_0", "q4_0", "q2_nl")), "uniform pairs beside it"
    assert ' class="is-plan"' in front
    judged = section(page, "Judged on other text")
    assert all(f"<td>{name}" in judged for name in ("plan, torch", "uniform ", "stock "))
    assert "rms, centered" in section(page, "Keys before and after centering")
    typed = re.sub("<[^>]*>", "", section(page, "The commands"))
    assert "$ kvtuner-gguf tune m.gguf -o cfg.json --bits 4 --ends none" in typed
    assert (folder / "cfg.png").read_bytes().startswith(b"\x89PNG")


def test_report_shows_the_same_and_the_papers_method_beside_it(folder: Path) -> None:
    out = folder / "report.html"
    given = [str(folder / name) for name in ("cfg.json", "cfg.tune", "paper.tune")]
    done = CliRunner().invoke(main, ["report", *given, "-o", str(out)])
    assert done.exit_code == 0, done.output
    page, of_tune = out.read_text(), (folder / "cfg.html").read_text()
    assert section(page, "Types by layer") == section(of_tune, "Types by layer")
    assert "paper.tune, the paper&#x27;s method" in section(page, "Front")


def test_a_page_that_cannot_be_written_is_told_before_anything_is_measured(folder: Path) -> None:
    command = ["tune", str(folder / "m.gguf"), "-o", str(folder / "new.json"), "--html", str(folder)]
    done = CliRunner().invoke(main, command)
    assert done.exit_code != 0
    assert not (folder / "new.tune").exists()
