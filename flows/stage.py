"""Run one DVC stage as a child process: its output line by line, its end as one of three outcomes."""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil

from goal.errors import EXIT_RESUMABLE, EXIT_TRANSIENT, EXIT_USER_ERROR

GRACE_SECONDS = 25  # a trainer's last checkpoint; Prefect kills the rest of the group after 30
PR_SET_PDEATHSIG = 1


class StageError(Exception):
    """A stage failed; trying again changes nothing."""


class TransientError(StageError):
    """A stage failed for a reason that may pass: a download, a server, a pre-emption."""


def run(root: Path, stage: str, log: Callable[[str], None], limit_seconds: float) -> bool:
    """`dvc repro --single-item stage` in `root`; True if it ran, False if DVC found nothing to do.

    Raises TransientError or StageError with the stage's last words; past `limit_seconds` the stage is asked
    to save and stop, and StageError says so.
    """
    command = ["dvc", "--wait-for-lock", "repro", "--single-item", stage]
    process = subprocess.Popen(
        command,
        cwd=root,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )
    late = threading.Event()
    alarm = threading.Timer(limit_seconds, lambda: (late.set(), _stop(process)))
    alarm.start()
    lines: list[str] = []
    try:
        for line in process.stdout or ():
            # A progress bar rewrites its line; only its last state is worth keeping.
            words = line.rstrip("\n").split("\r")[-1]
            if words:
                lines.append(words)
                log(words)
        code = process.wait()
    finally:
        alarm.cancel()
        _stop(process)
    if late.is_set():
        raise StageError(f"{stage}: not done after {limit_seconds:.0f} s; run it again to resume")
    if code:
        raise _failure(stage, lines)
    return not any("didn't change, skipping" in line for line in lines)


def _failure(stage: str, lines: list[str]) -> StageError:
    text = "\n".join(lines)
    codes = re.findall(r"exited with (-?\d+)", text)
    code = int(codes[-1]) if codes else EXIT_USER_ERROR
    words = [line for line in lines if line.startswith("goal: ")] or lines[-3:]
    kind = TransientError if code in (EXIT_TRANSIENT, EXIT_RESUMABLE) else StageError
    return kind(f"{stage}: {' '.join(words) or 'no output'}")


def _stop(process: subprocess.Popen) -> None:
    """End the stage's whole family: DVC, told alone, would leave the trainer running."""
    if process.poll() is not None:
        return
    try:
        root = psutil.Process(process.pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family[1:] or family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.terminate()
    _, alive = psutil.wait_procs(family, timeout=GRACE_SECONDS)
    for survivor in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            survivor.kill()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
