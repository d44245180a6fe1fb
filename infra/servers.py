"""`make up`, `make ui`, `make down`: MLflow, Prefect and a worker on this machine, on loopback only."""

import base64
import hashlib
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import tomllib
import urllib.parse
import urllib.request
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from flows import POOL
from goal import config
from goal.errors import UserError
from goal.runtime import files, locks, proxies
from infra.processes import START_SECONDS, Service, ask, port

ROOT = Path.cwd()  # `make` runs this in the project's folder
HOST = "127.0.0.1"
MLFLOW_PORT, PREFECT_PORT = 5000, 4200  # or free ones, where these are taken
ADDRESSES = "addresses.json"
PROFILE = "profiles.toml"  # prefect.toml leads `prefect` there
SERVERS = ("mlflow", "prefect", "worker")
LATE = "PREFECT_SERVER_SERVICES_LATE_RUNS_AFTER_SECONDS"
STOP_SECONDS = 35  # a cancelled flow run has 22 s to save, and is killed after 30
# Nothing that the project starts reports to anybody; MLflow's job runner would cost 8 processes for nothing.
QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    # Else whoever reaches MLflow on loopback can have its assistant run a shell on this machine.
    "MLFLOW_ENABLE_ASSISTANT_SANDBOX": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
}


@dataclass(frozen=True)
class Addresses:
    """Where the two servers of this project listen."""

    mlflow: str
    prefect: str


def run_dir() -> Path:
    """Logs, process numbers and Prefect's own files; git-ignored."""
    return ROOT / "run"


def service(name: str) -> Service:
    return Service(run_dir(), name)


def up() -> None:
    """Start what is not running; a second call changes nothing, and one at the same time waits.

    Raises UserError, where what this call started is stopped again and what ran before goes on.
    """
    if find_spec("prefect") is None:
        raise UserError("prefect is not installed: pip install 'goal-clip[flows]'")
    with _alone():
        missing = [service(name) for name in SERVERS if service(name).process() is None]
        for one in missing:
            # A killed worker's flow runs are saving; a killed server's children hold its port.
            one.clear(STOP_SECONDS if one.name == "worker" else 0)
        if len(missing) == len(SERVERS):
            found = Addresses(
                *(f"http://{HOST}:{port(HOST, usual)}" for usual in (MLFLOW_PORT, PREFECT_PORT))
            )
            files.write_json(vars(found), run_dir() / ADDRESSES)
        addresses = _recorded()
        environment = _environment() | _settings(addresses)
        mlflow, prefect, worker = (service(name) for name in SERVERS)
        try:
            for one in (mlflow, prefect):
                if one in missing:
                    one.start(_command(one.name, addresses), ROOT, environment)
            mlflow.wait(f"{addresses.mlflow}/health")
            prefect.wait(f"{addresses.prefect}/api/health")
            if worker in missing:
                _prepare(environment)
                begun = datetime.now(UTC)
                worker.start(_command("worker", addresses), ROOT, environment | {"TMPDIR": str(_own_tmp())})
                worker.wait(_workers(addresses), lambda answer: _alive_since(begun, answer))
        except BaseException:
            for one in missing:
                one.stop(signal.SIGTERM, STOP_SECONDS)
            raise


def _workers(addresses: Addresses) -> urllib.request.Request:
    """Asks Prefect for the workers of the pool."""
    token = base64.b64encode(_password().encode()).decode()
    return urllib.request.Request(
        f"{addresses.prefect}/api/work_pools/{POOL}/workers/filter",
        data=b"{}",
        headers={"Authorization": f"Basic {token}", "Content-Type": "application/json"},
    )


def _alive_since(begun: datetime, answer: bytes) -> bool:
    """Whether a worker has sent a heartbeat: Prefect knows the one of the last `make up` too."""
    seen = [one["last_heartbeat_time"] for one in json.loads(answer)]
    return any(datetime.fromisoformat(time) > begun for time in seen if time)


def down() -> None:
    """Stop the worker first, so that its runs can save, then the servers; harmless when nothing runs."""
    with _alone():
        for name in reversed(SERVERS):
            service(name).stop(signal.SIGINT if name == "worker" else signal.SIGTERM, STOP_SECONDS)
        (run_dir() / ADDRESSES).unlink(missing_ok=True)


def ui() -> str | None:
    """The addresses of the servers that run, as text for the user; None if none runs."""
    alive = {name for name in SERVERS if service(name).process()}
    if not alive:
        return None
    try:
        addresses = _recorded()
    except FileNotFoundError:  # `down` has just ended them
        return None
    states = {
        "mlflow": ("MLflow", addresses.mlflow),
        "prefect": ("Prefect", f"{addresses.prefect}  sign in with {_password()}"),
        "worker": ("Worker", "running"),
    }
    lines = [
        f"{states[name][0]:<9}{states[name][1] if name in alive else 'not running; `make up` starts it'}"
        for name in SERVERS
    ]
    if "mlflow" in alive and (page := _runs(addresses.mlflow)):
        lines.append(f"{'Runs':<9}{page}")
    lines += [
        "",
        "In this folder `prefect` and `goal` find them. In a shell elsewhere:",
        f"export MLFLOW_TRACKING_URI={addresses.mlflow}",
        f"export PREFECT_PROFILES_PATH={shlex.quote(str(run_dir() / PROFILE))}",
        f"export NO_PROXY={proxies.bypassing(os.environ)['NO_PROXY']}",
    ]
    if urllib.request.getproxies() and not urllib.request.proxy_bypass(HOST):
        lines += ["", "This shell uses a proxy: `prefect` needs NO_PROXY in this folder too."]
    return "\n".join(lines) + "\n"


