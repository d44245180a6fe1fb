"""`make up` and `make down`: MLflow, Prefect and a worker as processes of this machine, on loopback only."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
HOST = "127.0.0.1"
POOL = "goal"
START_SECONDS = 120
STOP_SECONDS = 35  # a cancelled flow run has 30 s to save its checkpoint

# Carried by all that `up` starts, so that `down` finds a flow run whose worker was killed.
MARK = "GOAL_SERVERS"
# Nothing that the project starts reports to anybody; MLflow's job runner would cost 8 processes for nothing.
QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
}


@dataclass(frozen=True)
class Addresses:
    """Where the two servers of this project listen."""

    mlflow: str
    prefect: str

    def environment(self) -> dict[str, str]:
        """What a client needs to find them."""
        return {"MLFLOW_TRACKING_URI": self.mlflow, "PREFECT_API_URL": f"{self.prefect}/api"}


class ServerError(Exception):
    """A server did not come up; the text names its log."""


def run_dir() -> Path:
    """Pid files, logs and Prefect's own files; git-ignored."""
    return ROOT / "run"


def running() -> Addresses | None:
    """The addresses, if both servers and the worker are alive."""
    file = run_dir() / "addresses.json"
    if not file.exists() or not all(_process(name) for name in ("mlflow", "prefect", "worker")):
        return None
    return Addresses(**json.loads(file.read_text()))


def up() -> Addresses:
    """Start what is not running; a second call changes nothing. Raises ServerError after START_SECONDS."""
    addresses = running()
    if addresses is not None:
        return addresses
    down()
    run_dir().mkdir(exist_ok=True)
    addresses = Addresses(f"http://{HOST}:{_port(5000)}", f"http://{HOST}:{_port(4200)}")
    _start("mlflow", [*_mlflow(), "--host", HOST, "--port", addresses.mlflow.rsplit(":", 1)[1]], {})
    prefect = {
        **addresses.environment(),
        "GOAL_HOME": str(ROOT),  # prefect.yaml reads it
        "PYTHONPATH": str(ROOT),
        "PREFECT_HOME": str(run_dir() / "prefect"),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    }
    port = addresses.prefect.rsplit(":", 1)[1]
    _start("prefect", _prefect("server", "start", "--host", HOST, "--port", port), prefect)
    _wait("mlflow", f"{addresses.mlflow}/health")
    _wait("prefect", f"{addresses.prefect}/api/health")
    _once(("work-pool", "create", POOL, "--type", "process", "--overwrite"), prefect)
    _start("worker", _prefect("worker", "start", "--pool", POOL, "--name", "local"), prefect)
    rest = (("global-concurrency-limit", "create", "gpu", "--limit", "1"), ("--no-prompt", "deploy", "--all"))
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda command: _once(command, prefect), rest))
    (run_dir() / "addresses.json").write_text(json.dumps(vars(addresses)))
    return addresses


def down() -> None:
    """Stop the worker first, so that its runs can save, then the servers; harmless when nothing runs."""
    for name in ("worker", "prefect", "mlflow"):
        process = _process(name)
        if process is not None:
            family = [process, *process.children(recursive=True)]
            process.send_signal(signal.SIGINT if name == "worker" else signal.SIGTERM)
            _, alive = psutil.wait_procs(family, timeout=STOP_SECONDS)
            _kill(alive)
        (run_dir() / f"{name}.pid").unlink(missing_ok=True)
    _kill(_marked())
    (run_dir() / "addresses.json").unlink(missing_ok=True)


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _marked() -> list[psutil.Process]:
    """What `up` of this folder started, directly or not, and is still alive."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == str(run_dir()):
                found.append(process)
    return found


def _mlflow() -> list[str]:
    store = [f"sqlite:///{ROOT / 'mlflow.db'}", "--artifacts-destination", str(ROOT / "mlartifacts")]
    return [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--backend-store-uri", *store]


def _prefect(*words: str) -> list[str]:
    return [sys.executable, "-m", "prefect", *words]


def _start(name: str, command: list[str], environment: dict[str, str]) -> None:
    with (run_dir() / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **QUIET, **environment, MARK: str(run_dir())},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A process begun in the background of a shell ignores SIGINT, and a worker would then never stop.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    born = psutil.Process(process.pid).create_time()
    (run_dir() / f"{name}.pid").write_text(f"{process.pid} {born}")


def _process(name: str) -> psutil.Process | None:
    """The process that `_start` began, unless it ended (and perhaps gave its number to another)."""
    try:
        number, born = (run_dir() / f"{name}.pid").read_text().split()
        process = psutil.Process(int(number))
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return None
    alive = process.create_time() == float(born) and process.status() != psutil.STATUS_ZOMBIE
    return process if alive else None


def _once(words: tuple[str, ...], environment: dict[str, str]) -> None:
    result = subprocess.run(
        _prefect(*words),
        cwd=ROOT,
        env={**os.environ, **QUIET, **environment},
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    # A limit that an earlier start made is as good as a new one.
    if result.returncode and "already exists" not in result.stdout + result.stderr:
        raise ServerError(f"prefect {' '.join(words)} failed: {(result.stderr or result.stdout).strip()}")


def _wait(name: str, address: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and _process(name):
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.3)
    raise ServerError(f"{name} did not start; its log: {run_dir() / f'{name}.log'}")


def _port(wanted: int) -> int:
    """The usual port if it is free, else one that the system chooses."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise ServerError(f"no free port on {HOST}")


def main() -> None:
    """`python -m infra.servers up|down|status`."""
    action = sys.argv[1] if len(sys.argv) == 2 else ""
    if action not in ("up", "down", "status"):
        sys.exit("usage: python -m infra.servers up|down|status")
    if action == "down":
        down()
        return
    try:
        addresses = up() if action == "up" else running()
    except ServerError as error:
        down()
        sys.exit(f"goal: {error}")
    if addresses is None:
        sys.exit("goal: the servers are not running; `make up` starts them")
    lines = [
        f"MLflow   {addresses.mlflow}",
        f"Prefect  {addresses.prefect}",
        "",
        "To use them in this shell:",
    ]
    lines += [f"export {name}={value}" for name, value in addresses.environment().items()]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
