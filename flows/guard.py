"""Run a command and end all that it started, however this process itself is ended (Linux: also by kill -9).

Used as a program: `python guard.py <parent's process id> <command> ...`. It stands between a flow and DVC,
which would end without its trainer if it alone got a signal. It imports nothing of the project: the checkout
in which it runs may hold another version.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import psutil

# For a trainer's last checkpoint; Prefect kills what is left of a cancelled run after 30.
GRACE_SECONDS = float(os.environ.get("GOAL_GRACE_SECONDS", "22"))
LAST_SECONDS = 2.0  # for what does not belong to the stage's own process
STOPS = (signal.SIGTERM, signal.SIGINT)
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_SHELLS = {"sh", "dash", "bash"}


def main(parent: int, command: list[str]) -> int:
    """Run `command` to its end or until a signal; its exit code, or 128 + signal."""
    _tell_kernel(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # An orphan of the command becomes a child of this process, so that none is lost.
    _tell_kernel(_PR_SET_CHILD_SUBREAPER, 1)
    for number in STOPS:
        signal.signal(number, signal.default_int_handler)
    if os.getppid() != parent:
        return 128 + signal.SIGTERM
    process = None
    try:
        die_with_parent = partial(_tell_kernel, _PR_SET_PDEATHSIG, signal.SIGTERM)
        process = subprocess.Popen(command, preexec_fn=die_with_parent)
        return process.wait()
    except KeyboardInterrupt:
        return 128 + signal.SIGTERM
    finally:
        for number in STOPS:
            signal.signal(number, signal.SIG_IGN)
        if process is not None:
            _end(process)


def _end(process: subprocess.Popen) -> None:
    """Ask the stage to save and stop, let DVC see its end, then end whatever is left."""
    if process.poll() is None:
        for member in _stage(psutil.Process(process.pid)):
            with contextlib.suppress(psutil.NoSuchProcess):
                member.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    rest = psutil.Process().children(recursive=True)
    for member in rest:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.terminate()
    for survivor in psutil.wait_procs(rest, timeout=LAST_SECONDS)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            survivor.kill()


def _stage(process: psutil.Process) -> list[psutil.Process]:
    """The processes that do the work: those below DVC and the shell it uses; else the process itself.

    Only these get the signal: a trainer takes a second one, forwarded by its own parent, as "end at once".
    """
    try:
        waits = process.name() in _SHELLS or any(Path(word).name == "dvc" for word in process.cmdline()[:3])
        children = process.children() if waits else []
    except psutil.NoSuchProcess:
        return []
    return [member for child in children for member in _stage(child)] or [process]


def _tell_kernel(what: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(what, value)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
