"""HumanEval of caches, with a stand-in server for two problems of our own, and once with the small model."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import humaneval
import pytest
from humaneval_answers import SCHEMA, AnswerFile
from humaneval_report import Difference, Row, differences, print_table, rows_to_json
from humaneval_server import Cache
from humaneval_tasks import CHAT_PROMPT, PROBLEMS, STOPS, Answer, Chat, Raw, Task, fetch_tasks
from sandbox import CRASHED, FAILED, PASSED, TIMEOUT, Outcome, judge

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.gguffile.shards import read_model
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan

HEAD = "import math\n\n\ndef half(x):\n    return x / 2\n\n\n"
PROMPT = HEAD + 'def root_of_half(x):\n    """The square root of half of x."""\n'
BODY = "    return math.sqrt(half(x))\n"
TASK = Task("Own/0", PROMPT, "root_of_half", "def check(candidate):\n    assert candidate(8) == 2\n")
OTHER = Task("Own/1", 'def one():\n    """1"""\n', "one", "def check(candidate):\n    assert candidate() == 1\n")
WHOLE = f"def root_of_half(x):\n{BODY}"

# Has the cache that it is asked for, and answers the second problem only over f16.
STAND_IN = """#!{python}
import http.server, json, sys
sys.path[:0] = {path!r}
from pathlib import Path
from kvtuner_gguf.plan.plan import Plan
args = sys.argv[1:]
if args == ["--version"]:
    sys.exit("version: 7 (stand-in)")
options = dict(zip(args[::2], args[1::2]))
plan = Plan.load(Path(options["--kv-config"])) if "--kv-config" in options else None
pairs = [str(pair).split("/") for pair in plan.pairs] if plan else [[options.get("--lie", options["-ctk"])] * 2] * 4
cache = {{"fingerprint": plan and plan.fingerprint, "layers": [{{"k": k, "v": v}} for k, v in pairs]}}
class Handler(http.server.BaseHTTPRequestHandler):
    def reply(self, data, code=200):
        self.send_response(code); self.end_headers(); self.wfile.write(json.dumps(data).encode())
    def log_message(self, *args): pass
    def do_GET(self):
        self.reply({{"status": "ok", "kv_cache": cache}})
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with open({asked!r}, "a") as file:
            file.write(json.dumps(body) + "\\n")
        if Path({asked!r} + ".fail").exists():
            return self.reply({{"error": {{"message": "no more"}}}}, 500)
        if "root_of_half" in json.dumps(body):
            body_text = {body!r}
        else:
            body_text = "    return 1\\n" if plan is None else "    return 2\\n"
        if self.path == "/completion":
            return self.reply({{"content": body_text, "tokens_predicted": 9, "stop_type": "word"}})
        name = "root_of_half(x)" if "root_of_half" in json.dumps(body) else "one()"
        text = "Sure.\\n```python\\ndef " + name + ":\\n" + body_text + "```\\nDone."
        choice = {{"message": {{"content": text}}, "finish_reason": "stop"}}
        self.reply({{"choices": [choice], "usage": {{"completion_tokens": 9}}}})
with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
    print("0.01.000 I srv: listening on http://127.0.0.1:%d" % httpd.server_port, flush=True)
    httpd.serve_forever()
