"""CPU seconds of short commands, to their first word on a terminal and in all.

    python -m benchmarks.cold_start                     # of the code here, after `make demo`
    python -m benchmarks.cold_start --of COMMIT         # of another commit's code, on the same results

CPU seconds, since other work on the machine hardly changes them. The rounds alternate; the median counts.
"""

import argparse
import os
import pty
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

import psutil

from benchmarks import figures

ROOT = Path(__file__).parents[1]
COMMANDS = ("--help", "check", "table", "compare stage2 global", "promote --dry-run")
RESULTS = ("params.yaml", "presets", "metrics", "dvc.yaml", "dvc.lock", "mlflow.db")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--of", help="a commit; default: the code here")
    parser.add_argument("--project", type=Path, default=ROOT, help="a folder in which `make demo` has run")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    measured: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch, _code(options.of) as code:
        for name in RESULTS:
            _copy(options.project / name, Path(scratch) / name)
        for _ in range(options.rounds + 1):
            for words in COMMANDS:
                first, whole = seconds(words.split(), Path(scratch), code)
                measured[f"goal {words}, first word"].append(first)
                measured[f"goal {words}"].append(whole)
    # The first round fills the caches of disk and bytecode.
    found = [(name, median(took[1:])) for name, took in measured.items()]
    settings = {"of": options.of or "the code here", "rounds": options.rounds}
    figures.tell("cold_start", f"CPU seconds, {options.of or 'now'}", settings, found)


def seconds(words: list[str], folder: Path, code: Path) -> tuple[float, float]:
    """CPU seconds of `goal <words>` on a terminal: until its first word, and until its end."""
    terminal, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(code), "MLFLOW_TRACKING_URI": ""}
    command = [sys.executable, "-m", "goal", *words]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.read(terminal, 1)
    spent = psutil.Process(process.pid).cpu_times()
    with suppress(OSError):  # Linux says so at the end
        while os.read(terminal, 4096):
            pass
    os.close(terminal)
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0
    return spent.user + spent.system, usage.ru_utime + usage.ru_stime


@contextmanager
def _code(commit: str | None) -> Iterator[Path]:
    """A folder with the code of a commit, or of this one."""
    if commit is None:
        yield ROOT
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "code"
        subprocess.run(["git", "worktree", "add", "--detach", str(place), commit], cwd=ROOT, check=True)
        try:
            yield place
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(place)], cwd=ROOT, check=True)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.exists():
        shutil.copy2(source, target)


if __name__ == "__main__":
    main()
