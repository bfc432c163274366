"""Layers of a plan on a device of another process: the same types, sizes and answers as here."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from kvtuner_gguf.files.assets import fetch_model
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.pairs import Pair
from kvtuner_gguf.plan.plan import Plan
from kvtuner_gguf.plan.scales import Scales
from kvtuner_gguf.server.cachereport import CacheReport
from kvtuner_gguf.server.llama_server import find_tool

pytestmark = [pytest.mark.native, pytest.mark.model]

N_LAYER = 30
RNG = np.random.default_rng(0)
CENTERS = Centers.from_arrays([0.1 * RNG.standard_normal(192) for _ in range(N_LAYER)])
SCALES = Scales.from_arrays([np.repeat(np.exp(0.5 * RNG.standard_normal(96)), 2) for _ in range(N_LAYER)])
PLAN = Plan(tuple(Pair.parse(("q8_0/q4_0", "f16/f16", "q5_1/q4_1")[il % 3]) for il in range(N_LAYER)))


@contextmanager
def running_rpc_server() -> Iterator[str]:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [find_tool("ggml-rpc-server"), "--host", "127.0.0.1", "--port", str(port), "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _wait_until_listening(port)
            yield f"127.0.0.1:{port}"
        finally:
            server.kill()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with running_rpc_server() as address:
        yield address


@pytest.fixture(scope="module")
def endpoints(endpoint: str) -> Iterator[str]:
    """Two servers, as --rpc takes them."""
    with running_rpc_server() as other:
        yield f"{endpoint},{other}"


def _wait_until_listening(port: int) -> None:
    for _ in range(200):
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail("ggml-rpc-server does not listen")


class Between(threading.Thread):
    """Listens before the server at ``endpoint`` and passes everything on, as `sent` and `answered` leave it."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(daemon=True)
        host, port = endpoint.split(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def run(self) -> None:
        while True:
            client, _ = self._listener.accept()
            server = socket.create_connection(self._target)
            for ends in ((client, server, self.sent()), (server, client, self.answered())):
                threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket, see: Generator[None, bytearray]) -> None:
        next(see)
        while data := bytearray(source.recv(1 << 16)):
            see.send(data)
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)

    def sent(self) -> Generator[None, bytearray]:
        """Takes what a client sends, piece by piece."""
        while True:
            yield

    def answered(self) -> Generator[None, bytearray]:
        """Takes what the server answers, piece by piece."""
        while True:
            yield


class OlderServer(Between):
    """Greets with ``known``, as a server does that knows upstream's types alone (0), or ours by other numbers."""

    GREETED = 8 + 3  # where the answer says which cache types are known: after its size and the version

    def __init__(self, endpoint: str, known: int = 0) -> None:
        super().__init__(endpoint)
        self.known = known

    def answered(self) -> Generator[None, bytearray]:
        seen = 0
        while True:
            data = yield
            if seen <= self.GREETED < seen + len(data):
                data[self.GREETED - seen] = self.known
            seen += len(data)


class CountingServer(Between):
    """Counts the reads of tensors."""

    GET_TENSOR = 8  # of enum rpc_cmd
    HEAD = 9  # bytes: the command, and the size of what follows

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint)
        self.n_reads = 0

    def sent(self) -> Generator[None, bytearray]:
        buffer = bytearray()
        while True:
            while len(buffer) < self.HEAD:
                buffer += yield
            self.n_reads += buffer[0] == self.GET_TENSOR
            left = int.from_bytes(buffer[1 : self.HEAD], "little") + self.HEAD
            while len(buffer) < left:
                left -= len(buffer)
                buffer.clear()
                buffer += yield
            del buffer[:left]


