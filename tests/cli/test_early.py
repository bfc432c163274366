"""What can be checked before torch or a model is loaded is: all mistakes here are made in one process without it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner

from kvtuner_gguf.cli import main
from kvtuner_gguf.files import artifact
from kvtuner_gguf.gguffile.metadata import model_shape
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.tuning.profile import NOTHING, Profile
from kvtuner_gguf.tuning.prune import prune
from tests.conftest import N_LAYER, write_model
from tests.tiny import TEXT, write_tiny

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "optuna", "sklearn", "matplotlib")
TUNE = ("tune", "llama.gguf")
TABLES = str(ROOT / "configs/kvtuner/tables.json")
# by name: the words of a command line, the status that it ends with, and words of its message
MISTAKES = {
    "missing model": (("tune", "none.gguf"), 2, "MODEL': none.gguf: there is no such file: check the path"),
    "model of a name that is like it": (("tune", "lama.gguf"), 2, "did you mean llama.gguf?"),
    "missing model, eval": (("eval", "none.gguf"), 2, "there is no such file"),
    "missing model, inspect": (("inspect", "none.gguf"), 2, "there is no such file"),
    "missing model, verify": (("verify", "none.json"), 2, "there is no such file"),
    "missing plan": (
        ("annotate", "llama.gguf", "none.json", "--in-place"),
        2,
        "'CFG': none.json: there is no such file",
    ),
    "missing file of a report": (
        ("report", "plam.json", "-o", "x.html"),
        2,
        "'FILES...': plam.json: there is no such file: did you mean plan.json?",
    ),
    "model without a plan, report": (
        ("report", "llama.gguf", "-o", "x.html"),
        1,
        "no plan in it: annotate it",
    ),
    "missing stage": (("prune", "none.json"), 2, "there is no such file"),
    "missing stages": (("search", "llama.gguf", "none.json", "plan.json"), 2, "there is no such file"),
    "missing text": ((*TUNE, "--text", "none.txt"), 2, "'--text': none.txt: there is no such file"),
    "missing text with a weight": ((*TUNE, "--text", "none.txt=2"), 2, "there is no such file"),
    "missing tasks": ((*TUNE, "--tasks", "none.jsonl"), 2, "'--tasks': none.jsonl: there is no such file"),
    "folder of Hugging Face": (
        ("tune", "hub"),
        2,
        "it is a folder of Hugging Face, and a GGUF file is needed: convert it with llama.cpp's convert_hf_to_gguf.py",
    ),
    "folder of GGUF files": (("tune", "ggufs"), 2, "it is a folder: give a file in it, such as ggufs/a.gguf"),
    "other folder": (("inspect", "folder"), 2, "it is a folder: give a GGUF file"),
    "repository": (("inspect", "Org/Model-1B"), 2, "hf download Org/Model-1B --local-dir Model-1B"),
    "weights of Hugging Face": (("tune", "hub/model.safetensors"), 1, "convert_hf_to_gguf.py"),
    "type": ((*TUNE, "--candidates", "q8_0,q4_O"), 2, "unknown cache type 'q4_O': did you mean q4_0?"),
    "type like none": ((*TUNE, "--candidates", "abacus"), 2, "unknown cache type 'abacus': use one of f32,"),
    "type of a pair": (("eval", "llama.gguf", "--uniform", "q8_0/q5"), 2, "unknown cache type 'q5': did you mean q5_"),
    "list for a pair": (("eval", "llama.gguf", "--uniform", "q8_0, q4_0"), 2, "'q8_0, q4_0' is no pair of cache types"),
    "plan that is a model without one": (
        ("eval", "llama.gguf", "--config", "llama.gguf"),
        1,
        "no plan in it: annotate",
    ),
    "type of a layer": ((*TUNE, "--fix", "0=iq4_n1"), 2, "unknown cache type 'iq4_n1': did you mean iq4_nl?"),
    "layer": ((*TUNE, "--fix", "99=q8_0"), 2, "the model has 2 layers, from 0: correct --fix"),
    "layer, plan": (("plan", "llama.gguf", "--uniform", "q8_0", "--fix", "9=f16", "-o", "x"), 2, "correct --fix"),
    "ends": ((*TUNE, "--ends", "4"), 2, "'--ends': the ends are '4': give FIRST+LAST"),
    "ends longer than a context": ((*TUNE, "--ctx", "64"), 2, "--ctx 64 is no more than the 132 positions"),
    "few bits": ((*TUNE, "--bits", "1"), 2, "1 bits per value is less than the 2.41821 to 16 bits per value"),
    "many bits": ((*TUNE, "--bits", "99"), 2, "99 bits per value is more than the 2.41821 to 16 bits per value"),
    "much memory": ((*TUNE, "--mib", "999", "--for-ctx", "8192"), 2, "to 16 bits per value of the candidates"),
    "no bits": ((*TUNE, "--bits", "0"), 2, "'--bits': 0.0 is not in the range x>0"),
    "bits that are no number": ((*TUNE, "--bits", "nan"), 2, "--bits is nan: give a positive number"),
    "two goals": ((*TUNE, "--bits", "4", "--max-kld", "0.1"), 2, "one goal is needed, not --bits and --max-kld"),
    "memory without a context": ((*TUNE, "--mib", "100"), 2, "--mib needs the tokens of a context: add --for-ctx"),
    "option of no command": (("--versoin",), 2, "No such option '--versoin'. Did you mean '--version'?: see"),
    "no name of a model to fetch": (("fetch-model",), 2, "Missing argument 'NAME'. Choose from: smollm2-135m, qwen2.5"),
    "empty name": (("tune", ""), 2, "'MODEL': the name is empty: give that of a file"),
    "empty name of an output": ((*TUNE, "-o", ""), 2, "the name is empty: give that of a file"),
    "folder in which no file can be made": ((*TUNE, "-o", "/proc/x"), 2, "no file can be made in /proc; choose"),
    "empty model": (("tune", "empty.gguf"), 1, "empty.gguf: not a GGUF file (it is empty): check the path"),
    "tables without a name": (("import-kvtuner", TABLES), 1, " tables in it: give --name, one of Meta-Llama-3.1-8B"),
    "text that is none": ((*TUNE, "--text", "llama.gguf"), 1, " is no UTF-8: give a text, converted to UTF-8"),
    "text of another profile": (
        ("search", "llama.gguf", "profile.json", "candidates.json", "--text", "long.txt"),
        1,
        "profile.json: --text is 'other.txt', not 'long.txt': give the text",
    ),
    "tokens": ((*TUNE, "--tokens", "0"), 2, "'--tokens': 0 is not in the range x>=16"),
    "fewer tokens than a context": ((*TUNE, "--tokens", "64"), 2, "--tokens 64 and --ctx 512: give at least one"),
    "seed": ((*TUNE, "--seed", "-1"), 2, "'--seed': -1 is not in the range"),
    "threads": ((*TUNE, "--threads", "0"), 2, "'--threads': 0 is not in the range x>=1"),
    "back end": ((*TUNE, "--backend", "cudda"), 2, "'cudda' is not one of 'cpu', 'cuda'"),
    "two sources of types": ((*TUNE, "--backend", "CPU", "--candidates", "f16"), 2, "give one of them"),
    "objective": ((*TUNE, "--objective", "failed"), 2, "is for --method paper"),
    "no tasks": ((*TUNE, "--method", "paper", "--objective", "failed"), 2, "--objective failed needs --tasks"),
    "no task in a file": (
        (*TUNE, "--method", "paper", "--objective", "failed", "--tasks", "short.txt"),
        1,
        "short.txt, line 1: no JSON object with 'question' and 'answer'",
    ),
    "short text": (
        (*TUNE, "--text", "short.txt"),
        1,
        "short.txt: too short for 4 chunks of 512 tokens (it has 135 bytes)",
    ),
    "short text, center": (("center", "llama.gguf", "plan.json", "-o", "x", "--text", "short.txt"), 1, "too short for"),
    "more texts than chunks": (
        (*TUNE, *("--tokens", "512"), "--text", "short.txt", "--text", "plan.json"),
        1,
        "2 texts for 1 chunks: give more --tokens",
    ),
    "weight": ((*TUNE, "--text", "short.txt=-1"), 2, "short.txt has the weight -1.0: give a number above 0"),
    "storage": (
        (*TUNE, "--method", "paper", "--storage", "redis://me:secret@host"),
        2,
        "--storage redis://...: unknown",
    ),
    "storage that cannot be written": (
        (*TUNE, "--method", "paper", "--storage", "none/log"),
        2,
        "cannot write none/log",
    ),
    "storage of another method": ((*TUNE, "--storage", "log"), 2, "--storage shares the search of --method paper"),
    "few trials to evolve": ((*TUNE, "--evolve", "7"), 2, "--evolve 7 is less than the 8 plans that it may begin with"),
    "unknown model to fetch": (("fetch-model", "smollm2"), 2, "is not one of 'smollm2-135m'"),
    "device": ((*TUNE, "--device", "abacus"), 2, "unknown device 'abacus': give cpu, cuda, or a GPU such as cuda:1"),
    "device twice": ((*TUNE, "--device", "cuda:1,cuda:1"), 2, "cuda:1 is named twice"),
    "engine": ((*TUNE, "--engine", "lama"), 2, "'lama' is not one of 'auto', 'torch', 'llama'"),
    "architecture without FlashAttention": (
        ("tune", "grok.gguf"),
        1,
        "grok attends without FlashAttention, and",
    ),
    "architecture that chooses blocks": (("tune", "minimax-m3.gguf"), 1, "make a plan with 'kvtuner-gguf plan'"),
    "architecture that is not tuned, profile": (("profile", "grok.gguf"), 1, "grok attends without FlashAttention"),
    "architecture without a cache": (("tune", "mamba.gguf"), 1, "keep no KV cache: there is nothing to tune"),
    "architecture without plans": (("tune", "deepseek4.gguf"), 1, "keeps compressed keys, to which no plan applies"),
    "architecture of another engine": (
        ("tune", "gemma2.gguf", "--engine", "torch"),
        1,
        "torch cannot run this model, since it knows llama, qwen2, qwen3, not gemma2: give --engine llama",
    ),
    "architecture of another evaluator": (("eval", "gemma2.gguf", "--evaluator", "torch"), 1, "not gemma2"),
    "position": (("eval", "llama.gguf", "--start-pos", "5"), 2, "not --start-pos 5: add --evaluator torch"),
    "nothing to draw": (("eval", "llama.gguf", "--png", "x.png"), 2, "--png has nothing to draw but the f16 cache"),
    "no keys to draw": (("inspect", "llama.gguf", "--png", "x.png"), 1, "tune the model with centering"),
    "folder of something else": ((*TUNE, "--work", "folder"), 1, "folder is no folder of a tuning and is not empty"),
    "folder of another tuning": (
        (*TUNE, "--work", "work", "--seed", "4"),
        1,
        "work holds a tuning with --center off, not on",
    ),
    "folder below a file": ((*TUNE, "--work", "short.txt/work"), 1, "cannot use short.txt/work: Not a directory"),
    "command": (("annotat",), 2, "No such command 'annotat'. Did you mean 'annotate'?"),
    "option": ((*TUNE, "--bitz", "3"), 2, "see 'kvtuner-gguf tune --help'"),
    "no argument": (("annotate", "llama.gguf"), 2, "Missing argument 'CFG': see 'kvtuner-gguf annotate --help'"),
    "plan of another model": (
        ("verify", "other.json", "--model", "grok.gguf"),
        1,
        "its architecture is llama, this model's grok: make a plan with 'kvtuner-gguf plan'",
    ),
    "no plan": (("verify", "llama.gguf"), 1, "no plan in it: tune this model and annotate it"),
    "no plan in a model that is not tuned": (("verify", "grok.gguf"), 1, "make a plan with 'kvtuner-gguf plan'"),
    "no plan in a model without a cache": (("verify", "mamba.gguf"), 1, "it keeps no KV cache, and needs none"),
    "plan for a model without a cache": (
        ("verify", "plan4.json", "--model", "mamba.gguf"),
        1,
        "mamba.gguf: the model has",
    ),
}
SCRIPT = f"""
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from kvtuner_gguf.cli import main
found = []
for words in json.load(sys.stdin):
    out, err, status = io.StringIO(), io.StringIO(), None
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main(words, prog_name="kvtuner-gguf")
        except SystemExit as end:
            status = end.code
    found.append([status, out.getvalue(), err.getvalue(), [name for name in {HEAVY} if name in sys.modules]])
