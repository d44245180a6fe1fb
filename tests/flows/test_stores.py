"""The services of compose.yaml, started here from Debian's and PyPI's packages by the same entry.sh.

MLflow and Prefect on PostgreSQL behind passwords; moto's S3 for MLflow's artefacts and DVC's remote.
"""

import multiprocessing
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
import yaml
from mlflow import MlflowClient

from benchmarks.live import TINY, Project
from flows import checkout
from goal.errors import Unavailable, UserError
from goal.stages import register
from goal.tracking import sync
from tests import registered
from tests.imports import ROOT
from tests.servers import free_port, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SECRETS = ("postgres_password", "mlflow_secret_key", "mlflow_admin_password", "prefect_admin_password")
SECRETS += ("s3_access_key", "s3_secret_key")
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
QUIET |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "true"}


@contextmanager
def process(command: list[str], environment: dict[str, str], address: str) -> Iterator[None]:
    """A server process, once it responds at `address`."""
    server = subprocess.Popen(
        command, env=os.environ | QUIET | environment, start_new_session=True, cwd=tempfile.gettempdir()
    )
    try:
        until(lambda: server.poll() is not None or _answers(address), 180)
        assert server.poll() is None, command
        yield
    finally:
        server.terminate()
        server.wait(60)


def _answers(address: str) -> bool:
    try:
        return requests.get(address, timeout=5).status_code < 500
    except requests.RequestException:
        return False


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of secrets, as docs/flows.md makes it."""
    folder = tmp_path_factory.mktemp("secrets")
    for name in SECRETS:
        (folder / name).write_text(secrets.token_hex(24))
    return folder


@pytest.fixture(scope="module")
def postgres(keys: Path) -> Iterator[str]:
    """Debian's PostgreSQL with the databases of infra/postgres; its host and port."""
    # Debian keeps these two off PATH.
    places = [os.environ["PATH"], *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))]
    initdb, postgres = (shutil.which(name, path=os.pathsep.join(places)) for name in ("initdb", "postgres"))
    if initdb is None or postgres is None:
        pytest.skip("needs PostgreSQL (Debian: apt install postgresql)")
    root = os.geteuid() == 0
    if root and shutil.which("runuser") is None:
        pytest.skip("PostgreSQL does not run as root, and there is no runuser")
    as_user = ["runuser", "-u", "postgres", "--"] if root else []
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        password = Path(folder) / "password"
        password.write_text((keys / "postgres_password").read_text())
        if root:
            for path in (folder, password):
                shutil.chown(path, "postgres")
        data = f"{folder}/data"
        auth = ["--auth=scram-sha-256", "--username=goal", f"--pwfile={password}"]
        subprocess.run([*as_user, initdb, *auth, "-D", data], check=True, capture_output=True, cwd=folder)
        listen = ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}"]
        command = [*as_user, postgres, "-D", data, "-p", str(port), *listen]
        server = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=folder)
        try:
            until(lambda: _databases(port, keys))
            yield f"127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(60)


def _databases(port: int, keys: Path) -> bool:
    """Run infra/postgres/databases.sql; False while the server does not answer."""
    psycopg = pytest.importorskip("psycopg")
    password = (keys / "postgres_password").read_text()
    try:
        connection = psycopg.connect(
            host="127.0.0.1", port=port, user="goal", password=password, dbname="postgres", autocommit=True
        )
    except psycopg.OperationalError:
        return False
    with connection:
        for line in (ROOT / "infra" / "postgres" / "databases.sql").read_text().splitlines():
            if not line.startswith("--"):
                connection.execute(line)
    return True