def run_completion(plan: Path, *args: str) -> subprocess.CompletedProcess[str]:
    fixed = ["--kv-config", plan, "-p", "The capital of France is", "-n", "12", "--temp", "0", "-no-cnv", "-c", "256"]
    # weights are plain on a server; those that are repacked here are multiplied in another order
    fixed.append("--no-repack")
    command = [
        find_tool("llama-completion"),
        "-m",
        fetch_model("smollm2-135m"),
        "--no-warmup",
        "-t",
        "1",
        *fixed,
        *args,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def complete(plan: Path, *args: str) -> tuple[str, CacheReport]:
    done = run_completion(plan, *args)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, CacheReport.from_log(done.stderr)


@pytest.mark.parametrize("n_gpu_layers", ["99", "12"])
def test_a_plan_over_rpc_is_the_plan_here(n_gpu_layers: str, endpoint: str, tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    text, report = complete(tmp_path / "plan.json")
    far_text, far_report = complete(tmp_path / "plan.json", "--rpc", endpoint, "-ngl", n_gpu_layers)
    assert report == far_report
    assert report.pairs == dict(enumerate(PLAN.pairs))
    assert "Paris" in text
    assert far_text == text


def test_the_cache_stays_here_without_offload(endpoint: str, tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    text, report = complete(tmp_path / "plan.json")
    far_text, far_report = complete(tmp_path / "plan.json", "--rpc", endpoint, "-ngl", "99", "--no-kv-offload")
    assert report == far_report
    assert far_text == text


@pytest.mark.parametrize("known", [0, 1], ids=["no numbers", "earlier numbers"])
def test_types_that_a_server_does_not_know_are_refused(known: int, endpoint: str, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    Plan((Pair("q8_0", "f16"), *(Pair("q8_0", "q2_nl"),) * (N_LAYER - 1))).save(plan)
    text, report = complete(plan)
    far_text, far_report = complete(plan, "--rpc", endpoint, "-ngl", "99")
    assert (far_text, far_report) == (text, report)

    older = OlderServer(endpoint, known)
    older.start()
    refused = run_completion(plan, "--rpc", older.endpoint, "-ngl", "99")
    assert refused.returncode != 0
    assert "layer 1: V type q2_nl is unknown to RPC0" in refused.stderr
    assert "use --no-kv-offload or another type, or run the ggml-rpc-server of this build there" in refused.stderr
    assert complete(plan, "--rpc", older.endpoint, "-ngl", "99", "--no-kv-offload") == (text, report)


@pytest.mark.parametrize("kind", ["plain", "centered", "scaled"])
def test_a_plan_runs_where_devices_split_every_tensor(kind: str, endpoints: str, tmp_path: Path) -> None:
    """3 KV heads on 2 devices: in each layer one of them has no head at all."""
    centers = CENTERS if kind != "plain" else None
    plan = Plan(PLAN.pairs, centers=centers, scales=SCALES if kind == "scaled" else None)
    plan.save(tmp_path / "plan.json")
    text, report = complete(tmp_path / "plan.json")
    far_text, far_report = complete(tmp_path / "plan.json", "--rpc", endpoints, "-ngl", "99", "-sm", "tensor")
    assert report == far_report
    assert report.pairs == dict(enumerate(PLAN.pairs))
    assert "Paris" in text
    assert "Paris" in far_text


def test_a_device_without_ends_goes_without_the_scales_that_are_for_them(endpoint: str, tmp_path: Path) -> None:
    for ends in (None, Ends(4, 32)):
        Plan(PLAN.pairs, scales=SCALES, ends=ends).save(tmp_path / "plan.json")
        done = run_completion(tmp_path / "plan.json", "--rpc", endpoint, "-ngl", "99")
        assert done.returncode == 0
        assert ("kvtuner: keys scaled in layers 0-29\n" in done.stderr) == (ends is None)


def test_types_unknown_to_one_of_the_devices_that_split_are_refused(endpoints: str, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    Plan((Pair("q8_0", "q2_nl"),) * N_LAYER).save(plan)
    first, second = endpoints.split(",")
    older = OlderServer(second)
    older.start()
    refused = run_completion(plan, "--rpc", f"{first},{older.endpoint}", "-ngl", "99", "-sm", "tensor")
    assert refused.returncode > 0, "a crash"
    assert "layer 0: V type q2_nl is unknown to RPC0" in refused.stderr
    assert "or run the ggml-rpc-server of this build there" in refused.stderr


def test_saving_a_state_reads_no_center_back(endpoint: str, tmp_path: Path) -> None:
    Plan(PLAN.pairs, centers=CENTERS).save(tmp_path / "plan.json")
    n_reads = []
    for args in ([], ["--no-kv-center"]):
        server = CountingServer(endpoint)
        server.start()
        state = tmp_path / f"{len(n_reads)}.state"
        cache = ("--prompt-cache", str(state), "--ignore-eos")
        complete(tmp_path / "plan.json", "--rpc", server.endpoint, "-ngl", "99", *cache, *args)
        assert state.stat().st_size > 10_000
        n_reads.append(server.n_reads)
    assert n_reads[0] == n_reads[1] > N_LAYER