"""


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    return tmp_path / "asked"


@pytest.fixture
def command(tmp_path: Path, asked: Path, model: Path, monkeypatch: pytest.MonkeyPatch):
    """Run the tool on both problems with the stand-in; returns the JSON that it writes."""
    program = tmp_path / "llama-server"
    program.write_text(STAND_IN.format(python=sys.executable, path=sys.path, asked=str(asked), body=BODY))
    program.chmod(0o755)
    monkeypatch.setattr(humaneval, "fetch_tasks", lambda: [TASK, OTHER])

    def run(*arguments: str) -> list[dict]:
        fixed = ["--server", str(program), "--out", str(tmp_path / "out"), "--json", str(tmp_path / "rows.json")]
        humaneval.main([str(model), *fixed, *arguments])
        return json.loads((tmp_path / "rows.json").read_text())

    return run


def n_asked(asked: Path) -> int:
    return len(asked.read_text().splitlines())


@pytest.mark.parametrize(
    "answer",
    [
        f"```python\n{WHOLE}```",
        f"Here it is:\n\n  ```py\n{WHOLE}\n  ```\nIt works.\n```\nroot_of_half = None\n```",
        f"```\n{WHOLE}",
        WHOLE,
        f"```python\nimport math\n\n{PROMPT}{BODY}\n```",
    ],
)
def test_the_first_code_block_is_the_function(answer: str) -> None:
    program = Chat().program(TASK, answer)
    assert program.startswith(HEAD)
    assert judge(program, TASK.test, TASK.entry_point) == Outcome(PASSED)


def test_a_block_without_the_function_fails() -> None:
    assert judge(Chat().program(TASK, f"```python\n{BODY}```"), TASK.test, TASK.entry_point).status == FAILED
    assert judge(Chat().program(TASK, "I cannot."), TASK.test, TASK.entry_point).status == FAILED


def test_a_completion_goes_on_from_the_prompt() -> None:
    assert judge(Raw().program(TASK, BODY), TASK.test, TASK.entry_point) == Outcome(PASSED)


def test_requests_and_answers_of_both_modes() -> None:
    chat = Chat().request(TASK, 7)
    (message,) = chat["messages"]
    assert message == {"role": "user", "content": CHAT_PROMPT.format(prompt=PROMPT)}
    assert f"```python\n{PROMPT}```\n" in message["content"]
    assert chat["max_tokens"] == 7
    assert Raw().request(TASK, 7) == {"prompt": PROMPT, "n_predict": 7, "stop": list(STOPS)}
    response = {
        "choices": [{"message": {"content": "a"}, "finish_reason": "length"}],
        "usage": {"completion_tokens": 7},
    }
    assert Chat().answer(response) == Answer("a", 7, True)
    assert Raw().answer({"content": "a", "tokens_predicted": 7, "stop_type": "eos"}) == Answer("a", 7, False)


def test_answers_are_kept_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.jsonl"
    first, second = Answer("ä\n", 2, False), Answer("b", 3, True)
    AnswerFile(path, {"n": 1}).add(TASK, first)
    with path.open("ab") as file:
        file.write(b'{"task": "Own/1", "te')
    again = AnswerFile(path, {"n": 1})
    assert again.answers == {"Own/0": first}
    again.add(OTHER, second)
    assert AnswerFile(path, {"n": 1}).answers == {"Own/0": first, "Own/1": second}
    assert json.loads(path.read_text().splitlines()[0]) == {"schema": SCHEMA, "n": 1}


def test_a_torn_first_line_is_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"schema"')
    assert AnswerFile(path, {"n": 1}).answers == {}
    assert AnswerFile(path, {"n": 1}).answers == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"schema": "kvtuner.humaneval/1", "n": 2, "m": 0}\n', r"of another run \(n: 2, now 1; m: 0, now None\)"),
        ("[]\n", "first line has no settings"),
        ("def f():\n", "holds no answers"),
    ],
)
def test_another_run_is_refused_and_kept(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(KvtunerError, match=words):
        AnswerFile(path, {"n": 1})
    assert path.read_text() == text


def test_what_was_gained_and_lost() -> None:
    answers = {name: Answer(name, 1, name == "c") for name in "abcd"}
    ends = (PASSED, FAILED, TIMEOUT, CRASHED)
    base = Row("f16/f16", 16.0, answers, {name: Outcome(end) for name, end in zip("abcd", ends, strict=True)})
    changed = answers | {"a": Answer("other", 1, False)}
    row = Row("q4_0/q4_0", 4.5, changed, {name: Outcome(PASSED if name in "bc" else FAILED) for name in "abcd"})
    assert differences([row, base]) == [Difference(3, ("b", "c"), ("a",)), None]
    assert differences([row]) == [None]
    first, second = rows_to_json([base, row])
    assert [first[name] for name in ("tasks", *ends, "cut")] == [4, 1, 1, 1, 1, 1]
    assert second["pass_at_1"] == 0.5
    assert second["against_f16"] == {"n_same": 3, "gained": ("b", "c"), "lost": ("a",)}
    assert second["outcomes"]["a"] == {"status": FAILED, "reason": ""}


def test_the_table_has_all_columns_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    row = Row("f16/f16", 16.0, {"a": Answer("a", 1, False)}, {"a": Outcome(PASSED)})
    print_table([row, Row("plan", 5.0, row.answers, {"a": Outcome(FAILED)})], "title")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "title"
    assert [cell.strip() for cell in lines[4].strip("│ ").split("│")][:4] == ["f16/f16", "16.00", "1", "100.0"]
    assert lines[-1] == "plan lost: a"
    assert all("…" not in line for line in lines)


def test_caches_by_name_and_file(model: Path, tmp_path: Path) -> None:
    headers = read_model(model)
    Plan.uniform(Pair.parse("q8_0/q4_0"), 4).save(tmp_path / "mine.json")
    f16, pair, plan = humaneval.parse_caches(["f16", "q8_0/q4_0", str(tmp_path / "mine.json")], headers)
    assert f16 == Cache("f16/f16", None)
    assert (pair.name, plan.name) == ("q8_0/q4_0", "mine")
    assert pair.fingerprint == plan.fingerprint == Plan.uniform(Pair.parse("q8_0/q4_0"), 4).fingerprint
    with pytest.raises(KvtunerError, match="two caches are called q4_0/q4_0"):
        humaneval.parse_caches(["q4_0", "q4_0/q4_0"], headers)
    with pytest.raises(KvtunerError, match="unknown cache type 'q9'"):
        humaneval.parse_caches(["q9"], headers)


@pytest.mark.parametrize("mode", [[], ["--raw"]])
def test_several_caches_from_start_to_end(command, mode: list[str]) -> None:
    f16, q4_0 = command("--cache", "f16", "--cache", "q4_0", "--parallel", "2", *mode)
    assert (f16["passed"], f16["bits_per_value"], f16["against_f16"]) == (2, 16.0, None)
    assert (q4_0["passed"], q4_0["bits_per_value"]) == (1, 4.5)
    assert q4_0["against_f16"] == {"n_same": 1, "gained": [], "lost": ["Own/1"]}


def test_an_interrupted_run_goes_on(command, asked: Path) -> None:
    command("--cache", "f16", "--tasks", "1")
    assert n_asked(asked) == 1
    assert json.loads(asked.read_text())["temperature"] == 0
    fail = asked.with_suffix(".fail")
    fail.touch()
    with pytest.raises(SystemExit, match=r"error: Own/1: llama-server refuses /v1/chat/completions \(500\): no more"):
        command("--cache", "f16")
    fail.unlink()
    (row,) = command("--cache", "f16")
    assert row["passed"] == 2
    assert n_asked(asked) == 3
    command("--cache", "f16", "--threads", "1")
    assert n_asked(asked) == 3


def test_other_settings_and_another_plan_are_refused(command, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    Plan.uniform(Pair.parse("q8_0"), 4).save(plan)
    command("--cache", str(plan), "--tasks", "1")
    with pytest.raises(SystemExit, match="n_predict: 512, now 256"):
        command("--cache", str(plan), "--n-predict", "256")
    Plan.uniform(Pair.parse("q4_0"), 4).save(plan)
    with pytest.raises(SystemExit, match=r"\(plan: '\w{16}', now '\w{16}'\)"):
        command("--cache", str(plan))


def test_a_server_with_another_cache_is_refused(command) -> None:
    with pytest.raises(SystemExit, match="f16/f16: the server runs the plan None of q8_0, not f16 without one"):
        command("--cache", "f16", "--server-options=--lie q8_0")


@pytest.mark.model
def test_the_problems_own_solutions_pass_both_ways() -> None:
    tasks = fetch_tasks()
    assert [task.id for task in tasks] == [f"HumanEval/{i}" for i in range(164)]
    lines = gzip.decompress(PROBLEMS.path.read_bytes()).decode().splitlines()
    bodies = [json.loads(line)["canonical_solution"] for line in lines]
    programs = [Raw().program(task, body) for task, body in zip(tasks, bodies, strict=True)]
    for task, body, program in zip(tasks, bodies, programs, strict=True):
        function = task.prompt.removeprefix(task.preamble) + body
        assert Chat().program(task, f"```python\n{function}\n```").strip() == program.strip()
        assert judge(program, task.test, task.entry_point) == Outcome(PASSED), task.id


@pytest.mark.native
@pytest.mark.model
def test_two_tasks_with_the_small_model(tmp_path: Path) -> None:
    from kvtuner_gguf.files.assets import fetch_model

    arguments = ["--cache", "f16", "--cache", "q8_0", "--tasks", "2", "--n-predict", "48", "--parallel", "2"]
    arguments += ["--out", str(tmp_path), "--json", str(tmp_path / "rows.json")]
    humaneval.main([str(fetch_model("smollm2-135m")), *arguments])
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["cache"] for row in rows] == ["f16/f16", "q8_0/q8_0"]
    assert all(set(row["outcomes"]) == {"HumanEval/0", "HumanEval/1"} for row in rows)
    lines = [json.loads(line) for line in next(tmp_path.glob("*.chat.f16-f16.jsonl")).read_text().splitlines()]
    assert lines[0]["n_predict"] == 48
    assert {line["task"] for line in lines[1:]} == {"HumanEval/0", "HumanEval/1"}
    assert all("def " in line["text"] and 0 < line["n_tokens"] <= 48 for line in lines[1:])