@contextmanager
def entry(what: str, keys: Path, postgres: str, health: str, **environment: str) -> Iterator[str]:
    """`entry.sh what`, as its container runs it; its address."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    given = {
        "PATH": tools,
        "SECRETS": str(keys),
        "POSTGRES": postgres,
        "LISTEN": "127.0.0.1",
        "PORT": str(port),
    }
    given |= {"ALLOWED_HOSTS": f"127.0.0.1:{port}"}
    with process([str(ROOT / "infra" / "entry.sh"), what], given | environment, f"{address}{health}"):
        yield address


@pytest.fixture(scope="module")
def mlflow(keys: Path, postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    artifacts = str(tmp_path_factory.mktemp("artifacts"))
    with entry("mlflow", keys, postgres, "/health", ARTIFACTS=artifacts) as address:
        yield address


def search(address: str, **more: object) -> int:
    """The HTTP status of a search in MLflow."""
    return requests.post(
        f"{address}/api/2.0/mlflow/experiments/search", json={"max_results": 1}, timeout=60, **more
    ).status_code


def test_a_wrong_password_is_refused(mlflow: str, keys: Path) -> None:
    right = (keys / "mlflow_admin_password").read_text()
    assert search(mlflow) == 401
    assert search(mlflow, auth=("admin", "password1234")) == 401
    assert search(mlflow, auth=("admin", right)) == 200


def test_a_wrong_password_fails_at_once_and_loses_no_record(
    mlflow: str, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not a transient error, which a flow would retry for six minutes; unsent records are kept."""
    registered.make(tmp_path, monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "password1234")
    monkeypatch.setitem(sync.PATIENCE, "FINISHED", 5.0)
    registered.train(7)
    with pytest.raises(UserError, match=r"401.*MLFLOW_TRACKING_PASSWORD right") as error:
        register.run(registered.params("denied"))
    assert not isinstance(error.value, Unavailable)
    assert "password1234" not in str(error.value)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", (keys / "mlflow_admin_password").read_text())
    register.run(registered.params("denied"))
    client = MlflowClient(mlflow, mlflow)
    version = client.get_model_version_by_alias("denied", "challenger")
    assert client.get_run(version.run_id).data.tags["goal.seed"] == "7", "the record was delivered"


def test_other_hosts_and_origins_are_refused(mlflow: str, keys: Path) -> None:
    auth = ("admin", (keys / "mlflow_admin_password").read_text())
    assert search(mlflow, auth=auth, headers={"Host": "evil.example"}) == 403
    assert search(mlflow, auth=auth, headers={"Origin": "http://evil.example"}) == 403


def test_a_user_who_may_only_read_cannot_move_an_alias(mlflow: str, keys: Path) -> None:
    admin = ("admin", (keys / "mlflow_admin_password").read_text())
    reader = ("reader", secrets.token_hex(12))
    made = requests.post(
        f"{mlflow}/api/2.0/mlflow/users/create",
        json={"username": reader[0], "password": reader[1]},
        auth=admin,
        timeout=60,
    )
    assert made.status_code == 200, made.text
    model = f"{mlflow}/api/2.0/mlflow/registered-models"
    assert requests.post(f"{model}/create", json={"name": "m"}, auth=admin, timeout=60).status_code == 200
    alias = {"name": "m", "alias": "champion", "version": "1"}
    moved = requests.post(f"{model}/alias", json=alias, auth=reader, timeout=60)
    assert moved.status_code == 403
    assert search(mlflow, auth=reader) == 200


def test_two_trainings_write_to_postgresql_at_once(
    mlflow: str, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", (keys / "mlflow_admin_password").read_text())
    # Spawned, not forked: a fork of a process that has used torch may hang.
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=_train, args=(mlflow, tmp_path / str(seed), seed)) for seed in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    client = MlflowClient(mlflow, mlflow)
    experiment = client.get_experiment_by_name("goal")
    runs = [
        run
        for run in client.search_runs([experiment.experiment_id])
        if run.data.tags["goal.seed"] in ("1", "2")
    ]
    assert sorted(run.data.tags["goal.seed"] for run in runs) == ["1", "2"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.metrics["loss/total"] for run in runs} == {1.0}
    # The password of the connection is not recorded.
    recorded = str([run.to_dictionary() for run in runs])
    assert (keys / "mlflow_admin_password").read_text() not in recorded


