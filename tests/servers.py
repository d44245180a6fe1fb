"""A real MLflow server for tests, a receiver of webhooks, and what tests of processes ask of them."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil

from tests.imports import ROOT


@contextmanager
def beside(act: Callable[[], None]) -> Iterator[None]:
    """A thread does `act` again and again until the end of the block; its fault is one of the test."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            act()

    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(work)
        try:
            yield
        finally:
            over.set()
        busy.result()


class Server:
    """A real MLflow server on this project's store."""

    def __init__(self, project: Path) -> None:
        self.project, self.port = project, free_port()
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        store = f"sqlite:///{self.project}/mlflow.db"
        command = ["-m", "mlflow", "server", "--port", str(self.port), "--backend-store-uri", store]
        command += ["--artifacts-destination", str(self.project / "mlartifacts"), "--workers", "1"]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self.process = subprocess.Popen(
            [sys.executable, *command], env=os.environ | quiet, start_new_session=True, cwd=self.project
        )
        until(self._answers)

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


class Receiver(ThreadingHTTPServer):
    """Keeps the header and the JSON of every POST that it gets."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        super().__init__(("127.0.0.1", 0), _Keeping)
        self.address = f"http://127.0.0.1:{self.server_port}/hook"

    def bodies(self) -> list[dict]:
        return [json.loads(body) for _, body in self.got]


class _Keeping(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((dict(self.headers), body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver of webhooks on this machine."""
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


HOLD = """
import sys, time
from pathlib import Path
from goal.runtime import locks
with locks.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def holder(path: Path) -> subprocess.Popen:
    """A process that holds a lock until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def alive(process: psutil.Process) -> bool:
    """Whether it runs still; one that ended and nobody has asked after does not."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
