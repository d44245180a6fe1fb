"""A checkout of its own for a flow run: the user's files stay untouched and the result is a branch."""

import copy
import fcntl
import hashlib
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from dvc.repo import Repo

from goal import config
from goal.errors import UserError

BRANCHES = "runs"
PLACE = Path(".dvc") / "tmp" / "flows"
PRESET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
# The commit's author: a worker's account need not have told git a name.
AUTHOR = ("-c", "user.name=goal flow", "-c", "user.email=goal@localhost")
TIMEOUT_SECONDS = 120


def overridden(params: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A copy of `params` with each `section.field=value` put in; values are YAML, the whole is validated.

    Raises UserError for a field that does not exist or a value of the wrong type.
    """
    params = copy.deepcopy(params)
    for text in overrides:
        field, sign, value = text.partition("=")
        *path, last = field.strip().split(".")
        section: Any = params
        for part in path:
            section = section.get(part) if isinstance(section, dict) else None
        if not sign or not isinstance(section, dict) or last not in section:
            raise UserError(f"override {text!r}: expected section.field=value with a field of params.yaml")
        try:
            section[last] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"override {text!r}: the value is not YAML") from error
    config.parse(params, "overrides" if overrides else "params")
    return params


def prepare(home: Path, preset: str | None, overrides: list[str]) -> Path:
    """A worktree of the current commit with the chosen parameters, under .dvc/tmp, sharing DVC's cache.

    The same commit, preset and overrides give the same worktree and branch, so that a run that died is
    resumed in it and a finished one is found again. Raises UserError for a preset or override that cannot be.
    """
    if preset and not PRESET.fullmatch(preset):
        raise UserError(f"preset {preset!r}: expected the name of a file of presets/, without .yaml")
    commit = _git(home, "rev-parse", "HEAD")
    source = f"presets/{preset}.yaml" if preset else "params.yaml"
    text = _git(home, "show", f"{commit}:{source}") + "\n"
    values = overridden(yaml.safe_load(text), overrides)
    content = yaml.safe_dump(values, sort_keys=False) if overrides else text
    name = hashlib.sha256(f"{commit}\n{content}".encode()).hexdigest()[:12]
    root = home / PLACE / name
    if not root.exists():
        branch = f"{BRANCHES}/{name}"
        known = _git(home, "branch", "--list", branch)
        start = (branch,) if known else (commit,)
        _git(home, "worktree", "prune")
        _git(home, "worktree", "add", *(() if known else ("-b", branch)), str(root), *start)
    # Each time: an earlier start may have been killed between the two.
    _configure(home, root)
    (root / "params.yaml").write_text(content, encoding="utf-8")
    return root


@contextmanager
def held(root: Path) -> Iterator[None]:
    """Within, no other flow run works in this worktree. Raises UserError where one does."""
    with root.with_suffix(".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another flow run has the same commit and parameters ({root.name})") from error
        yield


def keep(root: Path, message: str) -> str:
    """Commit parameters, dvc.lock and metrics on the worktree's branch, if any changed; the branch's name."""
    _git(root, "add", "--all")
    if _git(root, "status", "--porcelain"):
        _git(root, *AUTHOR, "commit", "--quiet", "--no-verify", "-m", message)
    return f"{BRANCHES}/{root.name}"


def drop(home: Path, root: Path) -> None:
    """Remove a worktree; its branch and what DVC cached stay."""
    _git(home, "worktree", "remove", "--force", str(root))


def _git(folder: Path, *words: str) -> str:
    return _run(folder, "git", *words)


def _configure(home: Path, root: Path) -> None:
    """One cache for all; and no word from DVC on what to add to git, since `keep` does."""
    with Repo(str(home)) as repo:
        place = repo.cache.local_cache_dir
    with Repo(str(root)) as repo, repo.config.edit("local") as own:
        own["cache"] = {"dir": place}
        own["core"] = {"autostage": True}


def _run(folder: Path, *command: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    result = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    if result.returncode:
        said = " ".join(result.stderr.split()) or f"exit code {result.returncode}"
        raise UserError(f"{' '.join(command[-3:])}: {said}")
    return result.stdout.strip()
