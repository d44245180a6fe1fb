"""A checkout of its own for a flow run: the user's files stay untouched and the result is a branch."""

import copy
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from dvc.config_schema import RelPath
from dvc.repo import Repo

from flows import guard
from goal import config
from goal.config import presets
from goal.config.schema import from_text
from goal.errors import UserError
from goal.runtime import locks

BRANCHES = "runs"
PLACE = Path(".dvc") / "tmp" / "flows"
# Git-ignored, in a checkout: written last, so that a checkout without it was not made whole.
MADE = Path(".dvc") / "tmp" / "made"
CONFIG = Path(".dvc") / "config.local"
# The commit's author: git need not know a name for the worker's account.
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


@contextmanager
def held(home: Path, preset: str | None, overrides: list[str], log: Callable[[str], None]) -> Iterator[Path]:
    """A worktree of the current commit with the chosen parameters, under .dvc/tmp, sharing DVC's cache.

    The same commit, preset and overrides give the same worktree and branch: a killed run resumes there, and a
    finished one is found again. Of two such runs at the same time, the second one waits. Raises UserError for
    an unknown preset or a wrong override.
    """
    commit = git(home, "rev-parse", "HEAD")
    left_out = git(home, "diff", "--name-only", "HEAD").splitlines()
    if left_out:
        log(f"uncommitted, and no part of this run: {', '.join(left_out[:10])}")
    content = _parameters(home, commit, preset, overrides)
    name = hashlib.sha256(f"{commit}\n{content}".encode()).hexdigest()[:12]
    root = home / PLACE / name
    busy = f"another flow run has the same commit and parameters ({name}): waiting"
    with locks.held(root.with_suffix(".lock"), partial(log, busy)):
        if not (root / MADE).exists():
            _make(home, root, commit)
        # Also in a checkout that a run left: the user's cache may have moved since.
        _configure(home, root)
        (root / MADE).parent.mkdir(exist_ok=True)
        (root / MADE).touch()
        (root / "params.yaml").write_text(content, encoding="utf-8")
        yield root


def _parameters(home: Path, commit: str, preset: str | None, overrides: list[str]) -> str:
    """The text of params.yaml for a run; with a preset, what `goal use` would write at that commit."""
    text = _show(home, commit, "params.yaml")
    if preset:
        folder = str(presets.FOLDER)
        found = git(home, "ls-tree", "--name-only", commit, f"{folder}/").splitlines()
        texts = {path.stem: path.read_text(encoding="utf-8") for path in presets.PACKAGED.glob("*.yaml")}
        texts |= {Path(file).stem: _show(home, commit, file) for file in found if file.endswith(".yaml")}
        if preset not in texts:
            raise UserError(f"no preset {preset!r} in the commit; there are: {', '.join(sorted(texts))}")
        text, _ = presets.applied(preset, texts, from_text(text, "params.yaml"), home)
    values = from_text(text, "params.yaml")
    changed = overridden(values, overrides)
    return presets.absolute(presets.complete(text, text, changed) if changed != values else text, home)


def _show(home: Path, commit: str, file: str) -> str:
    return git(home, "show", f"{commit}:{file}") + "\n"


def branch(root: Path) -> str:
    """The branch of a worktree."""
    return f"{BRANCHES}/{root.name}"


def keep(root: Path, message: str) -> None:
    """Commit parameters, dvc.lock and metrics on the worktree's branch, if any changed."""
    git(root, "add", "--all")
    if git(root, "status", "--porcelain"):
        git(root, *AUTHOR, "commit", "--quiet", "--no-verify", "-m", message)


def drop(home: Path, root: Path) -> None:
    """Remove a worktree; its branch and what DVC cached stay.

    Raises UserError, and removes nothing, where its results are not in the project's cache.
    """
    with Repo(str(home)) as mine, Repo(str(root)) as its:
        if (kept := its.cache.local_cache_dir) != mine.cache.local_cache_dir:
            raise UserError(f"{root}: its results are in {kept}, not in the project's cache; run it again")
    discard(home, root)


def discard(home: Path, root: Path) -> None:
    """Remove a worktree, whole, half made or lost, but not its branch; its lock must be held.

    Raises UserError where the disk refuses.
    """
    for words in (("unlock",), ("remove", "--force")):  # git locks one while it is being made
        with suppress(UserError):
            git(home, "worktree", *words, str(root))
    shutil.rmtree(root, ignore_errors=True)
    git(home, "worktree", "prune")
    if root.exists():
        raise UserError(f"{root}: cannot be removed")


def _make(home: Path, root: Path, commit: str) -> None:
    discard(home, root)
    known = git(home, "branch", "--list", branch(root))
    start = (str(root), branch(root)) if known else ("-b", branch(root), str(root), commit)
    # Twice: also if git has the branch down as checked out there, in a worktree that a kill left half made.
    words = ("git", "worktree", "add", "--force", "--force", *start)
    # Guarded: else git would go on after a kill of this process, while the next run makes the checkout anew.
    _run(home, sys.executable, guard.__file__, str(os.getpid()), *words)


def _configure(home: Path, root: Path) -> None:
    """Have the worktree use the user's DVC cache, and DVC stage what it changes in git."""
    with Repo(str(home)) as repo:
        # Relative to the worktree: DVC writes its configuration in ASCII, which the full path need not be.
        folder = RelPath(repo.cache.local_cache_dir)
        cache = {**repo.config.load_one("local").get("cache", {}), "dir": folder}
    (root / CONFIG).unlink(missing_ok=True)  # a kill may have left a part of it
    with Repo(str(root)) as repo, repo.config.edit("local") as own:
        own["cache"] = cache
        own["core"] = {"autostage": True}


def git(folder: Path, *words: str) -> str:
    """The output of a git command in `folder`; raises UserError with what git said."""
    return _run(folder, "git", *words)


def _run(folder: Path, *words: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    result = subprocess.run(
        words,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    if result.returncode:
        said = " ".join(result.stderr.split()) or f"exit code {result.returncode}"
        raise UserError(f"{' '.join(words[-3:])}: {said}")
    return result.stdout.strip()
