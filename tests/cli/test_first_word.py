"""On a terminal, a verb that takes seconds to load says so first; a log gets no such line."""

import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from goal.cli import main
from tests.imports import ROOT


@pytest.mark.parametrize(("words", "heavy"), [(["check"], "torch"), (["promote", "--dry-run"], "mlflow")])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_slow_verb_says_so_before_it_loads(
    words: list[str], heavy: str, terminal: bool, tmp_path: Path
) -> None:
    # In place of the heavy package: tells that it would be loaded now, and ends.
    (tmp_path / f"{heavy}.py").write_text("import sys\nsys.exit('loaded')\n")
    own, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "goal", *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        stdout=subprocess.DEVNULL,
        stderr=theirs if terminal else subprocess.PIPE,
    )
    os.close(theirs)
    said = b"" if terminal else process.stderr.read()
    with suppress(OSError):  # Linux says so at the end
        while terminal and (more := os.read(own, 4096)):
            said += more
    os.close(own)
    process.wait()
    first = [f"goal {words[0]}: loading ..."] if terminal else []
    assert said.decode().split("\r\n" if terminal else "\n")[:-1] == [*first, "loaded"]


def test_every_slow_verb_is_a_verb() -> None:
    verbs = {verb.name or verb.callback.__name__.replace("_", "-") for verb in main.app.registered_commands}
    assert verbs >= main.SLOW
