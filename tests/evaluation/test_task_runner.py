"""Tasks on the small real model."""

from __future__ import annotations

import pytest

from kvtuner_gguf.evaluation.tasks import Task
from kvtuner_gguf.files.assets import fetch_model
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan

pytestmark = [pytest.mark.native, pytest.mark.model]
EXAMPLES = "".join(f"Question: what is {n}?\nAnswer: #### {n}\n\n" for n in (7, 12, 5, 31))


def test_tasks_are_solved_or_failed_the_same_each_time() -> None:
    from kvtuner_gguf.evaluation.task_runner import TaskRunner

    easy = Task(f"{EXAMPLES}Question: what is 23?\nAnswer:", "23")
    tasks = [easy, Task(easy.prompt, "no number is this")]
    plan = Plan.uniform(Pair("q8_0", "q8_0"), 30)
    with TaskRunner(fetch_model("smollm2-135m"), tasks, n_predict=24) as runner:
        assert runner.failed_share(plan) == runner.failed_share(plan) == 0.5
        assert runner.failed_share(Plan.uniform(Pair("q2_nl", "q2_nl"), 30)) >= 0.5
    assert TaskRunner(fetch_model("smollm2-135m"), tasks).name != runner.name
