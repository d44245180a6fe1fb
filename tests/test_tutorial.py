"""docs/tutorial.md: its commands run word by word, one after the other, in one shell."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from goal.config import presets
from goal.datasets.scenes import SceneKey, draw
from tests.imports import ROOT

PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE, re.M | re.S)
# What a test cannot run, and why.
LEFT_OUT = {
    "python3 -m venv goal-env": "needs the registry of packages; tests/test_project.py installs the wheel",
    "goal app": "serves until it is stopped; tests/search/test_app.py opens it in a browser",
    "make ui": "serves until it is stopped; tests/flows/test_smoke.py",
    "goal use own-data-b16": "downloads weights and needs a GPU; tests/config/test_presets.py reads it",
}
PICTURES = 80


def photographs(folder: Path) -> None:
    """Drawn scenes in the place of a user's photographs, which the embedded network can tell apart."""
    (folder / "images").mkdir(parents=True)
    params = presets.load("scenes")
    with (folder / "captions.jsonl").open("w") as file:
        for number in range(PICTURES):
            # Four scenes in a row are look-alikes.
            (row,) = draw(params, folder, SceneKey("train", 4 * number, False))["train"]
            image = f"images/{Path(row.image).name}"
            file.write(json.dumps({"image": image, "caption": row.captions[0]}) + "\n")


def test_each_command_left_out_is_on_the_page() -> None:
    assert [block for block in BLOCKS if block.splitlines()[0] in LEFT_OUT] == [
        block for first in LEFT_OUT for block in BLOCKS if block.startswith(f"{first}\n")
    ]
    assert len(BLOCKS) > len(LEFT_OUT)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_from_a_folder_of_pictures_to_a_promoted_model_and_a_search(tmp_path: Path) -> None:
    photographs(tmp_path / "photos")
    script = "".join(block for block in BLOCKS if block.splitlines()[0] not in LEFT_OUT)
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    who = {
        f"GIT_{part}_{name}": "me@localhost" for part in ("AUTHOR", "COMMITTER") for name in ("NAME", "EMAIL")
    }
    environment = {**os.environ, "HOME": str(tmp_path), "PATH": tools, "PYTHONPATH": str(ROOT), **who}
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    project = tmp_path / "my-photos"
    # What the page shows of `goal check`.
    shown = PAGE.partition("goal check` reads")[2].partition("```text\n")[2].partition("```")[0]
    for line in shown.splitlines():
        assert line.partition(" ...")[0] in done.stdout
    store = f"sqlite:///{project / 'mlflow.db'}"
    champion = MlflowClient(store, store).get_model_version_by_alias("goal", "champion")
    assert int(champion.version) == 1
    assert len(re.findall(r"^-?0\.\d{3}  .*\.png$", done.stdout, re.M)) == 3
    assert (project / "reports" / "index.html").exists()
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=project, capture_output=True, text=True, check=True
    )
    assert status.stdout == ""
