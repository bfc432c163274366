#!/usr/bin/env python3
"""Run upstream's own tests on the unpatched and the patched build, and compare.

  ctest        llama.cpp's tests
  backend-ops  its operators against the CPU's reference implementation, which ctest leaves out
  bindings     the tests of llama-cpp-python

The exit status is 1 where a test passes on the unpatched build and does not on the patched one. Nothing is fetched: a
model at hand and small random ones stand in for those that the tests would fetch, where a test does not look for the
very words of its own, and what cannot do without a network fails on both.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from both_builds import Build, both_builds, compile_both
from build_folders import ROOT
from build_stock import SOURCE
from outputs import output_file
from side_by_side import (
    FAILED,
    PASSED,
    TIMEOUT,
    Outcome,
    Results,
    Row,
    compare,
    read_backend_ops,
    read_junit,
    regressions,
    table,
    write_json,
)

from kvtuner_gguf.files.assets import MODELS, copy_file

SCRIPTS = Path(sys.executable).parent
FETCHING_TEST, REPOSITORY, FETCHED_MODEL = "test-download-model", "ggml-org/models", "tinyllamas/stories15M-q4_0.gguf"
RANDOM_MODELS = {  # what the bindings' tests fetch, by the architecture of the model that upstream's generator makes
    "mamba": ("QuantFactory/mamba-130m-hf-GGUF", "mamba-130m-hf.Q2_K.gguf"),
    "falcon-h1": ("tiiuae/Falcon-H1-Tiny-90M-Instruct-GGUF", "Falcon-H1-Tiny-90M-Instruct-Q2_K.gguf"),
}
REVISION = "0" * 40


@dataclass(frozen=True)
class Run:
    """The settings of a run; ``seconds`` is how long a test may take."""

    backend: str
    model: Path | None
    hub: Path
    seconds: float
    jobs: int = 1
    ops: str | None = None

    def environment(self) -> dict[str, str]:
        """Our tools come first, git asks nothing, and Hugging Face's client keeps off the network."""
        env = {**os.environ, "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}", "GIT_TERMINAL_PROMPT": "0"}
        env |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(self.hub)}
        return env | ({"LLAMACPP_TEST_MODELFILE": str(self.model)} if self.model else {})


def watch(command: list[object], log: Path, seconds: float, **settings: object) -> Outcome:
    """Run ``command`` with its output in ``log``; it is ended once it has written nothing for ``seconds``."""
    with log.open("wb") as out, log.with_suffix(".err").open("wb") as err:
        streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err, "start_new_session": True}
        process = subprocess.Popen([str(part) for part in command], **streams, **settings)
        try:
            return wait(process, log, seconds)
        finally:  # also where we are interrupted
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def wait(process: subprocess.Popen[bytes], log: Path, seconds: float) -> Outcome:
    size = -1
    while size != log.stat().st_size:
        size = log.stat().st_size
        try:
            status = process.wait(seconds)
            return Outcome(FAILED, f"exit status {status}") if status else Outcome(PASSED)
        except subprocess.TimeoutExpired:
            continue
    return Outcome(TIMEOUT, f"wrote nothing for {seconds:g} s")


def run_ctest(build: Build, run: Run) -> Results:
    junit = build.scratch / "ctest.xml"
    junit.unlink(missing_ok=True)
    command = ["ctest", "--test-dir", build.llama, "--timeout", f"{run.seconds:g}", "--output-junit", junit]
    if run.model:
        put(run.model, build.folder / FETCHED_MODEL)
        command += ["--exclude-regex", f"^{FETCHING_TEST}$", "--fixture-exclude-setup", FETCHING_TEST]
    ended = watch(command, build.scratch / "ctest.log", 2 * run.seconds, env=run.environment())
    return read_junit(junit.read_text()) if junit.exists() else {"ctest": ended}


def run_backend_ops(build: Build, run: Run) -> Results:
    log = build.scratch / "backend-ops.sql"
    command = [build.programs / "test-backend-ops", "test", "--output", "sql", "-j", run.jobs]
    if run.backend == "cpu":  # the only back end is skipped unless it is named
        command += ["-b", "CPU"]
    command += ["-o", run.ops] if run.ops else []
    ended = watch(command, log, run.seconds, env=run.environment())
    return {**read_backend_ops(log.read_text()), "the program as a whole": ended}


