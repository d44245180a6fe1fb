"""A stage as a child process, with real DVC: how it ends, and that no process of it outlives the flow."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from flows import stage
from flows.stage import StageError, TransientError
from tests.imports import ROOT
from tests.servers import alive

LIMIT = 60.0
# A stage with a child in another session, like torchrun's ranks; it writes both process ids to a file.
FAMILY = """
    import os, pathlib, signal, subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    def save(number, frame):
        pathlib.Path("saved").write_text("checkpoint")
        sys.exit(75)
    signal.signal(signal.SIGTERM, save)
    pathlib.Path("pids.tmp").write_text(f"{os.getpid()} {child.pid}")
    os.replace("pids.tmp", "pids")
    print("working", flush=True)
    time.sleep(600)
"""
STAGES = {
    "works": "print(*range(900), 'all', sep='\\r'); open('out', 'w').write('done')",
    "wrong": "import sys; print('goal: params.yaml: seed: missing'); sys.exit(2)",
    "down": "import sys; print('goal: MLflow does not answer'); sys.exit(69)",
    "stopped": "import sys; print('goal: saved at step 7'); sys.exit(75)",
    "family": textwrap.dedent(FAMILY),
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of five stages, each a small program."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = True\n    analytics = false\n")
    lines = ["stages:"]
    for name, program in STAGES.items():
        (tmp_path / f"{name}.py").write_text(program)
        lines += [f"  {name}:", f"    cmd: python {name}.py", f"    deps: [{name}.py]"]
        lines += ["    outs: [out]"] if name == "works" else []
    (tmp_path / "dvc.yaml").write_text("\n".join(lines) + "\n")
    return tmp_path


def run(project: Path, name: str, limit: float = LIMIT) -> tuple[bool, list[str]]:
    lines: list[str] = []
    return stage.run(project, name, lines.append, limit), lines


def gone(pids: list[int], seconds: float = 30.0) -> bool:
    """Whether all these processes end within the time."""
    processes = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            processes.append(psutil.Process(pid))
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(map(alive, processes)):
            return True
        time.sleep(0.1)
    return False


def pids_of(project: Path) -> list[int]:
    until = time.monotonic() + LIMIT
    while not (project / "pids").exists():
        assert time.monotonic() < until, "the stage did not start"
        time.sleep(0.05)
    return [int(number) for number in (project / "pids").read_text().split()]


def test_a_stage_runs_once_and_is_then_skipped(project: Path) -> None:
    ran, lines = run(project, "works")
    assert ran
    assert "all" in lines, "the last state of a progress bar"
    assert "500" not in lines, "not every state"
    assert (project / "out").read_text() == "done"
    ran, lines = run(project, "works")
    assert not ran
    (project / "out").unlink()
    ran, lines = run(project, "works")
    assert not ran, "taken from the cache"
    assert (project / "out").read_text() == "done"


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("wrong", StageError, "wrong: goal: params.yaml: seed: missing"),
        ("down", TransientError, "down: goal: MLflow does not answer"),
        ("stopped", TransientError, "stopped: goal: saved at step 7"),
    ],
)
def test_the_exit_code_decides_whether_to_retry(
    project: Path, name: str, kind: type[StageError], words: str
) -> None:
    with pytest.raises(StageError) as error:
        run(project, name)
    assert type(error.value) is kind
    assert str(error.value) == words


def test_the_time_limit_lets_the_stage_save_and_ends_the_whole_family(project: Path) -> None:
    with pytest.raises(StageError, match="family: not done after 6 s; run it again to resume") as error:
        stage.command(project, "family", ["family.py"], [].append, 6.0)
    assert not isinstance(error.value, TransientError)
    assert (project / "saved").read_text() == "checkpoint"
    assert gone(pids_of(project))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals the death of the parent")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["kill -9", "terminate"])
def test_nothing_outlives_the_flow(project: Path, how: signal.Signals) -> None:
    program = f"""
        from pathlib import Path
        from flows import stage
        stage.run(Path({str(project)!r}), "family", print, 600)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        pids = pids_of(project)
        family = [member.pid for member in psutil.Process(parent.pid).children(recursive=True)]
        parent.send_signal(how)
        parent.wait(LIMIT)
    finally:
        parent.kill()
        parent.wait()
    assert gone(pids + family)
    assert (project / "saved").read_text() == "checkpoint", "it was asked to save before it was killed"


def test_a_killed_dvc_leaves_no_orphan(project: Path) -> None:
    """The guard adopts the processes that the command leaves behind."""
    program = """
        import os, pathlib, signal, subprocess, sys, time
        subprocess.Popen([sys.executable, "family.py"])
        while not pathlib.Path("pids").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    with pytest.raises(StageError):
        stage.command(project, "killed", ["-c", textwrap.dedent(program)], [].append, LIMIT)
    assert gone(pids_of(project))
