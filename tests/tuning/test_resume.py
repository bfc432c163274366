"""A tuning of a tiny model: met budgets, and what becomes of one that is killed and continued."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

pytest.importorskip("torch")

import kvtuner_gguf
from kvtuner_gguf.cli import main
from kvtuner_gguf.engine.opening import chosen_engine
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.plan.contextsize import ContextSize
from kvtuner_gguf.plan.ends import ENDS_CTX, Ends
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.report.numbers import with_error
from kvtuner_gguf.tuning.journal import Journal

N_LAYER = 3
TYPES = "q8_0,q4_0,q2_nl"


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


class Tuning:
    """`tune` on a tiny model and a text of random words, with folders of its own."""

    def __init__(self, folder: Path, tiny, architecture: str = "llama") -> None:
        self.folder = folder
        self.model = tiny(folder / "m.gguf", architecture, n_layer=N_LAYER)
        self.text = folder / "text.txt"
        self.text.write_text(" ".join(f"word{i * i % 977}" for i in range(4000)))

    def run(self, name: str, *args: str) -> Result:
        options = ["--text", str(self.text), "--tokens", "64", "--ctx", "32", "--candidates", TYPES, "--points", "5"]
        options += ["--ends", "none"]
        command = ["tune", str(self.model), "-o", str(self.folder / name), *options, "--no-native", *args]
        return CliRunner().invoke(main, command)

    def plan(self, name: str, *args: str) -> bytes:
        result = self.run(name, *args)
        assert result.exit_code == 0, result.output
        return (self.folder / name).read_bytes()


@pytest.fixture
def tuning(tmp_path: Path, tiny) -> Tuning:
    return Tuning(tmp_path, tiny)


def test_the_papers_method_meets_a_budget_that_chance_does_not(tuning: Tuning) -> None:
    """All layers in q2_nl, with a table of centers of 16 bits for 256 values of K."""
    tuning.plan("small.json", "--bits", "2.28125", "--method", "paper", "--trials", "3")
    plan = Plan.load(tuning.folder / "small.json")
    assert plan.bits_per_value() == 2.25
    assert plan.bits_with_ends(plan.model, ENDS_CTX) == 2.28125
    refused = tuning.run("smaller.json", "--bits", "2.28", "--method", "paper", "--trials", "3")
    assert refused.exit_code == 2
    assert "less than the 2.28125 to 8.53125 bits per value of the candidates with turned centers" in refused.output


@pytest.mark.parametrize(
    "goal",
    [
        ("--bits", "4"),
        ("--bits", "4", "--prices", "kld"),
        ("--bits", "4", "--ends", "2+4"),
        ("--bits", "4", "--trials", "2", "--evolve", "20"),
        ("--max-kld", "0.05"),
        ("--bits", "5", "--method", "paper", "--trials", "12"),
        ("--bits", "5", "--method", "paper", "--trials", "12", "--objective", "perplexity"),
    ],
    ids=["bits", "kld", "ends", "evolve", "max-kld", "paper", "perplexity"],
)
def test_killed_anywhere_it_goes_on_to_the_same_plan(
    goal: tuple[str, ...], tuning: Tuning, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, append = tuning.plan("whole.json", *goal), Journal._append
    lives, kills = 3, 0

    def die_at_the_third(self: Journal, line: list) -> None:
        nonlocal lives
        lives -= 1
        if lives == 0:
            raise Killed
        append(self, line)

    monkeypatch.setattr(Journal, "_append", die_at_the_third)
    killed = None
    while killed is None:
        lives = 3
        try:
            killed = tuning.plan("killed.json", *goal)
        except Killed:
            kills += 1
    assert kills > 2
    assert killed == whole


def test_rows_that_an_earlier_version_has_left_are_judged_anew(tuning: Tuning) -> None:
    before = json.loads(tuning.run("a.json", "--bits", "4", "--json").stdout)
    journal = tuning.folder / "a.tune" / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    (held_out,) = (value for key, value in lines if key.startswith("held-out"))
    for row in held_out["rows"]:
        del row["kind"]
    journal.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    after = json.loads(tuning.run("a.json", "--bits", "4", "--json").stdout)
    assert {row["kind"] for row in before["rivals"]} >= {"uniform"}
    assert (after["held_out"], after["rivals"]) == (before["held_out"], before["rivals"])


def test_an_engine_that_memory_has_chosen_is_kept(tuning: Tuning, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tuning.plan("a.json", "--bits", "4")
    monkeypatch.setattr("kvtuner_gguf.engine.opening.available_memory", lambda: 1 << 10)
    assert chosen_engine(read_model(tuning.model)) == "llama"
    assert tuning.plan("a.json", "--bits", "4") == first
    again = kvtuner_gguf.tune(
        tuning.model,
        4,
        candidates=TYPES.split(","),
        text=tuning.text,
        tokens=64,
        ctx=32,
        ends="none",
        work=tuning.folder / "a.tune",
    )
    assert again.pairs == Plan.load(tuning.folder / "a.json").pairs
    refused = tuning.run("a.json", "--bits", "4", "--engine", "llama")
    assert refused.exit_code == 1


@pytest.mark.parametrize("prices", ["fisher", "kld"])
def test_the_report_says_how_sure_it_is(prices: str, tuning: Tuning) -> None:
    command = ("a.json", "--bits", "4", "--prices", prices)
    said = tuning.run(*command).output
    loss, error = (Plan.load(tuning.folder / "a.json").provenance[name] for name in ("loss_tuning", "loss_tuning_se"))
    assert f"KLD {with_error(loss, error)} on the tuning text, noise floor 0\n" in said
    data = json.loads(tuning.run(*command, "--json").stdout)
    assert (data["loss_tuning"], data["loss_tuning_se"], data["noise_floor"]) == (loss, error, 0)
    assert 0 < data["held_out"][0]["kld_se"] < data["held_out"][0]["kld_mean"]


def test_another_goal_measures_nothing_twice(tuning: Tuning, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning.plan("a.json", "--bits", "6", "--work", str(tuning.folder / "work"))
    before = (tuning.folder / "work" / "journal.jsonl").read_text().splitlines()
    tuning.plan("b.json", "--bits", "4", "--work", str(tuning.folder / "work"))
    after = (tuning.folder / "work" / "journal.jsonl").read_text().splitlines()
    assert after[: len(before)] == before
    assert len(set(after)) == len(after)
    bits = [Plan.load(tuning.folder / name).bits_per_value() for name in ("a.json", "b.json")]
    assert 4 < bits[0] <= 6
    assert bits[1] <= 4


def test_another_text_in_the_same_folder_is_refused(tuning: Tuning) -> None:
    tuning.plan("a.json")
    tuning.text.write_text("other " + tuning.text.read_text())
    refused = tuning.run("a.json")
    assert refused.exit_code == 1
    assert "holds a tuning with --text" in refused.output
    assert "--fresh" in refused.output
    tuning.plan("a.json", "--fresh")


def test_texts_have_weights(tuning: Tuning) -> None:
    tuning.plan("a.json", "--text", f"{tuning.text}=2", "--tokens", "128")
    assert Plan.load(tuning.folder / "a.json").provenance["text"] == "1 text.txt + 2 text.txt"
    refused = tuning.run("b.json", "--text", f"{tuning.text}=-2", "--tokens", "128")
    assert "weight -2.0" in refused.output


def test_memory_is_a_budget(tuning: Tuning) -> None:
    n_values = N_LAYER * 2 * 2 * 64
    mib = 4.0 * n_values / 8 * 1000 / 2**20
    tuning.plan("a.json", "--mib", f"{mib}", "--for-ctx", "1000")
    assert Plan.load(tuning.folder / "a.json").bits_per_value() <= 4


def test_the_stages_one_by_one_give_what_tune_gives(tuning: Tuning) -> None:
    options = ["--text", str(tuning.text), "--tokens", "64", "--ctx", "32", "--candidates", TYPES, "--ends", "2+4"]
    names = [str(tuning.folder / f"{name}.json") for name in ("profile", "candidates", "groups", "plan", "front")]
    profile, candidates, groups, plan, front = names
    model, study = str(tuning.model), str(tuning.folder / "study.log")
    small = ["--bits", "4", "--points", "5", "--prices", "kld"]
    for command in (
        ["profile", model, "-o", profile, *options],
        ["prune", profile, "-o", candidates],
        ["search", model, profile, candidates, "-o", plan, "--front", front, *small, *options],
    ):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
    tuning.plan("tuned.json", *small, "--ends", "2+4")
    assert Plan.load(Path(plan)).pairs == Plan.load(tuning.folder / "tuned.json").pairs
    for command in (
        ["prune", profile, "-o", candidates, "--rule", "paper"],
        ["cluster", profile, candidates, "-o", groups],
        ["search", model, profile, groups, "-o", plan, "--bits", "4", "--trials", "10", "--storage", study, *options],
    ):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
    assert Plan.load(Path(plan)).bits_per_value() <= 4
    assert "payload" in result.output


def test_a_search_measures_what_tune_measures(tmp_path: Path, tiny) -> None:
    tuning = Tuning(tmp_path, tiny, "qwen2")  # whose biases make centers matter
    text = ["--text", str(tuning.text), "--tokens", "64", "--ctx", "32", "--ends", "none"]
    profile, candidates, model = str(tmp_path / "profile.json"), str(tmp_path / "candidates.json"), str(tuning.model)
    search = ["search", model, profile, candidates, "-o", str(tmp_path / "plan.json"), "--bits", "4", "--points", "5"]
    search += ["--prices", "kld"]
    for command in (
        ["profile", model, "-o", profile, *text, "--candidates", TYPES],
        ["prune", profile, "-o", candidates],
        [*search, *text, "--work", str(tmp_path / "search")],
    ):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
    tuning.plan("tuned.json", "--bits", "4", "--prices", "kld", "--work", str(tmp_path / "tune"))
    searched, tuned = ((tmp_path / name / "journal.jsonl").read_text() for name in ("search", "tune"))
    assert searched == tuned
    refused = CliRunner().invoke(main, [*search, *text, "--ctx", "16"])
    assert "profile.json: --ctx is 32, not 16: give the text" in refused.output


def test_a_tuning_that_fails_before_it_measures_leaves_its_remedy_open(tuning: Tuning) -> None:
    failed = tuning.run("a.json", "--tokens", "16384", "--ctx", "16384")
    assert failed.exit_code == 1
    assert "too short" in failed.output
    assert "less --tokens or --ctx" in failed.output
    tuning.plan("a.json")
    other = tuning.run("a.json", "--no-center")
    assert "holds a tuning with --center on, not off: begin anew with --fresh" in other.output


def test_ends_count_in_the_budget_and_part_tunings(tuning: Tuning) -> None:
    tuning.plan("a.json", "--bits", "4", "--ends", "2+4", "--for-ctx", "256")
    plan = Plan.load(tuning.folder / "a.json")
    assert plan.ends == Ends(2, 4, "q8_0")
    assert plan.bits_per_value() < plan.bits_with_ends(plan.model, 256) <= 4
    assert plan.provenance["for_ctx"] == 256
    assert plan.provenance["bits_with_ends"] == plan.bits_with_ends(plan.model, 256)
    assert plan.provenance["prices"] == "fisher"
    other = tuning.run("a.json", "--ends", "2+5")
    assert "holds a tuning with --ends 2+4:q8_0, not 2+5:q8_0: begin anew with --fresh" in other.output


def test_memory_as_allocated_is_a_budget_with_ends(tuning: Tuning) -> None:
    sizes = []
    for mib in (0.7, 0.9, 1.1):  # 0.4 of them are the rows of a ubatch
        tuning.plan("a.json", "--mib", str(mib), "--for-ctx", "1000", "--ends", "2+4", "--trials", "0")
        plan = Plan.load(tuning.folder / "a.json")
        sizes.append(plan.n_bytes(plan.model, ContextSize(1000)) / 2**20)
        assert mib - 0.1 < sizes[-1] <= mib
    assert sizes == sorted(set(sizes))


def test_a_text_within_the_ends_is_refused(tuning: Tuning) -> None:
    refused = tuning.run("a.json", "--ends", "4+128")
    assert refused.exit_code == 2
    assert "--ctx 32 is no more than the 132 positions of the exact ends 4+128:q8_0" in refused.output


PAPER = ("--bits", "5", "--method", "paper", "--trials", "12")


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_who_joins_a_search_has_its_plan(kind: str, tuning: Tuning) -> None:
    path = tuning.folder / "study"
    storage = ("--storage", str(path) if kind == "journal" else f"sqlite:///{path}?timeout=60")
    first, second = (tuning.plan(name, *PAPER, *storage) for name in ("first.json", "second.json"))
    assert first == second
    assert "study" not in first.decode()
    works = [tuning.folder / f"{name}.{socket.gethostname()}.tune" for name in ("first", "second", "third")]
    assert (works[0] / "front.json").read_bytes() == (works[1] / "front.json").read_bytes()
    held_out, *measured = (works[1] / "journal.jsonl").read_text().splitlines()
    assert held_out.startswith('["held-out')
    assert all(line.startswith('["tuning') for line in measured)
    n_uniform = len(json.loads((works[1] / "front.json").read_text())["uniform"])
    assert len(measured) == n_uniform + 1, "beside uniform pairs its plan alone, for the standard error"
    refused = tuning.run("third.json", *PAPER, *storage, "--bits", "4")
    assert "holds a tuning with goal 5 bits per value, not 4 bits per value: choose another --storage" in refused.output
    assert not works[2].exists()


def test_a_storage_of_no_use_is_told_before_anything_is_measured(tuning: Tuning) -> None:
    refused = tuning.run("a.json", *PAPER, "--storage", str(tuning.folder / "none" / "study.log"))
    assert f"cannot write {tuning.folder}/none/study.log: there is no folder" in refused.output
    assert not list(tuning.folder.glob("a.*"))
    refused = tuning.run("a.json", "--bits", "5", "--storage", str(tuning.folder / "study.log"))
    assert "--storage shares the search of --method paper" in refused.output
