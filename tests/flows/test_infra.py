"""Files of infra/ that no test can run: they parse, expose no port or password, and pin what they use."""

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from goal.errors import UserError
from infra import processes, servers
from tests.imports import ROOT
from tests.servers import alive, beside, until

INFRA = ROOT / "infra"
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text())
KUBERNETES = [
    body
    for name in ("kubernetes.yaml", "kubernetes-train.yaml")
    for body in yaml.safe_load_all((INFRA / name).read_text())
]
DOCKERFILE = (INFRA / "Dockerfile").read_text()
FILES = sorted(path for path in INFRA.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
SERVICES = sorted(COMPOSE["services"])
# Variables that compose.yaml gives to all its services although no worker reads them.
SERVERS_ONLY = {"PREFECT_SERVER_ANALYTICS_ENABLED", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION"}
PINNED = re.compile(r"[\w./-]+:\d+\.\d+[\w.-]*")


def images() -> list[str]:
    stages = set(re.findall(r" AS (\w+)", DOCKERFILE))
    built = [name for name in re.findall(r"^FROM (\S+)", DOCKERFILE, re.M) if name not in stages]
    pods = [
        container["image"]
        for body in KUBERNETES
        for container in body.get("spec", {}).get("template", {}).get("spec", {}).get("containers", [])
    ]
    return [*built, *pods, *(service["image"] for service in COMPOSE["services"].values())]


@pytest.mark.parametrize("image", sorted(set(images())))
def test_images_are_pinned(image: str) -> None:
    assert PINNED.fullmatch(image)


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback_only(name: str) -> None:
    service = COMPOSE["services"][name]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert "network_mode" not in service
    assert not service.get("privileged", False)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_that_stays_has_a_health_check(name: str) -> None:
    service = COMPOSE["services"][name]
    stays = service["restart"] != "on-failure"
    assert service.get("healthcheck", {}).get("test", [""])[0] == ("CMD" if stays else "")


@pytest.mark.parametrize(
    "command",
    [
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", "infra/compose.yaml"],
        ["kubernetes-validate", "--strict", "infra/kubernetes.yaml", "infra/kubernetes-train.yaml"],
        ["hadolint", "infra/Dockerfile"],
    ],
    ids=lambda command: command[0],
)
def test_the_schema_holds(command: list[str]) -> None:
    tool = Path(sys.executable).parent / command[0]
    if not tool.exists():
        pytest.skip(f"needs {command[0]} (pip install .[dev])")
    result = subprocess.run([tool, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_there_is_no_default_password() -> None:
    words = re.compile(r"(?i)(password|secret|token|auth_string)[A-Za-z_]*[ \t]*[:=][ \t]*[\"']?([^\s\"']+)")
    for path in (file for file in FILES if file.suffix != ".py"):
        for name, value in words.findall(path.read_text()):
            allowed = value == "false" or value.startswith(("$", "/run/secrets/", "[", "{", "admin:$"))
            assert allowed, f"{path.name}: {name} is given as {value}"


def test_secrets_are_files_that_git_ignores() -> None:
    used = {name for service in COMPOSE["services"].values() for name in service.get("secrets", [])}
    assert used == set(COMPOSE["secrets"])
    for secret in COMPOSE["secrets"].values():
        assert set(secret) == {"file"}
        path = INFRA / secret["file"]
        found = subprocess.run(["git", "check-ignore", "--quiet", str(path)], cwd=ROOT, check=False)
        assert found.returncode == 0, f"{path} would be committed"
    assert set(re.findall(r"secret (\w+)\)", (INFRA / "entry.sh").read_text())) == used


def test_an_absent_secret_stops_the_server() -> None:
    result = subprocess.run([INFRA / "entry.sh", "mlflow"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "secret postgres_password is missing" in result.stderr


def test_no_container_runs_as_root() -> None:
    for stage in re.split(r"^FROM ", DOCKERFILE, flags=re.M)[1:]:
        if "ENTRYPOINT" in stage:
            assert re.findall(r"^USER (\S+)", stage, re.M)[-1:] == ["1000:1000"]
    pods = [body["spec"]["template"]["spec"] for body in KUBERNETES if "template" in body.get("spec", {})]
    assert len(pods) == 2
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False


def test_the_layer_of_packages_does_not_contain_the_code() -> None:
    """Otherwise every edit would reinstall torch."""
    before = DOCKERFILE[: DOCKERFILE.index("--require-hashes")]
    assert re.findall(r"^COPY (?!--from)(\S+)", before, re.M) == [
        "infra/requirements-servers.txt",
        "--chmod=0755",
        "requirements.lock",
    ]


def test_the_servers_have_the_locked_versions() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    pins = re.findall(r"^(\w+)\S*==(\S+)$", (INFRA / "requirements-servers.txt").read_text(), re.M)
    assert {"mlflow", "prefect", "fastapi"} <= {name for name, _ in pins}
    for name, version in pins:
        assert re.search(rf"^{name}=={re.escape(version)} ", lock, re.M), name


@pytest.mark.parametrize("script", ["entry.sh", "s3.sh", "slurm.sbatch", "slurm-train.sbatch"])
def test_scripts_parse(script: str) -> None:
    path = INFRA / script
    shell = "bash" if "bash" in path.read_text().splitlines()[0] else "sh"
    subprocess.run([shell, "-n", path], check=True)


def test_every_deployment_is_a_flow() -> None:
    found = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert [entry["name"] for entry in found] == ["train", "evaluate", "mine", "promote"]
    code = (ROOT / "flows" / "jobs.py").read_text()
    for entry in found:
        module, _, function = entry["entrypoint"].rpartition(".")
        assert module == "flows.jobs"
        assert f"\ndef {function}(" in code
        assert entry["name"] in entry["tags"]
        assert entry["description"].strip()


def test_the_schedule_that_prefect_yaml_shows_is_one() -> None:
    from prefect.client.schemas.schedules import CronSchedule

    text = (ROOT / "prefect.yaml").read_text()
    lines = "schedules:" + text.partition("# schedules:")[2].partition("    entrypoint")[0]
    (shown,) = yaml.safe_load(lines.replace("    #", "   "))["schedules"]
    assert CronSchedule(cron=shown["cron"], timezone=shown["timezone"]).cron == "0 3 * * *"
    assert shown["slug"]
    assert set(shown["parameters"]) <= set(
        re.findall(r"(\w+): Hours", (ROOT / "flows" / "jobs.py").read_text())
    )


def test_a_taken_port_is_replaced_by_a_free_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        assert processes.port("127.0.0.1", number) not in {0, number}
    assert processes.port("127.0.0.1", number) == number


def test_a_service_is_found_again_until_it_ends(tmp_path: Path) -> None:
    service = processes.Service(tmp_path, "sleeper")
    assert service.process() is None
    # With children of its own, as a server has worker processes.
    service.start(["sh", "-c", "sleep 600 & sleep 600"], tmp_path, {})
    until(lambda: len(service.process().children()) == 2)
    family = [service.process(), *service.process().children()]
    assert processes.Service(tmp_path, "other").process() is None
    (tmp_path / "other.pid").write_text((tmp_path / "sleeper.pid").read_text())
    assert processes.Service(tmp_path, "other").process() is None, "a number that another process got"
    service.stop(signal.SIGTERM, 0)
    until(lambda: not any(alive(one) for one in family))
    assert service.process() is None


def test_a_server_that_ends_at_once_is_reported_with_its_log(tmp_path: Path) -> None:
    service = processes.Service(tmp_path, "broken")
    service.start([sys.executable, "-c", "print('no such option')"], tmp_path, {})
    with pytest.raises(UserError, match=r"broken did not start; its log: .*broken\.log"):
        service.wait("http://127.0.0.1:9")
    assert "no such option" in service.log.read_text()


def test_an_unknown_action_prints_the_usage() -> None:
    command = [sys.executable, "-m", "infra.servers", "sideways"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode
    assert "usage: python -m infra.servers up|ui|down" in result.stderr


def test_the_page_of_a_container_uses_the_published_address() -> None:
    """By default Prefect gives the browser the address it listens on, 0.0.0.0."""
    environment = COMPOSE["services"]["prefect"]["environment"]
    published = COMPOSE["services"]["prefect"]["ports"][0].rpartition(":")[0]
    assert environment["PREFECT_UI_API_URL"] == f"http://{published}/api"
    assert f"http://{published}" in environment["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"].split(",")


def test_the_worker_of_a_pod_has_the_environment_of_a_container_s() -> None:
    (given,) = (body["data"] for body in KUBERNETES if body["kind"] == "ConfigMap")
    assert set(COMPOSE["services"]["worker"]["environment"]) <= {*given, *SERVERS_ONLY}


def test_the_password_is_read_whole_while_another_up_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "ROOT", tmp_path)
    (tmp_path / "run").mkdir()
    addresses = servers.Addresses("http://127.0.0.1:1", "http://127.0.0.1:2")
    password = servers._settings(addresses)["PREFECT_API_AUTH_STRING"]
    with beside(lambda: servers._settings(addresses)):
        found = {servers._password() for _ in range(5000)}
    assert found == {password}
    assert (tmp_path / "run" / servers.PROFILE).stat().st_mode & 0o077 == 0


def test_make_up_without_prefect_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "ROOT", tmp_path)
    monkeypatch.setitem(sys.modules, "prefect", None)  # as in an environment without the extra
    with pytest.raises(UserError, match=r"pip install 'goal-clip\[flows\]'"):
        servers.up()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("taken", ["file", "link"])
def test_a_worker_refuses_a_temporary_folder_of_another_user(
    taken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers.tempfile, "gettempdir", lambda: str(tmp_path))
    own = servers._own_tmp()
    assert servers._own_tmp() == own
    assert own.stat().st_mode & 0o077 == 0
    own.rmdir()
    if taken == "file":
        own.touch()
    else:
        own.symlink_to("/tmp")
    with pytest.raises(UserError, match=r"goal-\d+: belongs to another user; set TMPDIR"):
        servers._own_tmp()
