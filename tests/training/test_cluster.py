"""Cluster templates: the Slurm scripts with stand-ins for Slurm's commands, both nodes on this machine."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import yaml

from tests import trainings
from tests.imports import ROOT
from tests.training import test_under_dvc
from tests.training.test_distributed import together, train_stage2

# Slurm's commands as far as the scripts use them; the processes of a job step are the children of srun.
STAND_INS = {
    "srun": """
        import subprocess, sys, os, pathlib
        pathlib.Path("step").write_text(str(os.getpid()))
        nodes = [subprocess.Popen(sys.argv[2:]) for _ in range(int(os.environ["SLURM_JOB_NUM_NODES"]))]
        sys.exit(max(node.wait() for node in nodes))
    """,
    "scancel": """
        import contextlib, pathlib, psutil, sys
        assert sys.argv[1:] == ["--signal=TERM", "7"]
        for process in psutil.Process(int(pathlib.Path("step").read_text())).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # its parent ended it
                process.terminate()
    """,
    "scontrol": """
        import pathlib, sys
        if sys.argv[1:] == ["show", "hostnames", "nodes"]:
            print("localhost", "another", sep="\\n")
        else:
            assert sys.argv[1:] == ["requeue", "7"]
            pathlib.Path("requeued").touch()
    """,
}
project = test_under_dvc.project


@pytest.fixture
def job(project: Path) -> Path:
    for name, program in STAND_INS.items():
        path = project / "stand-ins" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!{sys.executable}\n{textwrap.dedent(program)}")
        path.chmod(0o755)
    for folder in ("infra", "flows"):
        shutil.copytree(ROOT / folder, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return project


def settings(processes: int) -> dict:
    params = trainings.params(train__processes=processes, train__checkpoint_minutes=1e-9, stage2__epochs=8)
    return params.model_dump(by_alias=True, mode="json")


def submit(script: str, *words: str) -> subprocess.Popen:
    """Run the script as sbatch does on the first node of a job."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    tools = [str(Path("stand-ins").resolve()), str(Path(sys.executable).parent), os.environ["PATH"]]
    job = {"ID": "7", "NUM_NODES": "2", "NODELIST": "nodes"}
    environment = {
        **os.environ,
        **{f"SLURM_JOB_{name}": value for name, value in job.items()},
        "SLURM_SUBMIT_DIR": str(Path.cwd()),
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_GPUS_ON_NODE": "1",
        "GOAL_PORT": str(port),
        "PATH": os.pathsep.join(tools),
        "PYTHONPATH": str(Path.cwd()),
    }
    return subprocess.Popen(
        ["bash", f"infra/{script}", *words],
        env=environment,
        stdout=Path("log").open("a"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("script", "processes", "words"),
    [
        ("slurm-train.sbatch", 2, ["stage2"]),
        ("slurm.sbatch", 1, ["--single-item", test_under_dvc.STAGE]),
    ],
)
def test_a_job_that_gets_sigterm_saves_is_requeued_and_finishes(
    script: str, processes: int, words: list[str], job: Path
) -> None:
    values = settings(processes)
    Path("params.yaml").write_text(yaml.safe_dump(values))
    if processes == 1:
        test_under_dvc.finish("-m", "goal", "train", "stage2")
    else:
        together(train_stage2, values)
    expected = trainings.outputs("stage2")
    for path in trainings.OUTPUTS:
        Path(path.format("stage2")).unlink()

    first = submit(script, *words)
    while trainings.last_saved() < 3:
        assert first.poll() is None, Path("log").read_text()
        time.sleep(0.02)
    # `B:` in the script's --signal sends it to the batch shell only.
    first.send_signal(signal.SIGTERM)
    assert first.wait(300) == 0
    output = Path("log").read_text()
    assert "stage2: saved after step" in output
    assert Path("requeued").exists()
    assert not Path("models/stage2/card.json").exists()

    second = submit(script, *words)
    assert second.wait(300) == 0, Path("log").read_text()
    assert trainings.outputs("stage2") == expected
    assert "didn't change, skipping" in test_under_dvc.finish(*test_under_dvc.REPRO)


def test_the_pods_of_the_job_match_the_arguments_of_torchrun() -> None:
    service, job = yaml.safe_load_all((ROOT / "infra/kubernetes-train.yaml").read_text())
    name, spec = job["metadata"]["name"], job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    words = dict(word.removeprefix("--").split("=") for word in container["args"] if "=" in word)
    assert service["spec"]["selector"] == {"job-name": name}
    assert service["spec"]["clusterIP"] == "None"
    assert pod["subdomain"] == service["metadata"]["name"]
    # The host name that an Indexed Job gives its first pod, in the domain of the service.
    assert words["master-addr"] == f"{name}-0.{pod['subdomain']}"
    assert words["master-port"] == str(service["spec"]["ports"][0]["port"])
    assert words["node-rank"] == "$(JOB_COMPLETION_INDEX)"
    assert spec["completionMode"] == "Indexed"
    assert int(words["nnodes"]) == spec["completions"] == spec["parallelism"]
    assert words["nproc-per-node"] == container["resources"]["limits"]["nvidia.com/gpu"]
    save = next(int(one["value"]) for one in container["env"] if "SHUTDOWN" in one["name"])
    assert save < pod["terminationGracePeriodSeconds"]
    assert container["args"][-4:-1] == ["-m", "goal", "train"]
