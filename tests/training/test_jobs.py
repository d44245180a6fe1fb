"""`goal train` in several processes, as a user starts it: however it is killed, it ends and resumes."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from goal.errors import EXIT_RESUMABLE, EXIT_USER_ERROR, Interrupted, UserError
from goal.training import distributed
from tests import trainings
from tests.imports import ROOT
from tests.training.test_distributed import together, train_stage2, values


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainings.project(without={0, 1, 2, 3, 6})


class Job:
    """`goal train stage2` in two processes, as a user starts it: 32 steps, a checkpoint after each."""

    settings = values(trainings.params(train__processes=2, train__checkpoint_minutes=1e-9, stage2__epochs=16))

    def __init__(self) -> None:
        Path("params.yaml").write_text(yaml.safe_dump(self.settings))
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "goal", "train", "stage2"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._seen: list[int] = []

    def wait_for_steps(self, count: int) -> None:
        while self.process.poll() is None:
            if trainings.last_saved() >= count:
                return
            time.sleep(0.02)
        pytest.fail(self.process.communicate()[1])

    def ranks(self) -> list[int]:
        """The process ids of both ranks, once they have started."""
        ranks: dict[int, int] = {}
        while sorted(ranks) != [0, 1]:
            assert self.process.poll() is None, self.process.communicate()[1]
            for child in psutil.Process(self.process.pid).children():
                # Skip children that have ended or have no RANK: they are not ranks.
                with suppress(psutil.NoSuchProcess, KeyError):
                    ranks[int(child.environ()["RANK"])] = child.pid
        self._seen = [ranks[0], ranks[1]]
        return self._seen

    def end(self) -> tuple[int, str]:
        """The exit code and the output, once all ranks seen by `ranks` have ended."""
        _, output = self.process.communicate(timeout=300)
        for _ in range(600):
            if not any(Path(f"/proc/{rank}").exists() for rank in self._seen):
                return self.process.returncode, output
            time.sleep(0.1)
        pytest.fail("a process outlived its job")


def uninterrupted() -> dict[str, bytes]:
    """The outputs of an uninterrupted training."""
    together(train_stage2, Job.settings)
    found = trainings.outputs("stage2")
    for path in trainings.OUTPUTS:
        Path(path.format("stage2")).unlink()
    return found


@pytest.mark.parametrize(
    ("codes", "kind", "words"),
    [
        # In the order in which the agent notices them: the peer of a killed process may come first.
        ({1: 1, 0: -9}, Interrupted, "process 0 of 2 was killed by SIGKILL"),
        ({0: 1, 1: -15}, Interrupted, "process 1 of 2 was killed by SIGTERM"),
        ({1: 1, 0: EXIT_RESUMABLE}, Interrupted, "stopped and saved"),
        ({1: 1, 0: EXIT_USER_ERROR}, UserError, "process 0 of 2 failed; its message is above"),
        ({1: 1, 0: 1}, UserError, "process 1 of 2 failed; its traceback is above"),
    ],
)
def test_the_error_of_a_job_names_the_process_that_caused_it(
    codes: dict[int, int], kind: type[Exception], words: str
) -> None:
    failures = {
        rank: ProcessFailure(local_rank=rank, pid=1, exitcode=code, error_file="")
        for rank, code in codes.items()
    }
    error = distributed.job_error("train stage2", ChildFailedError("goal", failures), 2)
    assert type(error) is kind
    assert words in str(error)


@pytest.mark.parametrize(
    "death",
    [
        "first",
        *(pytest.param(one, marks=pytest.mark.slow) for one in ("second", "launcher", "term", "term to all")),
    ],
)
def test_a_killed_job_ends_and_resumes_to_the_same_bytes(death: str) -> None:
    expected = uninterrupted()
    job = Job()
    job.wait_for_steps(3)
    first, second = job.ranks()
    victim = {"first": first, "second": second}.get(death, job.process.pid)
    os.kill(victim, signal.SIGTERM if death.startswith("term") else signal.SIGKILL)
    if death == "term to all":
        # As schedulers do: to the launcher, which forwards it, and to the processes themselves.
        for rank in (first, second):
            os.kill(rank, signal.SIGTERM)
    code, output = job.end()
    if death in ("first", "second"):
        assert f"process {int(death == 'second')} of 2 was killed by SIGKILL" in output
        assert "run the same command to resume" in output
    if death.startswith("term"):
        assert "stage2: saved after step" in output
    if death != "launcher":
        assert code == EXIT_RESUMABLE
    assert Job().end()[0] == 0
    assert trainings.outputs("stage2") == expected


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_processes_killed_at_random_points_end_with_the_same_bytes() -> None:
    expected = uninterrupted()
    draw, killed = random.Random(0), 0
    while killed < 6:
        for _ in range(draw.randint(1, 2)):
            job = Job()
            ranks = job.ranks()
            job.wait_for_steps(draw.randint(1, 12))
            time.sleep(draw.uniform(0, 0.1))
            with suppress(ProcessLookupError):
                os.kill(draw.choice(ranks), signal.SIGKILL)
            code, output = job.end()
            assert code in (EXIT_RESUMABLE, 0), output
            killed += code == EXIT_RESUMABLE
        assert Job().end()[0] == 0
        assert trainings.outputs("stage2") == expected
