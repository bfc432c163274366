"""What runs upstream's tests: hanging programs, the options of both builds, the model that stands in."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import upstream_tests
from both_builds import Build, both_builds, options
from build_folders import stock_folder
from side_by_side import FAILED, PASSED, SKIPPED, TIMEOUT, Outcome
from upstream_tests import FETCHED_MODEL, RANDOM_MODELS, REPOSITORY, Run, fill_hub, of_one_test, run_ctest, watch


def python(code: str) -> list[str]:
    return [sys.executable, "-u", "-c", code]


def test_a_program_passes_or_fails_by_its_exit_status(tmp_path: Path) -> None:
    log = tmp_path / "out.log"
    assert watch(python("print('seen')"), log, 60) == Outcome(PASSED)
    assert log.read_text() == "seen\n"
    assert watch(python("raise SystemExit(3)"), log, 60) == Outcome(FAILED, "exit status 3")
    assert watch(python("import os; os.abort()"), log, 60) == Outcome(FAILED, "exit status -6")


def test_a_program_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(mark)!r}).touch()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    begin = time.monotonic()
    assert watch(python(code), tmp_path / "out.log", 0.5).status == TIMEOUT
    assert time.monotonic() - begin < 2.5
    time.sleep(3)
    assert not mark.exists()


def test_a_program_ends_with_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "mark"
    code = f"import time, pathlib; print('up'); time.sleep(3); pathlib.Path({str(mark)!r}).touch()"

    def interrupted(process: object, log: Path, seconds: float) -> None:
        while not log.stat().st_size:
            time.sleep(0.05)
        raise KeyboardInterrupt

    monkeypatch.setattr(upstream_tests, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        watch(python(code), tmp_path / "out.log", 60)
    time.sleep(3)
    assert not mark.exists()


def test_a_program_that_goes_on_writing_is_left_alone(tmp_path: Path) -> None:
    code = "import time\nfor i in range(8):\n print(i)\n time.sleep(0.5)"
    assert watch(python(code), tmp_path / "out.log", 3) == Outcome(PASSED)


def test_the_unpatched_build_takes_the_choices_of_the_patched_one() -> None:
    cache = (
        "CMAKE_BUILD_TYPE:STRING=Release\nGGML_NATIVE:BOOL=ON\nLLAMA_BUILD_APP:BOOL=OFF\nGGML_CCACHE:BOOL=OFF\n"
        "LLAMA_LIB_INSTALL_DIR:PATH=lib\nGGML_X-ADVANCED:INTERNAL=1\nCMAKE_CXX_FLAGS:STRING=\n"
        "CMAKE_CUDA_ARCHITECTURES:UNINITIALIZED=90a\nCMAKE_CUDA_COMPILER:FILEPATH=/opt/nvcc\nCMAKE_CUDA_HOST:STRING=x\n"
    )
    common = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_BUILD_APP=OFF"]
    assert options(cache) == [*common, "-DCMAKE_CUDA_ARCHITECTURES=90a", "-DCMAKE_CUDA_COMPILER=/opt/nvcc"]


def test_the_unpatched_build_leaves_the_one_of_make_stock_alone() -> None:
    unpatched, patched = both_builds("cpu")
    assert len({unpatched.folder, patched.folder, stock_folder()}) == 3
    assert unpatched.bindings["LLAMA_CPP_LIB_PATH"] == str(unpatched.programs)
    assert not patched.bindings


def test_the_hub_of_the_bindings_holds_a_model_for_each(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="installed by make test-upstream")
    model = tmp_path / "model.gguf"
    model.write_bytes(b"at hand")
    generator = tmp_path / "generator"
    generator.write_text("#!/bin/sh\necho $2 $4 > $6/$(echo $2 | tr -d ^$)-dense.gguf\n")
    generator.chmod(0o755)
    run = Run("cpu", model, tmp_path / "home", 1)
    for _ in range(2):
        fill_hub(run, generator)
    files = [*RANDOM_MODELS.values(), (REPOSITORY, FETCHED_MODEL)]
    found = [hub.try_to_load_from_cache(*file, cache_dir=tmp_path / "home" / "hub") for file in files]
    assert [Path(path).read_text() for path in found] == ["^mamba$ 1\n", "^falcon-h1$ 1\n", "at hand"]


CTEST = """
add_test(test-download-model "/bin/false")
set_tests_properties(test-download-model PROPERTIES FIXTURES_SETUP test-download-model)
add_test(needs-model "/bin/grep" "at hand" "{folder}/tinyllamas/stories15M-q4_0.gguf")
set_tests_properties(needs-model PROPERTIES FIXTURES_REQUIRED test-download-model)
add_test(hangs "/bin/sleep" "30")
add_test(fails "/bin/false")
"""


def test_ctest_runs_with_the_model_at_hand_and_ends_what_hangs(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"at hand")
    build = Build("patched", tmp_path / "build", tmp_path / "build" / "llama.cpp")
    for folder in (build.llama, build.scratch):
        folder.mkdir(parents=True)
    (build.llama / "CTestTestfile.cmake").write_text(CTEST.format(folder=build.folder))
    found = run_ctest(build, Run("cpu", model, tmp_path, 1))
    assert {name: outcome.status for name, outcome in found.items()} == {
        "needs-model": PASSED,
        "hangs": TIMEOUT,
        "fails": FAILED,
    }
    found = run_ctest(build, Run("cpu", None, tmp_path, 1))
    assert (found["test-download-model"].status, found["needs-model"].status) == (FAILED, SKIPPED)


@pytest.mark.parametrize(("patched", "status"), [(PASSED, 0), (FAILED, 1)])
def test_the_exit_status_says_whether_the_patched_build_is_worse(
    patched: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    builds = [Build(name, tmp_path / name, tmp_path / name) for name in ("unpatched", "patched")]
    for build in builds:
        build.folder.mkdir()
    results = {"unpatched": {"a": Outcome(PASSED)}, "patched": {"a": Outcome(patched)}}
    monkeypatch.setattr(upstream_tests, "both_builds", lambda backend: builds)
    monkeypatch.setattr(upstream_tests, "compile_both", lambda *args: None)
    monkeypatch.setattr(upstream_tests, "fill_hub", lambda *args: None)
    monkeypatch.setattr(upstream_tests, "SUITES", {"made-up": lambda build, run: results[build.name]})
    monkeypatch.setattr(sys, "argv", ["upstream_tests.py", "--json", str(tmp_path / "out.json")])
    with pytest.raises(SystemExit) as ended:
        upstream_tests.main()
    assert ended.value.code == status
    assert f"{status} of 1 tests pass on the unpatched build" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "out.json").read_text())["regressions"]) == status


def test_bindings_of_the_other_build_are_refused(tmp_path: Path) -> None:
    (tmp_path / "llama_cpp.py").write_text("__version__ = '0.3.36'\n")
    env = {"PYTHONPATH": str(tmp_path)}
    upstream_tests.check_bindings(Build("unpatched", tmp_path, tmp_path), env)
    with pytest.raises(SystemExit, match=r"patched build are '0.3.36', .*: run make build"):
        upstream_tests.check_bindings(Build("patched", tmp_path, tmp_path), env)


def test_only_a_model_at_hand_is_named_to_the_tests(tmp_path: Path) -> None:
    with_model = Run("cpu", tmp_path / "m.gguf", tmp_path, 1).environment()
    assert with_model["LLAMACPP_TEST_MODELFILE"] == str(tmp_path / "m.gguf")
    assert "LLAMACPP_TEST_MODELFILE" not in Run("cpu", None, tmp_path, 1).environment()


@pytest.mark.parametrize(
    ("child", "ended", "expected"),
    [
        ("", Outcome(PASSED), Outcome(PASSED)),
        ("<failure message='no'/>", Outcome(FAILED, "exit status 1"), Outcome(FAILED, "no")),
        ("<skipped message='later'/>", Outcome(PASSED), Outcome(SKIPPED, "later")),
        ("", Outcome(FAILED, "exit status -11"), Outcome(FAILED, "exit status -11")),
        (None, Outcome(FAILED, "exit status -6"), Outcome(FAILED, "exit status -6")),
        (None, Outcome(TIMEOUT, "silent"), Outcome(TIMEOUT, "silent")),
    ],
)
def test_a_crash_after_a_test_passed_is_seen(
    child: str | None, ended: Outcome, expected: Outcome, tmp_path: Path
) -> None:
    junit = tmp_path / "out.xml"
    if child is not None:
        junit.write_text(f"<testsuite><testcase name='a'>{child}</testcase></testsuite>")
    assert of_one_test(junit, ended) == expected