print(json.dumps(found))
"""


class Ended(NamedTuple):
    """How a command ended, and the heavy packages that were loaded until then."""

    status: int
    out: str
    err: str
    loaded: list[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("early")
    write_tiny(path / "llama.gguf", "llama")
    for arch in ("grok", "minimax-m3", "mamba", "deepseek4"):
        write_model(path / f"{arch}.gguf", arch=arch)
    write_model(path / "gemma2.gguf", arch="gemma2", gemma2__attention__sliding_window=64)
    for name in ("hub", "ggufs", "folder", "work"):
        (path / name).mkdir()
    for name in ("hub/config.json", "hub/model.safetensors", "ggufs/a.gguf", "folder/a"):
        (path / name).write_text("{}")
    (path / "work" / "tuning.json").write_text('{"schema": "kvtuner.tuning/1", "center": false}')
    (path / "short.txt").write_text(TEXT)
    (path / "long.txt").write_text(TEXT * 100)
    (path / "empty.gguf").touch()
    Plan.uniform(Pair.parse("q8_0"), 2).save(path / "plan.json")
    _save_stages(path)
    return path


def _save_stages(folder: Path) -> None:
    """A profile of the model ``llama.gguf`` on a text that is gone, and its candidates."""
    shape, pair = model_shape(read_model(folder / "llama.gguf")), Pair.parse("q8_0")
    facts = {"text": "other.txt", "text_sha256": "0", "text_tokens": 1024, "n_ctx": 512, "seed": 0}
    profile = Profile(shape, ({pair: NOTHING},) * shape.n_layer, facts)
    artifact.save(folder / "profile.json", profile.to_json())
    artifact.save(folder / "candidates.json", prune(profile).to_json())


@pytest.fixture(scope="module")
def ended(folder: Path) -> dict[str, Ended]:
    """How each mistake ended, made without and with --json."""
    Plan.uniform(Pair.parse("q8_0"), N_LAYER).save(folder / "plan4.json")
    write_model(folder / "other.gguf")
    shape = model_shape(read_model(folder / "other.gguf"))
    Plan(Plan.uniform(Pair.parse("q8_0"), N_LAYER).pairs, shape).save(folder / "other.json")
    lines = [words for words, _, _ in MISTAKES.values()]
    given = json.dumps([*lines, *([*words, "--json"] for words in lines)])
    options = {"capture_output": True, "text": True, "cwd": folder, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    done = subprocess.run([sys.executable, "-c", SCRIPT], input=given, **options)
    assert done.returncode == 0, done.stderr
    found = [Ended(*one) for one in json.loads(done.stdout)]
    names = [*MISTAKES, *(f"{name}, JSON" for name in MISTAKES)]
    return dict(zip(names, found, strict=True))


def test_mistakes_leave_nothing(ended: dict[str, Ended], folder: Path) -> None:
    assert not [path.name for pattern in ("cfg*", "x*", "none*") for path in folder.glob(pattern)]


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_at_once_in_one_line(name: str, ended: dict[str, Ended]) -> None:
    _, status, words = MISTAKES[name]
    found = ended[name]
    assert found.loaded == []
    assert words in found.err
    assert found.status == status
    assert found.out == ""
    *notes, last = found.err.splitlines()
    assert last.startswith("Error: ")
    assert all(note.startswith("keys are not centered") for note in notes)
    assert not re.search(r"\b(n_ctx|n_tokens|for_ctx|max_kld|text_tokens|text_sha256|n_chunks)\b", last)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_an_object_where_json_is_asked_for(name: str, ended: dict[str, Ended]) -> None:
    words, status, _ = MISTAKES[name]
    found = ended[f"{name}, JSON"]
    data = json.loads(found.out)
    assert found.status == status
    assert data.keys() - {"ok"} == {"error", "hint"}
    assert data["error"]
    assert "Error" not in found.err
    assert data["error"] in ended[name].err
    assert data["hint"] in ended[name].err or words == ("annotat",)


def test_a_folder_of_another_text_than_the_default_one_is_refused_at_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tuning.json").write_text('{"schema": "kvtuner.tuning/1", "text": "other.txt"}')
    monkeypatch.setattr("kvtuner_gguf.cli.settings.cached_text", lambda _: folder / "long.txt")
    monkeypatch.setattr("kvtuner_gguf.cli.settings.asked_facts", lambda _, texts, __: {"text": texts and texts.name})
    result = CliRunner().invoke(main, ["tune", str(folder / "llama.gguf"), "--work", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {tmp_path} holds a tuning with --text other.txt, not long.txt: begin anew")
