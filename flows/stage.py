"""Run a DVC stage or another command as a child: log its output, and tell permanent from transient errors."""

import io
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from flows import guard
from goal.errors import EXIT_RESUMABLE, EXIT_TRANSIENT

TRANSIENT = {EXIT_TRANSIENT, EXIT_RESUMABLE}
LAST_LINES = 3
BAR_SECONDS = 10.0  # between two logged states of a progress bar
# What DVC prints for a stage whose outs exist, and for one whose outs it restores from its cache.
SKIPPED = ("didn't change, skipping", "is cached - skipping run")


class StageError(Exception):
    """A stage failed; a retry would fail too."""


class TransientError(StageError):
    """A stage failed for a reason that may go away: a download, a server, a pre-emption."""


def run(
    root: Path,
    name: str,
    log: Callable[[str], None],
    limit_seconds: float,
    more: Mapping[str, str] | None = None,
) -> bool:
    """`dvc repro --single-item name` in `root`; True if it ran, False if DVC found nothing to do.

    more: variables for the stage's environment. Raises TransientError or StageError with the stage's last
    lines. After `limit_seconds` the stage is asked to save and stop; that is a StageError too.
    """
    repro = ["-m", "dvc", "--wait-for-lock", "repro", "--single-item", name]
    lines = command(root, name, repro, log, limit_seconds, more)
    return not any(words in line for line in lines for words in SKIPPED)


def command(
    root: Path,
    name: str,
    words: list[str],
    log: Callable[[str], None],
    limit_seconds: float,
    more: Mapping[str, str] | None = None,
) -> list[str]:
    """Run `python words...` in `root`, without a shell, and return its lines of output.

    However this process ends, by an exception or by kill -9, the command and all its children end too.
    """
    # In a session of its own, so that a signal to the flow's group reaches the stage only once: by the guard.
    process = subprocess.Popen(
        [sys.executable, guard.__file__, str(os.getpid()), sys.executable, *words],
        cwd=root,
        env={**_environment(root), **(more or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    late = threading.Event()
    alarm = threading.Timer(limit_seconds, lambda: (late.set(), process.terminate()))
    alarm.start()
    output = io.TextIOWrapper(process.stdout or io.BytesIO(), errors="replace", newline="")
    lines: list[str] = []
    logged = 0.0

    def read() -> None:
        nonlocal logged
        for text in output:
            # A progress bar ends its line with \r and rewrites it many times a second.
            bar, line = text.endswith("\r"), text.strip()
            if not line or (bar and time.monotonic() - logged < BAR_SECONDS):
                continue
            logged = time.monotonic() if bar else logged
            lines.append(line)
            log(line)

    try:
        read()
        code = process.wait()
    finally:
        alarm.cancel()
        if process.poll() is None:
            process.terminate()
            # A stage that waits for a full pipe could not save.
            read()
            process.wait()
    if late.is_set():
        raise StageError(f"{name}: not done after {limit_seconds:g} s; run it again to resume")
    if code:
        raise _failure(name, code, lines)
    return lines


def _environment(root: Path) -> dict[str, str]:
    """The stage uses the tools of this Python, and the code of its own checkout instead of the flow's."""
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**os.environ, "PATH": tools, "PYTHONPATH": str(root), "PYTHONUNBUFFERED": "1"}


def _failure(name: str, code: int, lines: list[str]) -> StageError:
    # DVC exits with 255 for every failure; its output has the stage's own exit code.
    codes = re.findall(r"exited with (-?\d+)", "\n".join(lines))
    code = int(codes[-1]) if codes else code
    words = [line for line in lines if line.startswith("goal: ")] or lines[-LAST_LINES:]
    kind = TransientError if code in TRANSIENT else StageError
    return kind(f"{name}: {' '.join(words) or f'exit code {code}, no output'}")