def _runs(mlflow: str) -> str:
    """The page of the runs, once there are any; MLflow's first page is about language models."""
    try:
        name = urllib.parse.quote(config.load(ROOT / "params.yaml").tracking.experiment, safe="")
        asked = f"{mlflow}/api/2.0/mlflow/experiments/get-by-name?experiment_name={name}"
        found = json.loads(ask(asked))["experiment"]["experiment_id"]
    except (OSError, UserError):
        return ""
    return f"{mlflow}/#/experiments/{found}/runs?workflowType=machine_learning"


def _alone() -> AbstractContextManager[None]:
    """Of two commands at once, the second one sees what the first one did."""
    return locks.held(run_dir() / "servers.lock")


def _recorded() -> Addresses:
    return Addresses(**json.loads((run_dir() / ADDRESSES).read_text()))


def _environment() -> dict[str, str]:
    """What every server gets: no telemetry, and no proxy on the way to another one of this machine."""
    return QUIET | proxies.bypassing(os.environ)


def _settings(addresses: Addresses) -> dict[str, str]:
    """The environment of the servers and the worker; what a user's `prefect` needs of it goes to the profile.

    Whoever reaches Prefect's API can have the worker run anything: hence a password, also against other users
    of this machine, and no answer to other pages in a browser.
    """
    api, number, password = f"{addresses.prefect}/api", addresses.prefect.rsplit(":", 1)[1], _password()
    # Whole or not at all: another command may be reading the password.
    with files.atomic(run_dir() / PROFILE) as draft:
        draft.touch(mode=0o600)
        draft.write_text(
            f'active = "{POOL}"\n\n[profiles.{POOL}]\n'
            f'PREFECT_API_URL = "{api}"\nPREFECT_API_AUTH_STRING = "{password}"\n'
        )
    return {
        "MLFLOW_TRACKING_URI": addresses.mlflow,
        "PREFECT_API_URL": api,
        "PREFECT_API_AUTH_STRING": password,
        "PREFECT_SERVER_API_AUTH_STRING": password,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{number},http://localhost:{number}",
        "PREFECT_HOME": str(run_dir() / "prefect"),
        # A run that another one keeps from the GPU for some minutes is not late; alerts tell of late runs.
        LATE: os.environ.get(LATE, "600"),
        # Webhooks to programs of this machine; with this key the server keeps their secrets.
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "https,http",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": base64.urlsafe_b64encode(
            hashlib.sha256(password.encode()).digest()
        ).decode(),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_WORKER_QUERY_SECONDS": "3",
        "PYTHONPATH": str(ROOT),
        "GOAL_HOME": str(ROOT),  # prefect.yaml reads it
    }


def _password() -> str:
    """Prefect's user and password: those of the last `make up`, which browsers remember, else new ones."""
    try:
        profile = tomllib.loads((run_dir() / PROFILE).read_text())["profiles"][POOL]
        return profile["PREFECT_API_AUTH_STRING"]
    except (FileNotFoundError, tomllib.TOMLDecodeError, KeyError):
        return f"{POOL}:{secrets.token_hex(8)}"


def _command(name: str, addresses: Addresses) -> list[str]:
    if name == "mlflow":
        return _mlflow(addresses.mlflow)
    if name == "prefect":
        return [sys.executable, "-m", "prefect", "server", "start", *_listen(addresses.prefect)]
    return [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--name", "local"]


def _mlflow(address: str) -> list[str]:
    store = ["--backend-store-uri", f"sqlite:///{ROOT / 'mlflow.db'}"]
    store += ["--artifacts-destination", str(ROOT / "mlartifacts")]
    return [sys.executable, "-m", "mlflow", "server", "--workers", "1", *store, *_listen(address)]


def _listen(address: str) -> list[str]:
    return ["--host", HOST, "--port", address.rsplit(":", 1)[1]]


def _own_tmp() -> Path:
    """A folder for temporary files of this user alone.

    Prefect's runner puts its files into one folder of the same name for all users of a machine: the worker of
    the second user could not start.
    """
    folder = Path(tempfile.gettempdir()) / f"goal-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if folder.is_symlink() or not folder.is_dir() or folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder}: belongs to another user; set TMPDIR to a folder of your own")
    return folder


def _prepare(environment: dict[str, str]) -> None:
    """Pool, limit, automation and deployments, as the worker expects them."""
    try:
        subprocess.run(
            [sys.executable, "-m", "flows.pool"],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"the deployments were not made within {START_SECONDS} s") from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip().splitlines() or ["no output"]
        raise UserError(f"the deployments could not be made: {said[-1]}") from error


def main() -> None:
    """`python -m infra.servers up|ui|down`."""
    action = sys.argv[1] if len(sys.argv) == 2 else ""
    if action not in ("up", "ui", "down"):
        sys.exit("usage: python -m infra.servers up|ui|down")
    try:
        if action == "down":
            down()
            return
        if action == "up":
            up()
        text = ui()
        address = f"http://{HOST}:{port(HOST, MLFLOW_PORT)}" if text is None else ""
    except UserError as error:
        sys.exit(f"goal: {error}")
    sys.stdout.write(text or f"MLflow   {address}  soon, on this project's own store; Ctrl-C ends it\n")
    sys.stdout.flush()
    if text is None:
        os.execve(sys.executable, _mlflow(address), {**os.environ, **_environment()})


if __name__ == "__main__":
    main()
