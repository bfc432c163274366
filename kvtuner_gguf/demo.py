"""The demonstration: every step is a command that a user could type, or what his program would do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kvtuner_gguf import __version__
from kvtuner_gguf.childprocess import how_it_ended
from kvtuner_gguf.engine.llama.native import patched_llama_cpp
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.evaluation.rows import are_rows, rows_from_json
from kvtuner_gguf.files import artifact, atomicfile
from kvtuner_gguf.files.assets import fetch_model
from kvtuner_gguf.gguffile.metadata import model_shape
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.plan.contextsize import ContextSize
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.report.layers import pair_lines
from kvtuner_gguf.report.rows import print_rows
from kvtuner_gguf.report.stages import byte_progress, others_talk
from kvtuner_gguf.server.cachereport import CacheReport, layer_pairs
from kvtuner_gguf.server.llama_server import running_server

MODEL = "smollm2-135m"
UNIFORM = ("q8_0/q8_0", "q8_0/q4_0", "q5_1/q5_1", "q4_0/q4_0")
PROMPT = "The capital of France is"
N_PREDICT = 32
N_CTX = 512

Pairs = Mapping[int, Pair]


@dataclass(frozen=True)
class DemoSettings:
    """What the results depend on. A change of one does all steps again."""

    bits: float
    chunks: int
    version: str = __version__


class Demo:
    """Runs the steps in ``folder`` and tells them through ``say``; finished ones are skipped.

    ``flags`` say how much the commands tell that work long. They print to the descriptor ``out``, by default where this
    process does.
    """

    def __init__(
        self,
        folder: Path,
        settings: DemoSettings,
        say: Callable[[str], object],
        flags: Sequence[str] = (),
        out: int | None = None,
    ) -> None:
        self._out = out
        self._folder = folder
        self._settings = settings
        self._say = say
        self._flags = flags
        self._plan = folder / "plan.json"
        self._tuning = folder / "plan.tune"
        self._model = folder / f"{MODEL}.kvtuner.gguf"
        self._rows = folder / "eval.json"
        self._chart = folder / "eval.png"
        self._log = folder / "server.log"

    @property
    def results(self) -> dict[str, Any]:
        """What `run` has left: the files, and the rows that judge the plan."""
        files = {"plan": self._plan, "model": self._model, "chart": self._chart, "log": self._log}
        return {**{name: str(path) for name, path in files.items()}, "rows": json.loads(self._rows.read_text())}

    def run(self, force: bool) -> None:
        """Raises `KvtunerError` where a step fails or the reports differ."""
        patched_llama_cpp()
        self._prepare(force)
        source = self._fetch()
        self._tune(source)
        self._annotate(source)
        self._evaluate()
        reports = {
            "the annotated file": self._inspect(),
            "the Python property": self._complete_in_python(),
            **self._complete_over_http(),
        }
        self._compare(reports)

    def _prepare(self, force: bool) -> None:
        record = self._folder / "settings.json"
        wanted = json.dumps(asdict(self._settings))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise KvtunerError(f"cannot make {self._folder}: {err.strerror}; choose another folder with --dir") from err
        if force or not record.exists() or record.read_text() != wanted:
            self._forget(self._plan, self._tuning, self._model, self._rows, self._chart)
            atomicfile.write_text(record, wanted)

    def _fetch(self) -> Path:
        self._head(1, f"The model: {MODEL}")
        self._say(f"$ kvtuner-gguf fetch-model {MODEL}")
        with byte_progress(f"fetch {MODEL}") as progress:
            path = fetch_model(MODEL, progress)
        self._say(f"{path}")
        return path

    def _tune(self, source: Path) -> None:
        self._head(2, f"A plan of at most {self._settings.bits:g} true bits per value")
        if not self._is_done(self._plan):
            self._forget(self._model, self._rows, self._chart)
            self._command("tune", source, "-o", self._plan, "--bits", f"{self._settings.bits:g}", *self._flags)

    def _annotate(self, source: Path) -> None:
        self._head(3, "The plan goes into the model file")
        if not self._is_done(self._model):
            self._forget(self._rows, self._chart)
            self._command("annotate", source, self._plan, "-o", self._model, *self._flags)

    def _evaluate(self) -> None:
        self._head(4, "The plan against uniform pairs, on text that it was not tuned on")
        if not (self._has_rows() and self._is_done(self._rows, self._chart)):
            uniform = [word for pair in UNIFORM for word in ("--uniform", pair)]
            sample = ("--ctx", f"{N_CTX}", "--chunks", f"{self._settings.chunks}")
            outputs = ("--png", self._chart, "--json", *self._flags)
            out = self._command("eval", self._model, *uniform, *sample, *outputs, capture=True)
            atomicfile.write_text(self._rows, out)
        rows = artifact.load(self._rows, rows_from_json, "result")
        print_rows(rows, f"{self._settings.chunks} x {N_CTX} tokens of encyclopedia text; 'auto' is the plan")

    def _has_rows(self) -> bool:
        """Whether there are rows that this version reads."""
        return self._rows.exists() and artifact.load(self._rows, are_rows, "result")

    def _inspect(self) -> Pairs:
        self._head(5, "The plan in the file")
        pairs = layer_pairs(json.loads(self._command("inspect", self._model, "--json", capture=True)))
        self._tell(pairs)
        return pairs

    def _complete_in_python(self) -> Pairs:
        self._head(6, "A completion in Python")
        self._say(f'>>> Llama("{self._model}", kv_config="auto")("{PROMPT}")')
        llama = patched_llama_cpp().Llama(str(self._model), n_ctx=N_CTX, kv_config="auto", verbose=False)
        try:
            answer: Any = llama(PROMPT, max_tokens=N_PREDICT, temperature=0.0)
            pairs = {il: Pair(*pair) for il, pair in enumerate(llama.kv_cache_types) if pair}
            n_bytes = llama.kv_cache_bytes
        finally:
            llama.close()
        self._say(PROMPT + answer["choices"][0]["text"])
        self._tell(pairs)
        expected = Plan.load(self._plan).n_bytes(model_shape(read_model(self._model)), ContextSize(N_CTX))
        if n_bytes != expected:
            raise KvtunerError(f"the cache takes {n_bytes} bytes, not the {expected} of the plan: rebuild llama.cpp")
        self._say(f"{n_bytes} bytes for {N_CTX} tokens, as the plan says")
        return pairs

    def _complete_over_http(self) -> dict[str, Pairs]:
        self._head(7, "A completion from llama-server over HTTP")
        self._say(f"$ llama-server --model {self._model}")
        with running_server(self._model, log_path=self._log, n_ctx=N_CTX) as server:
            self._say(PROMPT + server.complete(PROMPT, N_PREDICT))
            report = server.cache_report()
            logged = CacheReport.from_log(server.log)
        self._tell(report.pairs)
        return {"the server": report.pairs, "the start-up log": logged.pairs}

    def _compare(self, reports: Mapping[str, Pairs]) -> None:
        self._head(8, "Do they agree?")
        (first, expected), *others = reports.items()
        for name, pairs in others:
            for il in sorted(expected.keys() | pairs.keys()):
                if expected.get(il) != pairs.get(il):
                    raise KvtunerError(
                        f"layer {il}: {first} says {expected.get(il)}, {name} {pairs.get(il)}: rebuild llama.cpp, "
                        "then run the demo with --force"
                    )
        distinct = len(set(expected.values()))
        self._say(f"yes: {', '.join(reports)} give the same {len(expected)} pairs, {distinct} of them distinct")

    def _head(self, number: int, title: str) -> None:
        self._say(f"\n=== {number}/8 {title} ===")

    def _tell(self, pairs: Pairs) -> None:
        for line in pair_lines(pairs):
            self._say(f"  {line}")

    def _is_done(self, *outputs: Path) -> bool:
        done = all(path.exists() for path in outputs)
        if done:
            self._say(f"done before, skipped: {', '.join(map(str, outputs))} (--force does it again)")
        return done

    @staticmethod
    def _forget(*paths: Path) -> None:
        for path in paths:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _command(self, *words: object, capture: bool = False) -> str:
        """Run one of our commands in a process of its own, so that what it has loaded is freed when it ends."""
        arguments = [str(word) for word in words]
        self._say(f"$ kvtuner-gguf {' '.join(arguments)}")
        program = "from kvtuner_gguf.cli import main; main(prog_name='kvtuner-gguf')"
        pipe = subprocess.PIPE if capture else self._out
        with others_talk():
            result = subprocess.run([sys.executable, "-c", program, *arguments], stdout=pipe, text=True, check=False)
        if result.returncode:
            raise KvtunerError(f"'{arguments[0]}' {how_it_ended(result.returncode)}; see its messages above")
        return result.stdout or ""
