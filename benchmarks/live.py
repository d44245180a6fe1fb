"""A copy of the project with its own servers and worker, used as a user does: `prefect`, `dvc`, the API."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import requests

ROOT = Path(__file__).parents[1]
SECONDS = 900.0  # to give up after; no speed is asserted: other work may share the machine
DEAD_PROXY = "http://127.0.0.1:9"
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
# The whole pipeline on a handful of scenes.
TINY = [
    "data.scenes.image_size=96",
    "data.scenes.train=48",
    "data.scenes.val=8",
    "data.scenes.test=16",
    "data.scenes.twins=4",
    "regions.sources=[fixed]",
    "regions.workers=1",
    "pairs.workers=1",
    "pairs.contact_sheet=2",
    "train.loader_workers=0",
    "stage1.epochs=1",
    "stage1.batch_size=16",
    "stage1.warmup_steps=1",
    "stage2.epochs=1",
    "stage2.batch_size=16",
    "stage2.warmup_steps=1",
    "report.gallery=2",
    "report.examples=2",
]
# Few pictures, so that the training starts soon; many epochs, so that it is still running when cancelled.
LONG = [*TINY, "stage1.epochs=30000", "stage1.validate_epochs=30000", "train.checkpoint_minutes=0.1"]


class Project:
    """A copy of the working tree, committed to a git repository of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {"PATH": tools, "OMP_NUM_THREADS": "1"}
        self.environment |= {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
        # As if another user's worker had started first: Prefect's folder for temporary files is taken.
        (root.parent / "tmp").mkdir(parents=True)
        (root.parent / "tmp" / "runner_storage").touch()
        self.environment["TMPDIR"] = str(root.parent / "tmp")
        # A proxy that never answers: servers on this machine must be reached without it.
        self.environment |= {"HTTP_PROXY": DEAD_PROXY, "HTTPS_PROXY": DEAD_PROXY}
        names = _output(ROOT, "git", "ls-files", "-co", "--exclude-standard").splitlines()
        for name in names:
            if (ROOT / name).is_file() and name != "dvc.lock" and not name.startswith("metrics/"):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, root / name)
        self.git("init", "--quiet", "--initial-branch", "main")
        self.git("add", "--all")
        self.git("commit", "--quiet", "-m", "copy")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command in the project's folder, as in a shell after `make up`."""
        return subprocess.run(
            command,
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def say(self, *command: str) -> str:
        """The output of a command that must succeed."""
        result = self.run(*command)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def git(self, *words: str) -> str:
        return _output(self.root, "git", "-c", "user.name=t", "-c", "user.email=t@localhost", *words)

    def up(self) -> str:
        """Start the servers; returns what `make up` prints."""
        printed = self.say(sys.executable, "-m", "infra.servers", "up")
        exports = shlex.split(" ".join(line for line in printed.splitlines() if line.startswith("export ")))
        self.exports = dict(word.split("=", 1) for word in exports if word != "export")
        self.environment["NO_PROXY"] = self.exports["NO_PROXY"]
        self.mlflow = self.exports["MLFLOW_TRACKING_URI"]
        profile = tomllib.loads((self.root / "run" / "profiles.toml").read_text())["profiles"]["goal"]
        self.prefect = profile["PREFECT_API_URL"].removesuffix("/api")
        self.password = tuple(profile["PREFECT_API_AUTH_STRING"].split(":"))
        return printed

    def start(self, deployment: str, **parameters: object) -> str:
        """`prefect deployment run`; the id of the flow run."""
        given = [f"--param={name}={json.dumps(value)}" for name, value in parameters.items()]
        return self.say("prefect", "deployment", "run", deployment, *given).split("UUID: ")[1].split()[0]

    def api(self, path: str, **body: object) -> Any:
        """A response of Prefect's API, as JSON; a POST if there is a body."""
        given = {"json": body} if body else {}
        address, method = f"{self.prefect}/api/{path}", "POST" if body else "GET"
        response = requests.request(method, address, auth=self.password, timeout=60, **given)
        while response.status_code == 503:  # two writers at once: Prefect's own client asks again, too
            time.sleep(0.5)
            response = requests.request(method, address, auth=self.password, timeout=60, **given)
        response.raise_for_status()
        return response.json()

    def state(self, run: str) -> dict[str, Any]:
        return self.api(f"flow_runs/{run}")["state"]

    def ended(self, run: str) -> str:
        """Wait for a run to end; the type of its final state."""
        self.until(lambda: self.state(run)["type"] in ENDED, f"{run} did not end")
        return self.state(run)["type"]

    def training(self) -> str:
        """Start a flow run and wait until it is in the middle of a long training."""
        run = self.start("goal/train", overrides=LONG)
        self.until(lambda: "stage1: step " in self.logged(run), f"{run} does not train")
        return run

    def cancelled(self, run: str) -> None:
        """Cancel a training, and wait until nothing of it is left."""
        self.say("prefect", "flow-run", "cancel", run)
        self.until(self.idle, f"the stage outlived {run}")

    def idle(self) -> bool:
        """Whether no stage runs."""
        return not self.processes("dvc") + self.processes("goal", "train")

    def stages(self, run: str) -> tuple[str, str]:
        """When the first stage of an ended run started and the last one ended."""
        tasks = self.api("task_runs/filter", flow_runs={"id": {"any_": [run]}})
        return min(task["start_time"] for task in tasks), max(task["end_time"] for task in tasks)

    def artifacts(self, run: str) -> dict[str, str]:
        """What the page of a run shows, by key."""
        found = self.api("artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}})
        return {artifact["key"]: str(artifact["data"]) for artifact in found}

    def logged(self, run: str) -> str:
        """The log of a run as its page shows it."""
        lines = self.api(
            "logs/filter", logs={"flow_run_id": {"any_": [run]}}, sort="TIMESTAMP_DESC", limit=200
        )
        return "\n".join(line["message"] for line in reversed(lines))

    def steps(self, run: str) -> int:
        """The last step of a training in the log of its run."""
        return max(map(int, re.findall(r"stage1: step (\d+) of", self.logged(run))))

    def processes(self, *words: str, of: str = "") -> list[psutil.Process]:
        """Processes of this project (or of one of its servers) with these words in their command line."""
        found = []
        for process in psutil.process_iter():
            try:
                mark, line = process.environ().get("GOAL_SERVERS", ""), process.cmdline()
            except psutil.Error:
                continue
            if mark.startswith(f"{self.root}/run/{of}") and set(words) <= set(line):
                found.append(process)
        return found

    def until(self, condition: Callable[[], object], words: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"{words}: {self.worker_log()}"
            time.sleep(0.5)

    def worker_log(self) -> str:
        return (self.root / "run" / "worker.log").read_text()[-3000:]

    def pid(self, server: str) -> int:
        return int((self.root / "run" / f"{server}.pid").read_text().split()[0])


@contextmanager
def serving(folder: Path, **environment: str) -> Iterator[Project]:
    """A project with running servers, started with these variables; afterwards no process of it is left."""
    # A name that breaks shells, DVC's configuration and URLs if it is not quoted.
    project = Project(folder / "mein Projekt [ü]")
    project.environment |= environment
    try:
        project.up()
        yield project
    finally:
        project.run(sys.executable, "-m", "infra.servers", "down")
        left = project.processes()
        for process in left:
            process.kill()
        assert not left, left


def _output(folder: Path, *command: str) -> str:
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
