"""Each bar of the soak can be missed, and its requests are what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tools.soak_server import ENDINGS, EQUAL, Outcome, make_requests, problems

GOOD = Outcome("plan", 0.9, tuple([50.0] * 50 + [100.0] * 50), 0, ())


def test_nothing_is_missed_within_the_tolerances() -> None:
    assert problems([GOOD, replace(GOOD, equal_share=0.85)], yardstick=GOOD) == []
    assert problems([GOOD], yardstick=replace(GOOD, equal_share=0.2)) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"equal_share": 0.7}, "plan: 70.0% of the answers are equal, the bar is 82.0%"),
        ({"name": EQUAL, "equal_share": 0.995}, "quantized: 99.5% of the answers are equal, the bar is 100.0%"),
        ({"rss_mib": tuple(50.0 + i for i in range(100))}, "grows by 49.0 MiB"),
        ({"exit_status": 1}, "exit status after SIGINT is 1"),
        ({"errors": ("srv: lost a slot",)}, "srv: lost a slot"),
    ],
)
def test_each_bar_can_be_missed(change: dict, words: str) -> None:
    (missed,) = problems([replace(GOOD, **change)], yardstick=GOOD)
    assert words in missed


def test_the_requests_share_beginnings_and_differ_in_length() -> None:
    requests = make_requests(200, seed=0)
    assert requests == make_requests(200, seed=0) != make_requests(200, seed=1)
    starts = [request.prompt[:80] for request in requests]
    assert len(set(starts)) < 30
    lengths = [len(request.prompt.split()) for request in requests]
    assert min(lengths) < 25 < 250 < max(lengths)
    assert all(request.prompt.endswith(ENDINGS) for request in requests)
    assert {request.n_predict for request in requests} == {4, 8, 16, 32}