def run_bindings(build: Build, run: Run) -> Results:
    """Each test in a process of its own, so that none takes others along when it crashes or hangs."""
    env = run.environment() | build.bindings
    check_bindings(build, env)
    # not `python -m pytest`, which would import the bindings from the folder that the tests' paths are relative to
    pytest = [SCRIPTS / "pytest", "-p", "no:cacheprovider", "--quiet", "--disable-warnings"]
    listed = subprocess.run([*pytest, "--collect-only"], cwd=SOURCE, env=env, capture_output=True, text=True)
    tests = [line for line in listed.stdout.splitlines() if "::" in line]
    if listed.returncode or not tests:
        sys.exit(f"pytest finds no tests of the bindings for the {build.name} build:\n{listed.stdout}{listed.stderr}")
    results = {}
    for number, test in enumerate(tests):
        junit, log = (build.scratch / f"bindings-{number}.{kind}" for kind in ("xml", "log"))
        junit.unlink(missing_ok=True)
        ended = watch([*pytest, test, "--junitxml", junit], log, run.seconds, cwd=SOURCE, env=env)
        results[test] = of_one_test(junit, ended)
    return results


def of_one_test(junit: Path, ended: Outcome) -> Outcome:
    """What the JUnit file says of its only test, unless it is missing or the program failed all the same."""
    outcome = next(iter(read_junit(junit.read_text()).values())) if junit.exists() else ended
    return ended if outcome.status == PASSED else outcome


def fill_hub(run: Run, generator: Path) -> None:
    """Put stand-ins where Hugging Face's client looks for what it has fetched, the same ones for both builds."""
    run.hub.mkdir(parents=True, exist_ok=True)
    for arch, (repository, name) in RANDOM_MODELS.items():
        command = [generator, "-a", f"^{arch}$", "-s", "1", "-o", run.hub]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        (run.hub / f"{arch}-dense.gguf").replace(in_hub(run.hub, repository, name))
    if run.model:
        put(run.model, in_hub(run.hub, REPOSITORY, FETCHED_MODEL))


def put(model: Path, target: Path) -> None:
    """A copy, since a test that fetches would write through a link into the model."""
    target.parent.mkdir(parents=True, exist_ok=True)
    copy_file(model, target)


def in_hub(home: Path, repository: str, name: str) -> Path:
    """Where Hugging Face's client finds the file ``name`` without a network."""
    folder = home / "hub" / f"models--{repository.replace('/', '--')}"
    path = folder / "snapshots" / REVISION / name
    for parent in (path.parent, folder / "refs"):
        parent.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(REVISION)
    return path


def check_bindings(build: Build, env: dict[str, str]) -> None:
    """Make sure that Python imports the bindings of this build and not the other's."""
    command = [sys.executable, "-c", "import llama_cpp; print(llama_cpp.__version__)"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    version = done.stdout.strip()
    if done.returncode or ("+kvtuner" in version) != (build.name == "patched"):
        sys.exit(f"the bindings for the {build.name} build are {version!r}, those of another one: run make build")


SUITES = {"ctest": run_ctest, "backend-ops": run_backend_ops, "bindings": run_bindings}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("cpu", "cuda", "metal", "vulkan"), default="cpu")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="parallel jobs")
    parser.add_argument("--suite", choices=SUITES, action="append", help="run only this one; may be repeated")
    parser.add_argument("--ops", help="run only these operators of backend-ops: ADD,MUL_MAT.*")
    model = MODELS["smollm2-135m"].path
    parser.add_argument("--model", type=Path, default=model if model.exists() else None, help=f"default: {model}")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for a test (default: %(default)s)")
    parser.add_argument("--json", type=output_file, help="write the results to this file, too")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that what runs is ended, too
    unpatched, _ = builds = both_builds(args.backend)
    compile_both(*builds, args.jobs, ["tests"])
    run = Run(args.backend, args.model, unpatched.scratch / "hub", args.timeout, args.jobs, args.ops)
    if run.model is None:
        print("no model: tests that need one do not run; `kvtuner-gguf fetch-model smollm2-135m` fetches one")
    for build in builds:
        build.scratch.mkdir(exist_ok=True)
    fill_hub(run, unpatched.programs / "test-llama-archs")
    rows: list[Row] = []
    for suite in args.suite or SUITES:
        rows += compare(suite, *(SUITES[suite](build, run) for build in builds))
    print(table(rows))
    if args.json:
        write_json(args.json, rows)
    sys.exit(1 if regressions(rows) else 0)


if __name__ == "__main__":
    main()
