"""`goal init`: a folder in which `dvc repro` runs, without a clone of goal's repository."""

import subprocess
from pathlib import Path
from typing import Annotated

import typer

from goal.config import presets
from goal.errors import UserError
from goal.runtime import files

TEMPLATES = presets.PACKAGED.with_name("project")
# What a project holds, and where the package keeps it. In a clone these are links to the clone's own files;
# DVC's configuration is a copy, since that of a clone may name a private remote. A dvc.yaml in the package
# would be a second graph to DVC.
FILES = {
    ".dvc/.gitignore": TEMPLATES / "dvc-gitignore",
    ".dvc/config": TEMPLATES / "dvc-config",
    ".gitignore": TEMPLATES / "gitignore",
    "Makefile": TEMPLATES / "Makefile",
    "dvc.yaml": TEMPLATES / "stages.yaml",
    "params.yaml": presets.PACKAGED / f"{presets.DEFAULT}.yaml",
    "prefect.toml": TEMPLATES / "prefect.toml",
    "prefect.yaml": TEMPLATES / "prefect.yaml",
}
# git need not know the user's name.
COMMIT = ("-c", "user.name=goal init", "-c", "user.email=goal@localhost", "commit", "--quiet", "--no-verify")


def init(folder: Annotated[Path, typer.Argument(help="a new folder, or one without these files")]) -> None:
    """Write a project: graph, parameters, deployments and Makefile, in a git repository of its own."""
    taken = [name for name in FILES if (folder / name).exists()]
    if taken:
        raise UserError(f"{folder / taken[0]}: exists; `goal init` writes a project only where there is none")
    for name, template in FILES.items():
        files.make_folder((folder / name).parent)
        files.write_text(folder / name, template.read_text(encoding="utf-8"))
    if not (folder / ".git").exists():
        _git(folder, "init", "--quiet")
        # A record names the commit of what made it, and flows run what is committed.
        _git(folder, "add", "--", *FILES)
        _git(folder, *COMMIT, "-m", "goal init")
    typer.echo(f"{folder} is a project now; next: cd there, goal check, then dvc repro")


def _git(folder: Path, *words: str) -> None:
    try:
        subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True, timeout=60)
    except FileNotFoundError as error:
        raise UserError("git is not installed; DVC and the record of runs need it") from error
    except subprocess.CalledProcessError as error:
        raise UserError(f"{folder}: git {words[0]}: {' '.join(error.stderr.split())}") from error
