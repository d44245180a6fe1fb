"""Processes of this machine that outlive the command which began them: found again, awaited and ended."""

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from goal.errors import UserError

# Carried in the environment by all that a service starts, so that what a killed one left is found.
MARK = "GOAL_SERVERS"
START_SECONDS = 120


@dataclass(frozen=True)
class Service:
    """A process by its name; its number and its log lie in `folder`."""

    folder: Path
    name: str

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def _number(self) -> Path:
        return self.folder / f"{self.name}.pid"

    @property
    def _mark(self) -> str:
        return str(self.folder / self.name)

    def process(self) -> psutil.Process | None:
        """The process that `start` began, unless it ended (and perhaps gave its number to another)."""
        with contextlib.suppress(FileNotFoundError, ValueError, psutil.Error):
            process = psutil.Process(int(self._number.read_text()))
            if process.environ().get(MARK) == self._mark:
                return process
        return None

    def start(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        """Begin `command` in `folder`, in a session of its own."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, **environment, MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # What a shell begins in its background ignores SIGINT, and a worker would then never stop.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )
        self._number.write_text(str(process.pid))

    def wait(
        self, asked: str | urllib.request.Request, accept: Callable[[bytes], object] = lambda _: True
    ) -> None:
        """Return once `asked` has an answer that is accepted.

        Raises UserError where the process ends or takes too long.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process():
            with contextlib.suppress(OSError):
                if accept(ask(asked)):
                    return
            time.sleep(0.3)
        raise UserError(f"{self.name} did not start; its log: {self.log}")

    def stop(self, number: signal.Signals, seconds: float) -> None:
        """Ask the process to end, give all that it started so long, then kill the rest."""
        process = self.process()
        if process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        self.clear(seconds if process else 0)
        self._number.unlink(missing_ok=True)

    def clear(self, seconds: float) -> None:
        """Give all that the process started, itself included, so long to end, then kill the rest."""
        _, alive = psutil.wait_procs(self._family(), timeout=seconds)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=5)

    def _family(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self._mark:
                    found.append(process)
        return found


def ask(asked: str | urllib.request.Request) -> bytes:
    """What a server of this machine answers; OSError where it does not.

    A proxy of the environment would answer for the server, or never.
    """
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(asked, timeout=2) as answer:
        return answer.read()


def port(host: str, wanted: int) -> int:
    """The usual port if it is free, else one that the system chooses."""
    for number in (wanted, 0):
        with contextlib.suppress(OSError), socket.create_server((host, number)) as probe:
            return probe.getsockname()[1]
    raise UserError(f"no free port on {host}")
