"""Shards on a real dask cluster, a scheduler and workers as processes, give the bytes of one process."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from goal.errors import UserError
from goal.mining import engines
from tests.mining.test_shards import ROOT, Fails, Squares, calls, content, run
from tests.servers import until

pytest.importorskip("distributed", reason="dask is not installed: the extra `scale`")


class Cluster:
    """A scheduler and its workers, all processes of their own; `workers[n].kill()` is kill -9."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.stack = stack
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.file = folder / "scheduler.json"
        self._start(
            "dask_scheduler", "--port", "0", "--host", "127.0.0.1", "--scheduler-file", str(self.file)
        )
        until(self.file.exists)
        self.workers: list[subprocess.Popen] = []

    def add_worker(self) -> None:
        arguments = ("--scheduler-file", str(self.file), "--nthreads", "1", "--no-nanny")
        self.workers.append(self._start("dask_worker", *arguments))

    def _start(self, program: str, *arguments: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{program}", *arguments, "--no-dashboard"],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.file.parent,
        )
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        return process


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    with ExitStack() as stack:
        cluster = Cluster(tmp_path, stack)
        monkeypatch.setenv(engines.SCHEDULER, json.loads(cluster.file.read_text())["address"])
        yield cluster


@pytest.fixture
def log(tmp_path):
    (tmp_path / "log").mkdir()
    return tmp_path / "log"


@pytest.fixture
def expected(tmp_path, monkeypatch):
    with monkeypatch.context() as local:
        local.delenv(engines.SCHEDULER, raising=False)
        (tmp_path / "reference").mkdir()
        run(Squares(str(tmp_path / "reference")), tmp_path / "expected")
    return content(tmp_path / "expected")


def test_a_cluster_that_loses_a_worker_writes_the_same_bytes(tmp_path, cluster, log, expected):
    cluster.add_worker()
    cluster.add_worker()

    def kill_one_in_the_middle() -> None:
        until(lambda: len(calls(log)) >= 2)
        cluster.workers[0].kill()

    with ThreadPoolExecutor() as pool:
        killed = pool.submit(kill_one_in_the_middle)
        run(Squares(str(log), pause=0.2), tmp_path / "out")
        killed.result()
    assert content(tmp_path / "out") == expected
    # Six shards, and the one that the killed worker had begun once more.
    assert len(calls(log)) == 7
    run(Squares(str(log)), tmp_path / "out")
    assert len(calls(log)) == 7


def test_a_users_fault_on_the_cluster_is_its_line(tmp_path, cluster, log, expected):
    cluster.add_worker()
    with pytest.raises(UserError, match=r"^p8\.png: its fault$"):
        run(Fails(str(log), "fault"), tmp_path / "out")
    assert content(tmp_path / "out").items() <= expected.items()


def test_a_worker_with_other_code_is_refused(tmp_path, cluster, log, monkeypatch):
    cluster.add_worker()
    monkeypatch.setattr("goal.files.source_digest", lambda: "other")
    with pytest.raises(UserError, match="runs other code"):
        run(Squares(str(log)), tmp_path / "out")


def test_a_scheduler_that_does_not_answer_is_one_line(tmp_path, log, monkeypatch):
    monkeypatch.setenv(engines.SCHEDULER, "tcp://127.0.0.1:9")
    monkeypatch.setattr(engines, "CONNECT_SECONDS", 1)
    with pytest.raises(UserError, match=r"^DASK_SCHEDULER=tcp://127\.0\.0\.1:9: no scheduler answers"):
        run(Squares(str(log)), tmp_path / "out")
