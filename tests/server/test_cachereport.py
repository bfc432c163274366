"""The start-up log and the server's JSON as reports."""

from __future__ import annotations

import pytest

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.server.cachereport import CacheReport

LOG = """\
0.00.170.176 I kvtuner: enabling flash_attn since the plan quantizes V
0.00.172.879 I kvtuner: f16/f16        layers 0-2
0.00.172.904 I kvtuner: 16.0000 bits per value, 1.00 MiB (f16 1.00 MiB)
0.00.172.879 I kvtuner: q8_0/q5_1      layers 0,2-3
kvtuner: iq4_nl/q4_0    layers 1
kvtuner: keys centered in layers 0-3, turned every 256 positions (0.03 MiB)
kvtuner: with them 6.0895 bits per value in this context, 0.03 MiB more
0.00.172.904 I kvtuner: 6.0583 bits per value, 4.26 MiB (f16 11.25 MiB)
0.00.172.912 I cmn          init: llama threadpool init, n_threads = 2
"""
PAIRS = {0: Pair("q8_0", "q5_1"), 1: Pair("iq4_nl", "q4_0"), 2: Pair("q8_0", "q5_1"), 3: Pair("q8_0", "q5_1")}


def test_the_last_report_of_the_log_counts() -> None:
    report = CacheReport.from_log(LOG)
    assert list(report.pairs.items()) == list(PAIRS.items())
    assert (report.bits_per_value, report.mib) == (6.0583, 4.26)


def test_props() -> None:
    layers = [{"layer": il, "k": pair.k, "v": pair.v} for il, pair in PAIRS.items()]
    report = CacheReport.from_props({"kv_cache": {"bits_per_value": 6.5, "bytes": 3 << 19, "layers": layers}})
    assert report == CacheReport(PAIRS, 6.5, 1.5)


def test_no_report() -> None:
    with pytest.raises(KvtunerError, match="start-up log"):
        CacheReport.from_log("main: loading model\nkvtuner: q8_0/q8_0  layers 0-1\n")
    with pytest.raises(KvtunerError, match="does not report"):
        CacheReport.from_props({"model_path": "x"})
