"""What the servers and the schedule cost, and how soon a cancelled run is over, on a handful of scenes.

    python -m benchmarks.flows            # all parts, as a Markdown table and benchmarks/results/flows.json
    python -m benchmarks.flows up cancel  # some of: up overhead cancel; the others' results stay

| part | measures |
|---|---|
| up | `make up` from nothing, and again |
| overhead | goal/train from the command to its end, less `dvc repro` alone; and again, with nothing stale |
| cancel | ten times: `prefect flow-run cancel` in the middle of a training until no process of it is left |
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from benchmarks.live import TINY, Project, serving
from flows.checkout import overridden

RESULTS = Path("benchmarks/results/flows.json")
TIMES = 10


def main() -> None:
    parts = {"up": up, "overhead": overhead, "cancel": cancel}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="parts to run; all by default")
    chosen = parser.parse_args().parts
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as project:
        for part in chosen or parts:
            results[part] = parts[part](project)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print("| part | what | seconds |\n|---|---|---|")
    for part, found in results.items():
        for what, seconds in found.items():
            print(f"| {part} | {what} | {' '.join(f'{one:.1f}' for one in seconds)} |")


def clocked(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return round(time.monotonic() - began, 1)


def up(project: Project) -> dict[str, list[float]]:
    project.say(sys.executable, "-m", "infra.servers", "down")
    return {what: [clocked(project.up)] for what in ("make up", "make up, again")}


def overhead(project: Project) -> dict[str, list[float]]:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        plain = Project(Path(folder) / "plain")
        file = plain.root / "params.yaml"
        file.write_text(yaml.safe_dump(overridden(yaml.safe_load(file.read_text()), TINY)))
        for when in ("all stale", "nothing stale"):
            alone = clocked(lambda: plain.say("dvc", "repro"))
            flow = clocked(lambda: completed(project))
            found |= {f"{when}: dvc repro": [alone], f"{when}: goal/train": [flow]}
            found[f"{when}: difference"] = [round(flow - alone, 1)]
    return found


def completed(project: Project) -> None:
    run = project.start("goal/train", overrides=TINY)
    if project.ended(run) != "COMPLETED":
        raise SystemExit(f"goal/train ended otherwise: {project.state(run)}")


def cancel(project: Project) -> dict[str, list[float]]:
    found = []
    for _ in range(TIMES):
        run = project.training()
        found.append(clocked(lambda run=run: project.cancelled(run)))
        if project.ended(run) != "CANCELLED":
            raise SystemExit(f"a cancelled run ended otherwise: {project.state(run)}")
    return {f"cancel to idle, {TIMES} times": sorted(found)}


if __name__ == "__main__":
    main()
