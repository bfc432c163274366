"""Tasks with one right answer: how they are read, and when they are solved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.evaluation.tasks import final_answer, load_tasks


def write(path: Path, entries: list[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in entries))
    return path


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("3 and 4 make\n#### 7", "7"),
        ("#### 1,234", "1234"),
        ("#### -2.0", "-2"),
        ("so there are 12 of them, 3 more", "3"),
        ("#### red", "red"),
        ("nothing", None),
    ],
)
def test_the_final_answer_is_told_from_the_way_to_it(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


def test_the_last_lines_are_examples_for_the_first(tmp_path: Path) -> None:
    path = write(tmp_path / "tasks.jsonl", [(f"{n} and 1?", f"it is\n#### {n + 1}") for n in range(8)])
    tasks = load_tasks(path, n_tasks=2, n_shots=3)
    assert [task.answer for task in tasks] == ["1", "2"]
    assert tasks[0].prompt.startswith("Question: 5 and 1?\nAnswer: it is\n#### 6\n\nQuestion: 6 and 1?")
    assert tasks[0].prompt.endswith("\n\nQuestion: 0 and 1?\nAnswer:")
    assert tasks[0].is_solved_by(" 0 and 1\n#### 1\n\nQuestion: 5?\n#### 9")
    assert not tasks[0].is_solved_by(" #### 11")
    assert len(load_tasks(path, n_shots=3)) == 5


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"[]", "line 2: no JSON object"),
        (b"{", "line 2: no JSON object"),
        (b'{"question": "a"}', "line 2: no JSON object"),
        (b'{"question": 1, "answer": "2"}', "line 2: 'question' and 'answer' must be texts"),
        (b"[" * 9999, "line 2: no JSON object"),
        (b"\xff", "line 2: no JSON object"),
        (b'{"question": "a", "answer": "none"}', "task 2: the answer has no number"),
    ],
)
def test_lines_that_are_no_tasks_are_named(line: bytes, words: str, tmp_path: Path) -> None:
    good = json.dumps({"question": "a", "answer": "#### 1"}).encode()
    (tmp_path / "tasks.jsonl").write_bytes(b"\n".join([good, line, good]))
    with pytest.raises(KvtunerError, match=words):
        load_tasks(tmp_path / "tasks.jsonl", n_shots=1)


def test_too_few_tasks_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "tasks.jsonl", [("a", "#### 1")] * 4)
    with pytest.raises(KvtunerError, match="4 tasks, 4 of which are examples"):
        load_tasks(path)
    with pytest.raises(KvtunerError, match="cannot read"):
        load_tasks(tmp_path / "missing.jsonl")
