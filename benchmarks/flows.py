"""What the servers and the schedule cost, and how soon a cancelled run is over, on a handful of scenes.

    python -m benchmarks.flows            # all parts, as a Markdown table
    python -m benchmarks.flows up cancel  # some of: up overhead cancel

| part | measures |
|---|---|
| up | `make up` from nothing, and again |
| overhead | goal/train from the command to its end, less `dvc repro` alone; and again, with nothing stale |
| cancel | ten times: `prefect flow-run cancel` in the middle of a training until no process of it is left |
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from flows.checkout import overridden
from tests.flows.live import TINY, Project, serving

TIMES = 10


def main() -> None:
    parts = {"up": up, "overhead": overhead, "cancel": cancel}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="parts to run; all by default")
    chosen = parser.parse_args().parts
    print("| what | seconds |\n|---|---|")
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as project:
        for part in chosen or parts:
            for what, seconds in parts[part](project):
                print(f"| {what} | {seconds} |", flush=True)


def clocked(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def up(project: Project) -> Iterator[tuple[str, str]]:
    project.say(sys.executable, "-m", "infra.servers", "down")
    yield "make up", f"{clocked(project.up):.1f}"
    yield "make up, again", f"{clocked(project.up):.1f}"


def overhead(project: Project) -> Iterator[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        plain = Project(Path(folder) / "plain")
        file = plain.root / "params.yaml"
        file.write_text(yaml.safe_dump(overridden(yaml.safe_load(file.read_text()), TINY)))
        for when in ("all stale", "nothing stale"):
            alone = clocked(lambda: plain.say("dvc", "repro"))
            flow = clocked(lambda: project.ended(project.start("goal/train", overrides=TINY)))
            yield f"{when}: goal/train, less dvc repro", f"{flow:.0f} - {alone:.0f} = {flow - alone:.0f}"


def cancel(project: Project) -> Iterator[tuple[str, str]]:
    found = []
    for _ in range(TIMES):
        run = project.training()
        found.append(clocked(lambda run=run: project.cancelled(run)))
    yield f"cancel to idle, {TIMES} times", " ".join(f"{seconds:.0f}" for seconds in sorted(found))


if __name__ == "__main__":
    main()
