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
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
HOST = "127.0.0.1"
MLFLOW_PORT, PREFECT_PORT = 5000, 4200  # or free ones, where these are taken
SERVERS = ("mlflow", "prefect", "worker")
POOL = "goal"
ADDRESSES = "addresses.json"
START_SECONDS = 120
STOP_SECONDS = 35  # a cancelled flow run has 30 s to save its checkpoint

# Carried by all that a server starts, so that what a killed one left is found.
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
    return None if any(_process(name) is None for name in SERVERS) else _recorded()


def up() -> Addresses:
    """Start what is not running; a second call changes nothing. Raises ServerError after START_SECONDS."""
    missing = [name for name in SERVERS if _process(name) is None]
    for name in missing:
        # A killed worker's flow runs are saving; a killed server's children hold its port.
        _end(name, STOP_SECONDS if name == "worker" else 0)
    if set(missing) == set(SERVERS):
        addresses = Addresses(f"http://{HOST}:{_port(MLFLOW_PORT)}", f"http://{HOST}:{_port(PREFECT_PORT)}")
        run_dir().mkdir(exist_ok=True)
        (run_dir() / ADDRESSES).write_text(json.dumps(vars(addresses)))
    addresses = _recorded()
    prefect = {
        **addresses.environment(),
        "GOAL_HOME": str(ROOT),  # prefect.yaml reads it
        "PYTHONPATH": str(ROOT),
        "PREFECT_HOME": str(run_dir() / "prefect"),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_WORKER_QUERY_SECONDS": "3",
    }
    starts = {
        "mlflow": ([*_mlflow(), *_listen(addresses.mlflow)], {}),
        "prefect": (_prefect("server", "start", *_listen(addresses.prefect)), prefect),
        "worker": (_prefect("worker", "start", "--pool", POOL, "--name", "local"), prefect),
    }
    for name in ("mlflow", "prefect"):
        if name in missing:
            _start(name, *starts[name])
    _wait("mlflow", f"{addresses.mlflow}/health")
    _wait("prefect", f"{addresses.prefect}/api/health")
    if "worker" in missing:
        _prepare(prefect)
        _start("worker", *starts["worker"])
    return addresses


def _recorded() -> Addresses:
    return Addresses(**json.loads((run_dir() / ADDRESSES).read_text()))


def down() -> None:
    """Stop the worker first, so that its runs can save, then the servers; harmless when nothing runs."""
    for name in reversed(SERVERS):
        process = _process(name)
        if process is not None:
            process.send_signal(signal.SIGINT if name == "worker" else signal.SIGTERM)
        _end(name, STOP_SECONDS if process else 0)
        (run_dir() / f"{name}.pid").unlink(missing_ok=True)
    (run_dir() / ADDRESSES).unlink(missing_ok=True)


def _end(name: str, seconds: float) -> None:
    """Give all that a server started so long to end, then kill the rest."""
    _, alive = psutil.wait_procs(_marked(name), timeout=seconds)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _marked(name: str) -> list[psutil.Process]:
    """What a server of this folder started, directly or not, and is still alive."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == str(run_dir() / name):
                found.append(process)
    return found


def _mlflow() -> list[str]:
    store = [f"sqlite:///{ROOT / 'mlflow.db'}", "--artifacts-destination", str(ROOT / "mlartifacts")]
    return [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--backend-store-uri", *store]


def _listen(address: str) -> list[str]:
    return ["--host", HOST, "--port", address.rsplit(":", 1)[1]]


def _prefect(*words: str) -> list[str]:
    return [sys.executable, "-m", "prefect", *words]


def _start(name: str, command: list[str], environment: dict[str, str]) -> None:
    with (run_dir() / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **QUIET, **environment, MARK: str(run_dir() / name)},
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


def _prepare(environment: dict[str, str]) -> None:
    """Pool, limit, automation and deployments, as the worker expects them."""
    result = subprocess.run(
        [sys.executable, "-m", "flows.pool"],
        cwd=ROOT,
        env={**os.environ, **QUIET, **environment},
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    if result.returncode:
        said = (result.stderr or result.stdout).strip().splitlines()
        raise ServerError(f"the deployments could not be made: {said[-1] if said else 'no output'}")


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
