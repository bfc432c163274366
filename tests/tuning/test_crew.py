"""Layers and plans that several processes measure, and what becomes of a tuning when one of them is killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("torch")

from click.testing import CliRunner

from kvtuner_gguf.cli import main
from kvtuner_gguf.engine import devices
from kvtuner_gguf.engine.devices import VISIBLE, Device, check_torch_has, chosen_devices
from kvtuner_gguf.engine.llama.weights import QUANTIZED
from kvtuner_gguf.engine.opening import Helper, engine_on_gpus, open_engines
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.gguffile.metadata import model_shape
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.plan.backends import chosen_backend
from kvtuner_gguf.tuning.crew import Crew
from kvtuner_gguf.tuning.goal import Goal
from kvtuner_gguf.tuning.settings import Settings
from kvtuner_gguf.tuning.texts import Texts
from kvtuner_gguf.tuning.tuner import Tuned, Tuner
from tests.made_up_engine import MadeUp
from tests.tiny import write_tiny

CPU = Device("cpu")


class Killed(MadeUp):
    """Its process is killed in the middle of the second plan."""

    plans = 0

    def logits(self, plan, tokens, rows, start=0):
        self.plans += 1
        if self.plans > 4:  # of two chunks, and first without quantization
            os.kill(os.getpid(), signal.SIGKILL)
        return super().logits(plan, tokens, rows, start)


class Other(MadeUp):
    def __init__(self) -> None:
        super().__init__()
        self.versions = {"made up": "2"}


class Broken(MadeUp):
    def capture(self, tokens, see) -> None:
        raise KvtunerError("no room for this model: take a smaller one")


class Endless(MadeUp):
    """Writes down its process, and measures for ever."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def capture(self, tokens, see) -> None:
        self.path.write_text(f"{os.getpid()}\n")
        time.sleep(600)


class Seeing(MadeUp):
    """Tells which GPU its process sees."""

    def capture(self, tokens, see) -> None:
        raise KvtunerError(f"sees {os.environ.get(VISIBLE)}")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(" ".join(f"word{i * i % 977}" for i in range(2000)))
    return path


def tune(text: Path, work: Path | None = None, *helpers: Helper) -> Tuned:
    settings = Settings(Goal(6), chosen_backend(None, ("q8_0", "q5_0", "q4_0")), n_tokens=64, n_ctx=32, trials=4)
    with Crew(helpers) as crew:
        return Tuner(MadeUp(), Texts((text,), (1.0,)), settings, work, crew=crew).run()


def journal(work: Path) -> list[str]:
    return (work / "journal.jsonl").read_text().splitlines()


def files(work: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in work.iterdir() if path.name != "journal.jsonl"}


def test_three_processes_find_what_one_finds(text: Path, tmp_path: Path) -> None:
    alone = tune(text, tmp_path / "alone")
    beside = tune(text, tmp_path / "beside", Helper(CPU, MadeUp), Helper(CPU, MadeUp))
    assert beside.plan == alone.plan
    assert files(tmp_path / "beside") == files(tmp_path / "alone")
    assert sorted(journal(tmp_path / "beside")) == sorted(journal(tmp_path / "alone"))
    assert sum(line.startswith('["noise floor"') for line in journal(tmp_path / "beside")) == 1
    assert not multiprocessing.active_children()


def test_one_that_is_killed_ends_the_tuning_which_then_goes_on(text: Path, tmp_path: Path) -> None:
    with pytest.raises(KvtunerError, match=r"the process on cpu was ended by signal 9 \(SIGKILL\), .* same command"):
        tune(text, tmp_path / "work", Helper(CPU, Killed))
    assert not multiprocessing.active_children()
    before = journal(tmp_path / "work")
    assert before
    assert tune(text, tmp_path / "work", Helper(CPU, MadeUp)).plan == tune(text).plan
    assert journal(tmp_path / "work")[: len(before)] == before


def test_what_is_known_starts_no_process(text: Path, tmp_path: Path) -> None:
    first = tune(text, tmp_path / "work", Helper(CPU, MadeUp))
    assert tune(text, tmp_path / "work", Helper(CPU, partial(pytest.fail, "opened"))).plan == first.plan


def test_means_without_standard_errors_are_measured_again(text: Path, tmp_path: Path) -> None:
    """As an earlier version wrote them."""
    first = tune(text, tmp_path / "work")
    path, whole = tmp_path / "work" / "journal.jsonl", journal(tmp_path / "work")
    entries = map(json.loads, whole)
    means = [[key, value["kld"] if key.startswith("tuning") else value] for key, value in entries]
    path.write_text("".join(f"{json.dumps(entry)}\n" for entry in means))
    assert tune(text, tmp_path / "work", Helper(CPU, MadeUp)).plan == first.plan
    again = journal(tmp_path / "work")[len(whole) :]
    assert sorted(again) == sorted(line for line in whole if line.startswith('["tuning'))


def tune_for_ever(text: Path, path: Path) -> None:
    tune(text, None, Helper(CPU, partial(Endless, path)))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux for a process")
def test_the_others_end_with_a_process_that_is_killed(text: Path, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    parent = multiprocessing.get_context("spawn").Process(target=tune_for_ever, args=(text, path))
    parent.start()
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
    parent.kill()
    parent.join()
    wait_until(lambda: not runs(int(path.read_text())))


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.1)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("helper", "words"),
    [
        (Helper(CPU, Broken), "the process on cpu: no room for this model: take a smaller one"),
        (Helper(CPU, Other), "the process on cpu: made up would be 2, not 1 as on the first device: free some memory"),
        (Helper(Device("cuda:1", "GPU-7"), Seeing), "the process on cuda:1: sees GPU-7"),
    ],
)
def test_what_another_process_cannot_is_told_with_its_device(helper: Helper, words: str, text: Path) -> None:
    with pytest.raises(KvtunerError) as caught:
        tune(text, None, helper)
    assert words in str(caught.value)


