"""Traces of calls, the shards to expect, and a real dask cluster on this machine, its processes its own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from goal.runtime import cluster as engine
from tests.imports import ROOT
from tests.mining.squares import Squares, content, run
from tests.servers import free_port, until


class Cluster:
    """`workers[n].kill()` is kill -9; the workers' folder is another than that of the tests."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.address = f"tcp://127.0.0.1:{free_port()}"
        file = folder / "scheduler.json"
        self.scheduler = self._start(
            "dask_scheduler", "--host", self.address, "--scheduler-file", str(file), "--no-dashboard"
        )
        until(file.exists)
        self.workers: list[subprocess.Popen] = []

    def add_worker(self, *arguments: str, threads: int = 1) -> None:
        arguments = (*arguments, "--nthreads", str(threads), "--no-nanny", "--no-dashboard")
        self.workers.append(self._start("dask_worker", self.address, *arguments))

    def _start(self, program: str, *arguments: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{program}", *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
        )
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        return process


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster, as yet without workers, that the environment names."""
    pytest.importorskip("distributed", reason="dask is not installed: the extra `scale`")
    with ExitStack() as stack:
        started = Cluster(tmp_path_factory.mktemp("elsewhere"), stack)
        monkeypatch.setenv(engine.SCHEDULER, started.address)
        yield started


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "log").mkdir()
    return tmp_path / "log"


@pytest.fixture
def expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The shards that this process alone makes, also where a cluster is named."""
    (tmp_path / "reference").mkdir()
    with monkeypatch.context() as local:
        local.delenv(engine.SCHEDULER, raising=False)
        run(Squares(str(tmp_path / "reference")), tmp_path / "expected")
    return content(tmp_path / "expected")