def _train(address: str, folder: Path, seed: int) -> None:
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        registered.make(folder, patch)
        patch.setenv("MLFLOW_TRACKING_URI", address)
        registered.train(seed)


def test_prefect_on_postgresql_asks_for_its_password(keys: Path, postgres: str, tmp_path: Path) -> None:
    right = ("admin", (keys / "prefect_admin_password").read_text())
    with entry("prefect", keys, postgres, "/api/health", PREFECT_HOME=str(tmp_path)) as address:
        limit = {"name": "gpu", "limit": 1}
        path = f"{address}/api/v2/concurrency_limits/"
        assert requests.post(path, json=limit, timeout=60).status_code == 401
        assert requests.post(path, json=limit, auth=("admin", "admin"), timeout=60).status_code == 401
        assert requests.post(path, json=limit, auth=right, timeout=60).status_code == 201
    with entry("prefect", keys, postgres, "/api/health", PREFECT_HOME=str(tmp_path / "new")) as address:
        path = f"{address}/api/v2/concurrency_limits/gpu"
        assert requests.get(path, auth=right, timeout=60).json()["limit"] == 1, "kept by PostgreSQL"


@pytest.fixture(scope="module")
def s3(keys: Path) -> Iterator[dict[str, str]]:
    """A local S3 server with the buckets of compose.yaml; what its clients need."""
    pytest.importorskip("moto")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with process(command, {}, address):
        tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        given = {"PATH": tools, "SECRETS": str(keys), "S3_ENDPOINT": address}
        for _ in range(2):
            subprocess.run(
                [ROOT / "infra" / "entry.sh", "buckets"], env=os.environ | given, check=True, timeout=120
            )
        yield {
            "AWS_ACCESS_KEY_ID": (keys / "s3_access_key").read_text(),
            "AWS_SECRET_ACCESS_KEY": (keys / "s3_secret_key").read_text(),
            "AWS_DEFAULT_REGION": "us-east-1",
            "S3_ENDPOINT": address,
        }


def test_mlflow_keeps_artefacts_in_s3(
    keys: Path, postgres: str, s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", (keys / "mlflow_admin_password").read_text())
    where = {"ARTIFACTS": "s3://mlflow", "S3_ENDPOINT": s3["S3_ENDPOINT"]}
    with entry("mlflow", keys, postgres, "/health", **where) as address:
        client = MlflowClient(address, address)
        run = client.create_run(client.create_experiment(tmp_path.name)).info.run_id
        client.log_text(run, "kept", "note.txt")
        assert Path(client.download_artifacts(run, "note.txt", str(tmp_path))).read_text() == "kept"
    import boto3

    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    store = boto3.client("s3", endpoint_url=s3["S3_ENDPOINT"])
    found = store.list_objects_v2(Bucket="mlflow")["Contents"]
    assert [entry["Key"].endswith("note.txt") for entry in found] == [True]


def test_a_dvc_remote_in_s3_restores_everything(s3: dict[str, str], tmp_path: Path) -> None:
    """The commands of docs/flows.md."""
    pytest.importorskip("dvc_s3")
    project = Project(tmp_path / "project")
    project.environment |= {name: value for name, value in s3.items() if name.startswith("AWS_")}
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    (project.root / "params.yaml").write_text(yaml.safe_dump(checkout.overridden(params, TINY)))
    project.say("dvc", "repro", "pairs")
    before = (project.root / "dvc.lock").read_text()
    project.say("dvc", "remote", "add", "--default", "store", "s3://dvc/goal")
    project.say("dvc", "remote", "modify", "store", "endpointurl", s3["S3_ENDPOINT"])
    project.say("dvc", "push")
    for name in ("data", "regions", "pairs", "models", "work", ".dvc/cache", ".dvc/tmp"):
        shutil.rmtree(project.root / name, ignore_errors=True)
    project.say("dvc", "pull", "--with-deps", "pairs")
    assert "up to date" in project.say("dvc", "repro", "pairs")
    assert (project.root / "dvc.lock").read_text() == before