def run(*args: object) -> str:
    result = CliRunner().invoke(main, list(map(str, args)))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def given(text: Path, tiny, tmp_path: Path) -> list:
    """The model and the options of a command."""
    options = ["--text", text, "--tokens", 64, "--ctx", 32, "--candidates", "q8_0,q4_0,q2_nl", "--ends", "none"]
    return [tiny(tmp_path / "m.gguf", "llama", n_layer=3), *options]


@pytest.mark.parametrize(
    "options",
    [["--prices", "fisher"], ["--prices", "kld"], pytest.param(["--engine", "llama"], marks=pytest.mark.native)],
    ids=["fisher", "kld", "llama"],
)
def test_a_tuning_on_two_devices_gives_the_same_plan(options: list[str], given: list, tmp_path: Path) -> None:
    search = [*given, "--no-native", "--bits", 4, "--points", 5, *options]
    found = []
    for device in ("cpu", "cpu,cpu"):
        out = tmp_path / f"{device}.json"
        run("tune", "-o", out, "--device", device, *search)
        found.append((out.read_bytes(), files(out.with_suffix(".tune"))))
    assert found[0] == found[1]


@pytest.mark.native
def test_all_processes_keep_the_weights_of_a_tuning_that_goes_on(given: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvtuner_gguf.engine.llama.engine.weights_for", lambda headers, device, before: before)
    shape = model_shape(read_model(given[0]))
    engine, (helper,) = open_engines(given[0], shape, [CPU, CPU], 1, "llama", {"weights": QUANTIZED})
    for opened in (engine, pickle.loads(pickle.dumps(helper)).open()):
        assert opened.versions["weights"] == QUANTIZED


def test_a_profile_of_two_devices_is_the_same(given: list, tmp_path: Path) -> None:
    for device in ("cpu", "cpu,cpu"):
        run("profile", "-o", tmp_path / f"{device}.json", "--device", device, *given)
    assert (tmp_path / "cpu,cpu.json").read_bytes() == (tmp_path / "cpu.json").read_bytes()


@pytest.mark.parametrize(
    ("device", "n_gpus", "words"),
    [
        ("cuda:0,", None, "has an empty name"),
        ("", None, "has an empty name"),
        ("cuda:0,cuda:1,cuda:2", None, "--device names cuda:2, and there are 2 GPUs: name fewer"),
        ("cpu", 3, " names cuda:2, and there are 2 GPUs: name fewer"),
        ("abacus", None, "unknown device 'abacus': give cpu, cuda, or a GPU such as cuda:1"),
        ("cuda:1,cuda:1", None, "--device cuda:1,cuda:1: cuda:1 is named twice: a GPU has room for one process"),
        ("cuda,cuda:0", None, "cuda:0 is named twice"),
        ("cpu,cuda:0", None, "they do not measure alike: name devices of one kind"),
        ("cuda:0,cuda:x", None, "unknown device 'cuda:x': give cpu, cuda, or a GPU such as cuda:1"),
        ("cpu", 0, "--gpus is 0: give 1 or more, or leave it out for the CPU"),
        ("cpu", -1, "--gpus is -1: give 1 or more"),
        ("cuda:1", 2, "--gpus 2 and --device cuda:1 both name devices: give one of them"),
    ],
)
@pytest.mark.parametrize("engine", ["auto", "llama"])
def test_devices_of_no_use_are_refused(
    device: str, n_gpus: int | None, words: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_torch_without_cuda", lambda: None)
    for name in ("_n_torch", "_n_llama"):
        monkeypatch.setattr(devices, name, lambda: 2)
    with pytest.raises(KvtunerError) as caught:
        check_torch_has(chosen_devices(device, n_gpus, engine))
    assert words in str(caught.value)


def test_a_process_with_llama_cpp_sees_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_n_llama", lambda: 2)
    monkeypatch.setenv(VISIBLE, "")
    assert chosen_devices("cpu", 2, "llama") == [Device("cuda:0", "0"), Device("cuda:1", "1")]
    assert os.environ[VISIBLE] == "0"
    monkeypatch.setenv(VISIBLE, "4,GPU-7")
    assert chosen_devices("cuda:1,cuda:0", None, "llama") == [Device("cuda:1", "GPU-7"), Device("cuda:0", "4")]
    assert os.environ[VISIBLE] == "GPU-7"
    assert chosen_devices("cpu,cpu", None, "llama") == [CPU, CPU]


def test_torch_names_its_gpus_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_torch_without_cuda", lambda: None)
    monkeypatch.setenv(VISIBLE, "")
    assert chosen_devices("cpu", 2, "auto") == [Device("cuda:0"), Device("cuda:1")]
    assert os.environ[VISIBLE] == ""
    assert chosen_devices("cuda:1", None, "torch") == [Device("cuda:1")]


@pytest.mark.parametrize(("arch", "engine"), [("llama", "auto"), ("gemma3", "llama")])
def test_auto_on_gpus_is_llama_for_what_torch_does_not_have(arch: str, engine: str, tmp_path: Path) -> None:
    headers = read_model(write_tiny(tmp_path / "m.gguf", arch))
    assert engine_on_gpus(headers, "auto") == engine
    assert engine_on_gpus(headers, "torch") == "torch"


def test_llama_cpp_that_is_loaded_already_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(devices.sys.modules, "llama_cpp", devices)
    with pytest.raises(KvtunerError, match="loaded already, with the GPUs of before: tune in a process of its own"):
        chosen_devices("cpu", 2, "llama")
